"""Domain XML with the meter in it, and without: strings in, strings out.

inject() makes four changes and writes down in the mark, an element of ours under <metadata>, what strip() needs to
take them back exactly, white space included. What the mark does not confirm is its owner's, whatever it looks like:
  - <emulator> names the wrapper, which stands beside the emulator and has its name with the suffix -rapl,
  - qemu:commandline gets `-accel kvm,rapl=true,rapl-helper-socket=SOCKET`, which the wrapper merges into libvirt's own,
  - the containers of these (metadata, devices, commandline) are made where the domain has none,
  - <metadata> gets the mark.
"""

import difflib
import re
import uuid

from lxml import etree
from lxml.etree import _Element

from libvirt_rapl.domains.xml_layout import (
    PROLOG,
    add_suffix,
    as_in,
    indentation,
    index_after,
    insert,
    remove,
    remove_suffix,
    string,
)
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.selection import Traits

MARK = "urn:libvirt-rapl:mark:1"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
DEFAULT_EMULATOR = "/usr/bin/qemu-system-x86_64"
WRAPPER_SUFFIX = "-rapl"
ACCELERATOR = "kvm,rapl=true,rapl-helper-socket="
OUR_ARGUMENT = re.compile(re.escape(ACCELERATOR) + r"/[^,]*/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.sock")
"""Nobody but us names a socket so: another -accel argument is its owner's."""
SOCKET_PATH_LIMIT = 107
"""Bytes of a path that fit into sockaddr_un.sun_path, without the closing zero."""

MARK_TAG = f"{{{MARK}}}rapl"
COMMANDLINE_TAG = f"{{{QEMU}}}commandline"
ARG_TAG = f"{{{QEMU}}}arg"
CONTAINERS = {"metadata": "metadata", "devices": "devices", "commandline": COMMANDLINE_TAG}
"""Elements of <domain> that hold ours: name in the mark, tag."""
BEFORE_METADATA = ("name", "uuid", "genid", "title", "description")
"""What libvirt prints before <metadata>. Everything goes where libvirt prints it, so that it stays there."""
ANOTHER_DOCUMENT = re.compile(r"</domain\s*>(?:\s|<\?.*?\?>|<!--.*?-->)*+<domain[\s>]", re.DOTALL)
UUID = re.compile(r"[ \t\r\n]*(?:[- ]*[0-9A-Fa-f]{2}){16}[ \t\r\n]*")
"""What libvirt takes for one: white space around, blanks and dashes between the bytes."""


def inject(xml: str, *, socket: str, default_emulator: str = DEFAULT_EMULATOR) -> str:
    """Return the XML with the meter in it, reading through the helper at `socket`.

    XML that carries the mark already is brought to this socket; so is XML that has lost it, if our argument for this
    very socket is there still together with a wrapper.
    `default_emulator` is taken where the domain names none. Raises VirtRaplError for what check() refuses and for XML
    that cannot be read.
    """
    domain = _parse(xml)
    _clear(domain, socket)
    _check(domain, socket)
    _inject(domain, socket, default_emulator)
    return _serialise(domain, xml)


def strip(xml: str) -> str:
    """Return the XML as it was before inject(); XML without the mark comes back unchanged. Raises as inject()."""
    domain = _parse(xml)
    return _serialise(domain, xml) if _strip(domain) else xml


def check(xml: str, socket: str) -> None:
    """Raise VirtRaplError when this domain, with the mark or without, cannot have a meter at `socket`."""
    domain = _parse(xml)
    _clear(domain, socket)
    _check(domain, socket)


def check_kind(xml: str) -> None:
    """Raise VirtRaplError when no change could give this kind of domain a meter: told before what can be mended."""
    _check_kind(_parse(xml))


def check_takes_effect(xml: str, socket: str) -> None:
    """Raise VirtRaplError when XML with the mark would not give the guest a meter at `socket`.

    It may have been edited since, be a copy of another domain's, or the run directory may have changed.
    """
    domain = _parse(xml)
    if not string(domain.find("devices/emulator")).endswith(WRAPPER_SUFFIX):
        raise VirtRaplError(
            "its emulator is not the wrapper, and without it QEMU ignores the argument", "run `virt-rapl enable` on it"
        )
    if domain.find(f"{COMMANDLINE_TAG}/{ARG_TAG}[@value='{ACCELERATOR}{socket}']") is None:
        raise VirtRaplError(f"its -accel argument is not the one for {socket}", "run `virt-rapl enable` on it")


