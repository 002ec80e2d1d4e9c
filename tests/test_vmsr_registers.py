"""Registers from a fixture tree: the CPU's own, or made from powercap's files."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libvirt_rapl.choices import EnergySource
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.vmsr import energy, registers
from libvirt_rapl.helper.vmsr.energy import Package, Zone
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_INFO, POWER_LIMIT, POWER_UNIT, ReadRegister
from libvirt_rapl.helper.vmsr.readers import Readers
from libvirt_rapl.helper.vmsr.registers import Counter, Registers, find
from libvirt_rapl.host.msr import MsrZone
from libvirt_rapl.host.requirements import check_host

RANGE = 262_143_328_850


class Host:
    """Two CPUs, one a package, with what a test puts there."""

    def __init__(self, root: Path) -> None:
        self.sys, self.dev, self.proc = root / "sys", root / "dev", root / "proc"
        self.opened = contextlib.ExitStack()
        self.write("proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 142\n")
        self.write("sys/devices/system/cpu/online", "0-1")
        for cpu in (0, 1):
            self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", str(cpu))

    def write(self, path: str, text: str) -> None:
        file = self.sys.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def powercap(self, package: int, energy: int, **files: str) -> None:
        directory = f"sys/class/powercap/intel-rapl:{package}"
        values = {"name": f"package-{package}", "energy_uj": str(energy), "max_energy_range_uj": str(RANGE), **files}
        for name, text in values.items():
            self.write(f"{directory}/{name}", text + "\n")

    def msr(self, values: dict[int, int]) -> None:
        path = self.dev / "cpu/0/msr"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(0x1000)
            for register, value in values.items():
                file.seek(register)
                file.write(value.to_bytes(8, "little"))

    def found(self, source: EnergySource) -> Registers:
        """Return what the helper has: registers are open."""
        found = find(source, sys=self.sys, dev=self.dev, proc=self.proc)
        return found._replace(counters=tuple(map(self._opened, found.counters)))

    def _opened(self, counter: Counter) -> Counter:
        if not counter.register:
            return counter
        descriptor = os.open(str(counter.file), os.O_RDONLY)
        self.opened.callback(os.close, descriptor)
        return counter._replace(file=descriptor)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    with host.opened:
        yield host


def peers(host: Host, source: EnergySource) -> ReadRegister:
    """Return how a peer reads registers."""
    return Readers(host.found(source)).reader_for(os.getpid())


def counted(host: Host, source: EnergySource) -> Callable[[int], int]:
    """Return what reads all that a package has counted, in units of ENERGY."""
    found = host.found(source)
    packages = {
        number: Package([Zone(counter, found.unit) for counter in found.counters if counter.package == number])
        for number in {counter.package for counter in found.counters}
    }
    return lambda number: packages[number].advance(energy.boot_nanoseconds()) * found.unit[1] // found.unit[0]


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time that readers see, in ns."""
    now = [1_000_000_000]
    monkeypatch.setattr(energy, "boot_nanoseconds", lambda: now[0])
    return now


def test_the_cpus_own_registers_come_first(host: Host) -> None:
    host.msr({POWER_UNIT: 0xA0E03, ENERGY: 12345, POWER_INFO: 0x123_0000_0000})
    host.powercap(0, 1)
    read = peers(host, "auto")
    assert [read(register, 0) for register in (POWER_UNIT, POWER_INFO)] == [0xA0E03, 0x123_0000_0000]
    assert read(POWER_LIMIT, 0) == 12345 << 8, "in a file registers lie over each other"
    assert counted(host, "auto")(0) == pytest.approx(12345, abs=1)


def test_no_register_reads_0_which_qemu_refuses(host: Host) -> None:
    host.msr({POWER_UNIT: 0xA0E03, ENERGY: 1})
    read = peers(host, "msr")
    assert all(read(register, 0) for register in (POWER_UNIT, POWER_INFO, ENERGY))


@pytest.mark.parametrize(
    ("values", "limit", "power"),
    [({}, 1 << 15, 1), ({POWER_LIMIT: 0x42816000DD8498, POWER_INFO: 0x4F0000690}, 0x42816000DD8498, 0x4F0000690)],
)
def test_the_cpus_own_limits_are_given_unless_they_are_0(
    host: Host, monkeypatch: pytest.MonkeyPatch, values: dict[int, int], limit: int, power: int
) -> None:
    host.msr({POWER_UNIT: 0xA0E03, ENERGY: 1})
    monkeypatch.setattr(registers, "read_register", lambda _dev, _cpu, register: values.get(register, 0))
    read = peers(host, "msr")
    assert (read(POWER_LIMIT, 0), read(POWER_INFO, 0)) == (limit, power)


