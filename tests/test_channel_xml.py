"""The energy channel in domain XML: in and out again, alone or with registers, in any order."""

import re

import pytest
from fakes.domain_xml import UUID, canonical, domain, domains, parsed
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import VirtRaplError

SOCKET = f"/run/virt-rapl/{UUID}.sock"
PORT = "org.virt-rapl.energy.0"
OURS = f"<channel type='unix'><source mode='bind'/><target type='virtio' name='{PORT}'/></channel>"
AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/>{}</channel>"
ON_FIRST = "<address type='virtio-serial' controller='0' bus='0' port='{}'/>"
STEPS = {
    "registers": lambda definition: definition.with_registers(socket=SOCKET),
    "no registers": Definition.without_registers,
    "channel": Definition.with_channel,
    "no channel": Definition.without_channel,
}


def devices(*inside: str) -> Definition:
    return Definition.parse(domain(f"<devices>{''.join(inside)}</devices>"))


def tags(definition: Definition) -> list[str]:
    return [each.tag for each in parsed(definition.xml).iterfind("devices/*")]


@settings(max_examples=150, deadline=None)
@given(domains(), st.lists(st.sampled_from(list(STEPS)), max_size=6))
def test_any_steps_are_undone_exactly_and_only_the_last_ones_count(xml: str, steps: list[str]) -> None:
    definition = before = Definition.parse(xml)
    for step in steps:
        definition = Definition.parse(STEPS[step](definition).xml)
    last = {step.removeprefix("no "): not step.startswith("no") for step in steps}
    registers, channel = (last.get(part, False) for part in ("registers", "channel"))
    assert (definition.has_registers, definition.channel_is_ours) == (registers, channel)
    assert definition.channel == (Channel(None, open=False) if channel else None)
    assert definition.is_marked == (registers or channel)
    again = definition
    for part, there in last.items():
        again = STEPS[part if there else f"no {part}"](again)
    assert canonical(again.xml) == canonical(definition.xml)
    assert canonical(definition.strip().xml) == canonical(before.xml)


@settings(max_examples=50, deadline=None)
@given(domains())
def test_what_is_there_is_not_put_in_again(xml: str) -> None:
    """Otherwise a domain that has both would be `repaired` again and again."""
    registers, channel = (STEPS[part] for part in ("registers", "channel"))
    plain = Definition.parse(xml)
    for both in (channel(registers(plain)), registers(channel(plain))):
        assert registers(both) is channel(both) is both
        assert canonical(both.without_channel().xml) == canonical(registers(plain).xml)
        assert canonical(both.without_registers().xml) == canonical(channel(plain).xml)


def test_a_domain_gets_a_controller_only_if_it_has_none() -> None:
    assert tags(devices("<disk/><input/>").with_channel()) == ["disk", "controller", "channel", "input"]
    there = devices("<disk/><controller type='virtio-serial' index='0'/><console/><input/>").with_channel()
    assert tags(there) == ["disk", "controller", "console", "channel", "input"]
    (channel,) = parsed(there.xml).iterfind("devices/channel")
    assert channel.get("type") == "unix"
    assert [dict(part.attrib) for part in channel] == [{"mode": "bind"}, {"type": "virtio", "name": PORT}]


def as_libvirt_defines(definition: Definition, bus: str, port: str = "") -> Definition:
    """Return it with what libvirt adds: addresses, and no source."""
    xml = definition.xml.replace('<source mode="bind"/>', "")
    xml = xml.replace(
        'virtio-serial" index="0"/>', f"virtio-serial\" index='0'><address type='pci' bus='{bus}'/></controller>{port}"
    )
    return Definition.parse(xml.replace(f'name="{PORT}"/>', f"name='{PORT}'/>{ON_FIRST.format(1)}"))


ROOT = "<controller type='pci' index='0'/>"
ROOT_PORT = "<controller type='pci' index='{0}'><address type='pci' bus='0x00'/></controller>"


@pytest.mark.parametrize(
    ("bus", "port", "stays"),
    [
        ("0x00", "", ["controller"]),
        ("0x02", ROOT_PORT.format(2), ["controller"]),
        ("0x10", ROOT_PORT.format(16), ["controller"]),
        ("0x02", ROOT_PORT.format(2) + "<disk><address type='pci' bus='0x02'/></disk>", ["controller"] * 2 + ["disk"]),
    ],
    ids=["on the root bus", "on a port of its own", "one of many", "on a port that something else is on by now"],
)
def test_what_libvirt_has_added_goes_with_it(bus: str, port: str, stays: list[str]) -> None:
    defined = as_libvirt_defines(devices(ROOT).with_channel(), bus, port)
    assert "channel" in tags(defined)
    assert tags(defined.strip()) == stays
    assert not defined.strip().is_marked


