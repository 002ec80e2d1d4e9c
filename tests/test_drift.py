"""What clients that compare a domain with what they wrote see of our changes: the table in docs/automatic.md.

tests/data/clients has XML as each client writes it. That of Terraform is the least favourable: it names the emulator
and, from 0.9 on, just as many PCI Express ports as it needs. virt-manager's own library edits domains with a meter.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from lxml import etree
from lxml.etree import _Element

from libvirt_rapl.choices import Via
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.simulator.world import World

WRITTEN = Path(__file__).parent / "data/clients"
DOCUMENT = Path(__file__).parent.parent / "docs/automatic.md"


class Client(NamedTuple):
    """A row of the table."""

    name: str
    compares: Mapping[str, str]
    """Of what we may change, what it compares: place in the XML, and its own name for that."""
    registers: tuple[str, ...] = ()
    """The places where it sees a change that registers make."""
    channel: tuple[str, ...] = ()


EMULATOR, CONTROLLERS = "devices/emulator", "devices/controller"
CLIENTS = {
    "nova": Client("OpenStack's nova", {}),
    "virt-install": Client("virt-manager, virt-xml", {}),
    "terraform-0.8": Client("terraform-provider-libvirt to 0.8", {EMULATOR: "`emulator`"}, (EMULATOR,)),
    "terraform-0.9": Client(
        "terraform-provider-libvirt 0.9",
        {EMULATOR: "`devices.emulator`", CONTROLLERS: "`devices.controllers`"},
        (EMULATOR,),
        (CONTROLLERS,),
    ),
}


def test_the_table_says_what_each_client_sees() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = {cells[1]: cells[2:4] for line in lines if len(cells := [cell.strip() for cell in line.split("|")]) == 6}
    for client in CLIENTS.values():
        names = [[client.compares[place] for place in places] for places in (client.registers, client.channel)]
        assert rows[client.name] == [", ".join(found) or "nothing" for found in names]


NewDomain = Callable[[str], str]
"""The fixture new_domain: XML, which may be that of a domain it has defined before -> the domain's name."""


@pytest.fixture
def new_domain(world: World) -> Iterator[NewDomain]:
    names: set[str] = set()

    def new_domain(xml: str) -> str:
        names.add(name := Definition.parse(xml).name)
        world.run(["virsh", "define", "/dev/stdin"], input=xml)
        return name

    yield new_domain
    for name in names:
        world.run(["virsh", "undefine", name])


def shown(world: World, name: str) -> _Element:
    xml = world.run(["virsh", "dumpxml", "--inactive", name]).stdout
    return etree.fromstring(xml, etree.XMLParser(remove_blank_text=True))


def differences(wanted: _Element, found: _Element, where: str = "") -> set[str]:
    """Return the places of what is wanted and not found like that: attributes, texts, and elements by kind and order.

    What is found in addition is no difference: so Terraform's provider compares since 0.9.
    """
    places = {f"{where}@{name}" for name in map(str, wanted.attrib) if found.get(name) != wanted.get(name)}
    if not len(wanted) and (wanted.text or "").strip() != (found.text or "").strip():
        places.add(where)
    before: Counter[str] = Counter()
    for child in wanted:
        place = f"{where}/{child.tag}".removeprefix("/")
        left = found.findall(child.tag)[before[child.tag] :]
        places |= differences(child, left[0], place) if left else {place}
        before[child.tag] += 1
    return places


def device(place: str) -> str:
    return "/".join(place.partition("@")[0].split("/")[:2])


@pytest.mark.e2e
@pytest.mark.parametrize("via", ["registers", "channel", "both"])
@pytest.mark.parametrize("file", CLIENTS)
def test_what_a_client_sees(world: World, new_domain: NewDomain, file: str, via: Via) -> None:
    xml, client = (WRITTEN / f"{file}.xml").read_text(encoding="utf-8"), CLIENTS[file]
    name, written = new_domain(xml), etree.fromstring(xml)
    of_libvirt = differences(written, shown(world, name))
    world.run(["virt-rapl", "enable", "--via", via, name])
    seen = {device(place) for place in differences(written, shown(world, name)) - of_libvirt}
    assert seen <= {EMULATOR, CONTROLLERS}
    expected = (client.registers if via != "channel" else ()) + (client.channel if via != "registers" else ())
    assert seen & client.compares.keys() == set(expected)


EDITS = {
    "title": ["--edit", "--metadata", "title=Office"],
    "vCPUs": ["--edit", "--vcpus", "3"],
    "processor": ["--edit", "--cpu", "host-model"],
    "memory": ["--edit", "--memory", "512"],
    "boot": ["--edit", "--boot", "menu=on"],
    "disk": ["--edit", "--disk", "cache=none"],
    "new disk": ["--add-device", "--disk", "/dev/null,device=disk,target.bus=virtio"],
    "new channel": [
        "--add-device",
        "--channel",
        "unix,target.type=virtio,target.name=org.a.0,address.type=virtio-serial,address.port=9",
    ],
    "no video": ["--remove-device", "--video", "all"],
}


@pytest.mark.e2e
@pytest.mark.needs("virt-xml")
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_domain_that_virt_manager_edits_keeps_its_meter(world: World, new_domain: NewDomain, edit: list[str]) -> None:
    xml = (WRITTEN / "virt-install.xml").read_text(encoding="utf-8")
    name = new_domain(xml)
    world.run(["virt-xml", name, *edit, "--define"])
    edited = etree.tostring(shown(world, name))
    assert new_domain(xml) == name
    enable = ["virt-rapl", "enable", "--via", "both", name]
    world.run(enable)
    world.run(["virt-xml", name, *edit, "--define"])
    assert world.run(enable).stdout == f"{name}: already enabled\n"
    world.run(["virt-rapl", "disable", name])
    assert etree.tostring(shown(world, name)) == edited


@pytest.mark.e2e
@pytest.mark.needs("virt-install")
@pytest.mark.parametrize("uuid", [True, False])
def test_what_virt_install_prints_goes_through_inject(world: World, new_domain: NewDomain, *, uuid: bool) -> None:
    guest = ["--name", "printed", "--memory", "64", "--disk", "none", "--boot", "hd", "--network", "none"]
    printed = ["virt-install", *guest, "--osinfo", "detect=off,require=off", "--graphics", "none", "--print-xml", "1"]
    xml = world.run(printed).stdout
    if not uuid:
        xml = "".join(line for line in xml.splitlines(keepends=True) if "<uuid>" not in line)
    injected = world.run(["virt-rapl", "inject", "--via", "registers"], input=xml).stdout
    assert Definition.parse(injected).strip().difference(Definition.parse(xml)) == ""
    name = new_domain(injected)
    assert world.run(["virt-rapl", "enable", "--via", "registers", name]).stdout == f"{name}: already enabled\n"
