"""A second machine on this one: an overlay of / booted by systemd-nspawn, with systemd as PID 1 and simulated RAPL.

Everything it writes is on a tmpfs in a private mount namespace and vanishes with it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

BOOT = """
set -eu
mount -t tmpfs -o mode=755 machine /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work machine /mnt/root
rm -rf /mnt/root/etc/machine-id /mnt/root/etc/libvirt/qemu/*.xml /mnt/root/etc/libvirt/qemu/autostart
rm -rf /mnt/root/etc/libvirt/qemu/networks/autostart /mnt/root/etc/virt-rapl
for unit in libvirtd-tls.socket libvirtd-tcp.socket systemd-udevd.service systemd-udevd-control.socket \
    systemd-udevd-kernel.socket postgresql.service docker.service containerd.service; do
  ln -sf /dev/null "/mnt/root/etc/systemd/system/$unit"
done
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
exec systemd-nspawn --quiet --register=no --keep-unit --directory=/mnt/root --machine=virt-rapl-test \
  --bind=/dev/kvm --bind=/dev/cpu --bind=/sys/class/powercap:/opt/powercap --capability=all --resolv-conf=off \
  --timezone=off --link-journal=no --private-network --boot systemd.unit=multi-user.target
"""

RAPL = """
set -eu
mount -t tmpfs rapl /mnt
mkdir -p /mnt/powercap
mount -t overlay -o lowerdir=/mnt:/sys/class rapl /sys/class
mount --bind /opt/powercap /sys/class/powercap
umount -l /mnt
"""


CONSTANT_100_WATTS = ("--idle-watts=100", "--cpu-watts=0")


class Machine:
    """The machine, running while in its `with` block."""

    def __enter__(self) -> "Machine":
        """Boot it; about ten seconds."""
        self._cgroups = _own_cgroups()
        self._simulate = subprocess.Popen(
            [sys.executable, "-m", "libvirt_rapl", "simulate", *CONSTANT_100_WATTS, "--", "sh", "-c", BOOT],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.leader = self._wait_for_leader()
            self._wait_for_boot()
            self.run(["sh", "-c", RAPL])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Switch it off at once and take away the control groups that it leaves."""
        with contextlib.suppress(AttributeError, ProcessLookupError):
            os.kill(self.leader, signal.SIGKILL)
        try:
            self._simulate.wait(10)
        except subprocess.TimeoutExpired:
            self._simulate.terminate()
            self._simulate.wait(10)
        for group in self._cgroups:
            for name in ("payload", "supervisor"):
                for path, _, _ in os.walk(group / name, topdown=False):
                    Path(path).rmdir()

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
    """Return where systemd-nspawn makes control groups: below our own, of systemd's hierarchy and the unified one."""
    own = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    unified = Path("/sys/fs/cgroup/unified") if Path("/sys/fs/cgroup/unified").exists() else Path("/sys/fs/cgroup")
    groups = [unified / own.get("", "/").lstrip("/")]
    if "name=systemd" in own:
        groups.append(Path("/sys/fs/cgroup/systemd") / own["name=systemd"].lstrip("/"))
    return groups
