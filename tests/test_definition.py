"""What a domain's XML says of it: number, traits, kind and label, and what is read from it at all."""

import pytest
from fakes.libvirt import UUID

from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.selection import Traits

SELINUX = "<seclabel model='selinux'><label>a</label></seclabel>"


def domain(inside: str = "", attributes: str = "type='kvm'") -> Definition:
    return Definition.parse(f"<domain {attributes}><name>web</name><uuid>{UUID}</uuid>{inside}</domain>")


@pytest.mark.parametrize(("attribute", "number"), [("", None), ("id='3'", 3), ("id='0'", 0), ("id='-1'", None)])
def test_the_number_of_one_that_runs_or_is_about_to(attribute: str, number: int | None) -> None:
    assert domain(attributes=f"type='kvm' {attribute}").id == number


def test_what_the_configuration_chooses_it_by() -> None:
    metadata = "<metadata><a:b xmlns:a='urn:a'><a:c/></a:b><d/><!-- e --></metadata>"
    found = domain(f"<title>a<!-- b -->c</title>{metadata}").traits
    assert found == Traits("web", UUID, "ac", frozenset({("urn:a", "b"), ("", "d")}), found.texts)
    bare = domain().traits
    assert bare == Traits("web", UUID, "", frozenset(), bare.texts)
    with pytest.raises(VirtRaplError, match="no UUID"):
        _ = Definition.parse("<domain><name>web</name></domain>").traits


@pytest.mark.parametrize(
    ("domain_type", "arch", "expected"),
    [("kvm", "x86_64", True), ("qemu", "x86_64", False), ("kvm", "aarch64", False)],
)
def test_a_kvm_guest_of_this_architecture(domain_type: str, arch: str, expected: bool) -> None:
    kind = domain(f"<os><type arch='{arch}'>hvm</type></os>", f"type='{domain_type}'")
    assert kind.is_x86_64_kvm == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("", None),
        ("<seclabel model='dac' type='none'/>", None),
        (SELINUX, None),
        (f"{SELINUX}<seclabel model='dac'><label>1:2</label></seclabel>", "1:2"),
    ],
)
def test_the_user_that_qemu_runs_as(labels: str, expected: str | None) -> None:
    assert domain(labels).dac_label == expected


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_user_of_qemus_that_its_owner_has_chosen(kind: str) -> None:
    found = domain(f"<seclabel type='{kind}' model='dac' relabel='yes'><label>1:2</label></seclabel>")
    assert found.has_own_dac_label == (kind == "static")
    assert not domain(SELINUX).has_own_dac_label
