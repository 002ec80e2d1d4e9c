"""A domain of libvirt: finding one or all of them, and its definitions."""

import contextlib
import uuid
from dataclasses import dataclass, field
from typing import Any

import libvirt

from libvirt_rapl.domains.connection import HINT
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.names import MARK
from libvirt_rapl.errors import VirtRaplError

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

NO_PCI = "No PCI buses available"
"""libvirt's words when a controller for the energy channel is put into a microvm or an isapc machine."""
NO_PCI_HINT = "its machine type has no PCI, and so it cannot have the energy channel"


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
        """Whether it has a definition that outlives it. Raises DomainGoneError, VirtRaplError."""
        try:
            return bool(self.handle.isPersistent())
        except libvirt.libvirtError as error:
            raise self._failure("look at", error) from error

    @property
    def active(self) -> bool:
        """Whether it has a QEMU process, running or paused."""
        return self.id is not None

    def live(self) -> Definition:
        """Return how it runs; its definition when it does not. Raises as definition()."""
        return Definition.parse(self._xml(0))

    def definition(self, *, secrets: bool = False) -> Definition:
        """Return what its next start uses. With `secrets` passwords are in it: needed to define the domain again.

        Raises DomainGoneError when the domain is gone, UnreadableError, VirtRaplError when the connection may not see
        secrets.
        """
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE
        return Definition.parse(self._xml(flags | libvirt.VIR_DOMAIN_XML_SECURE if secrets else flags))

    def define(self, definition: Definition) -> None:
        """Make this what the next start uses. Raises VirtRaplError when libvirt does not accept it."""
        try:
            self.handle.connect().defineXML(definition.xml)
        except libvirt.libvirtError as error:
            hint = NO_PCI_HINT if NO_PCI in str(error) else ""
            raise VirtRaplError(f"libvirt does not accept the definition of {self.name}: {error}", hint) from error

    def attach(self, device: str) -> None:
        """Give it a device as it runs. Raises DomainGoneError, VirtRaplError."""
        try:
            self.handle.attachDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise self._failure("attach a device to", error) from error

    def detach(self, device: str) -> None:
        """Take a device from it as it runs. Raises DomainGoneError, VirtRaplError."""
        try:
            self.handle.detachDeviceFlags(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            raise self._failure("detach a device from", error) from error

    def set_live_mark(self, mark: str | None) -> None:
        """Replace the mark in its metadata as it runs; None removes it. Raises DomainGoneError, VirtRaplError."""
        kind, flags = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        try:
            self.handle.setMetadata(kind, mark, "rapl", MARK, flags)
        except libvirt.libvirtError as error:
            raise self._failure("change the metadata of", error) from error

    def saved(self) -> Definition | None:
        """Return the definition in its managed save, passwords included; None when it is not saved.

        Raises DomainGoneError, UnreadableError, VirtRaplError.
        """
        try:
            if not self.handle.hasManagedSaveImage():
                return None
            return Definition.parse(self.handle.managedSaveGetXMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))
        except libvirt.libvirtError as error:
            raise self._failure("read the saved state of", error) from error

    def snapshots(self) -> dict[str, str]:
        """Return name and XML of each snapshot; the XML has the domain in it. Raises DomainGoneError, VirtRaplError."""
        try:
            return {snapshot.getName(): str(snapshot.getXMLDesc()) for snapshot in self.handle.listAllSnapshots()}
        except libvirt.libvirtError as error:
            raise self._failure("look at the snapshots of", error) from error

    def define_saved(self, definition: Definition) -> None:
        """Replace the definition in its managed save. Raises VirtRaplError when libvirt does not accept it."""
        try:
            self.handle.managedSaveDefineXML(definition.xml)
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
            return DomainGoneError(message, "it has ended, or is being saved right now: see `virsh list --all`")
        return VirtRaplError(message)


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
    """Return the error for a name that no domain has."""
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
