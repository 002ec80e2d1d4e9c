"""A second machine on this one: an overlay of / booted by systemd-nspawn, with systemd as PID 1 and simulated RAPL.

Everything it writes is on a tmpfs in a private mount namespace and vanishes with it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from walking import CONSTANT_100_WATTS

BOOT = """
set -eu
for group in "$@"; do
  echo $$ > "$group/cgroup.procs"
done
mount -t tmpfs -o mode=755 machine /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work machine /mnt/root
for program in /usr/bin/qemu-system-x86_64 /usr/bin/qemu-vmsr-helper; do # they may be the simulator's copies
  cmp -s $program /mnt/root$program || cp --preserve=mode,timestamps $program /mnt/root$program
done
rm -rf /mnt/root/etc/machine-id /mnt/root/etc/libvirt/qemu/*.xml /mnt/root/etc/libvirt/qemu/autostart
rm -rf /mnt/root/etc/libvirt/qemu/networks/autostart /mnt/root/etc/virt-rapl
for unit in libvirtd-tls.socket libvirtd-tcp.socket systemd-udevd.service systemd-udevd-control.socket \
    systemd-udevd-kernel.socket prometheus.service prometheus-node-exporter.service postgresql.service \
    docker.service containerd.service systemd-networkd-wait-online.service cockpit.socket cockpit-motd.service; do
  ln -sf /dev/null "/mnt/root/etc/systemd/system/$unit"
done
# Not --bind=: after some forty starts, while services with a /dev of their own start, too, a QEMU has no such mount.
echo 'c /dev/kvm 0660 root kvm - 10:232' >/mnt/root/etc/tmpfiles.d/kvm.conf
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
while
  status=0
  systemd-nspawn --quiet --register=no --keep-unit --directory=/mnt/root --machine=virt-rapl-test \
    --bind=/dev/cpu --bind=/sys/class/powercap:/opt/powercap --capability=all --resolv-conf=off \
    --timezone=off --link-journal=no --private-network --boot systemd.unit=multi-user.target || status=$?
  [ $status = 133 ] # it wants to be booted again
do :; done
exit $status
"""

RAPL = """
set -eu
mount -t tmpfs rapl /mnt
mkdir -p /mnt/powercap
mount -t overlay -o lowerdir=/mnt:/sys/class rapl /sys/class
mount --bind /opt/powercap /sys/class/powercap
mount --bind /opt/powercap/virt-rapl-simulator/cpuinfo /proc/cpuinfo
umount -l /mnt
"""


class Machine:
    """The machine, running while in its `with` block."""

    def __init__(self, *options: str) -> None:
        """Choose what it is like: options of `virt-rapl simulate` beside 100 W."""
        self.options = options

    def __enter__(self) -> "Machine":
        """Boot it; about ten seconds."""
        self._cgroups = contextlib.ExitStack()
        groups = [str(self._cgroups.enter_context(_cgroup(parent))) for parent in _own_cgroups()]
        simulate = [sys.executable, "-m", "libvirt_rapl", "simulate", *CONSTANT_100_WATTS, *self.options, "--"]
        self._simulate = subprocess.Popen(
            [*simulate, "sh", "-c", BOOT, "sh", *groups],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.leader = self._wait_for_leader()
            self._wait_for_boot()
            for group in groups:
                _pass_on_controllers(Path(group))
            # The checkout may be root's alone, and virt-rapld is not root.
            for directory in (*Path(sys.executable).parents, *Path(__file__).parents):
                self.run(["chmod", "o+x", str(directory)])
            self.run(["sh", "-c", RAPL])
            self.run(["systemctl", "restart", "libvirtd"])  # it looks for controllers when it starts
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Switch it off at once, and take away its control groups; what failed gets its journal as a note."""
        if isinstance(error, AssertionError):
            for command in (["virt-rapl", "status"], ["journalctl", "--boot", "--no-pager", "--lines=100"]):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said = self.run(command, check=False)
                    error.add_note(said.stdout + said.stderr)
        with contextlib.suppress(AttributeError, ProcessLookupError):
            os.kill(self.leader, signal.SIGKILL)
        try:
            self._simulate.wait(10)
        except subprocess.TimeoutExpired:
            self._simulate.terminate()
            self._simulate.wait(10)
        self._cgroups.close()

    def run(self, command: list[str], *, check: bool = True, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run a command on the machine."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.leader), "--all", "--", *command],
            env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} on the machine: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def reboot(self) -> None:
        """Boot it anew, as `systemctl reboot` does; what is to be there again is up to its units."""
        before = self.leader
        self.run(["systemctl", "reboot"], check=False)
        for _ in _attempts(60):
            if not Path(f"/proc/{before}").exists():
                break
        else:
            raise AssertionError("the machine does not go down")
        self.leader = self._wait_for_leader()
        self._wait_for_boot()

    def path(self, inside: str) -> Path:
        """Return where a file of the machine is seen from outside."""
        return Path(f"/proc/{self.leader}/root{inside}")

    def _wait_for_leader(self) -> int:
        for _ in _attempts(30):
            if self._simulate.poll() is not None:
                raise AssertionError(f"systemd-nspawn ended with {self._simulate.returncode}")
            for pid in _descendants(self._simulate.pid):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                        return pid
        raise AssertionError("the machine did not start")

    def _wait_for_boot(self) -> None:
        for _ in _attempts(60):
            state = self.run(["systemctl", "is-system-running"], check=False).stdout.strip()
            if state in ("running", "degraded"):
                return
        raise AssertionError(f"the machine did not come up: {state}")


def document(machine: Machine) -> dict[str, Any]:
    found = json.loads(machine.run(["virt-rapl", "status", "--json"]).stdout)
    assert isinstance(found, dict)
    return found


def _attempts(seconds: float) -> Iterator[None]:
    """Yield for about that long, sleeping between the steps."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield
        time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def _own_cgroups() -> list[Path]:
    """Return our own control groups, of systemd's hierarchy and the unified one: systemd-nspawn makes its own there."""
    own = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    unified = Path("/sys/fs/cgroup/unified") if Path("/sys/fs/cgroup/unified").exists() else Path("/sys/fs/cgroup")
    groups = [unified / own.get("", "/").lstrip("/")]
    if "name=systemd" in own:
        groups.append(Path("/sys/fs/cgroup/systemd") / own["name=systemd"].lstrip("/"))
    return groups


@contextlib.contextmanager
def _cgroup(parent: Path) -> Iterator[Path]:
    """Make a control group for one machine, with all the controllers that there are; in the end it goes."""
    group = parent / f"virt-rapl-test-{os.getpid()}"
    enabled = _pass_on_controllers(parent)
    group.mkdir()
    try:
        yield group
    finally:
        for path, _, _ in os.walk(group, topdown=False):
            Path(path).rmdir()
        for controller in enabled:
            with contextlib.suppress(OSError):  # another machine has it now
                (parent / "cgroup.subtree_control").write_text(f"-{controller}")


def _pass_on_controllers(group: Path) -> list[str]:
    """Let the groups below have this group's controllers (version 2). Return those that they did not have before.

    libvirt makes a group for each domain only where there is a controller at all, whichever it is.
    """
    passed_on = group / "cgroup.subtree_control"
    if not passed_on.exists():
        return []
    enabled = []
    for controller in set((group / "cgroup.controllers").read_text().split()) - set(passed_on.read_text().split()):
        with contextlib.suppress(OSError):  # it has processes of its own
            passed_on.write_text(f"+{controller}")
            enabled.append(controller)
    return enabled
