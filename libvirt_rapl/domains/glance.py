"""What a start needs to know of a domain, read from libvirt's XML in less time than it takes to import lxml.

Only a domain whose registers are as we put them in, and which can have them, is recognized here. Of every other one
`definition` finds out what is the matter: its parser is libvirt's, and this one, expat, rejects some of what that
takes. So that it takes nothing more, it stops at what a parser can be told to allow or not: document types, and limits.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.parsers.expat import ExpatError, ParserCreate

from libvirt_rapl import paths
from libvirt_rapl.domains.names import ACCELERATOR, MARK, QEMU, WRAPPER_SUFFIX, check_socket
from libvirt_rapl.errors import VirtRaplError

MOST_BYTES, MOST_DEPTH, LONGEST_NAME = 1 << 20, 200, 1000
"""Well below libxml2's limits."""
LIBVIRT_RUN = Path("/", paths.LIBVIRT_RUN)


class Glance(NamedTuple):
    """A domain with registers that are all right, except that its helper is yet to be started."""

    name: str
    uuid: str
    id: int | None
    dac_label: str | None
    helper_socket: str
    real_emulator: str

    def emulator(self) -> str:
        """Return the path of the real emulator."""
        return self.real_emulator


class Threads(NamedTuple):
    """The process of a running domain, and the TID of each vCPU by its number."""

    pid: int
    vcpu_tids: dict[int, int]


class _StopError(Exception):
    """The rest need not be read, or must not be."""


class _Element:
    """Names in a namespace are written NAMESPACE}NAME."""

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name, self.attributes, self.text = name, attributes, ""
        self.children: list[_Element] = []

    def find(self, *path: str) -> "list[_Element]":
        """Return the elements at this path below."""
        found = [self]
        for name in path:
            found = [child for element in found for child in element.children if child.name == name]
        return found


def at_domain(xml: str, socket_of: Callable[[str], str]) -> Glance | None:
    """Return what is known of the domain; None if its registers are not in order, or it cannot have any.

    `socket_of` returns the path of a helper's socket by the domain's UUID, or raises ValueError if that is not written
    as libvirt writes it: see helper.run_directory.
    """
    try:
        return _glance(_read(xml.encode()), socket_of)
    except (ExpatError, _StopError, UnicodeError, LookupError, ValueError, VirtRaplError):
        return None


def at_threads(name: str, root: Path = LIBVIRT_RUN) -> Threads | None:
    """Return the process and threads of a running domain from libvirt's status file; None if that does not say it."""
    try:
        status = _read((root / f"{name}.xml").read_bytes(), stop_at="domain")
        vcpus = {int(vcpu.attributes["id"]): int(vcpu.attributes["pid"]) for vcpu in status.find("vcpus", "vcpu")}
        return Threads(int(status.attributes["pid"]), vcpus)
    except (OSError, ExpatError, _StopError, LookupError, ValueError):
        return None


def _read(xml: bytes, stop_at: str | None = None) -> _Element:
    """Return the root element; without what comes after the beginning of a child of this name."""
    if len(xml) > MOST_BYTES:
        raise _StopError
    above = [_Element("", {})]
    parser = ParserCreate("utf-8", "}")
    parser.buffer_text = True

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(above) == 2 and name == stop_at:
            raise _StopError
        if len(above) > MOST_DEPTH or max(map(len, (name, *attributes))) > LONGEST_NAME:
            raise _StopError
        element = _Element(name, attributes)
        above[-1].children.append(element)
        above.append(element)

    def end(_: str) -> None:
        above.pop()

    def text(data: str) -> None:
        above[-1].text += data

    def stop(*_: object) -> None:
        raise _StopError

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = stop
    try:
        parser.Parse(xml, True)
    except _StopError:
        if stop_at is None:
            raise
    return above[0].children[0]


def _glance(domain: _Element, socket_of: Callable[[str], str]) -> Glance:
    """Raises an error if anything is not as it is in a domain with registers that libvirt starts: see at_domain()."""
    uuid = _text(domain.find("uuid")[0])
    socket = socket_of(uuid)
    check_socket(socket)
    (mark,) = (
        child for each in domain.find("metadata") for child in each.children if child.name.startswith(f"{MARK}}}")
    )
    emulator = mark.attributes["emulator"]
    arguments = [arg.attributes.get("value") for arg in domain.find(f"{QEMU}}}commandline", f"{QEMU}}}arg")]
    options = [place for place, value in enumerate(arguments) if value in ("-accel", "--accel")]
    types, vcpu = domain.find("os", "type"), domain.find("vcpu")[0]
    cpus = _text(vcpu).strip()
    in_order = (
        domain.name == "domain",
        domain.attributes["type"] == "kvm",
        all(each.attributes.get("arch", "x86_64") == "x86_64" for each in types),
        vcpu.attributes.get("current", cpus).strip() == cpus,
        all(each.attributes.get("enabled") != "no" for each in domain.find("vcpus", "vcpu")),
        mark.name == f"{MARK}}}rapl",
        mark.attributes["socket"] == socket,
        emulator.startswith("/") and emulator == emulator.strip() and not emulator.endswith(WRAPPER_SUFFIX),
        _text(domain.find("devices", "emulator")[0]) == emulator + WRAPPER_SUFFIX,
        len(options) == 1 and arguments[options[0]] == "-accel",
        arguments[options[0] + 1] == ACCELERATOR + socket and arguments.count(ACCELERATOR + socket) == 1,
    )
    if not all(in_order):
        raise _StopError
    number = domain.attributes.get("id", "")
    dac = [each for each in domain.find("seclabel") if each.attributes.get("model") == "dac"]
    labels = [label for each in dac for label in each.find("label")]
    return Glance(
        name=_text(domain.find("name")[0]),
        uuid=uuid,
        id=int(number) if number.isdecimal() else None,
        dac_label=_text(labels[0]) if labels else None,
        helper_socket=socket,
        real_emulator=emulator,
    )


def _text(element: _Element) -> str:
    if element.children:
        raise _StopError
    return element.text
