"""The first process of a World: furnishes the fresh namespaces it was started in, then waits for standard input to end.

The other end of that pipe is the World object's. When its process ends, however that happens, this one does, and with
it, as the first of its PID namespace, everything in the world: processes, then mounts, then all that they held.

usage: python -m libvirt_rapl.simulator.world_init HOSTNAME [SHARED]
"""

import fcntl
import os
import shutil
import signal
import socket
import stat
import struct
import sys
from pathlib import Path
from uuid import uuid4

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import system
from libvirt_rapl.simulator.files import SIMULATOR
from libvirt_rapl.simulator.namespace import mount_points_in

STAGE = Path("/mnt")
"""Holds the overlays' upper layers while they are mounted; then the world's own or shared directory is there."""
OVERLAYS = ("etc", "usr", "var", "opt")
SIMULATED_CPUINFO = Path("/sys/class", SIMULATOR, "cpuinfo")
"""There in a world whose energy is simulated."""
MANIFEST = Path("/", paths.MANIFEST)
"""Of virt-rapl where it is installed on the machine: what of it is in /usr and /etc is in the world as well."""
MASKED = (
    "/etc/libvirt",
    "/etc/virt-rapl",
    "/var/lib/libvirt",
    "/var/lib/virt-rapl",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/run",
)

# No AppArmor or SELinux: their profiles and labels are the machine's, not the world's. QEMU's user is set all the same.
# No /dev of its own for each QEMU: libvirt cannot make one where several file systems lie on top of each other on /dev.
# Owners are not remembered in a file's attributes: two libvirts that share a directory would quarrel over them.
QEMU_CONF = """\
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
"""
LIBVIRTD_CONF = """\
host_uuid = "{host_uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # <linux/sockios.h>, <net/if.h>


def furnish(hostname: str, shared: Path | None) -> None:
    """Turn fresh mount, PID, UTS, network and IPC namespaces into the world."""
    shared_directory = os.open(shared, os.O_PATH | os.O_DIRECTORY) if shared else None
    python = Path(sys.executable)
    socket.sethostname(hostname)
    _loopback_up()
    system.mount("tmpfs", STAGE, "tmpfs", options="mode=755")
    for name in OVERLAYS:
        _overlay(Path("/", name), STAGE / name)
    system.mount("tmpfs", Path("/tmp"), "tmpfs", options="mode=1777")  # noqa: S108 - the world's own
    manifest = MANIFEST.read_bytes() if MANIFEST.exists() else None
    for directory in map(Path, MASKED):
        directory.mkdir(parents=True, exist_ok=True)
        system.mount("tmpfs", directory, "tmpfs", options="mode=755")
    if manifest is not None:
        MANIFEST.write_bytes(manifest)
    Path("/var/lib/virt-rapl").chmod(0o750)  # as systemd-tmpfiles makes it elsewhere
    system.mount("proc", Path("/proc"), "proc")
    if SIMULATED_CPUINFO.exists():
        system.mount(SIMULATED_CPUINFO, Path("/proc/cpuinfo"), flags=system.MS_BIND)
    _open_kvm_to_all()
    system.detach(STAGE)
    if shared_directory is None:
        # not sticky: libvirt opens files again that it gave to QEMU's user
        system.mount("tmpfs", STAGE, "tmpfs", options="mode=777")
    else:
        system.mount(f"/proc/self/fd/{shared_directory}", STAGE, flags=system.MS_BIND)
        _share_libvirt_sockets(hostname)
    _configure_libvirt()
    if not python.exists():
        raise VirtRaplError(
            f"a private world hides {python}", "put the checkout somewhere else, such as /root or /home"
        )


def _overlay(directory: Path, layers: Path) -> None:
    """Make a directory of the machine one that can be written to here.

    An overlay shows nothing of what is mounted below the directory. What is mounted on a file, as copies of QEMU are by
    the simulator, is copied.
    """
    upper, work = layers / "upper", layers / "work"
    upper.mkdir(parents=True)
    upper.chmod(stat.S_IMODE(directory.stat().st_mode))
    work.mkdir()
    mounted = [file for file in mount_points_in(directory) if file.is_file()]
    copies = [(shutil.copy2(file, layers / str(number)), file) for number, file in enumerate(mounted)]
    system.mount("overlay", directory, "overlay", options=f"lowerdir={directory},upperdir={upper},workdir={work}")
    for copy, file in copies:
        shutil.move(copy, file)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def _open_kvm_to_all() -> None:
    """Put a node of our own over /dev/kvm, if there is one: QEMU's user need not be in the machine's kvm group."""
    kvm, node = Path("/dev/kvm"), STAGE / "kvm"
    if not kvm.is_char_device():
        return
    os.mknod(node, stat.S_IFCHR, kvm.stat().st_rdev)
    node.chmod(0o666)
    system.mount(node, kvm, flags=system.MS_BIND)


def _share_libvirt_sockets(hostname: str) -> None:
    """Let other worlds reach this libvirtd: what it keeps in /run/libvirt, its sockets too, is in SHARED/HOSTNAME."""
    run, sockets = Path("/run/libvirt"), STAGE / hostname
    run.mkdir()
    sockets.mkdir(exist_ok=True)
    system.mount(sockets, run, flags=system.MS_BIND)


def _configure_libvirt() -> None:
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF, encoding="ascii")
    Path("/etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF.format(host_uuid=uuid4()), encoding="ascii")


def main(hostname: str, shared: str | None = None) -> int:
    """Furnish, say so with our PID as the machine counts it, and stay until the World object is gone."""
    pid = Path("/proc/self").readlink()  # this is still the machine's /proc
    try:
        furnish(hostname, Path(shared) if shared else None)
    except VirtRaplError as error:
        print(f"{error.message}; {error.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.strerror}: {error.filename or ''}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans come to the first process, which need not wait for them
    print(pid, flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
