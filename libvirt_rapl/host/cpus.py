"""The host's CPUs: their packages, how long they were busy, and what the processor calls itself."""

import os
from pathlib import Path

NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""/proc counts CPU time in clock ticks, 10 ms as a rule."""


def packages(sys: Path) -> dict[int, list[int]]:
    """Return the online CPUs of each physical package. Raises OSError or ValueError when sysfs does not tell."""
    directory = sys / "devices/system/cpu"
    result: dict[int, list[int]] = {}
    for cpu in _cpu_list((directory / "online").read_text()):
        package = int((directory / f"cpu{cpu}/topology/physical_package_id").read_text())
        result.setdefault(package, []).append(cpu)
    return result


def busy_nanoseconds(proc: Path) -> dict[int, int]:
    """Return how long each CPU has been busy since boot, to a clock tick.

    Busy is user + nice + system + irq + softirq of proc_stat(5). user holds the guests' time already; idle, iowait
    and steal (time that a hypervisor below us took) are not busy.
    """
    result = {}
    for line in (proc / "stat").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _iowait, irq, softirq = map(int, values[:7])
            result[int(name[3:])] = (user + nice + system + irq + softirq) * NANOSECONDS_PER_TICK
    return result


def model_name(proc: Path) -> str:
    """Return the processor's name for itself; empty when it does not tell."""
    for line in (proc / "cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return ""


def _cpu_list(text: str) -> list[int]:
    """Parse the kernel's list of CPUs: `0-3,8`."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus
