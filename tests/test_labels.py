"""The key `labels` of the configuration: what it accepts, and what it finds in the metadata of a domain."""

from pathlib import Path

import pytest
import yaml

from libvirt_rapl.config import Config, load
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.labels import Labels

NOVA = (Path(__file__).parent / "data/nova.xml").read_text(encoding="utf-8")
SHOP = """\
<domain>
  <title>Shop \N{RIGHT-TO-LEFT OVERRIDE}
    (metered)</title>
  <metadata>
    <!-- ours -->
    <s:tenant xmlns:s='urn:shop' tier=' gold ' s:tier='other' empty=''>
      <s:unit/>
      <s:unit><s:name><!-- was: A --> Sales
        and more</s:name></s:unit>
      <s:unit><s:name>Second</s:name></s:unit>
      <name>of no namespace</name>
      <s:emoji>\N{GRINNING FACE}&#x202e;</s:emoji>
    </s:tenant>
    <tenant xmlns='urn:other'><name>Other</name></tenant>
  </metadata>
</domain>
"""
WRONG = "labels: expected names of labels"


def labels(definition: str, text: str) -> dict[str, str]:
    wanted = Labels.parse(yaml.safe_load(text))
    assert wanted is not None, text
    return Definition.parse(definition).labels(wanted)


def test_what_nova_writes() -> None:
    user = "http://openstack.org/xmlns/libvirt/nova/1.1 instance/owner/user@uuid"
    text = f"project: nova.project\nid: nova.project_id\nflavor: nova.flavor\nuser: {user}"
    found = {"project": "web shop", "id": "c0ffee00d15ea5e0b1a5ed0fdecade00", "flavor": "c2.large"}
    assert labels(NOVA, text) == found | {"user": "3f6e8e3b2a4d4a7f9b8c7d6e5f4a3b2c"}
    older = NOVA.replace("nova/1.1", "nova/1.0")
    assert labels(older, text) == found
    assert labels(SHOP, text) == {}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("urn:shop tenant@tier", "gold"),
        ("urn:shop tenant/unit/name", "Sales and more"),
        ("urn:shop tenant/emoji", "\N{GRINNING FACE}\\u202e"),
        ("urn:other tenant/name", "Other"),
        ("urn:shop tenant", "Sales and more Second of no namespace \N{GRINNING FACE}\\u202e"),
        ("urn:shop tenant/name", None),
        ("urn:shop tenant@empty", None),
        ("urn:shop tenant/unit/name/name", None),
        ("urn:shop tier", None),
        ("urn:unknown tenant", None),
    ],
)
def test_what_a_place_finds(where: str, value: str | None) -> None:
    assert labels(SHOP, f"it: {where}").get("it") == value


def test_what_is_shown_has_one_line_and_an_end() -> None:
    assert Definition.parse(SHOP).title == "Shop \\u202e (metered)"
    long = SHOP.replace("Shop", "x" * 1000).replace("Second", "y" * 1000)
    assert Definition.parse(long).title == "x" * 256
    assert {len(value) for value in labels(long, "a: urn:shop tenant").values()} == {256}
    assert Definition.parse("<domain/>").title == ""


def test_a_domain_without_metadata_has_no_labels() -> None:
    assert labels("<domain/>", "project: nova.project") == {}


def test_by_default_there_are_none() -> None:
    assert Config().labels == Labels.parse({}) == Labels()


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("labels: nova.project", 1, "nova.project"),
        ("labels:", 1, "null"),
        ("labels: [project]", 1, "[project]"),
        ("labels:\n  project: nova.project\n  uuid: nova.project", 3, "uuid"),
        *((f"labels:\n  {name}: nova.project", 2, name) for name in ("__a", "a-b", "1a", "\u00e9")),
        *((f"labels:\n  {name}: nova.project", 2, name) for name in ("domain", "title", "instance", "job")),
        ("labels:\n  1: nova.project", 2, "1"),
        ("labels:\n  project: nova.projekt", 2, "nova.projekt"),
        ("labels:\n  project: [nova.project]", 2, "[nova.project]"),
        ("labels:\n  project:\n    1", 3, "1"),
        ("labels:\n  project: ''", 2, "''"),
        *(
            (f"labels:\n  a: nova.flavor\n  project: urn:x {path}", 3, f"urn:x {path}")
            for path in ("/a", "a/", "a//b", "x:a", "@a", "a@", "a@b/c", "a b", "a[1]", "*", "..")
        ),
        ("labels:\n  project: urn:x", 2, "urn:x"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, found: str) -> None:
    file = tmp_path / "virt-rapl.yaml"
    file.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(VirtRaplError) as caught:
        load(file)
    assert caught.value.message.startswith(f"{file}:{line}: {WRONG}")
    assert caught.value.message.endswith(f", found {found}")


def test_a_misspelt_place_is_corrected(tmp_path: Path) -> None:
    file = tmp_path / "virt-rapl.yaml"
    file.write_text("labels: {project: nova.projekt}\n")
    with pytest.raises(VirtRaplError) as caught:
        load(file)
    assert "nova.project" in caught.value.hint
