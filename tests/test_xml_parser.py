"""What the parser does with XML that somebody has written to make it load or become something else."""

import contextlib
from pathlib import Path

import pytest
from lxml import etree

from libvirt_rapl.domains.xml_parser import parse


@pytest.mark.parametrize("entity", ["<!ENTITY e 'secret'>", "<!ENTITY e SYSTEM '{file}'>"], ids=["text", "file"])
def test_no_entity_is_resolved(tmp_path: Path, entity: str) -> None:
    (tmp_path / "file").write_text("secret")
    declared = entity.format(file=tmp_path / "file")
    root = parse(f"<!DOCTYPE d [{declared}]><d>a&e;<b>&e;</b></d>".encode())
    assert etree.tostring(root) == b"<d>a&e;<b>&e;</b></d>"


def test_a_bomb_of_entities_is_refused_or_stays_small() -> None:
    levels = "".join(f"<!ENTITY e{number} '{f'&e{number - 1};' * 10}'>" for number in range(1, 10))
    with contextlib.suppress(ValueError):
        assert etree.tostring(parse(f"<!DOCTYPE d [<!ENTITY e0 'x'>{levels}]><d>&e9;</d>".encode())) == b"<d>&e9;</d>"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("<d>\n<a></d>", "line 2"),
        ("<d>\n<y xmlns='a<b'/></d>", "line 2"),
        ("<d>" + "<a>" * 300 + "</a>" * 300 + "</d>", "line 1"),
        ("", "empty"),
    ],
)
def test_what_is_wrong_and_where_is_reported(text: str, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        parse(text.encode())


def test_what_libvirt_accepts_is_read_as_it_stands() -> None:
    root = parse("<?xml version='1.0' encoding='latin1'?><d><y xmlns='urn:a b'/><u:z/><![CDATA[<é>]]></d>".encode())
    assert root.xpath("string()") == "<é>"
    assert [child.tag for child in root] == ["{urn:a b}y", "u:z"]