def is_marked(xml: str) -> bool:
    """Tell whether the XML carries the mark. Raises VirtRaplError when it cannot be read."""
    return _mark(_parse(xml)) is not None


def identity(xml: str) -> tuple[str, str]:
    """Return name (empty where there is none) and UUID in libvirt's spelling. Raises VirtRaplError without a UUID."""
    domain = _parse(xml)
    return string(domain.find("name")), _uuid(domain)


def number(xml: str) -> int | None:
    """Return libvirt's number of a domain that runs or is about to; None of any other."""
    value = _parse(xml).get("id", "")
    return int(value) if value.isdecimal() else None


def traits(xml: str) -> Traits:
    """Return what a domain is chosen by. Raises VirtRaplError as identity()."""
    domain = _parse(xml)
    names = [etree.QName(element) for element in domain.iterfind("metadata/*")]
    metadata = frozenset((name.namespace or "", name.localname) for name in names)
    return Traits(string(domain.find("name")), _uuid(domain), string(domain.find("title")), metadata)


def is_x86_64_kvm(xml: str) -> bool:
    """Tell whether it is a KVM guest of this architecture, as libvirt writes that. Raises VirtRaplError."""
    domain = _parse(xml)
    return domain.get("type") == "kvm" and domain.find("os/type[@arch='x86_64']") is not None


def original_emulator(xml: str, default: str = DEFAULT_EMULATOR) -> str:
    """Return the path of the real emulator, whether the XML carries the mark or not; `default` where it names none.

    What the mark says counts only where <emulator> is the wrapper of that.
    """
    domain = _parse(xml)
    emulator = domain.find("devices/emulator")
    if emulator is None:
        return default
    mark, path = _mark(domain), string(emulator)
    return path.removesuffix(WRAPPER_SUFFIX) if mark is not None and _names_wrapper(path, mark) else path


def helper_socket(xml: str) -> str | None:
    """Return the socket that our argument names; None where there is no such argument."""
    arguments = (arg.get("value", "") for arg in _parse(xml).iterfind(f"{COMMANDLINE_TAG}/{ARG_TAG}"))
    return next((value.removeprefix(ACCELERATOR) for value in arguments if OUR_ARGUMENT.fullmatch(value)), None)


def dac_label(xml: str) -> str | None:
    """Return the label (`+64055:+64055`, `libvirt-qemu:kvm`) that QEMU runs under; None where the XML has none."""
    label = _parse(xml).find("seclabel[@model='dac']/label")
    return None if label is None else string(label)


def difference(before: str, after: str, name: str) -> str:
    """Return a unified diff of two XML texts, blind to quotes and whatever else means nothing in XML."""
    old, new = ((_serialise(_parse(xml), xml).rstrip() + "\n").splitlines(keepends=True) for xml in (before, after))
    return "".join(difflib.unified_diff(old, new, f"{name} (now)", f"{name} (new)"))


def _parse(xml: str) -> _Element:
    # The encoding overrides a declared one: the text is decoded already.
    # libvirt takes a foreign namespace that is no URI, and a prefix that has none: not fatal to libxml2. lxml gives
    # such a document only with `recover`, which gives others as well: what was fatal is looked for.
    parser = etree.XMLParser(
        encoding="utf-8", strip_cdata=False, resolve_entities=False, no_network=True, huge_tree=False, recover=True
    )
    trouble = ""
    try:
        domain = etree.fromstring(xml.encode(), parser)
        if fatal := parser.error_log.filter_from_fatals():
            trouble = f"{fatal[0].message}, line {fatal[0].line}, column {fatal[0].column}"
    except etree.XMLSyntaxError as error:
        trouble = str(error.msg)
    except UnicodeEncodeError as error:
        trouble = str(error)
    if trouble and ANOTHER_DOCUMENT.search(xml):
        raise VirtRaplError(
            "there is more than one document, each with a <domain>",
            "pass one alone; `virt-install --print-xml` prints one for each step, `--print-xml 1` the first",
        )
    if trouble:
        message = f"the domain XML is not well-formed: {' '.join(trouble.split())}"
        raise VirtRaplError(message, "`xmllint --noout` shows the place")
    if domain.getroottree().docinfo.internalDTD is not None:
        raise VirtRaplError("the domain XML has a document type declaration", "remove the <!DOCTYPE ...>")
    if domain.tag != "domain":
        raise VirtRaplError(f"the XML describes no domain: it begins with <{domain.tag}>", "expected <domain ...>")
    return domain


