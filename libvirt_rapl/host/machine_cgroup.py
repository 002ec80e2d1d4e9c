"""The cgroup of a virtual machine. Imports next to nothing: a helper's memory is counted.

The place of a QEMU process in the hierarchy shows which cgroup is its machine's:

    /machine.slice/machine-qemu\\x2d1\\x2dNAME.scope/libvirt/emulator   made by systemd
    /machine/qemu-1-NAME.libvirt-qemu/emulator                        made without
    /libvirt/qemu/NAME/emulator                                       long ago

The vCPU and iothread cgroups below it hold only threads of QEMU and are not read.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike

BELOW = ("", "emulator", "libvirt", "libvirt/emulator")
"""Where in a machine's cgroup its processes may be."""


def machine_cgroup(pid: int, *, sys: str | PathLike[str], proc: str | PathLike[str]) -> tuple[str, int] | None:
    """Return the directory of the cgroup of the machine that process `pid` runs, and its version: 2 or 1.

    None when it has none: libvirt is configured to use no cgroups, or does not run as root.
    """
    try:
        with open(f"{os.fspath(proc)}/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        # name=systemd is systemd's own; libvirt moves processes only in hierarchies with controllers.
        if (machine := _machine(path)) and not controllers.startswith("name="):
            directory = f"{os.fspath(sys)}/fs/cgroup/{controllers}{'/' if controllers else ''}{machine}"
            if os.path.isdir(directory):  # noqa: PTH112 (pathlib takes a megabyte)
                return directory, 2 if number == "0" else 1
    return None


def machine_number(pid: int, *, sys: str | PathLike[str] = "/sys", proc: str | PathLike[str] = "/proc") -> int | None:
    """Return libvirt's number of the domain in whose cgroup a process is; None without such a cgroup or number.

    Libvirt puts a QEMU there before it runs, and only root can move a process elsewhere.
    """
    place = machine_cgroup(pid, sys=sys, proc=proc)
    if place is None:
        return None
    name = place[0].rpartition("/")[2].replace("\\x2d", "-").removeprefix("machine-")
    driver, _, rest = name.partition("-")
    number = rest.partition("-")[0]
    return int(number) if driver == "qemu" and number.isdecimal() else None


def _machine(path: str) -> str:
    """Return the machine's part of a process's cgroup path, without the leading slash; empty if there is none."""
    names = path.split("/")[1:]
    for depth, name in enumerate(names):
        if (
            (name.startswith("machine-qemu") and name.endswith(".scope"))
            or (name.endswith(".libvirt-qemu") and name != ".libvirt-qemu")
            or (names[max(0, depth - 2) : depth] == ["libvirt", "qemu"] and name)
        ):
            return "/".join(names[: depth + 1])
    return ""
