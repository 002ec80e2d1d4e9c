"""The UUID in domain XML: where libvirt takes it from, and a new one put into XML that has none, and out again.

A <uuid> of ours has a comment in it. libvirt keeps no comments: in what it returns, the UUID is the domain's own, which
strip() leaves alone. Without it, libvirt would refuse to define the domain again.

Only `definition` and `domxml` call this.
"""

import re
import uuid

from lxml import etree
from lxml.etree import _Element

from libvirt_rapl.domains.xml_layout import index_after, insert, remove, string
from libvirt_rapl.errors import VirtRaplError

UUID = re.compile(r"[ \t\r\n]*(?:[- ]*[0-9A-Fa-f]{2}){16}[ \t\r\n]*")
"""What libvirt accepts as one: white space around it, blanks and dashes between the bytes."""
IN_SYSINFO = "string((sysinfo[@type='smbios']/system[1]/entry[@name='uuid'][1][string()])[last()])"
"""Of more than one <sysinfo>, libvirt takes the last that has one."""
OURS = " made by virt-rapl "


def uuid_of(domain: _Element) -> str:
    """Return the UUID in libvirt's spelling: lower case, with dashes. Raises VirtRaplError if there is none."""
    text = _text(domain)
    if not text:
        raise VirtRaplError("the domain XML has no UUID", "fill in its <uuid>, or remove it: `inject` makes one")
    if not UUID.fullmatch(text):
        hint = "correct <uuid>, or the one under <sysinfo>; /proc/sys/kernel/random/uuid makes them"
        raise VirtRaplError(f"this is not a UUID: {text!r}", hint)
    return str(uuid.UUID(re.sub(r"[^0-9A-Fa-f]", "", text)))


def is_missing(domain: _Element) -> bool:
    """Return whether nothing in the XML says a UUID, so that libvirt would make one."""
    return domain.find("uuid") is None and not _text(domain)


def inject(domain: _Element) -> None:
    """Put in a new one; is_missing() has said so."""
    element = etree.Element("uuid")
    element.text = str(uuid.uuid4())
    element.append(etree.Comment(OURS))
    insert(domain, index_after(domain, ("name",)), element)


def is_ours(domain: _Element) -> bool:
    """Return whether inject() has put in the UUID, and the XML has not been through libvirt since."""
    element = domain.find("uuid")
    return element is not None and any(comment.text == OURS for comment in element.iter(etree.Comment))


def strip(domain: _Element) -> None:
    """Undo inject(); is_ours() has said so."""
    element = domain.find("uuid")
    assert element is not None
    remove(element)


def _text(domain: _Element) -> str:
    """Return the text that libvirt takes the UUID from; empty if there is none.

    Without a <uuid> that is the one of SMBIOS. libvirt refuses XML in which the two differ.
    """
    return string(domain.find("uuid")) or str(domain.xpath(IN_SYSINFO))
