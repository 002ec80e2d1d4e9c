"""The host's CPUs: their packages, dies and cores, and what the processor calls itself."""

from pathlib import Path
from typing import NamedTuple


class Processor(NamedTuple):
    """What kind of processor the machine has, as CPUID names it."""

    vendor: str
    """`GenuineIntel`, `AuthenticAMD`, ..."""
    family: int
    model: int


def packages(sys: Path) -> dict[int, list[int]]:
    """Return the online CPUs of each physical package. Raises OSError or ValueError when sysfs does not say."""
    result: dict[int, list[int]] = {}
    for (package, _), cpus in dies(sys).items():
        result.setdefault(package, []).extend(cpus)
    return result


def dies(sys: Path) -> dict[tuple[int, int], list[int]]:
    """Return the online CPUs of each die, by package and die. Raises OSError or ValueError when sysfs does not say."""
    result: dict[tuple[int, int], list[int]] = {}
    for cpu in _cpu_list((sys / "devices/system/cpu/online").read_text()):
        package = int((_topology(sys, cpu) / "physical_package_id").read_text())
        try:
            die = int((_topology(sys, cpu) / "die_id").read_text())
        except FileNotFoundError:  # Linux before 5.2
            die = 0
        result.setdefault((package, die), []).append(cpu)
    return result


def first_of_core(sys: Path, cpu: int) -> int:
    """Return the first CPU of the core that `cpu` is a thread of. Raises OSError or ValueError as packages()."""
    return _cpu_list((_topology(sys, cpu) / "thread_siblings_list").read_text())[0]


def first_of_each_core(sys: Path, cpus: list[int]) -> list[int]:
    """Return one CPU of each core that `cpus` are threads of. Raises OSError or ValueError when sysfs does not say."""
    return sorted({first_of_core(sys, cpu) for cpu in cpus})


def model_name(proc: Path) -> str:
    """Return the processor's name for itself; empty if it has none."""
    return _cpuinfo(proc).get("model name", "")


def processor(proc: Path) -> Processor:
    """Return what kind of processor this is; an empty vendor and zeros if unknown."""
    cpuinfo = _cpuinfo(proc)
    return Processor(cpuinfo.get("vendor_id", ""), int(cpuinfo.get("cpu family", "0")), int(cpuinfo.get("model", "0")))


def _cpuinfo(proc: Path) -> dict[str, str]:
    """Return what /proc/cpuinfo says about the first CPU."""
    first, _, _ = (proc / "cpuinfo").read_text().partition("\n\n")
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _topology(sys: Path, cpu: int) -> Path:
    return sys / f"devices/system/cpu/cpu{cpu}/topology"


def _cpu_list(text: str) -> list[int]:
    """Parse the kernel's list of CPUs: `0-3,8`."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus
