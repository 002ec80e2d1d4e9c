"""Commands and messages to systemd, where it runs."""

import contextlib
import os
import socket
from pathlib import Path

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError

NOTIFY_SECONDS = 0.2
"""A systemd that does not listen delays us for no longer."""

SHOW_SECONDS = 10.0
"""A question to systemd may take this long at most."""


def runs() -> bool:
    """Return whether systemd is this machine's init (sd_booted(3))."""
    return Path("/", paths.SYSTEMD).is_dir()


def notify(state: str) -> None:
    """Report our state to the systemd that started us, if any: `READY=1`, `WATCHDOG=1` (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(NOTIFY_SECONDS)
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send(state.encode())


def unit_property(unit: str, name: str) -> str:
    """Return a property of a unit, as `systemctl show` prints it; empty if systemd does not answer."""
    with contextlib.suppress(VirtRaplError):
        return systemctl("show", f"--property={name}", "--value", unit, timeout=SHOW_SECONDS).strip()
    return ""


def systemctl(*arguments: str, timeout: float) -> str:
    """Run `systemctl ARGUMENTS` for at most `timeout` seconds and return what it prints; VirtRaplError if it fails."""
    from libvirt_rapl.commands import run  # here, so that the process of a helper does not wait for it

    return run("systemctl", *arguments, timeout=timeout, hint="`virt-rapl install` puts the units in place")
