"""The first process of a World: sets up the new namespaces it was started in, then waits until standard input ends.

The World object holds the other end of that pipe. When its process ends, in whatever way, this one ends, and because it
is the first of its PID namespace, so does everything in the world: processes, then mounts, then what these held.

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
"""Holds the overlays' upper layers until they are mounted; then the world's own or shared directory is there."""
OVERLAYS = ("etc", "usr", "var", "opt")
SIMULATED_CPUINFO = Path("/sys/class", SIMULATOR, "cpuinfo")
"""Exists in a world whose energy is simulated."""
MANIFEST = Path("/", paths.MANIFEST)
"""virt-rapl's own, if it is installed on the machine: its files in /usr and /etc are in the world, too."""
MASKED = (
    "/etc/libvirt",
    "/etc/virt-rapl",
    "/var/lib/libvirt",
    "/var/lib/virt-rapl",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/run",
)

# No AppArmor or SELinux: their profiles and labels are the machine's, not the world's. QEMU's user is set nevertheless.
# No private /dev for each QEMU: libvirt cannot make one where several file systems are mounted over each other on /dev.
# Owners are not remembered in a file's attributes: two libvirts that share a directory would overwrite each other's.
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
    """Turn new mount, PID, UTS, network and IPC namespaces into the world."""
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
        # not sticky: libvirt reopens files that it gave to QEMU's user
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
    """Make a directory of the machine writable here, by an overlay.

    An overlay does not show what is mounted below the directory. Files that are mounted on files, such as the
    simulator's copies of QEMU, are copied.
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
    """Mount our own node over /dev/kvm, if there is one: QEMU's user may not be in the machine's kvm group."""
    kvm, node = Path("/dev/kvm"), STAGE / "kvm"
    if not kvm.is_char_device():
        return
    os.mknod(node, stat.S_IFCHR, kvm.stat().st_rdev)
    node.chmod(0o666)
    system.mount(node, kvm, flags=system.MS_BIND)


def _share_libvirt_sockets(hostname: str) -> None:
    """Let other worlds reach this libvirtd: put /run/libvirt, including its sockets, into SHARED/HOSTNAME."""
    run, sockets = Path("/run/libvirt"), STAGE / hostname
    run.mkdir()
    sockets.mkdir(exist_ok=True)
    system.mount(sockets, run, flags=system.MS_BIND)


def _configure_libvirt() -> None:
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF, encoding="ascii")
    Path("/etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF.format(host_uuid=uuid4()), encoding="ascii")


def main(hostname: str, shared: str | None = None) -> int:
    """Set up the world, print our PID in the machine's PID namespace, and stay until the World object is gone."""
    pid = Path("/proc/self").readlink()  # this is still the machine's /proc
    try:
        furnish(hostname, Path(shared) if shared else None)
    except VirtRaplError as error:
        print(f"{error.message}; {error.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.strerror}: {error.filename or ''}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the first process gets orphans, and then need not wait for them
    print(pid, flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
