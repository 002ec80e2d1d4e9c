"""What the simulated files hold and how they answer, without mounting them."""

import errno
import json
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator.files import Files
from libvirt_rapl.simulator.power import Model, PackageEnergy, Simulation
from libvirt_rapl.simulator.registers import Counters
from libvirt_rapl.simulator.server import Operations, load_library, serve

SECOND = 1_000_000_000
MODEL = Model(packages=2)


class Host:
    """Two packages of two CPUs each, with clocks set by hand."""

    def __init__(self, model: Model = MODEL) -> None:
        self.time = 0
        self.busy = dict.fromkeys(range(4), 0)
        self.simulation = Simulation(model, [[0, 1], [2, 3]], 0, self.busy)
        self.mounted = False
        self.files = Operations(Files(self.simulation, self.sample).entries, self.mount)

    def sample(self) -> list[PackageEnergy]:
        return self.simulation.advance(self.time, self.busy)

    def mount(self) -> None:
        self.mounted = True

    def text(self, path: str) -> str:
        return self.files.read(path, 4096, 0, self.files.open(path, 0)).decode()

    def register(self, cpu: int, address: int) -> int:
        (value,) = struct.unpack("=Q", self.files.read(f"/cpu/{cpu}/msr", 8, address, 0))
        return int(value)


def error_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def test_every_directory_lists_what_is_in_it() -> None:
    files = Host().files
    assert files.readdir("/", 0)[2:] == ["powercap", "cpu", "topology"]
    assert files.readdir("/cpu", 0) == [".", "..", "0", "1", "2", "3"]
    assert set(files.readdir("/powercap", 0)[2:]) == {
        "intel-rapl",
        "virt-rapl-simulator",
        *(f"intel-rapl:{package}{zone}" for package in "01" for zone in ("", ":0", ":1")),
    }
    assert set(files.readdir("/powercap/intel-rapl", 0)[2:]) == {"enabled", "intel-rapl:0", "intel-rapl:1"}
    assert set(files.readdir("/powercap/intel-rapl/intel-rapl:1", 0)[2:]) == {
        *("name", "enabled", "energy_uj", "max_energy_range_uj", "intel-rapl:1:0", "intel-rapl:1:1"),
        *(f"constraint_{n}_{what}" for n in "01" for what in ("name", "power_limit_uw", "max_power_uw")),
        *(f"constraint_{n}_time_window_us" for n in "01"),
    }


def test_amd_has_package_and_core_and_no_limits() -> None:
    files = Host(Model(cpu="amd", packages=2)).files
    assert set(files.readdir("/powercap", 0)[2:]) == {
        "intel-rapl",
        "virt-rapl-simulator",
        *(f"intel-rapl:{package}{zone}" for package in "01" for zone in ("", ":0")),
    }
    package = {"name", "enabled", "energy_uj", "max_energy_range_uj"}
    assert set(files.readdir("/powercap/intel-rapl/intel-rapl:1", 0)[2:]) == {*package, "intel-rapl:1:0"}
    assert set(files.readdir("/powercap/intel-rapl/intel-rapl:1/intel-rapl:1:0", 0)[2:]) == package


def test_links_lead_to_the_nested_zones() -> None:
    files = Host().files
    assert files.readlink("/powercap/intel-rapl:1") == "intel-rapl/intel-rapl:1"
    assert files.readlink("/powercap/intel-rapl:1:0") == "intel-rapl/intel-rapl:1/intel-rapl:1:0"
    assert stat.S_ISLNK(files.getattr("/powercap/intel-rapl:1:0")["st_mode"])
    assert error_of(lambda: files.readlink("/powercap/intel-rapl/enabled")) == errno.EINVAL


