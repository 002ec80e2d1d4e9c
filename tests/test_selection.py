"""The key `domains` of the configuration: what it accepts, and which domains it chooses."""

from pathlib import Path

import pytest
import yaml

from libvirt_rapl.config import load
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.selection import Selection

UUID = "12345678-1234-1234-1234-123456789abc"
DOMAIN = f"""\
<domain type='kvm'>
  <name>web1</name>
  <uuid>{UUID.upper()}</uuid>
  <title>Shop (metered)</title>
  <metadata>
    <!-- ours -->
    <t:tenant xmlns:t='urn:example:tenant' name='a'><t:meter/></t:tenant>
    <plain xmlns=''/>
  </metadata>
</domain>
"""


def selects(text: str) -> bool:
    selection = Selection.parse(yaml.safe_load(text))
    assert selection is not None, text
    return selection.selects(Definition.parse(DOMAIN).traits)


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("[]", False),
        ("{}", False),
        ("['*']", True),
        ("[web1]", True),
        ("[db*, web*]", True),
        ("[db*]", False),
        ("[WEB1]", False),
        (f"[{UUID}]", True),
        (f"[{UUID.upper()}]", True),
        (f"[{UUID.replace('-', '')}]", True),
        ("['*-123456789abc']", False),
        ("[title: '*(metered)']", True),
        ("[title: web1]", False),
        ("[title: 'Shop']", False),
        ("[title: 'shop*']", False),
        ("[title: '*']", True),
        ("[metadata: 'urn:example:tenant']", True),
        ("[metadata: 'urn:example:tenant tenant']", True),
        ("[metadata: 'urn:example:tenant meter']", False),
        ("[metadata: 'urn:example:*']", False),
        ("[metadata: 'urn:example:tenant Tenant']", False),
        ("[metadata: 'urn:other tenant']", False),
        ("[metadata: tenant]", False),
        ("include: [web*]", True),
        ("include: [web*]\nexclude: [web1]", False),
        ("include: [web*]\nexclude: [web2]", True),
        ("include: ['*']\nexclude: [title: Shop*]", False),
        ("exclude: [db1]", False),
    ],
)
def test_selects(text: str, selected: bool) -> None:
    assert selects(text) is selected


def test_a_domain_that_has_nothing_is_chosen_by_nothing_but_all() -> None:
    bare = Definition.parse(f"<domain><uuid>{UUID}</uuid></domain>").traits
    for text, selected in (("['*']", True), ("[web*]", False), ("[metadata: 'urn:x']", False)):
        selection = Selection.parse(yaml.safe_load(text))
        assert selection is not None
        assert selection.selects(bare) is selected


@pytest.mark.parametrize(
    "text",
    [
        "web",
        "[1]",
        "[[web]]",
        "[name: web]",
        "[{title: a, metadata: b}]",
        "[title: 1]",
        "[title: [a]]",
        "[metadata: '']",
        "[metadata: a b c]",
        "{includes: [web]}",
        "{include: web}",
        "{include: [web], exclude: db}",
        "{1: [web]}",
        "",
    ],
)
def test_what_says_no_domains_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "virt-rapl.yaml"
    file.write_text(f"helper: native\ndomains: {text}\n")
    with pytest.raises(VirtRaplError, match=r"virt-rapl.yaml:2: domains: expected a list of names") as caught:
        load(file)
    assert "title: PATTERN" in caught.value.message


def test_a_name_that_looks_like_a_pattern() -> None:
    selection = Selection.parse(["dir[1]"])
    assert selection
    traits = Definition.parse(DOMAIN).traits
    assert [selection.selects(traits._replace(name=name)) for name in ("dir[1]", "dir1", "dir2")] == [True, True, False]


def test_any_title_is_also_none() -> None:
    selection = Selection.parse([{"title": "*"}])
    assert selection
    assert selection.selects(Definition.parse(DOMAIN).traits._replace(title=""))
