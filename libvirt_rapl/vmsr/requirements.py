"""What QEMU insists on in a host before it starts with rapl=true; where it is missing, QEMU exits."""

from pathlib import Path

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host.cpus import processor


def check_host(sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
    """Raise VirtRaplError when QEMU would refuse to give a guest RAPL on this host."""
    if processor(proc).vendor != "GenuineIntel":
        raise VirtRaplError(
            "QEMU gives guests RAPL on Intel hosts only",
            "`virt-rapl status` on the host needs no guest RAPL",
        )
    try:
        enabled = (sys / "class/powercap/intel-rapl/enabled").read_text().strip()
    except OSError:
        enabled = ""
    if enabled != "1":
        raise VirtRaplError(
            "RAPL is not enabled: /sys/class/powercap/intel-rapl/enabled is not 1", "modprobe intel_rapl_msr"
        )
    _check_cpus(sys / "devices/system/cpu")


def _check_cpus(directory: Path) -> None:
    """QEMU counts the directories of CPUs, and wants to know the package of as many from CPU 0 on.

    Linux tells of those that are on line only. The packages found are to be those from 0 on, without a gap.
    """
    count = len(list(directory.glob("cpu[0-9]*")))
    packages = set()
    for cpu in range(count):
        try:
            packages.add(int((directory / f"cpu{cpu}/topology/physical_package_id").read_text()))
        except (OSError, ValueError) as error:
            raise VirtRaplError(
                f"QEMU gives guests RAPL only where all CPUs are on line, and CPU {cpu} is not",
                f"echo 1 > /sys/devices/system/cpu/cpu{cpu}/online, or, where it was taken off line with its siblings, "
                "echo on > /sys/devices/system/cpu/smt/control",
            ) from error
    if packages != set(range(len(packages))):
        numbers = ", ".join(map(str, sorted(packages)))
        raise VirtRaplError(
            f"QEMU gives guests RAPL only where packages are numbered from 0 without a gap; here they are {numbers}",
            "`virt-rapl status` on the host needs no guest RAPL",
        )
