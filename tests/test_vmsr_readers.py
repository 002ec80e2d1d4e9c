"""What each peer of a helper reads: constants for nothing, and energy by windows of its own."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from fakes.host import write

from libvirt_rapl.helper.vmsr import readers
from libvirt_rapl.helper.vmsr.cpus import Cpus
from libvirt_rapl.helper.vmsr.energy import Package
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_INFO, POWER_LIMIT, POWER_UNIT
from libvirt_rapl.helper.vmsr.readers import Readers
from libvirt_rapl.helper.vmsr.registers import Counter, Registers

CONSTANTS = {POWER_UNIT: 0xA0E03, POWER_LIMIT: 0x8320, POWER_INFO: 0x320}
UNIT = (15625, 256)
QEMU, OTHER = 7, 8


class Windows:
    """In place of the shaper: what it was made of, and how often each package was asked for."""

    made: "list[Windows]"

    def __init__(
        self, domain: tuple[int, bool], packages: Mapping[int, Package], cpus: Cpus, unit: tuple[int, int]
    ) -> None:
        self.domain, self.packages, self.cpus, self.unit = domain, packages, cpus, unit
        self.answers = 0
        self.made.append(self)

    def energy(self, package: int) -> int:
        self.answers += 1
        return 1000 * package + self.answers


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sysfs of four CPUs of two packages; returns its directory."""

    def domain(pid: int, *, by_cpu: bool) -> tuple[int, bool]:
        if pid not in (QEMU, OTHER):
            raise ProcessLookupError(pid)
        return pid, by_cpu

    Windows.made = []
    write(tmp_path / "online", "0-3\n")
    monkeypatch.setattr(readers, "Shaper", Windows)
    monkeypatch.setattr(readers, "Domain", domain)
    monkeypatch.setattr(readers, "Cpus", lambda package_of: Cpus(package_of, f"{tmp_path}/"))
    return tmp_path


def made(directory: Path, *packages: int) -> Readers:
    """Make readers of a host whose powercap has a counter for each of these packages: 10 uJ, 11 uJ and so on."""
    for number in range(len(packages)):
        write(directory / f"energy-{number}", f"{10 + number}\n")
    counters = [Counter(package, f"{directory}/energy-{n}", 0, 1 << 40, 1000) for n, package in enumerate(packages)]
    cpus = ((0, 0), (1, 0), (2, 1), (3, 1))
    return Readers(Registers(tuple(CONSTANTS.items()), tuple(counters), cpus, UNIT))


def test_constants_are_the_same_for_all_and_need_no_window(machine: Path) -> None:
    read = made(machine, 0, 1).reader_for(QEMU)
    assert {register: read(register, 3) for register in CONSTANTS} == CONSTANTS
    assert Windows.made == []


@pytest.mark.parametrize("register", [*CONSTANTS, ENERGY])
@pytest.mark.parametrize(
    ("packages", "cpu"), [((0, 1), 4), ((0, 1), 4000), ((0,), 2)], ids=["the next", "none", "one without a counter"]
)
def test_a_cpu_that_is_none_has_no_registers(machine: Path, packages: tuple[int, ...], cpu: int, register: int) -> None:
    with pytest.raises(OSError, match=f"CPU {cpu}"):
        made(machine, *packages).reader_for(QEMU)(register, cpu)
    assert Windows.made == []


@pytest.mark.parametrize(
    ("counters", "microjoules", "by_cpu"),
    [((0,), {0: 10}, False), ((1, 0), {0: 11, 1: 10}, True), ((0, 1, 0), {0: 22, 1: 11}, True)],
)
def test_energy_is_by_package_and_threads_are_by_cpu_where_there_are_several(
    machine: Path, counters: tuple[int, ...], microjoules: dict[int, int], *, by_cpu: bool
) -> None:
    made(machine, *counters).reader_for(QEMU)(ENERGY, 0)
    (windows,) = Windows.made
    assert (windows.domain, windows.unit) == ((QEMU, by_cpu), UNIT)
    assert {number: package.microjoules for number, package in windows.packages.items()} == microjoules
    assert list(windows.packages) == sorted(microjoules)


def test_each_peer_has_its_own_windows_for_all_packages(machine: Path) -> None:
    host = made(machine, 0, 1)
    qemu, other = host.reader_for(QEMU), host.reader_for(OTHER)
    assert [qemu(ENERGY, 0), qemu(ENERGY, 2), other(ENERGY, 1), qemu(ENERGY, 3)] == [1, 1002, 1, 1003]
    assert [windows.domain[0] for windows in Windows.made] == [QEMU, OTHER]
    assert Windows.made[0].cpus is Windows.made[1].cpus


def test_a_cpu_that_came_later_has_registers_too(machine: Path) -> None:
    read = made(machine, 0, 1).reader_for(QEMU)
    for cpu, package in enumerate((0, 0, 1, 1, 1)):
        write(machine / f"cpu{cpu}/topology/physical_package_id", f"{package}\n")
    write(machine / "online", "0-4\n")
    assert read(ENERGY, 4) == 1001


def test_a_peer_that_has_gone_reads_no_energy(machine: Path) -> None:
    read = made(machine, 0, 1).reader_for(9)
    assert read(POWER_UNIT, 0) == CONSTANTS[POWER_UNIT]
    with pytest.raises(ProcessLookupError):
        read(ENERGY, 0)


def test_a_counter_that_cannot_be_read_is_an_error_at_once(machine: Path) -> None:
    counter = Counter(0, f"{machine}/none", 0, 1 << 40, 1000)
    with pytest.raises(FileNotFoundError):
        Readers(Registers(tuple(CONSTANTS.items()), (counter,), ((0, 0),), UNIT))