@pytest.mark.parametrize(
    ("limit", "power", "eighths"),
    [
        ("125000000", "210000000", (1000, 1680)),
        ("125999", "124999", (1, 1)),  # QEMU refuses a register of 0
        ("4095875000", "4096000000", (0x7FFF, 0x7FFF)),
        ("9000000000", "99000000000", (0x7FFF, 0x7FFF)),
        ("-9000000", "-1", (0, 1)),
        ("?", "", (0, 1)),
    ],
)
def test_powers_of_powercap_have_15_bits(host: Host, limit: str, power: str, eighths: tuple[int, int]) -> None:
    host.powercap(0, 1, constraint_0_power_limit_uw=limit, constraint_0_max_power_uw=power)
    read = peers(host, "powercap")
    assert (read(POWER_LIMIT, 0), read(POWER_INFO, 0)) == (eighths[0] | 1 << 15, eighths[1])
    assert read(POWER_UNIT, 0) == 0xA0E03


def test_the_power_of_a_package_is_that_of_its_dies(host: Host) -> None:
    for number, name in enumerate(("package-0-die-0", "package-0-die-1", "package-1-die-0")):
        limits = {"constraint_0_power_limit_uw": "1000000", "constraint_0_max_power_uw": "2000000"}
        host.powercap(number, 1, name=name, **limits)
    read = peers(host, "powercap")
    assert (read(POWER_LIMIT, 1) & 0x7FFF, read(POWER_INFO, 1)) == (2 * 8, 4 * 8)


@pytest.mark.parametrize("powercap", [True, False])
@pytest.mark.parametrize("msr", ["counts", "reads 0", "is not there", "may not be read"])
@pytest.mark.parametrize("source", ["auto", "msr", "powercap"])
def test_which_source_is_taken(
    host: Host, monkeypatch: pytest.MonkeyPatch, source: EnergySource, msr: str, *, powercap: bool
) -> None:
    def refused(**_: object) -> list[MsrZone]:
        raise PermissionError("may not be read")

    if msr == "may not be read":
        monkeypatch.setattr(registers, "msr_zones", refused)
    elif msr != "is not there":
        host.msr({POWER_UNIT: 0xA0E03, ENERGY: 5 if msr == "counts" else 0})
    if powercap:
        host.powercap(0, 1)
        host.write("sys/class/powercap/intel-rapl:9/name", "psys\n")
        host.write("sys/class/powercap/intel-rapl:9/energy_uj", "1\n")
    expected = ""
    if msr == "counts" and source != "powercap":
        expected = str(host.dev / "cpu/0/msr")
    elif powercap and source != "msr":
        expected = str(host.sys / "class/powercap/intel-rapl:0/energy_uj")
    if not expected:
        with pytest.raises(VirtRaplError, match="cannot read RAPL" if source == "msr" else "neither") as caught:
            find(source, sys=host.sys, dev=host.dev, proc=host.proc)
        assert ("may not be read" in caught.value.message) == ((source, msr) == ("msr", "may not be read"))
        return
    found = find(source, sys=host.sys, dev=host.dev, proc=host.proc)
    assert [counter.file for counter in found.counters] == [expected]
    assert [counter.register for counter in found.counters] == [ENERGY if "msr" in expected else 0]
    assert found.cpus == ((0, 0), (1, 1))
    assert found.unit == (15625, 256)


def test_powercap_where_the_registers_read_nothing(host: Host) -> None:
    host.msr({POWER_UNIT: 0})
    host.powercap(0, 61_035_156, constraint_0_power_limit_uw="125000000", constraint_0_max_power_uw="210000000")
    host.powercap(1, 0)
    read = peers(host, "auto")
    unit = 2.0 ** -(read(POWER_UNIT, 0) >> 8 & 0x1F)
    assert counted(host, "auto")(0) * unit == pytest.approx(61.035156, abs=unit)
    assert read(ENERGY, 1) > 0
    assert read(POWER_LIMIT, 0) & 0x7FFF == 125 * 8
    assert read(POWER_INFO, 0) & 0x7FFF == 210 * 8
    with pytest.raises(OSError, match="no package zone"):
        read(ENERGY, 2)