@pytest.mark.parametrize(
    ("path", "mode", "text"),
    [
        ("/powercap/intel-rapl/enabled", 0o644, "1\n"),
        ("/powercap/intel-rapl/intel-rapl:1/name", 0o444, "package-1\n"),
        ("/powercap/intel-rapl/intel-rapl:1/enabled", 0o644, "1\n"),
        ("/powercap/intel-rapl/intel-rapl:1/max_energy_range_uj", 0o444, "262143328850\n"),
        ("/powercap/intel-rapl/intel-rapl:1/constraint_0_name", 0o444, "long_term\n"),
        ("/powercap/intel-rapl/intel-rapl:1/constraint_0_power_limit_uw", 0o644, "100000000\n"),
        ("/powercap/intel-rapl/intel-rapl:1/constraint_1_name", 0o444, "short_term\n"),
        ("/powercap/intel-rapl/intel-rapl:0/intel-rapl:0:0/name", 0o444, "core\n"),
        ("/powercap/intel-rapl/intel-rapl:0/intel-rapl:0:1/name", 0o444, "dram\n"),
        ("/topology/1", 0o444, "0\n"),
        ("/topology/2", 0o444, "1\n"),
    ],
)
def test_text_files(path: str, mode: int, text: str) -> None:
    host = Host()
    assert host.files.getattr(path)["st_mode"] == stat.S_IFREG | mode
    assert host.text(path) == text


def test_energy_is_roots_alone() -> None:
    files = Host().files
    assert files.getattr("/powercap/intel-rapl/intel-rapl:0/energy_uj")["st_mode"] == stat.S_IFREG | 0o400
    assert files.getattr("/cpu/3/msr")["st_mode"] == stat.S_IFREG | 0o600


def test_registers_of_each_package() -> None:
    host = Host()
    counters = Counters(MODEL)
    host.time, host.busy = SECOND, {0: SECOND, 1: 0, 2: 0, 3: 0}
    assert host.register(0, 0x606) == 0xA0E03
    assert host.register(0, 0x8B) == 0
    assert host.register(3, 0x611) == counters.register(1, "package", 20_000_000)
    assert host.register(0, 0x611) == host.register(1, 0x611) == counters.register(0, "package", 60_000_000)
    assert host.register(1, 0x639) == counters.register(0, "core", 40_000_000)
    assert host.register(1, 0x619) == counters.register(0, "dram", 6_000_000)
    assert host.register(1, 0x610) & 0x7FFF == host.register(1, 0x614) & 0x7FFF == 100 * 8


