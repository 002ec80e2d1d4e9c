"""Golden pairs, refusals, and the laws: strip undoes inject, inject twice is inject once, the last socket wins."""

import codecs
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.domain_xml import QEMU, UUID, canonical, domain, domains, parsed
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from libvirt_rapl.domains import names, xml_layout
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.names import ACCELERATOR
from libvirt_rapl.errors import UnreadableError, VirtRaplError

DATA = Path(__file__).parent / "data" / "domxml"
SOCKET = f"/run/virt-rapl/{UUID}.sock"
OTHER_SOCKET = f"/run/elsewhere/{UUID}.sock"


# Golden pairs. --renew writes the -out.xml files anew; read the difference before committing it.


@pytest.mark.parametrize("before", sorted(DATA.glob("*-in.xml")), ids=lambda path: path.name.removesuffix("-in.xml"))
def test_golden(before: Path, pytestconfig: pytest.Config) -> None:
    xml = before.read_bytes().decode()
    after = before.with_name(before.name.replace("-in.xml", "-out.xml"))
    injected = Definition.parse(xml).with_registers(socket=SOCKET).xml
    if pytestconfig.getoption("renew"):
        after.write_bytes(injected.encode())
    assert injected == after.read_bytes().decode()
    assert canonical(Definition.parse(injected).strip().xml) == canonical(xml)


def test_golden_pairs_are_complete() -> None:
    stems = {path.name.removesuffix("-in.xml") for path in DATA.glob("*-in.xml")}
    assert stems == {path.name.removesuffix("-out.xml") for path in DATA.glob("*-out.xml")}
    assert len(stems) >= 6


# Properties over generated domain XML.


@settings(max_examples=400, deadline=None)
@given(domains())
def test_strip_undoes_inject_exactly(xml: str) -> None:
    injected = Definition.parse(xml).with_registers(socket=SOCKET).xml
    assert Definition.parse(injected).is_marked
    assert canonical(injected) != canonical(xml)
    assert canonical(Definition.parse(injected).strip().xml) == canonical(xml)


@settings(max_examples=200, deadline=None)
@given(domains())
def test_inject_is_idempotent_and_retargets(xml: str) -> None:
    injected = Definition.parse(xml).with_registers(socket=SOCKET).xml
    assert Definition.parse(injected).with_registers(socket=SOCKET).xml == injected
    retargeted = Definition.parse(injected).with_registers(socket=OTHER_SOCKET).xml
    assert retargeted == injected.replace(SOCKET, OTHER_SOCKET)


@settings(max_examples=200, deadline=None)
@given(domains())
def test_injected_xml_says_what_libvirt_needs(xml: str) -> None:
    injected = Definition.parse(xml).with_registers(socket=SOCKET).xml
    before, after = parsed(xml), parsed(injected)

    def args(root: etree._Element) -> list[str]:
        return [arg.get("value", "") for arg in root.iterfind(f"{{{QEMU}}}commandline/{{{QEMU}}}arg")]

    emulator = str(before.xpath("string(devices/emulator)")) or names.DEFAULT_EMULATOR
    assert after.xpath("string(devices/emulator)") == emulator + "-rapl"
    assert args(after) == [*args(before), "-accel", f"kvm,rapl=true,rapl-helper-socket={SOCKET}"]
    assert Definition.parse(xml).emulator() == Definition.parse(injected).emulator() == emulator
    assert Definition.parse(injected).uuid == UUID


MOVED = {
    "the mark, behind another's": (r"(<rapl:rapl .*/>)", r"\1<a:b xmlns:a='urn:a'/>"),
    "the argument, before the owner's": (r"(</qemu:commandline>)", r"<qemu:arg value='-S'/>\1"),
    "commandline, to where libvirt prints it": (r"(</qemu:commandline>)", r"\1<qemu:override/>"),
    "the emulator": (r"(<emulator>.*</emulator>)", r"<disk/>\1"),
}


@pytest.mark.parametrize(("found", "moved"), MOVED.values(), ids=MOVED)
def test_what_is_there_is_not_put_in_again_wherever_it_is(found: str, moved: str) -> None:
    xml, changes = re.subn(found, moved, Definition.parse(domain()).with_registers(socket=SOCKET).xml)
    assert changes == 1
    definition = Definition.parse(xml)
    assert definition.with_registers(socket=SOCKET) is definition
    assert definition.with_registers(socket=OTHER_SOCKET).helper_socket == OTHER_SOCKET


