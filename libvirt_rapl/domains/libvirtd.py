"""The domains libvirt knows: connecting to it, finding one domain, listing them all, being told of changes."""

import contextlib
import functools
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
NO_JOB, SAVE_JOB = libvirt.VIR_DOMAIN_JOB_NONE, libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE

# virsh's words, so that a state reads the same in both.
STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "no state",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "idle",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "in shutdown",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
}

OPEN_SECONDS = 10.0
"""How long to wait for a libvirt that hangs; one that has just been started for us needs a few."""
KEEP_ALIVE_SECONDS, KEEP_ALIVE_COUNT = 5, 3
"""A libvirt that has not answered for this long, so many times, counts as lost."""

HINT = "`systemctl status libvirtd virtqemud` tells how it is"

_opening = threading.Lock()
"""Held while libvirt is being opened. One that hangs keeps one thread of ours, however often we try."""


class DomainGoneError(VirtRaplError):
    """The domain that is asked about does not exist any more."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One domain as libvirt showed it when it was looked up."""

    name: str
    uuid: str
    """Lower case, with dashes."""
    id: int | None
    """libvirt's number of the running domain; None when it does not run."""
    state: str
    """virsh's word: running, paused, shut off, ..."""
    handle: Any = field(repr=False, compare=False)
    """The libvirt.virDomain."""

    @property
    def persistent(self) -> bool:
        """Tell whether it has a definition that outlives it. Raises DomainGoneError, VirtRaplError."""
        try:
            return bool(self.handle.isPersistent())
        except libvirt.libvirtError as error:
            raise self._failure("look at", error) from error

    @property
    def active(self) -> bool:
        """Tell whether it has a QEMU process, running or paused."""
        return self.id is not None

    def live_xml(self) -> str:
        """XML of the running domain; of the definition when it does not run. Raises DomainGoneError, VirtRaplError."""
        return self._xml(0)

    def inactive_xml(self, *, secrets: bool = False) -> str:
        """XML that the next start uses. With `secrets` passwords are in it: needed to define the domain again.

        Raises DomainGoneError when the domain is gone, VirtRaplError when the connection may not see secrets.
        """
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE
        return self._xml(flags | libvirt.VIR_DOMAIN_XML_SECURE if secrets else flags)

    def define(self, xml: str) -> None:
        """Make this the definition that the next start uses. Raises VirtRaplError when libvirt does not take it."""
        try:
            self.handle.connect().defineXML(xml)
        except libvirt.libvirtError as error:
            raise VirtRaplError(f"libvirt does not take the definition of {self.name}: {error}") from error

    def saved_xml(self) -> str | None:
        """XML that it goes on with from its managed save, passwords included; None when it is not saved.

        Raises DomainGoneError, VirtRaplError.
        """
        try:
            if not self.handle.hasManagedSaveImage():
                return None
            return str(self.handle.managedSaveGetXMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))
        except libvirt.libvirtError as error:
            raise self._failure("read the saved state of", error) from error

    def snapshots(self) -> dict[str, str]:
        """Name and XML of each snapshot, the domain as it was in it. Raises DomainGoneError, VirtRaplError."""
        try:
            return {snapshot.getName(): str(snapshot.getXMLDesc()) for snapshot in self.handle.listAllSnapshots()}
        except libvirt.libvirtError as error:
            raise self._failure("look at the snapshots of", error) from error

    def define_saved(self, xml: str) -> None:
        """Let it go on with this XML from its managed save. Raises VirtRaplError when libvirt does not take it."""
        try:
            self.handle.managedSaveDefineXML(xml)
        except libvirt.libvirtError as error:
            raise self._failure("change the saved state of", error) from error

    def _xml(self, flags: int) -> str:
        try:
            return str(self.handle.XMLDesc(flags))
        except libvirt.libvirtError as error:
            raise self._failure("read the XML of", error) from error

    def _failure(self, attempt: str, error: Any) -> VirtRaplError:  # noqa: ANN401
        message = f"cannot {attempt} domain {self.name}: {error}"
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return DomainGoneError(message, "it has ended, or something saves it just now: `virsh list --all` tells")
        return VirtRaplError(message)


def connect(uri: str, *, read_only: bool = False) -> Any:  # noqa: ANN401  libvirt-python has no types
    """Open libvirt and return its virConnect. Raises VirtRaplError when there is none, or it refuses us or hangs.

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


def lookup(connection: Any, name_or_uuid: str) -> Domain:  # noqa: ANN401
    """Find one domain by its name, else by its UUID. Raises VirtRaplError when there is none."""
    try:
        return _domain(connection.lookupByName(name_or_uuid))
    except libvirt.libvirtError as error:
        _raise_unless_gone(error)
    with contextlib.suppress(ValueError):
        if domain := lookup_uuid(connection, str(uuid.UUID(name_or_uuid))):
            return domain
    raise no_such_domain(name_or_uuid)


def no_such_domain(name_or_uuid: str) -> VirtRaplError:
    """Return the error for a name that the user has got wrong."""
    return VirtRaplError(f"there is no domain {name_or_uuid!r}", "`virsh list --all` shows the names")


def lookup_uuid(connection: Any, uuid: str) -> Domain | None:  # noqa: ANN401
    """Find one domain by its UUID; None when there is none. Raises VirtRaplError when libvirt fails."""
    try:
        return _domain(connection.lookupByUUIDString(uuid))
    except libvirt.libvirtError as error:
        _raise_unless_gone(error)
    return None


def every_domain(connection: Any) -> list[Domain]:  # noqa: ANN401
    """List all domains, running or not, in the order of their names. Raises VirtRaplError when libvirt fails."""
    found = []
    try:
        handles = connection.listAllDomains()
    except libvirt.libvirtError as error:
        raise VirtRaplError(f"cannot list the domains: {error}", HINT) from error
    for handle in handles:
        try:
            found.append(_domain(handle))
        except libvirt.libvirtError as error:
            # A transient domain may end between the two calls.
            _raise_unless_gone(error)
    return sorted(found, key=lambda domain: domain.name)


@functools.cache
def start_events() -> None:
    """Let libvirt call back, from a thread of its own, for connections that are opened from now on."""
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_deliver_events, name="libvirt events", daemon=True).start()


def _deliver_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


@contextlib.contextmanager
def subscribed(connection: Any, *, changed: Callable[[str], None], lost: Callable[[], None]) -> Iterator[None]:  # noqa: ANN401
    """Be told the UUID of each domain whose life, title or metadata changes, and when libvirt is lost.

    Both are called in the thread that delivers events: they may only take note. At the end of it all we hang up.
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
                raise VirtRaplError(f"libvirt does not tell of changes: {error}") from error
        yield


def _ignoring_errors(call: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        call(*arguments)


def _domain(handle: Any) -> Domain:  # noqa: ANN401
    number = handle.ID()
    return Domain(
        name=handle.name(),
        uuid=handle.UUIDString(),
        id=None if number < 0 else number,
        state=STATES.get(handle.state()[0], "no state"),
        handle=handle,
    )


def _raise_unless_gone(error: Any) -> None:  # noqa: ANN401
    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
        raise VirtRaplError(f"libvirt: {error}", HINT) from error
