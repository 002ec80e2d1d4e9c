"""A domain's XML, parsed once: what it says, and the same XML with or without registers and channel."""

import copy
import dataclasses
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from lxml import etree
from lxml.etree import _Element

from libvirt_rapl.domains import channel, domxml, marking, names, xml_uuid
from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.xml_layout import PROLOG, as_in, string
from libvirt_rapl.domains.xml_parser import parse
from libvirt_rapl.errors import UnreadableError, printable
from libvirt_rapl.labels import Labels, Place
from libvirt_rapl.selection import Traits

ANOTHER_DOCUMENT = re.compile(r"</domain\s*>(?:\s|<\?.*?\?>|<!--.*?-->)*+<domain[\s>]", re.DOTALL)


LONGEST = 256
"""Characters of a title or label that are shown."""


@dataclass(frozen=True, eq=False, repr=False)
class Definition:
    """libvirt's XML of a domain: its definition, or how it runs. with_...() and without_...() return changed copies."""

    _original: str
    """The text that this was parsed from, or made from."""
    _domain: _Element
    """<domain>. It is never changed."""
    _is_changed: bool = field(default=False, kw_only=True)
    _after: str = field(kw_only=True)
    """What follows the domain: comments and processing instructions."""

    @classmethod
    def parse(cls, xml: str) -> Self:
        """Parse the XML. Raises UnreadableError."""
        domain = _parse(xml)
        after = (etree.tostring(node, encoding="unicode", with_tail=False) for node in domain.itersiblings())
        return cls(xml, domain, _after="".join("\n" + text for text in after))

    @property
    def xml(self) -> str:
        """The text; as it was read if nothing was changed."""
        return self.rewritten if self._is_changed else self._original

    @cached_property
    def rewritten(self) -> str:
        """The text as we write it, always with the same quotes and the like; it may hold passwords.

        What was around the domain when it was read stays: declaration, comments, line ends.
        """
        prolog = PROLOG.match(self._original)
        assert prolog is not None  # it may be empty
        written = etree.tostring(self._domain, encoding="unicode", with_tail=False) + self._after
        return prolog.group() + as_in(self._original, written) + self._original[len(self._original.rstrip()) :]

    @property
    def name(self) -> str:
        """Empty if there is none."""
        return string(self._domain.find("name"))

    @property
    def uuid(self) -> str:
        """Lower case, with dashes, as libvirt finds it in the XML. Raises VirtRaplError if there is none."""
        return xml_uuid.uuid_of(self._domain)

    @property
    def id(self) -> int | None:
        """libvirt's number of a domain that runs or is about to start; None for any other."""
        value = self._domain.get("id", "")
        return int(value) if value.isdecimal() else None

    @property
    def traits(self) -> Traits:
        """What the configuration chooses a domain by. Raises VirtRaplError if there is no UUID."""
        names = [etree.QName(element) for element in self._domain.iterfind("metadata/*")]
        metadata = frozenset((name.namespace or "", name.localname) for name in names)
        return Traits(self.name, self.uuid, string(self._domain.find("title")), metadata, self._texts)

    @property
    def title(self) -> str:
        """The title to show: on one line, not too long; empty if there is none."""
        return _shown(string(self._domain.find("title")))

    def labels(self, wanted: Labels) -> dict[str, str]:
        """Return the labels that its metadata has, by name, to show as the title is."""
        found = {name: _shown(next(self._texts(place), "")) for name, place in wanted.places}
        return {name: value for name, value in found.items() if value}

    def _texts(self, place: Place) -> Iterator[str]:
        """Yield the texts at this place in <metadata>, each on one line; none that is empty."""
        for namespace in place.namespaces:
            elements = self._domain.findall("metadata")
            for name in place.elements:
                tag = f"{{{namespace}}}{name}"
                elements = [child for element in elements for child in element if child.tag == tag]
            for element in elements:
                text = element.get(place.attribute, "") if place.attribute else string(element)
                if line := " ".join(text.split()):
                    yield line

    @property
    def is_marked(self) -> bool:
        """Whether it carries the mark: we have put something in."""
        return marking.find(self._domain) is not None

    @property
    def has_registers(self) -> bool:
        """Whether the mark says that it has registers."""
        mark = marking.find(self._domain)
        return mark is not None and marking.has_registers(mark)

    @property
    def channel(self) -> Channel | None:
        """Its energy channel, whoever put it in; None if it has none."""
        return channel.find(self._domain)

    @property
    def channel_is_ours(self) -> bool:
        """Whether the mark says that we have put in its channel."""
        mark = marking.find(self._domain)
        return mark is not None and marking.has_created(mark, "channel")

    @property
    def mark(self) -> str | None:
        """The mark alone, without the namespace; None if there is none."""
        mark = marking.find(self._domain)
        return None if mark is None else marking.alone(mark)

    def channel_devices(self) -> list[str]:
        """Return the XML of what we have put in for the channel: the controller, if it is ours, and the channel."""
        return channel.devices(self._domain)

    @property
    def is_x86_64_kvm(self) -> bool:
        """Whether it is a KVM guest of this architecture, in libvirt's words."""
        return self._domain.get("type") == "kvm" and self._domain.find("os/type[@arch='x86_64']") is not None

    @property
    def helper_socket(self) -> str | None:
        """The socket that our argument names; None if there is no such argument."""
        return domxml.helper_socket(self._domain)

    @property
    def dac_label(self) -> str | None:
        """The label (`+64055:+64055`, `libvirt-qemu:kvm`) that QEMU runs under; None if the XML has none."""
        label = self._domain.find("seclabel[@model='dac']/label")
        return None if label is None else string(label)

    @property
    def has_own_dac_label(self) -> bool:
        """Whether its owner has chosen user and group of its QEMU, rather than libvirt."""
        return self._domain.find("seclabel[@model='dac'][@type='static']/label") is not None

    def emulator(self, default: str = names.DEFAULT_EMULATOR) -> str:
        """Return the path of the real emulator, with or without a mark; `default` if the XML names none.

        The emulator that the mark names counts only if <emulator> is the wrapper of it.
        """
        emulator = self._domain.find("devices/emulator")
        if emulator is None:
            return default
        path, mark = string(emulator), marking.find(self._domain)
        wrapped = mark is not None and domxml.names_wrapper(path, mark)
        return path.removesuffix(names.WRAPPER_SUFFIX) if wrapped else path

    def check(self, socket: str) -> None:
        """Raise VirtRaplError when this domain, with the mark or without, cannot have registers read at `socket`."""
        domxml.check(self._cleared(socket), socket)

    def check_kind(self) -> None:
        """Raise VirtRaplError when no change of the XML could give this kind of domain a meter. Check this first."""
        domxml.check_kind(self._domain)

    def check_takes_effect(self) -> None:
        """Raise VirtRaplError when the mark is there, but the guest would have no meter: the XML was edited since."""
        domxml.check_takes_effect(self._domain)

    def with_uuid(self) -> Self:
        """Return it with a new UUID if it has none; else itself."""
        if not xml_uuid.is_missing(self._domain):
            return self
        domain = copy.deepcopy(self._domain)
        xml_uuid.inject(domain)
        return self._changed(domain)

    def without_uuid(self) -> Self:
        """Return it as it was before with_uuid(). XML from libvirt keeps its UUID: it is returned itself."""
        if not xml_uuid.is_ours(self._domain):
            return self
        domain = copy.deepcopy(self._domain)
        xml_uuid.strip(domain)
        return self._changed(domain)

    def with_registers(self, *, socket: str, default_emulator: str = names.DEFAULT_EMULATOR) -> Self:
        """Return it with registers, read through the helper at `socket`; itself if it has just these.

        One that has others gets this socket; so does one that has lost the mark, if our argument for this very socket
        and a wrapper are still there. `default_emulator` is used if the XML names none. Raises VirtRaplError for what
        check() refuses.
        """
        domain = self._cleared(socket)
        domxml.check(domain, socket)
        if domxml.is_in_order(self._domain, socket):
            return self
        domxml.inject(domain, socket, default_emulator)
        return self._changed(domain)

    def without_registers(self) -> Self:
        """Return it as it was before with_registers(); itself if the mark does not say that it has any."""
        if not self.has_registers:
            return self
        domain = copy.deepcopy(self._domain)
        domxml.strip(domain)
        return self._changed(domain)

    def with_emulator(self, path: str) -> Self:
        """Return it with another emulator; itself if it names none."""
        domain = copy.deepcopy(self._domain)
        emulator = domain.find("devices/emulator")
        if emulator is None:
            return self
        emulator.text = path
        return self._changed(domain)

    def with_channel(self) -> Self:
        """Return it with the energy channel; itself if it has one. Raises VirtRaplError if it cannot have one."""
        channel.check(self._domain)
        if self.channel:
            return self
        domain = copy.deepcopy(self._domain)
        channel.inject(domain)
        return self._changed(domain)

    def without_channel(self) -> Self:
        """Return it as it was before with_channel(); itself if the mark does not say that the channel is ours."""
        if not self.channel_is_ours:
            return self
        domain = copy.deepcopy(self._domain)
        channel.strip(domain)
        return self._changed(domain)

    def strip(self) -> Self:
        """Return it without all that is ours; itself if there is nothing."""
        return self.without_channel().without_registers().without_uuid()

    def difference(self, other: "Definition") -> str:
        """Return what the other one changes as a unified diff, which ignores quotes and all else that XML ignores.

        Empty if nothing changes.
        """
        old, new = ((each.rewritten.rstrip() + "\n").splitlines(keepends=True) for each in (self, other))
        return "".join(difflib.unified_diff(old, new, f"{self.name} (now)", f"{self.name} (new)"))

    def _changed(self, domain: _Element) -> Self:
        return dataclasses.replace(self, _domain=domain, _is_changed=True)

    def _cleared(self, socket: str) -> _Element:
        """Return a copy of <domain> without the registers that are about to be put in."""
        domain = copy.deepcopy(self._domain)
        domxml.clear(domain, socket)
        return domain


def _shown(text: str) -> str:
    return printable(" ".join(text.split())[:LONGEST])[:LONGEST]


def _parse(xml: str) -> _Element:
    try:
        domain = parse(xml.encode())
    except ValueError as error:  # of which UnicodeEncodeError is one
        if ANOTHER_DOCUMENT.search(xml):
            raise UnreadableError(
                xml,
                "there is more than one document, each with a <domain>",
                "pass one alone; `virt-install --print-xml` prints one for each step, `--print-xml 1` the first",
            ) from error
        message = f"the domain XML is not well-formed: {' '.join(str(error).split())}"
        raise UnreadableError(xml, message, "`xmllint --noout` shows the place") from error
    if domain.getroottree().docinfo.internalDTD is not None:
        raise UnreadableError(xml, "the domain XML has a document type declaration", "remove the <!DOCTYPE ...>")
    if domain.tag != "domain":
        message = f"the XML describes no domain: it begins with <{domain.tag}>"
        raise UnreadableError(xml, message, "expected <domain ...>")
    return domain