@pytest.mark.parametrize("name", ["capabilities", "override", "deprecation"])
def test_commandline_is_where_libvirt_prints_it(name: str) -> None:
    own = f"<clock/><q:{name} xmlns:q='{QEMU}'/>"
    injected = Definition.parse(domain(own)).with_registers(socket=SOCKET)
    assert [etree.QName(each).localname for each in parsed(injected.xml)][-4:] == [
        "clock",
        "commandline",
        name,
        "devices",
    ]
    assert canonical(injected.strip().xml) == canonical(domain(own))


@pytest.mark.parametrize("name", ["name", "uuid", "hwuuid", "genid", "title", "description"])
def test_metadata_is_where_libvirt_prints_it(name: str) -> None:
    before = f"<{name}/>" if name not in ("name", "uuid") else ""
    injected = Definition.parse(domain(f"{before}<memory/>")).with_registers(socket=SOCKET)
    tags = [etree.QName(each).localname for each in parsed(injected.xml)]
    assert tags[: tags.index("memory")] == ["name", "uuid", *([name] if before else []), "metadata"]


# What a file may be written in: encodings, byte order marks, line ends, characters and references to them.


ENCODINGS = {
    "": "utf-8",
    "utf-8": "utf-8",
    "us-ascii": "ascii",
    "ISO-8859-1": "latin-1",
    "windows-1252": "cp1252",
    "UTF-16": "utf-16",
    "with a mark": "utf-8-sig",
}
CHARACTERS = st.sampled_from(["é", "漢", "\u2028", "\x85", "a", "😀"])


@st.composite
def files(draw: st.DrawFn) -> bytes:
    declared, codec = draw(st.sampled_from(list(ENCODINGS.items())))
    line_end = draw(st.sampled_from(["\n", "\r\n", "\r", "mixed"]))

    def character(*, reference: bool) -> str:
        found = draw(CHARACTERS)
        try:
            found.encode(codec)
        except UnicodeEncodeError:
            return f"&#x{ord(found):x};" if reference else "x"
        return draw(st.sampled_from([found, f"&#{ord(found)};"])) if reference else found

    def comments() -> str:
        kinds = [f"<!-- {character(reference=False)}\n-->\n", f"<?note {character(reference=False)}?>", "\n", ""]
        return "".join(draw(st.lists(st.sampled_from(kinds), max_size=3)))

    name = declared.replace("with a mark", "")
    prolog = (
        f"<?xml version='1.0' encoding='{name}'?>" if name else draw(st.sampled_from(["", "<?xml version='1.0'?>"]))
    )
    between = draw(st.sampled_from(["", "-", " ", " - "]))
    spelt = between.join(UUID.replace("-", "")[place : place + 2] for place in range(0, 32, 2))
    inside = [
        f"<title a='{character(reference=True)}'>{character(reference=True)}&#13;</title>",
        f"<uuid> {draw(st.sampled_from(['', '<!-- c -->', '<?p i?>']))}{spelt}\n </uuid>",
        f"<devices>{comments()}<emulator>/q<!--{character(reference=False)}-->emu</emulator></devices>",
        f"<metadata>\n<a:b xmlns:a='urn:a'>{character(reference=True)}<![CDATA[\n{character(reference=False)}]]></a:b>"
        "</metadata>",
    ]
    text = f"{prolog}{comments()}<domain type='kvm'>{comments()}" + "\n  ".join(inside) + f"</domain>{comments()}\n"
    if line_end == "mixed":
        text = text.replace("\n", "\r\n", 2)
    return text.replace("\n", line_end if line_end != "mixed" else "\n").encode(codec)


def canonical_bytes(data: bytes) -> str:
    """C14N of a file as other programs read it, by the encoding that it declares."""
    return etree.tostring(etree.fromstring(data).getroottree(), method="c14n", with_comments=True).decode()


