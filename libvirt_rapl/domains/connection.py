"""The connection to libvirt, and its events."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

from libvirt_rapl.errors import VirtRaplError

try:
    import libvirt
except ImportError as missing:
    raise VirtRaplError(
        f"the Python module libvirt cannot be used: {missing}", "install python3-libvirt or pip install libvirt-python"
    ) from missing

LibvirtError = libvirt.libvirtError

OPEN_SECONDS = 10.0
"""How long to wait for a libvirt that hangs; one that has just been started for us needs a few seconds."""
KEEP_ALIVE_SECONDS, KEEP_ALIVE_COUNT = 5, 3
"""A libvirt that has not answered for this long, this many times, counts as lost."""

HINT = "see `systemctl status libvirtd virtqemud`"

_opening = threading.Lock()
"""Held while libvirt is being opened: one that hangs blocks only one thread of ours, however often we try."""


def connect(uri: str, *, read_only: bool = False) -> Any:  # noqa: ANN401  libvirt-python has no types
    """Open libvirt and return its virConnect. Raises VirtRaplError when it does not run, refuses us or hangs.

    A call on the connection fails when libvirt does not answer for KEEP_ALIVE_SECONDS x KEEP_ALIVE_COUNT.
    """
    # libvirt-python prints every error on stderr unless a handler takes it.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    start_events()
    connection = _open(libvirt.openReadOnly if read_only else libvirt.open, uri)
    try:
        if isinstance(connection, libvirt.libvirtError):
            raise connection
        connection.setKeepAlive(KEEP_ALIVE_SECONDS, KEEP_ALIVE_COUNT)
    except libvirt.libvirtError as error:
        # Drivers that live in our own process cannot be lost.
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            hint = "run as root, or join the group libvirt" if os.geteuid() else HINT
            raise VirtRaplError(f"cannot connect to libvirt at {uri}: {error}", hint) from error
    return connection


def _open(call: Callable[[str], Any], uri: str) -> Any:  # noqa: ANN401
    """Return what `call` returns or the libvirtError that it raises. Raises VirtRaplError when it does neither."""
    answers: SimpleQueue[Any] = SimpleQueue()

    def work() -> None:
        try:
            answers.put(call(uri))
        except libvirt.libvirtError as error:
            answers.put(error)
        finally:
            _opening.release()

    with contextlib.suppress(Empty):
        if _opening.acquire(timeout=OPEN_SECONDS):
            threading.Thread(target=work, name="libvirt open", daemon=True).start()
            return answers.get(timeout=OPEN_SECONDS)
    raise VirtRaplError(
        f"libvirt at {uri} does not answer",
        "it hangs; `systemctl restart libvirtd` (or virtqemud) leaves the domains running",
    )


@functools.cache
def start_events() -> None:
    """Start the thread that calls back on libvirt's events, for connections that are opened from now on."""
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_deliver_events, name="libvirt events", daemon=True).start()


def _deliver_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


@contextlib.contextmanager
def subscribed(connection: Any, *, changed: Callable[[str], None], lost: Callable[[], None]) -> Iterator[None]:  # noqa: ANN401
    """Call `changed` with the UUID of each domain whose state, title or metadata changes, and `lost` with libvirt gone.

    Both are called in the thread that delivers events and must return at once. The connection is closed at the end.
    Raises VirtRaplError.
    """
    undo = contextlib.ExitStack()
    with undo:
        undo.callback(_ignoring_errors, connection.close)
        try:
            for event in (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE):
                number = connection.domainEventRegisterAny(
                    None, event, lambda _, domain, *__: changed(domain.UUIDString()), None
                )
                undo.callback(_ignoring_errors, connection.domainEventDeregisterAny, number)
            connection.registerCloseCallback(lambda *_: lost(), None)
            undo.callback(_ignoring_errors, connection.unregisterCloseCallback)
        except libvirt.libvirtError as error:
            # Drivers that live in our own process cannot be lost.
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise VirtRaplError(f"libvirt does not report changes: {error}") from error
        yield


def _ignoring_errors(call: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        call(*arguments)
