"""What is mounted where for a simulated machine; nothing is mounted here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import namespace, system
from libvirt_rapl.simulator.namespace import enter, mount_points_in

BIND, AND_BELOW = system.MS_BIND, system.MS_BIND | system.MS_REC


class Calls:
    """In place of the system: what it was asked for, in this order."""

    MS_BIND, MS_REC = system.MS_BIND, system.MS_REC

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[object, ...]] = []
        self.error: OSError | None = None
        """What mounting fails with."""

    def short(self, path: Path | str) -> str:
        return str(path).removeprefix(str(self.root))

    def unshare_mounts(self) -> None:
        self.calls.append(("unshare",))

    def mount(
        self, source: Path | str, target: Path, kind: str | None = None, flags: int = 0, options: str = ""
    ) -> None:
        if self.error:
            raise self.error
        what = (kind, options.replace(str(self.root), "")) if kind else (flags,)
        self.calls.append((self.short(source), self.short(target), *what))

    def detach(self, target: Path) -> None:
        self.calls.append(("detach", self.short(target)))


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A machine below a temporary directory that has /dev/cpu and powercap."""
    calls = Calls(tmp_path)
    monkeypatch.setattr(namespace, "system", calls)
    monkeypatch.setattr(namespace, "mount_points_in", lambda _: [])
    for name, path in {"_STAGE": "mnt", "_SYS": "sys", "_DEV": "dev", "_CPUINFO": "proc/cpuinfo"}.items():
        monkeypatch.setattr(namespace, name, tmp_path / path)
    for directory in ("mnt", "dev/cpu", "sys/class/powercap"):
        (tmp_path / directory).mkdir(parents=True)
    return calls


BEGIN = [("unshare",), ("tmpfs", "/mnt", "tmpfs", "mode=0755"), ("serve", "/mnt/files")]
CPU = ("/mnt/files/cpu", "/dev/cpu", BIND)
POWERCAP = ("/mnt/files/powercap", "/sys/class/powercap", BIND)
CPUINFO = ("/mnt/files/powercap/virt-rapl-simulator/cpuinfo", "/proc/cpuinfo", BIND)
END = ("detach", "/mnt")


def topology(cpu: int) -> tuple[object, ...]:
    return (
        f"/mnt/files/topology/{cpu}",
        f"/sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id",
        BIND,
    )


def entered(calls: Calls, *cpus: int, programs: dict[Path, bytes] | None = None) -> list[tuple[object, ...]]:
    enter(cpus, lambda directory: calls.calls.append(("serve", calls.short(directory))), programs or {})
    return calls.calls


def test_files_are_served_and_shown_in_a_namespace_of_our_own(calls: Calls) -> None:
    assert entered(calls, 0, 3) == [*BEGIN, CPU, POWERCAP, topology(0), topology(3), CPUINFO, END]


def test_a_program_is_replaced_by_a_copy_that_can_be_executed(calls: Calls) -> None:
    program = calls.root / "qemu"
    program.write_bytes(b"old")
    program.chmod(0o755)
    os.utime(program, (1, 2))
    expected = ("/mnt/qemu", "/qemu", BIND)
    assert entered(calls, programs={program: b"new"}) == [*BEGIN, CPU, POWERCAP, CPUINFO, expected, END]
    copy = calls.root / "mnt/qemu"
    assert (copy.read_bytes(), copy.stat().st_mode & 0o7777, copy.stat().st_mtime) == (b"new", 0o755, 2)
    assert program.read_bytes() == b"old"


def test_a_directory_that_is_not_there_is_added_and_what_is_mounted_beside_it_stays(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    (calls.root / "dev/cpu").rmdir()
    (calls.root / "dev/pts").mkdir()
    (calls.root / "dev/console").touch()
    points = [calls.root / "dev/pts", calls.root / "dev/console"]
    monkeypatch.setattr(namespace, "mount_points_in", {calls.root / "dev": points}.__getitem__)
    assert entered(calls) == [
        *BEGIN,
        ("/dev/pts", "/mnt/aside-cpu-0", AND_BELOW),
        ("/dev/console", "/mnt/aside-cpu-1", AND_BELOW),
        ("overlay", "/dev", "overlay", "lowerdir=/mnt/add-cpu:/dev"),
        ("/mnt/aside-cpu-0", "/dev/pts", AND_BELOW),
        ("/mnt/aside-cpu-1", "/dev/console", AND_BELOW),
        CPU,
        POWERCAP,
        CPUINFO,
        END,
    ]
    assert (calls.root / "mnt/add-cpu/cpu").is_dir()
    assert (calls.root / "mnt/aside-cpu-0").is_dir()
    assert (calls.root / "mnt/aside-cpu-1").is_file()


@pytest.mark.parametrize(("error", "hint"), [(PermissionError("no"), "run as root"), (OSError("no"), "FUSE")])
def test_a_mount_that_fails_is_an_error_with_a_hint(calls: Calls, error: OSError, hint: str) -> None:
    calls.error = error
    with pytest.raises(VirtRaplError, match="no") as caught:
        entered(calls)
    assert hint in caught.value.hint
    assert calls.calls == [("unshare",)]


MOUNTINFO = """\
20 1 0:18 / / rw - ext4 disk rw
21 20 0:19 / {0} rw - tmpfs dev rw
22 21 0:20 / {0}/pts rw - devpts pts rw
23 21 0:21 / {0}/shm rw - tmpfs shm rw
24 23 0:22 / {0}/shm/inner rw - tmpfs inner rw
25 21 0:23 / {0}/pts rw - devpts again rw
26 21 0:24 / {0}/gone rw - tmpfs gone rw
27 20 0:25 / {0}x/other rw - tmpfs other rw
"""


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda _: MOUNTINFO.format(tmp_path / "dev"))
        yield


@pytest.mark.usefixtures("mountinfo")
def test_mount_points_are_those_right_below_a_directory_each_once(tmp_path: Path) -> None:
    for directory in ("dev/pts", "dev/shm/inner", "devx/other"):
        (tmp_path / directory).mkdir(parents=True)
    assert mount_points_in(tmp_path / "dev") == [tmp_path / "dev/pts", tmp_path / "dev/shm"]