@settings(max_examples=600, deadline=None)
@given(files())
def test_a_file_comes_back_in_its_own_encoding_and_line_ends(data: bytes) -> None:
    text, encoding = xml_layout.decode(data)
    assert text.encode(encoding) == data
    injected = Definition.parse(text).with_registers(socket=SOCKET).xml.encode(encoding)
    stripped = Definition.parse(injected.decode(encoding)).strip().xml.encode(encoding)
    assert Definition.parse(text).uuid == UUID
    assert canonical_bytes(stripped) == canonical_bytes(data)
    assert SOCKET in canonical_bytes(injected)
    kinds = set(re.findall(r"\r\n|\r|\n", text))
    if len(kinds) == 1:
        for written in (injected, stripped):
            assert set(re.findall(r"\r\n|\r|\n", written.decode(encoding))) == kinds
    before_root = text.partition("<domain")[0]
    assert injected.decode(encoding).startswith(before_root + "<domain")
    for character in set(text) - set(map(chr, range(128))):
        assert stripped.decode(encoding).count(character) >= text.count(character)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<domain>\xe9</domain>", "not in UTF-8"),
        (b"<?xml version='1.0' encoding='us-ascii'?><domain>\xc3\xa9</domain>", "not in US-ASCII"),
        (b"<?xml version='1.0' encoding='klingon'?><domain/>", "not in KLINGON"),
        (b"<?xml version='1.0' encoding='base64'?><domain/>", "not in BASE64"),
        (codecs.BOM_UTF16_LE + b"<", "not in UTF-16"),
    ],
)
def test_a_file_that_is_not_in_its_encoding(data: bytes, message: str) -> None:
    with pytest.raises(VirtRaplError, match=message) as caught:
        xml_layout.decode(data)
    assert "iconv" in caught.value.hint


@pytest.mark.parametrize(
    "spelt",
    ["<uuid>{}</uuid>", "<uuid>\n <!-- mine -->{}<?p?>\t</uuid>", "<uuid><!-- a -->{}<!-- b --> </uuid>"],
)
def test_a_uuid_with_a_comment_or_spaces(spelt: str) -> None:
    for text in (UUID, UUID.upper(), UUID.replace("-", " "), UUID.replace("-", "")):
        xml = domain(uuid=spelt.format(text)).replace("<name>guest", "<name>gu<!-- c -->est")
        definition = Definition.parse(xml)
        assert (definition.name, definition.uuid) == ("guest", UUID)
    for text in (UUID[:-1], UUID[:-1] + "g", f"{{{UUID}}}", f"urn:uuid:{UUID}", UUID + "00"):
        with pytest.raises(VirtRaplError, match="not a UUID"):
            _ = Definition.parse(domain(uuid=spelt.format(text))).uuid


def test_a_definition_never_changes() -> None:
    definition = Definition.parse(f"<!-- before -->{domain()}<!-- after --><?and more?>\n")
    text = definition.xml
    injected = definition.with_registers(socket=SOCKET)
    injected_text = injected.xml
    assert (definition.is_marked, injected.is_marked) == (False, True)
    assert injected.strip().xml == Definition.parse(text).rewritten
    assert injected.with_registers(socket=OTHER_SOCKET).helper_socket == OTHER_SOCKET
    definition.check(SOCKET)
    assert (definition.xml, injected.xml) == (text, injected_text)


# What each function does with odd input.


def test_strip_returns_unmarked_xml_as_it_is() -> None:
    xml = domain("<devices><emulator>/usr/bin/qemu</emulator></devices>").replace("\n", "\r\n")
    assert Definition.parse(xml).strip().xml is xml


def test_a_mark_that_says_nothing_is_removed() -> None:
    """As one that its owner has emptied."""
    mark = f"<metadata><x:rapl xmlns:x='{names.MARK}'/></metadata>"
    assert canonical(Definition.parse(domain(mark)).strip().xml) == canonical(domain("<metadata></metadata>"))


def test_text_in_metadata_stays() -> None:
    assert "mine</metadata>" in Definition.parse(domain("<metadata>mine</metadata>")).with_registers(socket=SOCKET).xml


def test_strip_leaves_what_the_user_added_since() -> None:
    injected = Definition.parse(domain()).with_registers(socket=SOCKET).xml
    mine = injected.replace("<metadata>", "<metadata><a:b xmlns:a='urn:a'/>").replace(
        names.DEFAULT_EMULATOR + "-rapl</emulator>", "/opt/other</emulator><disk/>"
    )
    stripped = Definition.parse(mine).strip().xml
    assert not Definition.parse(stripped).is_marked
    assert "<a:b" in stripped
    assert "<emulator>/opt/other</emulator>" in stripped
    assert "<disk/>" in stripped
    assert "rapl" not in stripped


