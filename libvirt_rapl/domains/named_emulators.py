"""The emulators that libvirt and its domains name: each gets a wrapper."""

from typing import Any

from lxml import etree

from libvirt_rapl.domains.connection import LibvirtError
from libvirt_rapl.domains.domain import DomainGoneError, every_domain
from libvirt_rapl.domains.emulator import is_default_wrapper
from libvirt_rapl.domains.names import WRAPPER_SUFFIX
from libvirt_rapl.errors import UnreadableError, VirtRaplError


def named_emulators(connection: Any) -> list[str]:  # noqa: ANN401  libvirt-python has no types
    """Return the emulators of x86_64 KVM guests libvirt and its domains name, no wrappers. Raises VirtRaplError."""
    try:
        capabilities = etree.fromstring(connection.getCapabilities())
    except LibvirtError as error:
        raise VirtRaplError(f"cannot ask libvirt for its capabilities: {error}") from error
    named = [
        arch.findtext("emulator", "")
        for arch in capabilities.iterfind("guest/arch[@name='x86_64']")
        if arch.find("domain[@type='kvm']") is not None
    ]
    for domain in every_domain(connection):
        try:
            definition = domain.live()
        except (DomainGoneError, UnreadableError):  # unreadable XML names nothing that could be run
            continue
        if definition.is_x86_64_kvm:
            named.append(definition.emulator())
    real = (path.removesuffix(WRAPPER_SUFFIX) for path in named)
    return list(dict.fromkeys(path for path in real if not is_default_wrapper(path)))
