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
    <t:tenant xmlns:t='urn:example:tenant' name='a'>
      <t:meter/>
      <t:group> blue
        team </t:group>
      <t:group>red</t:group>
    </t:tenant>
    <plain xmlns=''/>
  </metadata>
</domain>
"""


def selects(text: str, xml: str = DOMAIN) -> bool:
    selection = Selection.parse(yaml.safe_load(text))
    assert selection is not None, text
    return selection.selects(Definition.parse(xml).traits)


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
        ("[urn:example:tenant tenant@name: a]", True),
        ("[urn:example:tenant tenant@name: '[ab]']", True),
        ("[urn:example:tenant tenant@name: A]", False),
        ("[urn:example:tenant tenant@title: '*']", False),
        ("[urn:example:tenant tenant/group: blue team]", True),
        ("[urn:example:tenant tenant/group: red]", True),
        ("[urn:example:tenant tenant/group: team]", False),
        ("[urn:example:tenant tenant/group: '*team']", True),
        ("[urn:example:tenant tenant/meter: '*']", False),
        ("[urn:other tenant@name: a]", False),
        ("[nova.flavor: '*']", False),
        ("include: [web*]\nexclude: [urn:example:tenant tenant/group: red]", False),
        ("include: [web*]", True),
        ("include: [web*]\nexclude: [web1]", False),
        ("include: [web*]\nexclude: [web2]", True),
        ("include: ['*']\nexclude: [title: Shop*]", False),
        ("exclude: [db1]", False),
    ],
)
def test_selects(text: str, selected: bool) -> None:
    assert selects(text) is selected


NOVA = (Path(__file__).parent / "data/nova.xml").read_text(encoding="utf-8")
OVIRT = f"""\
<domain type='kvm' xmlns:ovirt-vm='http://ovirt.org/vm/1.0'>
  <name>accounts</name>
  <uuid>{UUID}</uuid>
  <metadata xmlns:ovirt-tune='http://ovirt.org/vm/tune/1.0'>
    <ovirt-tune:qos/>
    <ovirt-vm:vm>
      <ovirt-vm:clusterVersion>4.8</ovirt-vm:clusterVersion>
      <ovirt-vm:custom>
        <ovirt-vm:tariff>green</ovirt-vm:tariff>
      </ovirt-vm:custom>
      <ovirt-vm:launchPaused>false</ovirt-vm:launchPaused>
      <ovirt-vm:minGuaranteedMemoryMb type='int'>2048</ovirt-vm:minGuaranteedMemoryMb>
    </ovirt-vm:vm>
  </metadata>
</domain>
"""
KUBEVIRT = """\
<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>shop_till</name>
  <metadata>
    <kubevirt xmlns="http://kubevirt.io">
      <uid>8c1e6f0a-0d51-4c8e-9c33-7a3b0c1d2e4f</uid>
      <graceperiod><deletionGracePeriodSeconds>15</deletionGracePeriodSeconds></graceperiod>
    </kubevirt>
  </metadata>
  <sysinfo type="smbios">
    <system>
      <entry name="uuid">4d1f7c9e-53a0-5b7e-8f6a-0c2b4e6d8a91</entry>
      <entry name="manufacturer">KubeVirt</entry>
    </system>
  </sysinfo>
</domain>
"""


@pytest.mark.parametrize(
    ("xml", "text", "selected"),
    [
        (NOVA, "[nova.flavor: c2.large]", True),
        (NOVA, "[nova.flavor: c2.*]", True),
        (NOVA, "[nova.flavor: c2]", False),
        (NOVA, "[nova.project: web shop]", True),
        (NOVA, "[nova.project: c0ffee00d15ea5e0b1a5ed0fdecade00]", False),
        (NOVA, "[nova.project_id: c0ffee00d15ea5e0b1a5ed0fdecade00]", True),
        (NOVA, "[http://openstack.org/xmlns/libvirt/nova/1.1 instance/name: shop-*]", True),
        (NOVA.replace("nova/1.1", "nova/1.0"), "[nova.flavor: c2.large]", True),
        (NOVA.replace("nova/1.1", "nova/1.2"), "[nova.flavor: c2.large]", False),
        (NOVA, "include: [nova.flavor: '*']\nexclude: [nova.project: web shop]", False),
        (OVIRT, "[http://ovirt.org/vm/1.0 vm/custom/tariff: green]", True),
        (OVIRT, "[http://ovirt.org/vm/1.0 vm/custom/tariff: grey]", False),
        (OVIRT, "[http://ovirt.org/vm/1.0 vm/clusterVersion: 4.*]", True),
        (KUBEVIRT, "[shop_*]", True),
        (KUBEVIRT, "[till]", False),
        (KUBEVIRT, "[4d1f7c9e-53a0-5b7e-8f6a-0c2b4e6d8a91]", True),
        (KUBEVIRT, "[http://kubevirt.io kubevirt/uid: 8c1e6f0a-0d51-4c8e-9c33-7a3b0c1d2e4f]", True),
    ],
)
def test_by_what_an_orchestrator_writes(xml: str, text: str, selected: bool) -> None:
    assert selects(text, xml) is selected


def test_a_domain_that_has_nothing_is_chosen_by_nothing_but_all() -> None:
    bare = Definition.parse(f"<domain><uuid>{UUID}</uuid></domain>").traits
    for text, selected in (
        ("['*']", True),
        ("[web*]", False),
        ("[metadata: 'urn:x']", False),
        ("[urn:x a: '*']", False),
    ):
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
        "[metadata: [a]]",
        "[nova.flavour: m1.green]",
        "[nova.flavor: 1]",
        "[{nova.flavor: m1.green, nova.project: a}]",
        "[urn:x a/: b]",
        "[urn:x: b]",
        "[1: b]",
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