FREE = "<controller type='pci' index='{}' model='pcie-root-port'><address type='pci' bus='0x00'/></controller>"
ON_SECOND = "<disk><address type='pci' bus='0x02'/></disk>"


@pytest.mark.parametrize(
    ("before", "later", "stays"),
    [
        ("", "", []),
        ("", ON_SECOND, ["2"]),
        ("", FREE.format(3), ["2", "3"]),
        (FREE.format(2), "", ["2"]),
    ],
    ids=["libvirt's", "a device is on it by now", "the owner has added another", "it was there before"],
)
def test_a_free_port_that_libvirt_added_beside_the_first_one_goes(before: str, later: str, stays: list[str]) -> None:
    channel = devices(ROOT, before).with_channel()
    added = FREE.format(1) + ("" if before else FREE.format(2)) + later
    stripped = parsed(as_libvirt_defines(channel, "0x01", added).strip().xml)
    assert [each.get("index") for each in stripped.iterfind("devices/controller[@type='pci']")] == ["0", *stays]


def test_a_bridge_that_the_owner_has_added_is_no_free_port() -> None:
    bridge = "<controller type='pci' index='{}' model='pci-bridge'/>"
    defined = as_libvirt_defines(devices(ROOT).with_channel(), "0x01", bridge.format(1) + bridge.format(2))
    assert tags(defined.strip()) == ["controller", "controller"]


def test_a_port_that_was_there_stays() -> None:
    before = devices(ROOT, ROOT_PORT.format(2))
    defined = as_libvirt_defines(before.with_channel(), "0x02")
    assert tags(defined.strip()) == tags(before)


def with_port(definition: Definition, *added: str, controller: int = 0) -> Definition:
    """Return it as libvirt defines it: with controllers that are added, and a port of one for the channel."""
    root = parsed(definition.xml)
    (target,) = root.iterfind(f"devices/channel/target[@name='{PORT}']")
    target.addnext(parsed(f"<address type='virtio-serial' controller='{controller}' bus='0' port='1'/>"))
    for each in added:
        root[-1].insert(0, parsed(each))
    return Definition.parse(etree.tostring(root, encoding="unicode"))


@pytest.mark.parametrize("before", ["", " multifunction='on'"])
def test_a_slot_that_the_port_shared_is_as_it_was(before: str) -> None:
    """libvirt marks the first function of a slot with several, and leaves that when they are gone."""
    first = (
        "<controller type='pci' index='1'><address type='pci' bus='0x00' slot='0x01' function='0x0'{}/></controller>"
    )
    definition = devices(ROOT, first.format(before))
    defined = as_libvirt_defines(definition.with_channel(), "0x02", ROOT_PORT.format(2)).xml
    xml = defined.replace('function="0x0"/>', 'function="0x0" multifunction="on"/>')
    assert xml.count("multifunction") == 1
    assert canonical(Definition.parse(xml).strip().xml) == canonical(definition.xml)


@pytest.mark.parametrize("number", [0, 2])
def test_a_controller_that_libvirt_has_added_goes_too(number: int) -> None:
    """As it does if the others are full, or if there is a number 1 and no number 0."""
    there = (f"<controller type='virtio-serial' index='{index}'/>" for index in range(3) if index != number)
    before = devices(ROOT, *there, AGENT.format(ON_FIRST.replace("r='0'", "r='1'").format(1)))
    added = f"<controller type='virtio-serial' index='{number}'><address type='pci' bus='0x02'/></controller>"
    defined = with_port(before.with_channel(), added, ROOT_PORT.format(2), controller=number)
    assert tags(defined).count("controller") == 5
    assert canonical(defined.strip().xml) == canonical(before.xml)
    used = defined.xml.replace("</devices>", AGENT.format(ON_FIRST.replace("r='0'", f"r='{number}'")) + "</devices>")
    assert tags(Definition.parse(used).strip()).count("controller") == 5, "somebody else uses it by now"


@pytest.mark.parametrize("address", ["<address type='pci'/>", "<address type='pci' bus='b'/>", "<address type='ccw'/>"])
def test_a_controller_at_an_address_that_says_nothing_goes_alone(address: str) -> None:
    xml = devices(ROOT, "<controller type='pci'/>").with_channel().xml
    xml = xml.replace('virtio-serial" index="0"/>', f"virtio-serial\" index='0'>{address}</controller>")
    assert address in xml
    assert tags(Definition.parse(xml).strip()) == ["controller", "controller"]