def pretty(xml: str) -> str:
    """Return what libvirt makes of XML on define: blanks are dropped, elements laid out anew."""
    root = etree.fromstring(xml, etree.XMLParser(remove_blank_text=True))
    return etree.tostring(root, encoding="unicode", pretty_print=True)


def test_strip_survives_a_pretty_printer() -> None:
    for inside in ("", "<metadata/>", "<metadata><a:b xmlns:a='urn:a'/></metadata><devices/>"):
        before = pretty(domain(inside))
        assert (
            pretty(Definition.parse(pretty(Definition.parse(before).with_registers(socket=SOCKET).xml)).strip().xml)
            == before
        )


def test_undeclared_prefix_leaves_no_trace() -> None:
    xml = domain()
    injected = Definition.parse(xml).with_registers(socket=SOCKET).xml
    assert f'<qemu:commandline xmlns:qemu="{QEMU}">' in injected
    assert QEMU not in Definition.parse(injected).strip().xml


def test_declaration_and_line_end_stay() -> None:
    declaration = "<?xml version='1.0' encoding='ISO-8859-1' standalone='yes'?>\n\n<!-- é -->\n"
    injected = Definition.parse(declaration + domain("<title>é</title>")).with_registers(socket=SOCKET).xml
    assert injected.startswith(declaration + "<domain")
    assert injected.endswith("</domain>\n")
    assert "<title>é</title>" in injected


def test_default_emulator_can_be_chosen() -> None:
    injected = Definition.parse(domain()).with_registers(socket=SOCKET, default_emulator="/usr/libexec/qemu-kvm").xml
    assert "<emulator>/usr/libexec/qemu-kvm-rapl</emulator>" in injected
    assert Definition.parse(injected).emulator() == "/usr/libexec/qemu-kvm"


def test_difference_shows_only_our_lines() -> None:
    xml = domain("<devices>\n    <emulator>/usr/bin/qemu</emulator>\n  </devices>")
    lines = (
        Definition.parse(xml)
        .difference(Definition.parse(Definition.parse(xml).with_registers(socket=SOCKET).xml))
        .splitlines()
    )
    changed = [line for line in lines if re.match(r"[-+](?![-+])", line)]
    assert len(changed) == 9
    assert sum(line.startswith("-") for line in changed) == 1
    assert Definition.parse(xml).difference(Definition.parse(xml.replace("'kvm'", '"kvm"'))) == ""


def test_dac_label() -> None:
    label = "<seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel>"
    assert (
        Definition.parse(domain("<seclabel model='apparmor'><label>x</label></seclabel>" + label)).dac_label
        == "+64055:+64055"
    )
    assert Definition.parse(domain()).dac_label is None


VCPUS = "<vcpus><vcpu id='0' enabled='yes'/><vcpu id='1' enabled='yes'/><vcpu id='2' enabled='no'/></vcpus>"


@pytest.mark.parametrize(
    "inside",
    [
        "<vcpu current='2'>16</vcpu>",
        f"<vcpu placement='static' current=' 2 '>3</vcpu>{VCPUS}",
        f"<vcpu placement='static'>3</vcpu>{VCPUS}",
    ],
    ids=["oVirt", "libvirt", "KubeVirt"],
)
def test_a_domain_that_can_grow_has_two_ways_out(inside: str) -> None:
    topology = "<cpu><topology sockets='{}' cores='1' threads='1'/></cpu>"
    with pytest.raises(VirtRaplError) as caught:
        Definition.parse(domain(inside + topology.format(16))).with_registers(socket=SOCKET)
    assert "<vcpu>2</vcpu> without current=, no <vcpus>, and a <topology> in <cpu> that makes 2" in caught.value.hint
    assert "`--via channel`" in caught.value.hint
    Definition.parse(domain("<vcpu>2</vcpu>" + topology.format(2))).check(SOCKET)


