"""A real Linux guest: Debian's kernel, and an initramfs with busybox, python3 and node_exporter.

It has no KVM, under which an ordinary kernel does not run everywhere: QEMU emulates its CPU, and it is up in seconds. A
test runs commands in it, over a serial line of their own.
"""

import base64
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4
from xml.sax.saxutils import escape, quoteattr

import energy_channel
from initramfs import BUSYBOX, Initramfs

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator.guest import EMULATED_CPU, EMULATOR
from libvirt_rapl.simulator.world import World

KERNEL = Path(__file__).parent.parent / ".venv/linux"
"""What ./tests/run has unpacked of Debian's kernel package."""
NODE_EXPORTER = "/usr/bin/prometheus-node-exporter"
NEEDS = (str(KERNEL), BUSYBOX, NODE_EXPORTER)
"""For the mark `needs`."""
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_console")
"""In the order in which they are loaded."""
PORT = f"/dev/virtio-ports/{energy_channel.NAME}"
READY = "takes commands"
"""It prints this whenever it has booted."""
BOOT_SECONDS = 120.0
"""It takes about 4 on a machine with nothing else to do."""
COMMAND_SECONDS = 120.0
"""How long a command may take on a machine that is busy."""

INIT = f"""\
#!/usr/bin/busybox sh
export PATH=/usr/bin HOME=/ LC_ALL=C.UTF-8
/usr/bin/busybox mkdir -p /proc /sys /dev /tmp /run /var/lib
/usr/bin/busybox --install -s /usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
ip link set lo up
for module in $(ls /modules | sort -n); do insmod /modules/$module; done
uevent /ports &
/ports
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo "{READY}"
while read -r id command <&3; do
    [ -n "$command" ] || continue
    echo "$command" | base64 -d >/tmp/.command
    sh /tmp/.command >/tmp/.output 2>/tmp/.errors </dev/null 3<&-
    status=$?
    echo "$id $status =$(base64 -w 0 </tmp/.output) =$(base64 -w 0 </tmp/.errors)" >&3
done
"""

PORTS = f"""\
#!/usr/bin/busybox sh
# What udev does elsewhere: a link to each port that has a name. Runs again whenever a device comes or goes.
mkdir -p {PORT.rpartition("/")[0]}
cd {PORT.rpartition("/")[0]}
for link in *; do
    [ -e "$link" ] || rm -f "$link"
done
for port in /sys/class/virtio-ports/*; do
    read -r name <$port/name && ln -sf ../${{port##*/}} "$name"
done 2>/dev/null
"""


def furnish(world: World, files: Mapping[str, Path]) -> None:
    """Put what its guests boot into a world's /mnt: the kernel, and an initramfs that has these files, too."""
    archive = Initramfs()
    archive.add("/init", INIT.encode())
    archive.add("/ports", PORTS.encode())
    archive.add_modules(KERNEL, *MODULES)
    archive.add_program(BUSYBOX)
    archive.add_program(NODE_EXPORTER)
    for path, source in files.items():
        archive.add(path, source.read_bytes())
    archive.add_python(*(script for script in map(Path.read_text, files.values()) if "python3" in script[:30]))
    (kernel,) = KERNEL.rglob("vmlinuz-*")
    for name, content in (("kernel", kernel.read_bytes()), ("initramfs", archive.finish())):
        booted = world.path(f"/mnt/linux.{name}")
        booted.write_bytes(content)
        booted.chmod(0o644)


def domain_xml(name: str, *, channel: bool = True, machine: str = "pc", vcpus: int = 1, mebibytes: int = 192) -> str:
    """Return the domain of a guest, as a user would write it. `channel`: it has the energy channel's port."""
    return f"""\
<domain type='qemu'>
  <name>{escape(name)}</name>
  <uuid>{uuid4()}</uuid>
  <memory unit='MiB'>{mebibytes}</memory>
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine={quoteattr(machine)}>hvm</type>
    <kernel>/mnt/linux.kernel</kernel>
    <initrd>/mnt/linux.initramfs</initrd>
    <cmdline>console=ttyS0 quiet no_timer_check</cmdline>
  </os>
  <features>
    <acpi/>
  </features>
  {EMULATED_CPU}
  <devices>
    <emulator>{EMULATOR}</emulator>
    <serial type='file'>
      <source path={quoteattr(_console(name))} append='on'/>
    </serial>
    <serial type='unix'>
      <source mode='bind' path={quoteattr(_commands(name))}/>
    </serial>
    {energy_channel.ELEMENT if channel else ""}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class LinuxGuest:
    """One in a world that is furnished for it."""

    def __init__(self, world: World, name: str) -> None:
        """Take a domain that domain_xml has made."""
        self.world = world
        """Where it runs; who moves it sets this."""
        self.name = name
        self._boots = 0

    def wait_for_boot(self) -> None:
        """Return when it takes commands, having booted once more than when this was called last."""
        deadline = time.monotonic() + BOOT_SECONDS
        while self.console().count(READY) <= self._boots:
            assert time.monotonic() < deadline, f"{self.name} does not boot:\n{self.console()}"
            time.sleep(0.05)
        self._boots += 1

    def run(
        self, command: str, *, check: bool = True, timeout: float = COMMAND_SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command line of the shell in it. What it leaves in the background goes on.

        Raises VirtRaplError when it fails and `check` is set; OSError when there is no answer in time.
        """
        request = f"\n{uuid4()} {base64.b64encode(command.encode()).decode()}\n"
        own_id = request.split()[0]
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(timeout)
            line.connect(str(self.world.path(_commands(self.name))))
            line.sendall(request.encode())
            with line.makefile("r") as replies:
                words = next((words for words in map(str.split, replies) if words[:1] == [own_id]), None)
        if words is None:
            raise ConnectionError(f"{self.name} has closed its line")
        output, errors = (base64.b64decode(word.removeprefix("=")).decode() for word in words[2:])
        done = subprocess.CompletedProcess(command, int(words[1]), output, errors)
        if check and done.returncode:
            raise VirtRaplError(f"`{command}` in {self.name}: {done.returncode}: {output}{errors}")
        return done

    def console(self) -> str:
        """Return what its kernel has printed, and what the processes that init started have."""
        return self.world.path(_console(self.name)).read_text(errors="replace")


def _console(name: str) -> str:
    return f"/mnt/{name}.console"


def _commands(name: str) -> str:
    """Return the path of the socket that is the other end of its second serial line."""
    return f"/run/{name}.commands"
