"""Domain XML with the meter in it, and without: strings in, strings out.

inject() makes four changes and writes down in the mark, an element of ours under <metadata>, what strip() needs to
take them back exactly, white space included:
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

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.selection import Traits
from libvirt_rapl.xmltext import indentation, index_after, insert, last_text, remove, set_last_text, string

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
PROLOG = re.compile(r"(?:\s|<\?.*?\?>|<!--.*?-->)*", re.DOTALL)
"""What may stand before the root element; a document type is refused."""


def inject(xml: str, *, socket: str, default_emulator: str = DEFAULT_EMULATOR) -> str:
    """Return the XML with the meter in it, reading through the helper at `socket`.

    XML that carries the mark already, or what is left of an earlier inject(), is brought to this socket.
    `default_emulator` is taken where the domain names none. Raises VirtRaplError for what check() refuses and for XML
    that cannot be read.
    """
    domain = _parse(xml)
    _clear(domain)
    _check(domain, socket)
    _inject(domain, socket, default_emulator)
    return _serialise(domain, xml)


def strip(xml: str) -> str:
    """Return the XML as it was before inject(); XML without anything of ours comes back unchanged.

    Where the mark is lost, the argument and the wrapper are taken out. Raises as inject().
    """
    domain = _parse(xml)
    if not (_strip(domain) or _clear(domain)):
        return xml
    return _serialise(domain, xml)


def check(xml: str, socket: str) -> None:
    """Raise VirtRaplError when this domain, with the mark or without, cannot have a meter at `socket`."""
    domain = _parse(xml)
    _clear(domain)
    _check(domain, socket)


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
    return domain.findtext("name", ""), _uuid(domain)


def number(xml: str) -> int | None:
    """Return libvirt's number of a domain that runs or is about to; None of any other."""
    value = _parse(xml).get("id", "")
    return int(value) if value.isdecimal() else None


def traits(xml: str) -> Traits:
    """Return what a domain is chosen by. Raises VirtRaplError as identity()."""
    domain = _parse(xml)
    names = [etree.QName(element) for element in domain.iterfind("metadata/*")]
    metadata = frozenset((name.namespace or "", name.localname) for name in names)
    return Traits(domain.findtext("name", ""), _uuid(domain), domain.findtext("title", ""), metadata)


def original_emulator(xml: str, default: str = DEFAULT_EMULATOR) -> str:
    """Return the path of the real emulator, whether the XML carries the mark or not; `default` where it names none.

    That is <emulator>'s word: the mark is metadata, which may say anything.
    """
    domain = _parse(xml)
    emulator = domain.find("devices/emulator")
    path = default if emulator is None else string(emulator)
    return path if _mark(domain) is None else path.removesuffix(WRAPPER_SUFFIX)


def helper_socket(xml: str) -> str | None:
    """Return the socket that our argument names; None where there is no such argument."""
    arguments = (arg.get("value", "") for arg in _parse(xml).iterfind(f"{COMMANDLINE_TAG}/{ARG_TAG}"))
    return next((value.removeprefix(ACCELERATOR) for value in arguments if OUR_ARGUMENT.fullmatch(value)), None)


def dac_label(xml: str) -> str | None:
    """Return the label (`+64055:+64055`, `libvirt-qemu:kvm`) that QEMU runs under; None where the XML has none."""
    return _parse(xml).findtext("seclabel[@model='dac']/label")


def difference(before: str, after: str, name: str) -> str:
    """Return a unified diff of two XML texts, blind to quotes and whatever else means nothing in XML."""
    old, new = ((_serialise(_parse(xml), xml).rstrip() + "\n").splitlines(keepends=True) for xml in (before, after))
    return "".join(difflib.unified_diff(old, new, f"{name} (now)", f"{name} (new)"))


