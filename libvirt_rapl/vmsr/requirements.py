"""What QEMU insists on in a host before it starts with rapl=true; where it is missing, QEMU exits."""

from pathlib import Path

from libvirt_rapl.errors import VirtRaplError


def check_host(sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
    """Raise VirtRaplError when QEMU would refuse to give a guest RAPL on this host."""
    vendor = next((line for line in _text(proc / "cpuinfo").splitlines() if line.startswith("vendor_id")), "")
    if vendor.split(":")[-1].strip() != "GenuineIntel":
        raise VirtRaplError(
            "QEMU gives guests RAPL on Intel hosts only",
            "`virt-rapl status` on the host needs no guest RAPL",
        )
    if _text(sys / "class/powercap/intel-rapl/enabled").strip() != "1":
        raise VirtRaplError(
            "RAPL is not enabled: /sys/class/powercap/intel-rapl/enabled is not 1", "modprobe intel_rapl_msr"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
