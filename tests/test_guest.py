"""The guest that reads its own RAPL registers."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import energy_channel
import pytest
from lxml import etree
from walking import wait_until

from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.guest import Reading
from libvirt_rapl.simulator.world import World

SIMULATOR = Path(guest.__file__).parent
JOULE_UNIT = 14 << 8  # 2**-14 J


def test_rom_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    unlinked, linked = tmp_path / "meter.o", tmp_path / "meter.rom"
    source = SIMULATOR / "meter.S"
    subprocess.run(["as", "--32", "-o", unlinked, source], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0", "--oformat", "binary", "-o", linked, unlinked], check=True)
    assert linked.read_bytes() == (SIMULATOR / "meter.rom").read_bytes()


def test_rom_is_64_kib_that_begin_at_the_reset_vector() -> None:
    image = guest.rom(100)
    assert len(image) == 65536
    assert image[0xFFF0:0xFFF5] == bytes([0xEA, 0, 0, 0, 0xF0])


def test_last_duty_holds_for_all_other_vcpus() -> None:
    assert guest.rom(100, 30, 0)[4:20] == bytes([100, 30] + 14 * [0])


@pytest.mark.parametrize("duties", [(), (101,), (-1,), (0,) * 17])
def test_impossible_duties_are_refused(duties: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="duties"):
        guest.rom(*duties)


def test_domain_xml_escapes_what_it_is_given() -> None:
    tree = etree.fromstring(guest.domain_xml("a<b", "/r&d.rom", '/it\'s "<>".log', vcpus=3))
    assert tree.findtext("name") == "a<b"
    assert tree.findtext("os/loader") == "/r&d.rom"
    assert tree.xpath("string(devices/serial/source/@path)") == '/it\'s "<>".log'
    assert tree.findtext("vcpu") == "3"
    assert tree.get("type") == "kvm"


@pytest.mark.e2e
def test_the_guest_runs_without_kvm_too(world: World) -> None:
    world.define_guest("emulated", 0, kvm=False)
    try:
        world.run(["virsh", "start", "emulated"])
        deadline = time.monotonic() + 20
        while not (read := world.readings("emulated")):
            assert time.monotonic() < deadline, "it prints nothing"
            time.sleep(0.1)
        assert read[0] == Reading(0, 0, 0)
    finally:
        world.run(["virsh", "destroy", "emulated"], check=False)
        world.run(["virsh", "undefine", "emulated"])


def test_readings_leave_out_the_line_being_written(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert guest.readings(log) == []
    log.write_text("00000000 000A0E03 00001234\n00000001 000A0E03 FFFFFFFF\n00000000 000A0E03 0000")
    assert guest.readings(log) == [Reading(0, 0xA0E03, 0x1234), Reading(1, 0xA0E03, 0xFFFFFFFF)]


def test_readings_leave_out_a_line_that_was_cut(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("00000000 000A0E03 00001234\n00000000 000A0E03 000000000000 000A0E03 00000001\n")
    assert guest.readings(log) == [Reading(0, 0xA0E03, 0x1234)]


def test_what_came_from_the_energy_channel_is_apart(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert guest.channel_lines(log) == []
    log.write_text('00000000 000A0E03 00001234\n>{"a": 1, "b": 2}\n00000000 000A0E03 00001235\n>{"a": 2}\n>{"a"')
    assert guest.channel_lines(log) == ['{"a": 1, "b": 2}', '{"a": 2}']
    assert [reading.energy for reading in guest.readings(log)] == [0x1234, 0x1235]
    log.write_text("00000000 000A0E03 >{}\n")
    assert guest.readings(log) == []


@pytest.mark.e2e
def test_the_guest_reads_its_energy_channel_whenever_there_is_one(world: World, new_guest: Callable[..., str]) -> None:
    name = new_guest(20, 0, vcpus=2)

    def reads() -> None:
        before = len(world.channel_lines(name))
        with energy_channel.writer(world, name):
            wait_until(lambda: len(world.channel_lines(name)) > before + 4, 20, "it reads five lines")
        received = [json.loads(text) for text in world.channel_lines(name)[before:]]
        while received[0]["energy_joules"] > received[1]["energy_joules"]:  # of the writer before
            del received[0]
        first = received[0]["energy_joules"]
        assert received == [energy_channel.line(first + number) for number in range(len(received))]

    def attach(element: str) -> None:
        world.run(["virsh", "attach-device", name, "/proc/self/fd/0"], input=element)

    world.run(["virsh", "start", name])
    attach("<controller type='virtio-serial'/>")
    attach(energy_channel.ELEMENT)
    reads()
    world.run(["virsh", "detach-device", name, "/proc/self/fd/0"], input=energy_channel.element(world, name))
    attach(energy_channel.ELEMENT)
    reads()
    world.run(["virsh", "reset", name])
    reads()
    world.run(["virsh", "managedsave", name])
    world.run(["virsh", "start", name])
    reads()
    count = len(world.readings(name))
    wait_until(lambda: len(world.readings(name)) > count + 20, 20, "it prints its registers as before")
    assert {reading.vcpu for reading in world.readings(name)[count:]} == {0, 1}


def test_joules_of_each_vcpu_understand_the_wrap() -> None:
    history = [
        Reading(0, JOULE_UNIT, 0xFFFFC000),
        Reading(1, JOULE_UNIT, 500),
        Reading(0, JOULE_UNIT, 0x4000),
        Reading(1, JOULE_UNIT, 500 + 2**13),
        Reading(0, JOULE_UNIT, 0xC000),
    ]
    assert guest.joules(history) == {0: 4.0, 1: 0.5}


@pytest.mark.e2e
def test_vcpus_are_busy_for_their_share_and_print_ten_times_a_second(
    world: World, new_guest: Callable[..., str]
) -> None:
    name = new_guest(40, 0, vcpus=2)
    world.run(["virsh", "start", name])
    time.sleep(1)
    lines, before, began = len(world.readings(name)), _vcpu_seconds(world, name), time.monotonic()
    time.sleep(5)
    seconds = time.monotonic() - began
    busy, idle = (now - then for now, then in zip(_vcpu_seconds(world, name), before, strict=True))
    # A machine that is busy otherwise gives them less time, never more.
    assert 0 < busy / seconds <= 0.5
    assert idle < busy / 3
    assert 0 < (len(world.readings(name)) - lines) / 2 / seconds <= 11
    assert {reading.vcpu for reading in world.readings(name)} == {0, 1}


def _vcpu_seconds(world: World, name: str) -> list[float]:
    stats = world.run(["virsh", "domstats", "--vcpu", name]).stdout.split()
    values = dict(line.split("=", 1) for line in stats if "=" in line)
    return [int(values[f"vcpu.{vcpu}.time"]) / 1e9 for vcpu in (0, 1)]


def test_how_long_a_counter_has_not_moved() -> None:
    def history(*energies: int) -> list[guest.Reading]:
        return [guest.Reading(0, 0xA0E03, energy) for energy in energies]

    assert guest.unmoved_seconds([]) == 0
    assert guest.unmoved_seconds(history(1, 2)) == 0
    assert guest.unmoved_seconds(history(1, 2, 2, 2)) == pytest.approx(0.2)
    other = [guest.Reading(1, 0xA0E03, energy) for energy in (5, 5, 6)]
    assert guest.unmoved_seconds(history(1, 2, 2, 2) + other) == 0