def test_registers_of_amd() -> None:
    model = Model(cpu="amd", packages=2)
    host, counters = Host(model), Counters(model)
    host.time, host.busy = SECOND, {0: SECOND, 1: SECOND // 2, 2: 0, 3: 0}
    assert host.register(0, 0xC0010299) == 0xA1003
    assert host.register(3, 0xC001029B) == counters.register(1, "package", 20_000_000)
    assert host.register(0, 0xC001029B) == host.register(1, 0xC001029B) == counters.register(0, "package", 80_000_000)
    assert host.register(0, 0xC001029A) == counters.register(0, "core", 40_000_000)
    assert host.register(1, 0xC001029A) == counters.register(1, "core", 20_000_000), "each core has its own"
    core = int(host.text("/powercap/intel-rapl/intel-rapl:0/intel-rapl:0:0/energy_uj"))
    assert core == counters.energy_uj(0, "core", 40_000_000), "the kernel shows one core"
    for address in (0x606, 0x610, 0x611, 0x614, 0x619, 0x639):
        assert error_of(lambda address=address: host.register(0, address)) == errno.EIO  # type: ignore[misc]


@pytest.mark.parametrize("size", [1, 4, 7, 9, 16, 4096])
def test_a_register_is_read_by_8_bytes(size: int) -> None:
    assert error_of(lambda: Host().files.read("/cpu/0/msr", size, 0x611, 0)) == errno.EINVAL


@pytest.mark.parametrize("address", [0, 0x10, 0x607, 0x610 + 8, 0x641, 1 << 40])
def test_a_register_that_is_not_there(address: int) -> None:
    assert error_of(lambda: Host().files.read("/cpu/0/msr", 8, address, 0)) == errno.EIO


def test_each_read_from_the_beginning_is_of_that_instant() -> None:
    host = Host()
    path = "/powercap/intel-rapl/intel-rapl:0/energy_uj"
    handle = host.files.open(path, 0)
    first = int(host.files.read(path, 4096, 0, handle))
    host.time = SECOND
    second = int(host.files.read(path, 4096, 0, handle))
    assert second - first == pytest.approx(20_000_000, abs=200)


def test_reading_on_ends_where_the_text_ended() -> None:
    # Between the two reads the value gains a digit.
    model = next(model for seed in range(1000) if _start(model := Model(packages=2, seed=seed)) < 10**10)
    host = Host(model)
    path = "/powercap/intel-rapl/intel-rapl:0/energy_uj"
    handle = host.files.open(path, 0)
    first = host.files.read(path, 4096, 0, handle)
    host.time = 1000 * SECOND
    assert host.files.read(path, 4096, len(first), handle) == b""
    assert len(host.text(path)) > len(first)
    host.files.release(path, handle)
    assert host.files.read(path, 4096, 1, handle).decode() == host.text(path)[1:], "nothing is kept"


def _start(model: Model) -> int:
    return Counters(model).energy_uj(0, "package", 0)


def test_truth() -> None:
    host = Host()
    host.time, host.busy = 2 * SECOND, {0: SECOND, 1: 0, 2: 0, 3: SECOND // 2}
    assert json.loads(host.text("/powercap/virt-rapl-simulator/truth")) == {
        "time": 2.0,
        "packages": [
            {
                "package": 0,
                "zones": {"package": 80_000_000, "core": 40_000_000, "dram": 8_000_000},
                "busy_seconds": 1.0,
            },
            {
                "package": 1,
                "zones": {"package": 60_000_000, "core": 20_000_000, "dram": 6_000_000},
                "busy_seconds": 0.5,
            },
        ],
        "model": {"cpu": "intel", "packages": 2, "idle_watts": 20.0, "cpu_watts": 40.0, "wrap_soon": False, "seed": 1},
    }


def test_what_does_not_exist() -> None:
    assert error_of(lambda: Host().files.getattr("/cpu/4/msr")) == errno.ENOENT


def test_it_reports_when_it_is_mounted() -> None:
    host = Host()
    host.files.init("/")
    assert host.mounted


def test_any_user_may_look_and_the_kernel_checks_modes_and_keeps_no_reading() -> None:
    served: dict[str, object] = {}

    class Library:
        def FUSE(self, operations: Operations, mountpoint: str, **options: object) -> None:  # noqa: N802 (its name)
            served.update(options, operations=operations, mountpoint=mountpoint)

    host = Host()
    serve(Library(), host.files._entries, Path("/mountpoint"), host.mount)
    operations = served.pop("operations")
    assert isinstance(operations, Operations)
    assert not host.mounted
    operations.init("/")
    assert host.mounted
    assert served.pop("mountpoint") == "/mountpoint"
    assert served.pop("fsname") == "virt-rapl-simulator"
    # Without `foreground` it would go on alone, and without `nothreads` read the counters from two threads at once.
    assert set(served) == {"foreground", "nothreads", "ro", "allow_other", "default_permissions", "direct_io"}
    assert set(served.values()) == {True}


def test_a_kernel_without_fuse(tmp_path: Path) -> None:
    with pytest.raises(VirtRaplError, match="no FUSE") as caught:
        load_library(tmp_path)
    assert caught.value.hint == "modprobe fuse"


def test_the_python_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fuse").touch()
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    with pytest.raises(VirtRaplError, match="mfusepy is missing") as caught:
        load_library(tmp_path)
    assert "pip install" in caught.value.hint


def test_libfuse_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fuse").touch()
    monkeypatch.delitem(sys.modules, "mfusepy", raising=False)
    monkeypatch.setenv("FUSE_LIBRARY_PATH", str(tmp_path / "libfuse3.so"))
    with pytest.raises(VirtRaplError, match="cannot load libfuse") as caught:
        load_library(tmp_path)
    assert "fuse3" in caught.value.hint
