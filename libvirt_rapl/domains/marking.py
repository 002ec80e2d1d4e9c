"""The mark: an element of ours under <metadata>, which records what we have put into a domain and what was there.

Two parts can be in a domain, together or alone, and share the mark: registers (`domxml`) and the energy channel
(`channel`). Each notes in the attribute `created` what it has made, and keeps what it needs to undo that in attributes
of its own. What the mark does not confirm is the owner's, whatever it looks like.
"""

from lxml import etree
from lxml.etree import _Element

from libvirt_rapl.domains.names import MARK, QEMU
from libvirt_rapl.domains.xml_layout import indentation, index_after, insert, remove
from libvirt_rapl.errors import VirtRaplError

MARK_TAG = f"{{{MARK}}}rapl"
COMMANDLINE_TAG = f"{{{QEMU}}}commandline"
CONTAINERS = {"metadata": "metadata", "devices": "devices", "commandline": COMMANDLINE_TAG}
"""Elements of <domain> that hold ours: name in the mark, tag."""
BEFORE_METADATA = ("name", "uuid", "hwuuid", "genid", "title", "description")
"""What libvirt prints before <metadata>."""
AFTER_COMMANDLINE = tuple(f"{{{QEMU}}}{name}" for name in ("capabilities", "override", "deprecation"))
"""What libvirt prints after qemu:commandline. We put everything where libvirt prints it, so that it stays there."""


def check(domain: _Element) -> None:
    """Raise VirtRaplError if libvirt would not keep a mark in this domain."""
    if [element.tag for element in domain.iterfind(f"metadata/{{{MARK}}}*")] not in ([], [MARK_TAG]):
        raise VirtRaplError(
            "<metadata> holds a foreign element in the mark's namespace", "remove it: libvirt keeps one per namespace"
        )


def find(domain: _Element) -> _Element | None:
    """Return the mark."""
    return domain.find(f"metadata/{MARK_TAG}")


def found_or_made(domain: _Element) -> _Element:
    """Return the mark; a new one where there is none."""
    mark = find(domain)
    if mark is None:
        mark = etree.Element(MARK_TAG, nsmap={"rapl": MARK})
        metadata = container(domain, "metadata", mark)
        insert(metadata, len(metadata), mark)
    return mark


def alone(mark: _Element) -> str:
    """Return the mark as libvirt takes it beside its namespace."""
    copied = etree.Element("rapl")
    for name, value in mark.items():
        copied.set(name, value)
    return etree.tostring(copied, encoding="unicode")


def note_created(mark: _Element, name: str) -> None:
    """Record that we have made this."""
    if not has_created(mark, name):
        mark.set("created", " ".join([*_created(mark), name]))


def has_created(mark: _Element, name: str) -> bool:
    """Return whether we have made this."""
    return name in _created(mark)


def forget(mark: _Element, *names: str) -> None:
    """Remove attributes, and notes of what we have made, because it is undone."""
    created = [name for name in _created(mark) if name not in names]
    mark.set("created", " ".join(created))
    for name in names if created else (*names, "created"):
        if name in mark.attrib:
            del mark.attrib[name]


def container(domain: _Element, name: str, mark: _Element) -> _Element:
    """Find the container or create it. The mark records a created one, and the white space in an empty one."""
    tag = CONTAINERS[name]
    found = domain.find(tag)
    if found is None:
        note_created(mark, name)
        found = etree.Element(tag, nsmap={"qemu": QEMU} if name == "commandline" else None)
        insert(domain, _index_of(domain, name), found)
    elif is_empty(found):
        mark.set(name, found.text or "")
    else:
        return found
    found.text = indentation(domain)
    return found


def _index_of(domain: _Element, name: str) -> int:
    """Return where in <domain> a new container belongs."""
    if name == "metadata":
        return index_after(domain, BEFORE_METADATA)
    after = AFTER_COMMANDLINE if name == "commandline" else ()
    return next((index for index, child in enumerate(domain) if child.tag in after), len(domain))


def is_empty(element: _Element) -> bool:
    """Return whether an element holds nothing but white space."""
    return not len(element) and not (element.text or "").strip()


def tidy(domain: _Element, mark: _Element) -> None:
    """Remove the mark if no part is left, and the containers that we made and do not need any more."""
    if "emulator" not in mark.attrib and not has_created(mark, "channel"):
        remove(mark)
    for name, tag in CONTAINERS.items():
        found = domain.find(tag)
        if found is not None and is_empty(found):
            if has_created(mark, name):
                remove(found)
            elif name in mark.attrib:
                found.text = mark.get(name)
            forget(mark, name)


def has_registers(mark: _Element) -> bool:
    """Return whether the mark says that registers were put in, as one does that says nothing of a channel."""
    return "emulator" in mark.attrib or not has_created(mark, "channel")


def _created(mark: _Element) -> list[str]:
    return str(mark.get("created", "")).split()
