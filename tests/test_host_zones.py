"""Zones: powercap, registers, the choice between them, and counters that wrap."""

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest
from fakes.host import RANGE, Host, write

from libvirt_rapl.choices import EnergySource
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.vmsr.energy import Package
from libvirt_rapl.helper.vmsr.energy import Zone as HelperZone
from libvirt_rapl.helper.vmsr.registers import find
from libvirt_rapl.host import energy_source, msr, powercap
from libvirt_rapl.host.energy_counter import EnergyCounter
from libvirt_rapl.host.energy_source import open_source
from libvirt_rapl.host.msr import MsrZone, msr_zones, read_register
from libvirt_rapl.host.powercap import PowercapZone, powercap_zones
from libvirt_rapl.host.zones import most_watts

UNITS = 0xA0E03


def test_every_kind_of_powercap_zone(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for entry, name in {
        "intel-rapl:0": "package-1",  # the kernel does not promise that the numbers agree
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "uncore",
        "intel-rapl:1": "package-0",
        "intel-rapl:1:0": "dram",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
        "dtpm:0": "dtpm",
    }.items():
        host.zone(entry, name, energy=len(entry))
    (host.powercap / "intel-rapl").mkdir()
    (host.powercap / "intel-rapl:3").mkdir()  # vanishing
    assert [(zone.name, zone.kind, zone.package, zone.path.name) for zone in powercap_zones(host.sys)] == [
        ("core-1", "core", 1, "intel-rapl:0:0"),
        ("dram-0", "dram", 0, "intel-rapl:1:0"),
        ("package-0", "package", 0, "intel-rapl:1"),
        ("package-1", "package", 1, "intel-rapl:0"),
        ("psys", "psys", None, "intel-rapl:2"),
        ("uncore-1", "uncore", 1, "intel-rapl:0:1"),
    ]
    assert {zone.wrap for zone in powercap_zones(host.sys)} == {RANGE + 1}
    assert powercap_zones(host.sys)[0].read() == len("intel-rapl:0:0")


def test_mmio_is_read_where_nothing_else_shows_the_package(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl-mmio:0", "package-0")
    assert [zone.path.name for zone in powercap_zones(host.sys)] == ["intel-rapl-mmio:0"]


def test_each_die_of_a_package_is_a_zone(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0-die-0")
    host.zone("intel-rapl:0:0", "dram")
    host.zone("intel-rapl:1", "package-0-die-1")
    assert [(zone.name, zone.kind, zone.package) for zone in powercap_zones(host.sys)] == [
        ("dram-0-die-0", "dram", 0),
        ("package-0-die-0", "package", 0),
        ("package-0-die-1", "package", 0),
    ]


@pytest.mark.parametrize(
    ("file", "garbage"),
    [
        ("name", b"\xff\xfe\n"),
        ("name", b"package-" + b"9" * 5000),
        ("max_energy_range_uj", b"\xff\n"),
        ("max_energy_range_uj", b"--5\n"),
        ("max_energy_range_uj", b"9" * 5000),
    ],
)
def test_a_zone_that_does_not_describe_itself_hides_no_other(tmp_path: Path, file: str, garbage: bytes) -> None:
    host = Host(tmp_path)
    for package in range(3):
        host.zone(f"intel-rapl:{package}", f"package-{package}")
    (host.powercap / "intel-rapl:1" / file).write_bytes(garbage)
    assert [zone.name for zone in powercap_zones(host.sys)] == ["package-0", "package-2"]


def test_zones_that_only_root_may_see_are_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(powercap, "_text", refuse)
    with pytest.raises(PermissionError):
        powercap_zones(host.sys)


def test_no_powercap_no_zones(tmp_path: Path) -> None:
    assert powercap_zones(tmp_path) == []


def test_psys_of_further_packages(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl:1", "psys")
    host.zone("intel-rapl:3", "psys-1")
    found = powercap_zones(host.sys)
    assert [(zone.name, zone.kind, zone.package) for zone in found] == [
        ("psys", "psys", None),
        ("psys-1", "psys", None),
    ]


def test_most_power_of_powercap_zones(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for package, written in enumerate(["800000000\n", "15000000\n", "\n", None, "-1\n", f"{1 << 63}\n"]):
        host.zone(f"intel-rapl:{package}", f"package-{package}")
        host.zone(f"intel-rapl:{package}:0", "dram")
        if written:
            write(host.powercap / f"intel-rapl:{package}/constraint_0_max_power_uw", written)
    host.zone("intel-rapl:6", "psys")
    expected = {
        f"{kind}-{n}": watts
        for n, watts in enumerate((1600, 1000, 1000, 1000, 1000, 4000))
        for kind in ("package", "dram")
    }
    assert {zone.name: zone.most_watts for zone in powercap_zones(host.sys)} == {**expected, "psys": 4000}


def registers_of(host: Host) -> list[MsrZone]:
    return msr_zones(sys=host.sys, proc=host.proc, dev=host.dev)


def test_intel_registers_of_each_package(tmp_path: Path) -> None:
    host = Host(tmp_path, {0: [0, 1], 1: [2, 3]})
    # 256 W and 927 W; in a file the register shares a byte with the one before it
    host.registers(
        0, {0x606: UNITS, 0x611: 1 << 14, 0x614: 0x800, 0x619: 3 << 14, 0x639: 4 << 14, 0x641: 5 << 14, 0x64D: 6 << 14}
    )
    host.registers(2, {0x606: UNITS, 0x611: 0xFFFFFFFF, 0x614: 0x1CFF, 0x619: 1})
    assert [(zone.name, zone.kind, zone.package, zone.cpus, zone.most_watts) for zone in registers_of(host)] == [
        ("core-0", "core", 0, (0,), 1000),
        ("dram-0", "dram", 0, (0,), 1000),
        ("dram-1", "dram", 1, (2,), 1854),
        ("package-0", "package", 0, (0,), 1000),
        ("package-1", "package", 1, (2,), 1854),
        ("psys", "psys", None, (0,), 4000),
        ("uncore-0", "uncore", 0, (0,), 1000),
    ]
    read = {zone.name: zone.read() for zone in registers_of(host)}
    assert read.pop("dram-1") == 61
    assert read.pop("package-1") == 262_143_999_938
    joules = {"package-0": 1, "dram-0": 3, "core-0": 4, "uncore-0": 5, "psys": 6}
    assert read == {name: joule * 1_000_000 for name, joule in joules.items()}
    assert {zone.wrap for zone in registers_of(host)} == {262_144_000_000}


Registers = dict[int, dict[int, int | OSError]]
"""What each register of each CPU is or raises; one that is missing does not exist. In a file they would overlap."""


def set_registers(monkeypatch: pytest.MonkeyPatch, registers: Registers) -> None:
    def read(_dev: Path, cpu: int, register: int) -> int:
        value = registers[cpu].get(register, OSError(errno.EIO, "Input/output error"))
        if isinstance(value, OSError):
            raise value
        return value

    monkeypatch.setattr(msr, "read_register", read)


def test_packages_whose_registers_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has none; all others have psys, which is the machine's, and bits of other meaning beside power."""
    host = Host(tmp_path, {0: [0], 1: [1], 2: [2]})
    has: dict[int, int | OSError] = {0x606: 0xA1003, 0x611: 1, 0x64D: 1, 0x614: 1 << 47 | 3 << 15 | 800 << 3}
    set_registers(monkeypatch, {0: has, 1: {}, 2: has})
    assert [(zone.name, zone.cpus, zone.most_watts, zone.wrap) for zone in registers_of(host)] == [
        ("package-0", (0,), 1600, 65_536_000_000),
        ("package-2", (2,), 1600, 65_536_000_000),
        ("psys", (0,), 4000, 65_536_000_000),
    ]


@pytest.mark.parametrize(
    ("vendor", "refused"),
    [
        *(("GenuineIntel", register) for register in (0x606, 0x614, 0x611)),
        *(("AuthenticAMD", register) for register in (0xC0010299, 0xC001029B, 0xC001029A)),
    ],
)
def test_registers_that_only_root_may_read_are_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, refused: int
) -> None:
    host = Host(tmp_path, {0: [0]})
    host.processor(vendor, 0x19, 1)
    values: dict[int, int | OSError] = dict.fromkeys((0x606, 0x611, 0x614, 0xC0010299, 0xC001029B, 0xC001029A), 1)
    set_registers(monkeypatch, {0: {**values, refused: PermissionError(errno.EPERM, "Operation not permitted")}})
    with pytest.raises(PermissionError):
        registers_of(host)


def test_readings_of_registers_leave_no_descriptor(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.registers(0, {0x606: UNITS})
    before = set(Path("/proc/self/fd").iterdir())
    assert read_register(host.dev, 0, 0x606) == UNITS
    with pytest.raises(OSError, match="short"):
        read_register(host.dev, 0, 0x611)
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize(
    ("family", "model", "microjoules"),
    [
        (6, 0x8E, {"package-0": 61.035156, "dram-0": 61.035156, "psys": 61.035156}),
        (6, 0x55, {"package-0": 61.035156, "dram-0": 15.258789, "psys": 61.035156}),
        (6, 0x6A, {"package-0": 61.035156, "dram-0": 15.258789, "psys": 61.035156}),
        (6, 0xCF, {"package-0": 61.035156, "dram-0": 61.035156, "psys": 1_000_000}),
        (6, 0x37, {"package-0": 16384, "dram-0": 16384, "psys": 16384}),
        *((19, model, dict.fromkeys(("package-0", "dram-0", "psys"), 61.035156)) for model in (0x55, 0xCF, 0x37)),
    ],
)
def test_units_that_depend_on_the_model(tmp_path: Path, family: int, model: int, microjoules: dict[str, float]) -> None:
    host = Host(tmp_path)
    host.processor("GenuineIntel", family, model)
    host.registers(0, {0x606: UNITS, 0x64D: 1000})
    host.registers(0, {0x611: 1000, 0x619: 1000})
    found = registers_of(host)
    assert {zone.name: zone.read() for zone in found} == {
        name: int(1000 * value) for name, value in microjoules.items()
    }
    assert {zone.name: zone.wrap / 2**32 for zone in found} == pytest.approx(microjoules)


def test_intel_registers_of_each_die(tmp_path: Path) -> None:
    host = Host(tmp_path, {0: [0, 1], 1: [2, 3]})
    for cpu in range(4):
        host.place(cpu, cpu // 2, die=cpu % 2)
        host.registers(cpu, {0x606: UNITS, 0x611: 1 << 14})
    found = registers_of(host)
    assert [(zone.name, zone.package) for zone in found] == [
        (f"package-{package}-die-{die}", package) for package in (0, 1) for die in (0, 1)
    ]


@pytest.mark.parametrize("vendor", ["AuthenticAMD", "HygonGenuine"])
def test_amd_registers(tmp_path: Path, vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, {0: [0, 1, 2, 3]})
    host.processor(vendor, 0x19, 1)
    for cpu in range(4):
        host.place(cpu, 0, die=cpu // 2, siblings=f"{cpu % 2},{cpu % 2 + 2}")
    cores = [(1 << 32) - (1 << 16), 5 << 16]  # 1 J before its wrap, and 5 J

    def read(_dev: Path, cpu: int, register: int) -> int:
        return {0xC0010299: 0xA1003, 0xC001029B: 9 << 32 | 70 << 16, 0xC001029A: cores[cpu % 2]}[register]

    monkeypatch.setattr(msr, "read_register", read)
    core, package = registers_of(host)
    assert [(zone.name, zone.kind, zone.package) for zone in (core, package)] == [
        ("core-0", "core", 0),
        ("package-0", "package", 0),
    ]
    assert (package.read(), package.wrap) == (70_000_000, 65_536_000_000)
    assert (core.cpus, core.read()) == ((0, 1), 4_000_000)
    cores[0] = 2 << 16  # 3 J on, over its wrap
    assert core.read() == 7_000_000


def test_a_register_that_a_cpu_does_not_have(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.registers(0, {0x10: 1})
    with pytest.raises(OSError, match="0x606"):
        read_register(host.dev, 0, 0x606)
    assert registers_of(host) == []
    host.registers(0, {0x606: UNITS, 0x639: 1})  # a package register that reads 0
    assert [zone.name for zone in registers_of(host)] == ["core-0"]
    host.processor("AuthenticAMD", 0x19, 1)
    assert registers_of(host) == []


@dataclass
class Script:
    """A zone that reads as it was made to."""

    readings: list[int | OSError]
    wrap: int = 10**10
    most_watts: int = 1000
    name: str = "package-0"
    kind: str = "package"
    package: int | None = 0
    seen: list[int] = field(default_factory=list)

    def read(self) -> int:
        reading = self.readings.pop(0)
        if isinstance(reading, OSError):
            raise reading
        return reading


GONE = OSError(errno.EIO, "gone")
LAST = 10**10 - 1
SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("readings", "counted", "lost"),
    [
        ([5, 5, 9], [None, 0, 4], 0),
        ([LAST - 9, 10, 10], [None, 20, 0], 0),
        ([LAST, 0], [None, 1], 0),
        ([0, LAST - 1], [None, None], 1),  # set back
        ([5, 7, GONE, GONE, 20, 21], [None, 2, None, None, None, 1], 1),
        ([GONE, 5, 6], [None, None, 1], 0),
    ],
)
def test_what_a_counter_counted(readings: list[int | OSError], counted: list[int | None], lost: int) -> None:
    counter = EnergyCounter(Script(list(readings)))
    assert [counter.advance(second * SECOND) for second in range(len(readings))] == counted
    assert counter.lost == lost


@pytest.mark.parametrize(
    ("seconds", "watts", "counted"),
    [
        (8, 1000, 5),  # 10 kJ are a wrap: at 1 kW it takes 10 s, a second of which is slack
        (9, 1000, None),
        (3600, 1000, None),
        (3600, 2, 5),
    ],
)
def test_a_late_reading_that_may_hide_a_wrap_is_lost(seconds: int, watts: int, counted: int | None) -> None:
    counter = EnergyCounter(Script([0, 5, 6], most_watts=watts))
    assert counter.advance(0) is None
    assert counter.advance(seconds * SECOND) == counted
    assert counter.lost == (counted is None)
    assert counter.advance((seconds + 1) * SECOND) == 1  # and on from there


def test_a_minute_is_never_late() -> None:
    # The smallest range there is: units of 2**-16 J, as of AMD's registers and of some dram.
    counter = EnergyCounter(Script([0, 7], wrap=65_536_000_000, most_watts=most_watts("package", 500)))
    counter.advance(0)
    assert counter.advance(60 * SECOND) == 7


@pytest.mark.parametrize(("microjoules", "counted"), [(2_000_000_000, 2_000_000_000), (2_000_000_001, None)])
def test_more_than_a_zone_can_count_is_lost(microjoules: int, counted: int | None) -> None:
    counter = EnergyCounter(Script([0, microjoules]))
    counter.advance(0)
    assert counter.advance(SECOND) == counted


def both(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")
    host.zone("intel-rapl:0:0", "dram")
    host.registers(0, {0x606: UNITS, 0x611: 1})
    return host


@pytest.mark.parametrize(
    ("choice", "name", "zones"),
    [
        ("auto", "powercap", ["dram-0", "package-0"]),
        ("powercap", "powercap", ["dram-0", "package-0"]),
        ("msr", "msr", ["package-0"]),
    ],
)
def test_the_choice_of_a_source(tmp_path: Path, choice: EnergySource, name: str, zones: list[str]) -> None:
    host = both(tmp_path)
    found = open_source(choice, sys=host.sys, dev=host.dev, proc=host.proc)
    assert (found.name, [zone.name for zone in found.zones]) == (name, zones)
    (host.powercap / "virt-rapl-simulator").mkdir()
    assert open_source(choice, sys=host.sys, dev=host.dev, proc=host.proc).name == "simulated"


def test_auto_goes_on_to_registers_where_powercap_has_no_package(tmp_path: Path) -> None:
    host = both(tmp_path)
    host.zone("intel-rapl:0", "psys")
    assert open_source("auto", sys=host.sys, dev=host.dev, proc=host.proc).name == "msr"


def test_a_zone_that_does_not_count_is_left_out(tmp_path: Path) -> None:
    host = both(tmp_path)
    (host.powercap / "intel-rapl:0:0/energy_uj").write_text("\n")
    found = open_source("auto", sys=host.sys, dev=host.dev, proc=host.proc)
    assert [zone.name for zone in found.zones] == ["package-0"]


GARBAGE = [("max_energy_range_uj", text) for text in ("-1", "0", "-5", "", "garbage")] + [
    ("energy_uj", text) for text in ("-1", "", "garbage", f"{RANGE + 1}", "9" * 5000)
]


@pytest.mark.parametrize(("file", "text"), GARBAGE)
def test_a_zone_that_shows_what_no_counter_can_is_left_out_and_reported(tmp_path: Path, file: str, text: str) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")
    host.zone("intel-rapl:0:0", "dram")
    write(host.powercap / "intel-rapl:0:0" / file, f"{text}\n")
    opened = open_source("powercap", sys=host.sys, dev=host.dev, proc=host.proc)
    assert [zone.name for zone in opened.zones] == [zone.name for zone in opened.list_zones()] == ["package-0"]
    assert opened.left_out.keys() == {"dram-0"}
    assert "\n" not in opened.left_out["dram-0"]
    write(host.powercap / "intel-rapl:0" / file, f"{text}\n")
    with pytest.raises(VirtRaplError, match="package-0: ") as caught:
        open_source("powercap", sys=host.sys, dev=host.dev, proc=host.proc)
    assert "\n" not in caught.value.message
    with pytest.raises(ValueError, match=r"."):
        Package([HelperZone(counter, (1, 1)) for counter in find("powercap", sys=host.sys).counters])


def test_a_counter_that_begins_to_show_garbage(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0", 5)
    (zone,) = powercap_zones(host.sys)
    counter = EnergyCounter(zone)
    assert counter.advance(0) is None
    for second, text in enumerate(("-1", "garbage", "", f"{RANGE + 1}"), 1):
        write(zone.path / "energy_uj", f"{text}\n")
        assert counter.advance(second) is None
        assert counter.trouble
    host.zone("intel-rapl:0", "package-0", 7)
    assert (counter.advance(5), counter.trouble) == (None, "")
    host.zone("intel-rapl:0", "package-0", 9)
    assert counter.advance(6) == 2


@pytest.mark.parametrize("choice", ["auto", "powercap", "msr"])
def test_no_zones_says_what_to_do(tmp_path: Path, choice: EnergySource) -> None:
    host = Host(tmp_path)
    with pytest.raises(VirtRaplError, match="zones of its CPU packages") as caught:
        open_source(choice, sys=host.sys, dev=host.dev, proc=host.proc)
    assert "modprobe" in caught.value.hint
    assert "virt-rapl simulate" in caught.value.hint


@pytest.mark.parametrize("choice", ["powercap", "msr"])
def test_counters_that_only_root_may_read(
    tmp_path: Path, choice: EnergySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = both(tmp_path)

    def refuse(_: PowercapZone | MsrZone) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/sys/energy")

    monkeypatch.setattr(PowercapZone, "read", refuse)
    monkeypatch.setattr(MsrZone, "read", refuse)
    with pytest.raises(VirtRaplError, match="/sys/energy") as caught:
        open_source(choice, sys=host.sys, dev=host.dev, proc=host.proc)
    assert caught.value.hint.startswith("run as root")


def test_every_choice_has_a_hint() -> None:
    assert set(energy_source.HINTS) == set(get_args(EnergySource))