def _parse(xml: str) -> _Element:
    # The encoding overrides a declared one: the text is decoded already.
    parser = etree.XMLParser(
        encoding="utf-8", strip_cdata=False, resolve_entities=False, no_network=True, huge_tree=False
    )
    try:
        domain = etree.fromstring(xml.encode(), parser)
    except (etree.XMLSyntaxError, UnicodeEncodeError) as error:
        raise VirtRaplError(f"the domain XML is not well-formed: {' '.join(str(error).split())}") from error
    if domain.getroottree().docinfo.internalDTD is not None:
        raise VirtRaplError("the domain XML has a document type declaration", "remove the <!DOCTYPE ...>")
    if domain.tag != "domain":
        raise VirtRaplError(f"the XML describes no domain: it begins with <{domain.tag}>", "expected <domain ...>")
    return domain


def _serialise(domain: _Element, original: str) -> str:
    """Write the domain with what stood around the root element of `original`: declaration, comments, line ends."""
    prolog = PROLOG.match(original)
    around = prolog.group() if prolog else ""
    after = "".join("\n" + etree.tostring(node, encoding="unicode", with_tail=False) for node in domain.itersiblings())
    end = original[len(original.rstrip()) :]
    return around + etree.tostring(domain, encoding="unicode", with_tail=False) + after + end


def _check(domain: _Element, socket: str) -> None:
    """Refuse what cannot work; the domain is without our changes here."""
    _uuid(domain)
    if domain.get("type") != "kvm":
        raise VirtRaplError(f"the domain is of type {domain.get('type')!r}", "only domains of type kvm have RAPL")
    machine = domain.find("os/type")
    if machine is not None and machine.get("arch", "x86_64") != "x86_64":
        raise VirtRaplError(f"the domain is a {machine.get('arch')} machine", "only x86_64 machines have RAPL")
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


def _uuid(domain: _Element) -> str:
    text = domain.findtext("uuid", "").strip()
    if not text:
        raise VirtRaplError("the domain XML has no <uuid>", "add one; /proc/sys/kernel/random/uuid makes them")
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise VirtRaplError(
            f"the domain's <uuid> is not a UUID: {text!r}", "/proc/sys/kernel/random/uuid makes them"
        ) from error


def _inject(domain: _Element, socket: str, default_emulator: str) -> None:
    mark = etree.Element(MARK_TAG, nsmap={"rapl": MARK})
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
        set_last_text(emulator, last_text(emulator) + WRAPPER_SUFFIX)

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
    _strip_accelerator(domain)
    _strip_emulator(domain, mark.get("emulator", ""), "emulator" in created)
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


def _clear(domain: _Element) -> bool:
    """Take out all that is ours: also where the mark is lost or the emulator was edited, and _strip() cannot know.

    Tells whether there was anything.
    """
    found = _strip(domain)
    for arg in domain.findall(f"{COMMANDLINE_TAG}/{ARG_TAG}"):
        if OUR_ARGUMENT.fullmatch(arg.get("value", "")):
            found = True
            commandline = arg.getparent()
            _remove_option(arg)
            if commandline is not None and not len(commandline) and not (commandline.text or "").strip():
                remove(commandline)
    emulator = domain.find("devices/emulator")
    if emulator is not None and last_text(emulator).endswith(WRAPPER_SUFFIX):
        found = True
        set_last_text(emulator, last_text(emulator).removesuffix(WRAPPER_SUFFIX))
    return found


def _strip_accelerator(domain: _Element) -> None:
    for arg in domain.findall(f"{COMMANDLINE_TAG}/{ARG_TAG}"):
        if arg.get("value", "").startswith(ACCELERATOR):
            _remove_option(arg)


def _remove_option(arg: _Element) -> None:
    """Remove the argument and the -accel before it."""
    option = next(arg.itersiblings(ARG_TAG, preceding=True), None)
    remove(arg)
    if option is not None and option.get("value") == "-accel":
        remove(option)


def _strip_emulator(domain: _Element, original: str, created: bool) -> None:
    emulator = domain.find("devices/emulator")
    if emulator is None or string(emulator) != original + WRAPPER_SUFFIX:
        return  # somebody has changed it since: it is theirs
    if created:
        remove(emulator)
    else:
        set_last_text(emulator, last_text(emulator).removesuffix(WRAPPER_SUFFIX))


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
