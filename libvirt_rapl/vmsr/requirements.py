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