OWN_ACCEL = "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='{}'/></q:commandline>"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (domain(attributes="type='qemu'"), "type 'qemu'"),
        (domain(attributes="id='1'"), "type None"),
        (domain("<os><type arch='aarch64'>hvm</type></os>"), "aarch64"),
        (domain("<vcpu current='2'>4</vcpu>"), "number of vCPUs can grow"),
        (domain("<vcpus><vcpu id='1' enabled='no' hotpluggable='yes'/></vcpus>"), "number of vCPUs can grow"),
        (domain(OWN_ACCEL.format("-accel")), "-accel argument of its own"),
        (domain(OWN_ACCEL.format("--accel")), "-accel argument of its own"),
        (domain("<devices><emulator>qemu</emulator></devices>"), "not an absolute path"),
        (domain("<devices><emulator/></devices>"), "not an absolute path"),
        (domain("<devices><emulator>/usr/bin/q </emulator></devices>"), "not an absolute path"),
        (domain("<devices><emulator>\n/usr/bin/q</emulator></devices>"), "not an absolute path"),
        (domain(f"<metadata><x:y xmlns:x='{names.MARK}'/></metadata>"), "foreign element"),
        (domain(uuid=""), "no UUID"),
        (domain(uuid="<uuid>12</uuid>"), "not a UUID"),
    ],
)
def test_refused(xml: str, message: str) -> None:
    for refuse in (
        lambda: Definition.parse(xml).check(SOCKET),
        lambda: Definition.parse(xml).with_registers(socket=SOCKET).xml,
    ):
        with pytest.raises(VirtRaplError, match=re.escape(message)) as caught:
            refuse()
        assert caught.value.hint


@pytest.mark.parametrize(
    "xml",
    [
        domain("<vcpu placement='static' current='4'>4</vcpu><os><type>hvm</type></os>"),
        domain("<vcpus><vcpu id='0' enabled='yes' hotpluggable='no'/></vcpus>"),
        domain(OWN_ACCEL.format("-device")),
    ],
)
def test_accepted_with_the_mark_and_without(xml: str) -> None:
    Definition.parse(xml).check(SOCKET)
    Definition.parse(Definition.parse(xml).with_registers(socket=SOCKET).xml).check(OTHER_SOCKET)


LEFT = f"""\
<domain type='kvm'>
  <uuid>{UUID}</uuid>
  <devices>
    <emulator>/usr/bin/q</emulator>
  </devices>
</domain>
"""
OTHER_DOMAINS = "/run/elsewhere/aaaaaaaa-0000-4000-8000-000000000000.sock"


@pytest.mark.parametrize(
    "broken",
    [
        lambda _: Definition.parse(LEFT).with_registers(socket=OTHER_DOMAINS).xml,  # a clone, another host's
        lambda xml: re.sub(r" *<metadata>.*</metadata>\n", "", xml, flags=re.DOTALL),
        lambda xml: re.sub(r" *<qemu:commandline.*</qemu:commandline>\n", "", xml, flags=re.DOTALL),
        lambda xml: xml.replace("/q-rapl<", "/q<"),
        lambda xml: xml.replace(f"={SOCKET}", f"={OTHER_DOMAINS}"),
        lambda xml: xml.replace('<qemu:arg value="-accel"/>', ""),
        lambda xml: re.sub(r' socket="[^"]*"', "", xml),  # as marks were made before they named it
    ],
    ids=["socket", "mark", "argument", "wrapper", "edited socket", "no -accel", "older mark"],
)
def test_what_is_left_of_a_meter_is_brought_in_order(broken: Callable[[str], str]) -> None:
    whole = Definition.parse(LEFT).with_registers(socket=SOCKET).xml
    found = broken(whole)
    assert Definition.parse(found).difference(Definition.parse(whole))
    Definition.parse(found).check(SOCKET)
    mended = Definition.parse(found).with_registers(socket=SOCKET).xml
    Definition.parse(mended).check_takes_effect()
    assert pretty(mended) == pretty(whole)
    assert Definition.parse(mended).emulator() == "/usr/bin/q"
    assert Definition.parse(mended).with_registers(socket=SOCKET).xml == mended
    assert "rapl" not in Definition.parse(mended).strip().xml
    assert "commandline" not in Definition.parse(mended).strip().xml


def unmarked(xml: str) -> str:
    return re.sub(r" *<metadata>.*</metadata>\n", "", xml, flags=re.DOTALL)


def with_arguments(xml: str, *values: str) -> str:
    arguments = "".join(f"<q:arg value='{value}'/>" for value in values)
    return xml.replace("</domain>", f"<q:commandline xmlns:q='{QEMU}'>{arguments}</q:commandline>\n</domain>")


