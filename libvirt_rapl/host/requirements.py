"""What QEMU requires of a host to start with rapl=true (it exits otherwise), and what a helper requires."""

from pathlib import Path

from libvirt_rapl.errors import NoRegistersError, VirtRaplError
from libvirt_rapl.host.topology import processor
from libvirt_rapl.paths import PROC, SYS

QEMU_HELPER = "qemu-vmsr-helper"
QEMU_HELPER_PATH = "/usr/bin:/usr/libexec:/usr/local/bin"
WITHOUT_REGISTERS = (
    "`virt-rapl enable --via channel`, or `via: auto` in the configuration, gives guests their energy on any host; "
    "`virt-rapl status` shows that of every domain, enabled or not"
)
"""What there is where QEMU gives guests no registers."""


class ProcessorError(NoRegistersError):
    """No guest of this host can have RAPL, whatever its domain and the configuration."""


def check_host(sys: Path = SYS, proc: Path = PROC) -> None:
    """Raise VirtRaplError when QEMU would refuse to give a guest RAPL on this host."""
    check_processor(proc)
    check_enabled(sys)
    check_cpus(sys)


def check_processor(proc: Path = PROC) -> None:
    """Raise ProcessorError unless the processor is Intel's."""
    if processor(proc).vendor != "GenuineIntel":
        raise ProcessorError("QEMU gives guests RAPL on Intel hosts only", WITHOUT_REGISTERS)


def check_enabled(sys: Path) -> None:
    """Raise VirtRaplError unless powercap's driver for RAPL is loaded and enabled."""
    try:
        enabled = (sys / "class/powercap/intel-rapl/enabled").read_text().strip()
    except OSError:
        enabled = ""
    if enabled != "1":
        raise VirtRaplError(
            "RAPL is not enabled: /sys/class/powercap/intel-rapl/enabled is not 1", "modprobe intel_rapl_msr"
        )


def check_cpus(sys: Path) -> None:
    """Raise VirtRaplError if a CPU is offline or packages are not numbered as QEMU needs them.

    QEMU counts the directories of CPUs, and reads the package of that many CPUs from CPU 0 on. Linux shows it only for
    CPUs that are online. The packages must be numbered from 0 on, without a gap.
    """
    directory = sys / "devices/system/cpu"
    count = len(list(directory.glob("cpu[0-9]*")))
    packages = set()
    for cpu in range(count):
        try:
            packages.add(int((directory / f"cpu{cpu}/topology/physical_package_id").read_text()))
        except (OSError, ValueError) as error:
            raise VirtRaplError(
                f"QEMU gives guests RAPL only where all CPUs are online, and CPU {cpu} is not",
                f"echo 1 > /sys/devices/system/cpu/cpu{cpu}/online, or, if it was taken offline with its siblings, "
                "echo on > /sys/devices/system/cpu/smt/control",
            ) from error
    if packages != set(range(len(packages))):
        numbers = ", ".join(map(str, sorted(packages)))
        raise VirtRaplError(
            f"QEMU gives guests RAPL only where packages are numbered from 0 without a gap; here they are {numbers}",
            WITHOUT_REGISTERS,
        )


def check_processes_are_seen(mounts: Path = PROC / "self/mountinfo") -> None:
    """Raise VirtRaplError if /proc hides QEMU's threads: a helper then answers 0, and QEMU does not start."""
    options = ""
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[4] == "/proc":
            options = fields[-1]  # the last file system mounted there is the visible one
    hidden = {option.removeprefix("hidepid=") for option in options.split(",") if option.startswith("hidepid=")}
    if hidden - {"0", "off"}:
        raise VirtRaplError("/proc hides other users' processes (hidepid)", "mount -o remount,hidepid=0 /proc")


def qemu_helper() -> str:
    """Return the path of qemu-vmsr-helper. Raises VirtRaplError if there is none."""
    import shutil  # here, so that a start with the native helper does not wait for it

    program = shutil.which(QEMU_HELPER, path=QEMU_HELPER_PATH)
    if program is None:
        raise VirtRaplError(f"{QEMU_HELPER} is not installed", "install it with QEMU, or set `helper: native`")
    return program