def _serialise(domain: _Element, original: str) -> str:
    """Write the domain as it stood in `original`, with what stood around it: declaration, comments, line ends."""
    prolog = PROLOG.match(original)
    assert prolog is not None  # it may be empty
    after = "".join("\n" + etree.tostring(node, encoding="unicode", with_tail=False) for node in domain.itersiblings())
    written = etree.tostring(domain, encoding="unicode", with_tail=False) + after
    return prolog.group() + as_in(original, written) + original[len(original.rstrip()) :]


def _check(domain: _Element, socket: str) -> None:
    """Refuse what cannot work; the domain is without our changes here."""
    _check_kind(domain)
    _uuid(domain)
    _check_vcpus(domain)
    if any(arg.get("value") in ("-accel", "--accel") for arg in domain.iterfind(f"{COMMANDLINE_TAG}/{ARG_TAG}")):
        raise VirtRaplError(
            "the domain has an -accel argument of its own in qemu:commandline", "remove it: QEMU takes only one"
        )
    _check_emulator(domain)
    if domain.find(f"metadata/{{{MARK}}}*") is not None:
        raise VirtRaplError(
            "<metadata> holds a foreign element in the mark's namespace", "remove it: libvirt keeps one a namespace"
        )
    check_socket(socket)


def _check_kind(domain: _Element) -> None:
    if domain.get("type") != "kvm":
        raise VirtRaplError(f"the domain is of type {domain.get('type')!r}", "only domains of type kvm have RAPL")
    machine = domain.find("os/type")
    if machine is not None and machine.get("arch", "x86_64") != "x86_64":
        raise VirtRaplError(f"the domain is a {machine.get('arch')} machine", "only x86_64 machines have RAPL")


def check_socket(socket: str) -> None:
    """Raise VirtRaplError when QEMU cannot be given a socket of this path."""
    if len(socket.encode()) > SOCKET_PATH_LIMIT:
        raise VirtRaplError(
            f"the socket path is longer than {SOCKET_PATH_LIMIT} bytes: {socket}", "choose a shorter run_directory"
        )
    if not socket.startswith("/") or "," in socket or not socket.isprintable():
        raise VirtRaplError(
            f"not a socket path QEMU can be given: {socket!r}", "choose an absolute run_directory without a comma"
        )


def _check_vcpus(domain: _Element) -> None:
    """Refuse a domain whose vCPUs can grow: QEMU sizes its RAPL arrays by the vCPUs it boots with, and writes past."""
    vcpu = domain.find("vcpu")
    growable = vcpu is not None and vcpu.get("current", string(vcpu)).strip() != string(vcpu).strip()
    if growable or domain.find("vcpus/vcpu[@enabled='no']") is not None:
        raise VirtRaplError(
            "the domain's number of vCPUs can grow while it runs, which QEMU's RAPL does not survive",
            "let it start with all of its vCPUs: remove current= from <vcpu> and <vcpus> as a whole",
        )


def _check_emulator(domain: _Element) -> None:
    emulator = domain.find("devices/emulator")
    if emulator is None:
        return
    path = string(emulator)
    if not path.startswith("/") or path != path.strip():
        raise VirtRaplError(f"the emulator {path!r} is not an absolute path", "correct <emulator>")
    if path.endswith(WRAPPER_SUFFIX):
        raise VirtRaplError(
            f"the emulator {path} has the name of a wrapper, and nothing says that virt-rapl has put it there",
            f"name the emulator itself in <emulator>: {path.removesuffix(WRAPPER_SUFFIX)}, if that is the one",
        )


def _uuid(domain: _Element) -> str:
    text = string(domain.find("uuid"))
    if not text:
        raise VirtRaplError("the domain XML has no <uuid>", "add one; /proc/sys/kernel/random/uuid makes them")
    if not UUID.fullmatch(text):
        raise VirtRaplError(f"the domain's <uuid> is not a UUID: {text!r}", "/proc/sys/kernel/random/uuid makes them")
    return str(uuid.UUID(re.sub(r"[^0-9A-Fa-f]", "", text)))


