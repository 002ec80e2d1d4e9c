"""The emulators that libvirt and its domains name: each is to have a wrapper."""

import contextlib
from typing import Any

from lxml import etree

from libvirt_rapl.domains import domxml
from libvirt_rapl.domains.libvirtd import DomainGoneError, LibvirtError, every_domain
from libvirt_rapl.errors import VirtRaplError


def named_emulators(connection: Any) -> list[str]:  # noqa: ANN401  libvirt-python has no types
    """Return the emulators of x86_64 KVM guests that libvirt and its domains name. Raises VirtRaplError."""
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
            xml = domain.live_xml()
        except DomainGoneError:
            continue
        with contextlib.suppress(VirtRaplError):  # what cannot be read names nothing that could be run
            if domxml.is_x86_64_kvm(xml):
                named.append(domxml.original_emulator(xml))
    return list(dict.fromkeys(path.removesuffix(domxml.WRAPPER_SUFFIX) for path in named))
