"""Zones: powercap, registers, the choice between them, and counters that wrap."""

import errno
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fixtures import RANGE, Host

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host import source
from libvirt_rapl.host.msr import MsrZone, msr_zones, read_register
from libvirt_rapl.host.powercap import PowercapZone, powercap_zones
from libvirt_rapl.host.source import open_source
from libvirt_rapl.host.zones import EnergyCounter

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


def test_no_powercap_no_zones(tmp_path: Path) -> None:
    assert powercap_zones(tmp_path) == []


def test_registers_of_each_package(tmp_path: Path) -> None:
    host = Host(tmp_path, {0: [0, 1], 1: [2, 3]})
    host.registers(0, {0x606: UNITS, 0x611: 1 << 14})
    host.registers(2, {0x606: UNITS, 0x611: (5 << 32) + (1 << 32) - 1})
    first, second = msr_zones(host.dev, {0: [1, 0], 1: [2, 3]})
    assert (first.name, first.kind, first.package, first.read()) == ("package-0", "package", 0, 1_000_000)
    assert (second.name, second.wrap, second.read()) == ("package-1", 262_144_000_000, 262_143_999_938)


def test_a_register_that_a_cpu_does_not_have(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.registers(0, {0x10: 1})
    with pytest.raises(OSError, match="0x606"):
        read_register(host.dev, 0, 0x606)
    assert msr_zones(host.dev, {0: [0]}) == []
    assert msr_zones(host.dev, {0: [1]}) == []


@dataclass
class Script:
    """A zone which reads as told."""

    readings: list[int | OSError]
    wrap: int = 1000
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


@pytest.mark.parametrize(
    ("readings", "counted"),
    [
        ([5, 5, 9], [None, 0, 4]),
        ([990, 10, 10], [None, 20, 0]),
        ([999, 0], [None, 1]),
        ([0, 999, 0], [None, 999, 1]),
        ([5, 7, GONE, 20, 21], [None, 2, None, None, 1]),
        ([GONE, 5, 6], [None, None, 1]),
    ],
)
def test_what_a_counter_counted(readings: list[int | OSError], counted: list[int | None]) -> None:
    counter = EnergyCounter(Script(list(readings)))
    assert [counter.advance() for _ in readings] == counted


def both(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")
    host.zone("intel-rapl:0:0", "dram")
    host.registers(0, {0x606: UNITS, 0x611: 0})
    return host


@pytest.mark.parametrize(
    ("choice", "name", "zones"),
    [
        ("auto", "powercap", ["dram-0", "package-0"]),
        ("powercap", "powercap", ["dram-0", "package-0"]),
        ("msr", "msr", ["package-0"]),
    ],
)
def test_the_choice_of_a_source(tmp_path: Path, choice: str, name: str, zones: list[str]) -> None:
    host = both(tmp_path)
    found = open_source(choice, sys=host.sys, dev=host.dev, packages={0: [0, 1]})
    assert (found.name, [zone.name for zone in found.zones]) == (name, zones)
    (host.powercap / "virt-rapl-simulator").mkdir()
    assert open_source(choice, sys=host.sys, dev=host.dev, packages={0: [0, 1]}).name == "simulated"


def test_auto_goes_on_to_registers_where_powercap_has_no_package(tmp_path: Path) -> None:
    host = both(tmp_path)
    host.zone("intel-rapl:0", "psys")
    assert open_source("auto", sys=host.sys, dev=host.dev, packages={0: [0, 1]}).name == "msr"


def test_a_zone_that_does_not_count_is_left_out(tmp_path: Path) -> None:
    host = both(tmp_path)
    (host.powercap / "intel-rapl:0:0/energy_uj").write_text("\n")
    found = open_source("auto", sys=host.sys, dev=host.dev, packages={0: [0, 1]})
    assert [zone.name for zone in found.zones] == ["package-0"]


@pytest.mark.parametrize("choice", ["auto", "powercap", "msr"])
def test_no_zones_tells_what_to_do(tmp_path: Path, choice: str) -> None:
    host = Host(tmp_path)
    with pytest.raises(VirtRaplError, match="zones of its CPU packages") as caught:
        open_source(choice, sys=host.sys, dev=host.dev, packages={0: [0, 1]})
    assert "modprobe" in caught.value.hint
    assert "virt-rapl simulate" in caught.value.hint


@pytest.mark.parametrize("choice", ["powercap", "msr"])
def test_counters_that_only_root_may_read(tmp_path: Path, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = both(tmp_path)

    def refuse(_: PowercapZone | MsrZone) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/sys/energy")

    monkeypatch.setattr(PowercapZone, "read", refuse)
    monkeypatch.setattr(MsrZone, "read", refuse)
    with pytest.raises(VirtRaplError, match="/sys/energy") as caught:
        open_source(choice, sys=host.sys, dev=host.dev, packages={0: [0, 1]})
    assert caught.value.hint == "run as root"


def test_every_choice_has_a_hint() -> None:
    from libvirt_rapl.config import CHOICES

    assert set(source.HINTS) == set(CHOICES["source"])
