"""Whether guests run under KVM here. /dev/kvm alone proves little: in a virtual machine or a container it may be there
although no guest gets far. So QEMU starts one, without libvirt, and it has to print its first line.
"""

import select
import subprocess
import tempfile
from pathlib import Path

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import guest

KVM = Path("/dev/kvm")
SECONDS = 20.0
"""A guest needs about 0.2."""
ARGUMENTS = ["-no-user-config", "-nodefaults", "-display", "none", "-machine", "pc", "-accel", "kvm", "-m", "16"]
ARGUMENTS += ["-chardev", "stdio,id=out", "-device", f"isa-debugcon,chardev=out,iobase={guest.DEBUG_PORT:#x}"]
HINT = "switch virtualization on in the firmware or, in a VM, nested virtualization; in a container, give it /dev/kvm"


def check_kvm() -> None:
    """Raise VirtRaplError unless guests can run under KVM; without it QEMU can only emulate their CPUs."""
    if not KVM.is_char_device():
        raise VirtRaplError("this machine has no KVM (/dev/kvm)", HINT)
    with tempfile.NamedTemporaryFile() as rom, tempfile.TemporaryFile("w+", errors="replace") as words:
        rom.write(guest.rom(0))
        rom.flush()
        command = [guest.EMULATOR, *ARGUMENTS, "-cpu", guest.CPU, "-bios", rom.name]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words) as qemu:
            assert qemu.stdout is not None
            ready, _, _ = select.select([qemu.stdout], [], [], SECONDS)
            printed = qemu.stdout.read(1) if ready else b""
            qemu.kill()
        if printed:
            return
        words.seek(0)
        said = words.read().split("\n")
    last_line = next((line for line in reversed(said) if line.strip()), "it printed nothing")
    why = last_line if ready else f"one printed nothing within {SECONDS:g} s"
    raise VirtRaplError(f"KVM is there (/dev/kvm) but does not run guests: {why.strip()}", HINT)