@pytest.mark.parametrize("limits", [{}, {"constraint_0_power_limit_uw": "-9000000", "constraint_0_max_power_uw": "-1"}])
def test_powercap_that_reports_no_power(host: Host, limits: dict[str, str]) -> None:
    host.powercap(0, 1, **limits)
    read = peers(host, "powercap")
    assert (read(POWER_LIMIT, 0) & 0x7FFF, read(POWER_INFO, 0)) == (0, 1)
    assert read(POWER_LIMIT, 0) != 0


@pytest.mark.parametrize("source", ["msr", "powercap"])
def test_energy_goes_on_over_a_wrap(host: Host, source: EnergySource, now: list[int]) -> None:
    host.msr({POWER_UNIT: 0xA0E03, ENERGY: (1 << 32) - 16384})
    host.powercap(0, RANGE - 1_000_000)
    energy_of = counted(host, source)
    before = energy_of(0)
    host.msr({POWER_UNIT: 0xA0E03, ENERGY: 16384})
    host.powercap(0, 999_999)
    now[0] += 1_000_000_000
    assert (energy_of(0) - before) * 2.0**-14 == pytest.approx(2.0, abs=2.0**-13)
    assert before > 1 << 31


def test_the_dies_of_a_package_are_added_up(host: Host) -> None:
    host.powercap(0, 1_000_000, name="package-0-die-0")
    host.powercap(1, 2_000_000, name="package-0-die-1")
    assert counted(host, "powercap")(0) == 3 << 14


@pytest.mark.parametrize(
    ("source", "message"), [("auto", "neither RAPL registers"), ("msr", "cannot read RAPL"), ("powercap", "neither")]
)
def test_no_source_is_reported(host: Host, source: EnergySource, message: str) -> None:
    with pytest.raises(VirtRaplError, match=message) as caught:
        find(source, sys=host.sys, dev=host.dev, proc=host.proc)
    assert "modprobe" in caught.value.hint


@pytest.mark.parametrize(
    ("vendor", "enabled", "message"),
    [("GenuineIntel", "1", None), ("AuthenticAMD", "1", "Intel hosts only"), ("GenuineIntel", "0", "not enabled")],
)
def test_what_qemu_insists_on(host: Host, vendor: str, enabled: str, message: str | None) -> None:
    host.write("proc/cpuinfo", f"processor\t: 0\nvendor_id\t: {vendor}\n")
    host.write("sys/class/powercap/intel-rapl/enabled", f"{enabled}\n")
    if message is None:
        check_host(host.sys, host.proc)
    else:
        with pytest.raises(VirtRaplError, match=message):
            check_host(host.sys, host.proc)


@pytest.mark.parametrize(
    ("topologies", "message"),
    [
        ({0: 0, 1: 0, 10: None}, r"all CPUs are online, and CPU 2 is not"),
        ({0: 0, 1: None, 2: 0}, r"all CPUs are online, and CPU 1 is not"),
        ({0: None}, r"all CPUs are online, and CPU 0 is not"),
        ({0: 1, 1: 1}, r"numbered from 0 without a gap; here they are 1$"),
        ({0: 0, 1: 2}, r"numbered from 0 without a gap; here they are 0, 2$"),
        ({0: 1, 1: 0, 2: 1}, None),
    ],
)
def test_qemu_wants_all_cpus_on_line_and_packages_without_a_gap(
    tmp_path: Path, topologies: dict[int, int | None], message: str | None
) -> None:
    host = Host(tmp_path)
    host.write("sys/class/powercap/intel-rapl/enabled", "1\n")
    shutil.rmtree(host.sys / "devices/system/cpu")
    for cpu, package in topologies.items():
        if package is None:  # as Linux shows one that is offline
            host.write(f"sys/devices/system/cpu/cpu{cpu}/online", "0\n")
        else:
            host.write(f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", f"{package}\n")
    host.write("sys/devices/system/cpu/cpufreq/boost", "1\n")
    if message is None:
        check_host(host.sys, host.proc)
    else:
        with pytest.raises(VirtRaplError, match=message):
            check_host(host.sys, host.proc)


def test_a_host_without_powercap_is_not_enabled(host: Host) -> None:
    host.write("proc/cpuinfo", "vendor_id\t: GenuineIntel\n")
    with pytest.raises(VirtRaplError, match="not enabled"):
        check_host(host.sys, host.proc)
