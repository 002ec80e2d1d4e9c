"""Cockpit with our page in a world, and a real browser that looks at it from within the world's network."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from fetch import FETCH
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from walking import wait_until

from libvirt_rapl.simulator.world import World

PROGRAM = "/usr/local/bin/virt-rapl"
"""What the page runs."""
ADDRESS, PORT = "127.0.0.1", 9090
PAGE = f"http://{ADDRESS}:{PORT}/cockpit/@localhost/virt-rapl/index.html"
BRIDGE = "/mnt/bridge"
SERVER = "/usr/lib/cockpit/cockpit-ws"
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PATIENCE_MILLISECONDS = 30_000

expect.set_options(timeout=PATIENCE_MILLISECONDS)


@contextmanager
def cockpit(world: World, user: int = 0) -> Iterator[None]:
    """Serve Cockpit in the world to whoever connects, as if this user had logged in."""
    bridge = world.path(BRIDGE)
    bridge.write_text(
        f"#!/bin/sh\nexport LC_ALL=C.UTF-8 HOME=/tmp\n"
        f"exec setpriv --reuid={user} --regid={user} --clear-groups /usr/bin/cockpit-bridge\n"
    )
    bridge.chmod(0o755)
    address = ["--address", ADDRESS, "--port", str(PORT)]
    server = world.popen([SERVER, "--no-tls", *address, f"--local-session={BRIDGE}"])
    try:
        wait_until(lambda: not world.run([*FETCH, "--status", PAGE], check=False).returncode, 30, "Cockpit answers")
        yield
    finally:
        server.kill()
        server.communicate()


@contextmanager
def browser(world: World, directory: Path) -> Iterator[Browser]:
    """Start Chromium in the world's network; it writes to `directory` alone."""
    program = directory / "chromium"
    network = world.path("/proc/1/ns/net")
    program.write_text(f'#!/bin/sh\nexec nsenter --net={network} -- chromium "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=CHROMIUM, env={**os.environ, "HOME": str(directory)}
        )
        try:
            yield chromium
        finally:
            chromium.close()


class Visits:
    """Tabs with the page. What must not happen on any of them fails the test when it ends."""

    def __init__(self, world: World, directory: Path) -> None:
        """Take an empty directory, for the browser."""
        self.world = world
        self.directory = directory
        self.mistakes: list[str] = []
        """Errors in the console, requests to other hosts, dialogs of scripts."""
        self._stack = ExitStack()
        self._chromium: Browser | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        assert kind or not self.mistakes, self.mistakes

    def __call__(
        self,
        view: str = "",
        *,
        user: int = 0,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        language: str = "en-us",
    ) -> Page:
        """Load the page, at a view of it, in a new tab. The first call says which user is logged in."""
        if self._chromium is None:
            self._stack.enter_context(cockpit(self.world, user))
            self._chromium = self._stack.enter_context(browser(self.world, self.directory))
        context = self._chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        context.add_cookies([{"name": "CockpitLang", "value": language, "url": f"http://{ADDRESS}:{PORT}"}])
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        page = context.new_page()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.mistakes.append(f"{error}\n{error.stack}"))
        page.on("request", lambda request: self._requested(request.url))
        page.on("dialog", lambda dialog: self.mistakes.append(f"a dialog: {dialog.message}"))
        page.goto(f"{PAGE}#/{view}")
        return page

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.mistakes.append(f"{message.text} ({message.location})")

    def _requested(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("blob", "data") and (parts.hostname, parts.port) != (ADDRESS, PORT):
            self.mistakes.append(f"a request to {url}")


def text(page: Page, selector: str = "body") -> str:
    """Return the text that is seen, with ordinary spaces."""
    return page.inner_text(selector).replace("\u00a0", " ")