WRAPPED = LEFT.replace("/q<", "/q-rapl<")
NOT_OURS = {
    "somebody's own emulator": WRAPPED,
    "a hand-made argument": with_arguments(LEFT, "-accel", f"kvm,rapl=true,rapl-helper-socket={SOCKET}"),
    "both, of another directory": unmarked(Definition.parse(LEFT).with_registers(socket=OTHER_SOCKET).xml),
    "both, of another domain": unmarked(Definition.parse(LEFT).with_registers(socket=OTHER_DOMAINS).xml),
    "both, and something else": with_arguments(
        WRAPPED, "-accel", "kvm,rapl=true,rapl-helper-socket=/run/mine.sock", "-no-fd-bootchk"
    ),
}


@pytest.mark.parametrize("xml", NOT_OURS.values(), ids=NOT_OURS)
def test_what_no_mark_says_is_ours_is_its_owners(xml: str) -> None:
    assert Definition.parse(xml).strip().xml is xml
    assert Definition.parse(xml).emulator() in ("/usr/bin/q", "/usr/bin/q-rapl")
    assert f"<emulator>{Definition.parse(xml).emulator()}</emulator>" in xml
    for refuse in (
        lambda: Definition.parse(xml).check(SOCKET),
        lambda: Definition.parse(xml).with_registers(socket=SOCKET).xml,
    ):
        with pytest.raises(VirtRaplError) as caught:
            refuse()
        assert caught.value.hint


def test_without_the_mark_disable_takes_nothing_and_enable_still_works() -> None:
    left = unmarked(Definition.parse(LEFT).with_registers(socket=SOCKET).xml)
    assert Definition.parse(left).strip().xml is left
    assert canonical(
        Definition.parse(Definition.parse(left).with_registers(socket=SOCKET).xml).strip().xml
    ) == canonical(LEFT)


@pytest.mark.parametrize("value", ["kvm,rapl=true,rapl-helper-socket=/run/mine.sock", ACCELERATOR + OTHER_SOCKET])
@pytest.mark.parametrize("before", [True, False])
def test_strip_takes_the_argument_of_the_mark_and_no_other(value: str, *, before: bool) -> None:
    mine = ["-accel", value]
    marked = Definition.parse(LEFT).with_registers(socket=SOCKET).xml
    first = '<qemu:arg value="-accel"/>'
    assert marked.count(first) == 1
    added = "".join(f'<qemu:arg value="{argument}"/>' for argument in mine)
    edited = marked.replace(first, added + first) if before else marked.replace("</qemu:comm", f"{added}</qemu:comm")
    arguments = parsed(Definition.parse(edited).strip().xml).iterfind(f"{{{QEMU}}}commandline/{{{QEMU}}}arg")
    assert [argument.get("value") for argument in arguments] == mine


def test_strip_takes_no_other_option_with_the_argument() -> None:
    marked = Definition.parse(LEFT).with_registers(socket=SOCKET).xml
    stripped = Definition.parse(marked.replace('value="-accel"', 'value="-S"')).strip().xml
    assert ("-S" in stripped, "rapl" in stripped) == (True, False)


def test_a_comment_after_the_wrapper() -> None:
    commented = Definition.parse(LEFT).with_registers(socket=SOCKET).xml.replace("q-rapl<", "q-rapl<!-- mine --><")
    assert "<emulator>/usr/bin/q<!-- mine --></emulator>" in Definition.parse(commented).strip().xml
    assert Definition.parse(Definition.parse(commented).with_registers(socket=SOCKET).xml).emulator() == "/usr/bin/q"


@pytest.mark.parametrize("emulator", ["/opt/q-rapl", "/usr/bin/q", "/usr/bin/q-rapl-rapl"])
def test_a_mark_that_the_emulator_does_not_confirm_is_not_believed(emulator: str) -> None:
    edited = Definition.parse(LEFT).with_registers(socket=SOCKET).xml.replace("/usr/bin/q-rapl<", f"{emulator}<")
    assert Definition.parse(edited).emulator() == emulator
    assert f"<emulator>{emulator}</emulator>" in Definition.parse(edited).strip().xml


def test_another_emulator_that_was_put_in_is_taken_over() -> None:
    changed = Definition.parse(LEFT).with_registers(socket=SOCKET).xml.replace("/usr/bin/q-rapl", "/opt/q-rapl")
    mended = Definition.parse(changed).with_registers(socket=SOCKET).xml
    assert Definition.parse(mended).emulator() == "/opt/q"
    assert "<emulator>/opt/q</emulator>" in Definition.parse(mended).strip().xml