def test_controllers_are_their_owners_if_the_mark_does_not_list_them() -> None:
    xml = re.sub(r' controllers="[^"]*"', "", devices(ROOT).with_channel().xml)
    assert tags(Definition.parse(xml).strip()) == ["controller", "controller"]


CONSOLE = "<console type='pty'><target type='virtio' port='1'/></console>"


@pytest.mark.parametrize("other", [AGENT.format(""), AGENT.format(ON_FIRST.format(2)), CONSOLE])
def test_the_controller_stays_if_somebody_else_uses_it_by_now(other: str) -> None:
    stripped = Definition.parse(devices().with_channel().xml.replace("</devices>", other + "</devices>")).strip()
    assert tags(stripped) == ["controller", parsed(other).tag]
    assert stripped.channel is None


def test_an_agent_on_another_controller_keeps_ours_not() -> None:
    other = "<controller type='virtio-serial' index='1'/>" + AGENT.format(ON_FIRST.format(2).replace("r='0'", "r='1'"))
    xml = devices().with_channel().xml.replace("</devices>", other + "</devices>")
    assert tags(Definition.parse(xml).strip()) == ["controller", "channel"]


def test_a_channel_of_the_owners_is_used_and_stays() -> None:
    before = devices("<controller type='virtio-serial' index='0'/>", OURS)
    assert before.with_channel() is before
    assert (before.channel, before.channel_is_ours) == (Channel(None, open=False), False)
    assert canonical(before.with_registers(socket=SOCKET).strip().xml) == canonical(before.xml)


def test_a_channel_of_another_kind_is_another_one() -> None:
    before = devices(f"<channel type='pty'><target type='xen' name='{PORT}'/></channel>")
    assert before.channel is None
    assert tags(before.with_channel()) == ["controller", "channel", "channel"]
    assert canonical(before.with_channel().strip().xml) == canonical(before.xml)


def test_one_that_was_removed_by_hand_comes_back() -> None:
    removed = Definition.parse(re.sub(r"<channel.*?</channel>", "", devices().with_channel().xml, flags=re.DOTALL))
    assert removed.channel is None
    assert tags(removed.with_channel()) == ["controller", "channel"]
    assert canonical(removed.with_channel().strip().xml) == canonical(devices().xml)
    assert removed.with_channel().channel_devices()[:-1] == removed.channel_devices() != [], "the same controller"


def test_what_can_be_attached() -> None:
    """What libvirt can attach is complete by itself; what is its owner's, or there already, is not attached."""
    for there, attached in (
        ("", ["controller", "channel"]),
        ("<controller type='virtio-serial' index='0'/>", ["channel"]),
    ):
        devices_of = devices(there).with_channel().channel_devices()
        assert [parsed(each).tag for each in devices_of] == attached
        assert all(each == each.strip() for each in devices_of)
    assert devices(OURS).channel_devices() == devices(OURS).with_registers(socket=SOCKET).channel_devices() == []


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (Definition.parse(domain(attributes="type='lxc'")), "type 'lxc'"),
        (devices(OURS.replace("bind", "connect")), "cannot connect"),
        (devices(OURS.replace("mode='bind'", "path='/q'")), "cannot connect"),  # which libvirt takes for `connect`
        (devices(OURS.replace("unix", "pty")), "cannot connect"),
        (devices(OURS, OURS), "has two channels"),
        (devices(OURS, OURS.replace("bind", "connect")), "has two channels"),
        (Definition.parse(domain("<metadata><x:y xmlns:x='urn:libvirt-rapl:mark:1'/></metadata>")), "foreign element"),
    ],
)
def test_what_cannot_have_it(before: Definition, message: str) -> None:
    with pytest.raises(VirtRaplError, match=message) as caught:
        before.with_channel()
    assert caught.value.hint
    assert (before.channel is None) == (message != "has two channels")


def test_as_it_runs() -> None:
    path = "/run/libvirt/qemu/channel/1-guest/org.virt-rapl.energy.0"
    live = OURS.replace("mode='bind'", f"mode='bind' path='{path}'")
    assert devices(live).channel == Channel(path, open=False)
    for state in ("connected", "disconnected"):
        said = devices(live.replace(f"{PORT}'/>", f"{PORT}' state='{state}'/>")).channel
        assert said == Channel(path, open=state == "connected")