def _inject(domain: _Element, socket: str, default_emulator: str) -> None:
    mark = etree.Element(MARK_TAG, nsmap={"rapl": MARK})
    mark.set("socket", socket)
    containers = {name: _container(domain, name, mark) for name in CONTAINERS}

    devices = containers["devices"]
    emulator = devices.find("emulator")
    if emulator is None:
        mark.set("emulator", default_emulator)
        _note_created(mark, "emulator")
        emulator = etree.Element("emulator")
        emulator.text = default_emulator + WRAPPER_SUFFIX
        insert(devices, 0, emulator)
    else:
        mark.set("emulator", string(emulator))
        add_suffix(emulator, WRAPPER_SUFFIX)

    commandline = containers["commandline"]
    for value in ("-accel", ACCELERATOR + socket):
        insert(commandline, index_after(commandline, (ARG_TAG,)), etree.Element(ARG_TAG, value=value))
    insert(containers["metadata"], len(containers["metadata"]), mark)


def _strip(domain: _Element) -> bool:
    """Undo _inject(). Tells whether there was anything to undo."""
    mark = _mark(domain)
    if mark is None:
        return False
    created = mark.get("created", "").split()
    _strip_argument(domain, mark)
    _strip_emulator(domain, mark, "emulator" in created)
    remove(mark)
    for name, tag in CONTAINERS.items():
        container = domain.find(tag)
        if container is None or len(container) or (container.text or "").strip():
            continue
        if name in created:
            remove(container)
        elif name in mark.attrib:
            container.text = mark.get(name)
    return True


def _clear(domain: _Element, socket: str) -> None:
    """Take out what inject() is about to put in anew: by the mark, and where that is lost or wrong by the pair.

    The argument for this very socket together with a wrapper is what inject() would make, and so can be our own only.
    """
    argument = _argument(domain, ACCELERATOR + socket)
    emulator = domain.find("devices/emulator")
    _strip(domain)
    if argument is None or emulator is None or not string(emulator).endswith(WRAPPER_SUFFIX):
        return
    remove_suffix(emulator, WRAPPER_SUFFIX)
    commandline = argument.getparent()
    if commandline is not None:
        _remove_option(argument)
        if not len(commandline) and not (commandline.text or "").strip():
            remove(commandline)


def _argument(domain: _Element, value: str) -> _Element | None:
    arguments = domain.iterfind(f"{COMMANDLINE_TAG}/{ARG_TAG}")
    return next((argument for argument in arguments if argument.get("value") == value), None)


def _strip_argument(domain: _Element, mark: _Element) -> None:
    """Remove the argument that the mark names; where somebody has edited it, the first one that looks like ours."""
    argument = _argument(domain, ACCELERATOR + mark.get("socket", ""))
    if argument is None:
        every = domain.iterfind(f"{COMMANDLINE_TAG}/{ARG_TAG}")
        argument = next((arg for arg in every if OUR_ARGUMENT.fullmatch(arg.get("value", ""))), None)
    if argument is not None:
        _remove_option(argument)


def _remove_option(arg: _Element) -> None:
    """Remove the argument and the -accel before it."""
    option = next(arg.itersiblings(ARG_TAG, preceding=True), None)
    remove(arg)
    if option is not None and option.get("value") == "-accel":
        remove(option)


def _names_wrapper(path: str, mark: _Element) -> bool:
    """Tell whether this is the wrapper of the emulator that the mark names."""
    return path == mark.get("emulator", "") + WRAPPER_SUFFIX


def _strip_emulator(domain: _Element, mark: _Element, created: bool) -> None:
    emulator = domain.find("devices/emulator")
    if emulator is None or not _names_wrapper(string(emulator), mark):
        return  # somebody has changed it since: it is theirs
    if created:
        remove(emulator)
    else:
        remove_suffix(emulator, WRAPPER_SUFFIX)


def _mark(domain: _Element) -> _Element | None:
    return domain.find(f"metadata/{MARK_TAG}")


def _note_created(mark: _Element, name: str) -> None:
    mark.set("created", f"{mark.get('created', '')} {name}".strip())


def _container(domain: _Element, name: str, mark: _Element) -> _Element:
    """Find the container or create it. The mark notes a created one, and the white space an empty one holds."""
    tag = CONTAINERS[name]
    container = domain.find(tag)
    if container is None:
        _note_created(mark, name)
        container = etree.Element(tag, nsmap={"qemu": QEMU} if name == "commandline" else None)
        index = index_after(domain, BEFORE_METADATA) if name == "metadata" else len(domain)
        insert(domain, index, container)
    elif not len(container) and not (container.text or "").strip():
        mark.set(name, container.text or "")
    else:
        return container
    container.text = indentation(domain)
    return container