def test_an_argument_for_a_socket_that_is_not_ours_is_its_owners() -> None:
    value = "-accel'/><q:arg value='kvm,rapl=true,rapl-helper-socket=/run/qemu-vmsr-helper.sock"
    with pytest.raises(VirtRaplError, match="-accel argument of its own"):
        Definition.parse(domain(OWN_ACCEL.format(value))).with_registers(socket=SOCKET)


@pytest.mark.parametrize(
    "value",
    [
        f"{ACCELERATOR}{SOCKET},dirty-ring-size=4096",
        f"{ACCELERATOR}{SOCKET}.old",
        f"x{ACCELERATOR}{SOCKET}",
        f"{ACCELERATOR}{SOCKET.upper()}",
        f"{ACCELERATOR}/run/a,b/{UUID}.sock",
        f"{ACCELERATOR}{UUID}.sock",
    ],
)
def test_an_argument_that_only_begins_or_ends_as_ours_is_its_owners(value: str) -> None:
    marked = Definition.parse(LEFT).with_registers(socket=SOCKET).xml
    edited = Definition.parse(marked.replace(ACCELERATOR + SOCKET, value))
    assert edited.helper_socket is None
    assert value in edited.strip().xml
    assert Definition.parse(marked).helper_socket == SOCKET


def test_a_second_accel_is_refused_in_marked_xml_too() -> None:
    injected = Definition.parse(domain()).with_registers(socket=SOCKET).xml
    with pytest.raises(VirtRaplError, match="-accel argument of its own"):
        Definition.parse(injected.replace("</domain>", OWN_ACCEL.format("-accel") + "</domain>")).check(SOCKET)


@pytest.mark.parametrize("socket", ["/" + "s" * 107, "/" + "é" * 54, "run/x.sock", "/run/a,b.sock", "/run/a\nb.sock"])
def test_refused_sockets(socket: str) -> None:
    with pytest.raises(VirtRaplError, match="socket path") as caught:
        Definition.parse(domain()).with_registers(socket=socket)
    assert "run_directory" in caught.value.hint


def test_longest_socket_path_is_accepted() -> None:
    assert "s" * 106 in Definition.parse(domain()).with_registers(socket="/" + "s" * 106).xml


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain",
        "<domain>&nothing;</domain>",
        "<domain>\x00</domain>",
        "<domain>\ud800</domain>",
        "<!DOCTYPE domain [<!ENTITY e 'v'>]><domain>&e;</domain>",
        "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>",
        "<domain>" + "<a>" * 300 + "</a>" * 300 + "</domain>",
        "<domain/>" * 2,
        "<domain></domain>" + "<!-- -->" * 100_000 + "<",
        "<domainsnapshot/>",
        "<domain xmlns='urn:x'/>",
    ],
)
def test_what_is_no_domain_xml(xml: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        Definition.parse(xml)
    assert caught.value.xml == xml


@pytest.mark.parametrize(
    "attribute",
    ["xmlns='urn:a b'", "xmlns='http://café.example/ns'", "xmlns='http://ex.com/{id}'", "xmlns='a#b#c'", "xml:id='1'"],
)
def test_what_libvirt_takes_as_metadata_is_read(attribute: str) -> None:
    """None of it is right by the letter of namespaces, and all of it is to libxml2."""
    metadata = f"<metadata>\n    <y {attribute}/>\n    <u:z/>\n  </metadata>"
    xml = f"<domain type='kvm'>\n  <name>a</name>\n  <uuid>{UUID}</uuid>\n  {metadata}\n</domain>\n"
    injected = Definition.parse(xml).with_registers(socket=SOCKET).xml
    assert Definition.parse(injected).is_marked
    assert attribute.replace("'", '"') in injected
    assert Definition.parse(xml).difference(Definition.parse(Definition.parse(injected).strip().xml)) == ""


@pytest.mark.parametrize(
    "broken",
    ["<y xmlns='a<b'/>", "<y>&t;</y>", "<y", "<y a='1' a='2'/>", "\x01", "</metadata></domain><domain><metadata>"],
)
def test_what_is_not_well_formed_is_refused_all_the_same(broken: str) -> None:
    with pytest.raises(UnreadableError):
        Definition.parse(f"<domain><name>a</name><uuid>{UUID}</uuid><metadata>{broken}</metadata></domain>")
