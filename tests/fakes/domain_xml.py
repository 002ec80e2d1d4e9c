"""Domain XML for tests: made by hand, and generated with whatever an owner may write."""

from hypothesis import strategies as st
from lxml import etree

from libvirt_rapl.domains import names

UUID = "2b3c4d5e-6f70-4a81-92b3-c4d5e6f70819"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def parsed(xml: str) -> etree._Element:
    # The text is decoded: an encoding it may declare counts no more.
    return etree.fromstring(xml.encode(), etree.XMLParser(encoding="utf-8"))


def canonical(xml: str) -> str:
    """C14N with comments: what two XML texts must share to mean the same."""
    return etree.tostring(parsed(xml).getroottree(), method="c14n", with_comments=True).decode()


def domain(inside: str = "", *, uuid: str = f"<uuid>{UUID}</uuid>", attributes: str = "type='kvm'") -> str:
    return f"<domain {attributes}>\n  <name>guest</name>\n  {uuid}\n  {inside}\n</domain>\n"


SPACE = st.sampled_from(["", " ", "\n", "\n  ", "\n\n    ", "\t", "\r\n  "])
TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="<&>\r]-?\ufffe\uffff", exclude_categories=["Cc", "Cs"]), max_size=6
)
NOISE: st.SearchStrategy[str] = st.one_of(
    SPACE,
    TEXT.map(lambda text: f"<!--{text}-->"),
    TEXT.map(lambda text: f"<?note {text.strip() or 'x'}?>"),
    TEXT.map(lambda text: f"<![CDATA[{text}&<]]>"),
    TEXT,
    st.sampled_from(["&#13;", "&amp;&lt;", "é漢"]),
)
# Prefixes the user may have bound: where the QEMU namespace is declared, and as what.
PREFIXES = st.sampled_from(["qemu", "q", "rapl", ""])
EMULATORS = st.sampled_from(
    ["/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/é q", "<![CDATA[/usr/bin/a&b]]>", "/a<!-- c -->/b"]
)
USER_ARGS = st.sampled_from(["-device", "foo,accel=kvm", "", "-acc", "a,rapl=true", "*", '"', "a\tb&#10;c"])


@st.composite
def domains(draw: st.DrawFn, *, with_uuid: bool = True) -> str:
    def noisy(*parts: str) -> str:
        """Join the parts with whatever may stand between elements."""
        return "".join([draw(NOISE) + part for part in parts] + [draw(NOISE)])

    def quoted(value: str) -> str:
        return '"' + value.replace('"', "&quot;") + '"'

    parts = [f"<uuid>{draw(SPACE)}{draw(st.sampled_from([UUID, UUID.upper()]))}</uuid>"] if with_uuid else ["<name/>"]
    attributes, prefix, local = " type='kvm'", draw(PREFIXES), draw(st.booleans())
    declaration = f" xmlns{':' + prefix if prefix else ''}='{QEMU}'"
    if prefix and not local:
        attributes += declaration
    if draw(st.booleans()):
        attributes += f" xmlns:{draw(st.sampled_from(['rapl', 'm', 'x']))}2='{names.MARK}'"
    if draw(st.booleans()):
        foreign = ["<f:a xmlns:f='urn:f' b='1'/>"] if draw(st.booleans()) else []
        parts.append(f"<metadata>{noisy(*foreign)}</metadata>")
    if draw(st.booleans()):
        inside = [f"<emulator>{draw(EMULATORS)}</emulator>"] if draw(st.booleans()) else []
        inside += draw(st.lists(st.just("<disk/>"), max_size=2))
        parts.append(f"<devices>{noisy(*draw(st.permutations(inside)))}</devices>" if inside else "<devices/>")
    if draw(st.booleans()) and (local or prefix):
        start = f"{prefix}:" if prefix else ""
        args = [f"<{start}arg value={quoted(value)}/>" for value in draw(st.lists(USER_ARGS, max_size=3))]
        args += [f"<{start}env name='A' value='b'/>"] if draw(st.booleans()) else []
        here = declaration if local else ""
        parts.append(f"<{start}commandline{here}>{noisy(*args)}</{start}commandline>")
    parts.append(draw(st.sampled_from(["<clock/>", "<vcpu>4</vcpu>", "<vcpu current='4'>4</vcpu>"])))
    body = noisy(*draw(st.permutations(parts)))
    declarations = ["", "<?xml version='1.0'?>\n", "<?xml version='1.0' encoding='latin1'?>"]
    prolog = draw(st.sampled_from(declarations)) + draw(st.sampled_from(["", "<!-- <domain> -->"]))
    epilog = draw(st.sampled_from(["", "\n", "\n<!-- </domain> -->\n"]))
    return f"{prolog}<domain{attributes}>{body}</domain>{epilog}"
