"""A mount namespace of our own, in which the simulated files are where the real ones would be.

Everything is in memory and vanishes with the last process of the namespace. A small tmpfs serves for setting up: it is
mounted where every machine has a directory, and unmounted again before the command runs.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import system
from libvirt_rapl.simulator.files import SIMULATOR

_STAGE = Path("/mnt")
_SYS = Path("/sys")
_DEV = Path("/dev")
_CPUINFO = Path("/proc/cpuinfo")


def enter(cpus: Iterable[int], serve: Callable[[Path], None], programs: Mapping[Path, bytes]) -> None:
    """Move this process into a new mount namespace that shows the simulated files.

    `serve` mounts them on a directory and returns when they can be read. `programs`: new contents of these programs.
    Raises VirtRaplError.
    """
    try:
        system.unshare_mounts()
        system.mount("tmpfs", _STAGE, "tmpfs", options="mode=0755")
        files = _STAGE / "files"
        files.mkdir()
        serve(files)
        _show(files / "cpu", _DEV / "cpu")
        _show(files / "powercap", _SYS / "class/powercap")
        for cpu in cpus:
            target = _SYS / f"devices/system/cpu/cpu{cpu}/topology/physical_package_id"
            system.mount(files / f"topology/{cpu}", target, flags=system.MS_BIND)
        system.mount(files / SIMULATOR / "cpuinfo", _CPUINFO, flags=system.MS_BIND)
        for path, content in programs.items():
            copy = _STAGE / path.name
            copy.write_bytes(content)
            shutil.copystat(path, copy)
            system.mount(copy, path, flags=system.MS_BIND)
        system.detach(_STAGE)
    except PermissionError as error:
        raise VirtRaplError(
            f"may not mount file systems: {error}", "run as root, and not in a container without CAP_SYS_ADMIN"
        ) from error
    except OSError as error:
        raise VirtRaplError(
            f"cannot set up the simulated files: {error}",
            f"simulate needs tmpfs, FUSE and overlayfs in the kernel, and a directory {_STAGE}",
        ) from error


def _show(source: Path, target: Path) -> None:
    """Mount the directory `source` on `target`, which need not exist."""
    if not target.is_dir():
        _add_directory(target)
    system.mount(source, target, flags=system.MS_BIND)


def _add_directory(path: Path) -> None:
    """Make a directory appear where none can or may be created, by an overlay on its parent.

    In sysfs none can be created, and the host's /dev is shared by everybody. The overlay is read-only.
    """
    parent = path.parent
    addition = _STAGE / f"add-{path.name}"
    (addition / path.name).mkdir(parents=True)
    # The overlay hides what is mounted below the parent (/dev/pts, /dev/shm), so mount that again on top of it.
    kept = []
    for number, point in enumerate(mount_points_in(parent)):
        aside = _STAGE / f"aside-{path.name}-{number}"
        aside.mkdir() if point.is_dir() else aside.touch()
        system.mount(point, aside, flags=system.MS_BIND | system.MS_REC)
        kept.append((aside, point))
    system.mount("overlay", parent, "overlay", options=f"lowerdir={addition}:{parent}")
    for aside, point in kept:
        system.mount(aside, point, flags=system.MS_BIND | system.MS_REC)


def mount_points_in(directory: Path) -> list[Path]:
    """Return the mount points below a directory, each once, without those inside another of them."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = dict.fromkeys(Path(line.split()[4]) for line in lines)
    inside = [point for point in points if directory in point.parents and point.exists()]
    return [point for point in inside if not any(other in point.parents for other in inside)]
