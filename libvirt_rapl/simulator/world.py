"""A throwaway world on this machine: a real libvirt with real KVM guests, apart from the machine's own.

It has its own mount, PID, UTS, network and IPC namespaces. In it /etc, /usr, /var and /opt can be written to, and the
changes are lost afterwards; /run, and every directory of libvirt's and ours, starts empty. Nothing is left on the
machine, however the world ends: see world_init.
"""

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import guest, server

START_SECONDS = 30.0
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
NEEDED = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    guest.EMULATOR: "qemu-system-x86",
}
"""Programs, and the Debian packages that contain them."""
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class World:
    """One world, which lasts as long as the `with` block. In it, /mnt is for the user of this class."""

    def __init__(
        self, simulate: Sequence[str] | None = (), *, shared: Path | None = None, hostname: str = "world"
    ) -> None:
        """Set its properties; entering starts it.

        `simulate`: options of `virt-rapl simulate`, whose energy the world then has; None: the machine's own energy.
        `shared`: a directory to appear as /mnt, possibly in several worlds at once. Each then has the sockets of its
        libvirtd in /mnt/HOSTNAME, so that domains can migrate between them.
        """
        self.simulate = simulate
        self.shared = shared
        self.hostname = hostname
        self._pid = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start the world. Raises VirtRaplError when this machine lacks something for it."""
        check_machine()
        if self.simulate is not None:
            server.load_library()
        python = [sys.executable, "-I", "-m"]
        layer = [] if self.simulate is None else [*python, "libvirt_rapl", "simulate", *self.simulate, "--"]
        unshare = ["unshare", *NAMESPACES, "--propagation", "private", "--fork", "--kill-child", "--"]
        shared = [str(self.shared.absolute())] if self.shared else []
        init = [*python, "libvirt_rapl.simulator.world_init", self.hostname, *shared]
        with tempfile.TemporaryFile("w+") as words:
            self._process = subprocess.Popen(
                [*layer, *unshare, *init],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
            )
            try:
                self._pid = self._wait_for_init(words)
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the world."""
        self.close()

    def close(self) -> None:
        """End every process inside and discard everything; later calls do nothing."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # its first process waits for this
        try:
            self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._process = None

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - subprocess's word
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root and in the directory /, and return what it printed.

        Raises VirtRaplError with its last line on stderr when it fails and `check` is set; subprocess.TimeoutExpired.
        """
        done = subprocess.run(
            self._inside(command),
            env=_environment(),
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            umask=0o022,
        )
        if check and done.returncode:
            raise VirtRaplError(f"`{' '.join(command)}` failed: {_last_line(done.stderr)}")
        return done

    def popen(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command inside and return its process, with a text pipe for output. Killing it kills the command."""
        return subprocess.Popen(
            self._inside(command),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            umask=0o022,
        )

    def path(self, inside: str) -> Path:
        """Return the path of a file of the world as seen from outside, while the world lasts."""
        return Path(f"/proc/{self._pid}/root{inside}")

    def start_libvirtd(self) -> None:
        """Start libvirtd and wait until it serves and has reconnected to the running domains."""
        self.run(["libvirtd", "--daemon"])
        for name in self.run(["virsh", "list", "--name"]).stdout.split():
            # Asks QEMU, for which libvirtd must have reconnected to it, or have seen that it has ended.
            self.run(["virsh", "domblkerror", name], check=False)

    def stop_libvirtd(self, signal: str = "TERM") -> None:
        """End libvirtd by a signal; domains go on."""
        self.kill(int(self.path("/run/libvirtd.pid").read_text(encoding="ascii")), signal)

    def kill(self, pid: int, signal: str = "KILL") -> None:
        """Send a process, by its PID inside, a signal that ends it, and wait until it has ended."""
        # The shell's own `kill`: small systems do not have the program.
        self.run(["sh", "-c", 'kill -s "$1" "$2"', "sh", signal, str(pid)])
        while self.path(f"/proc/{pid}").exists():
            time.sleep(0.02)

    def define_guest(self, name: str, *duties: int, vcpus: int = 1, uuid: str | None = None, kvm: bool = True) -> None:
        """Define a guest that meters itself and writes /mnt/NAME.log; see guest.rom and guest.domain_xml."""
        rom = self.path(f"/mnt/{name}.rom")
        rom.write_bytes(guest.rom(*duties))
        rom.chmod(0o644)
        xml = guest.domain_xml(name, f"/mnt/{name}.rom", f"/mnt/{name}.log", vcpus=vcpus, uuid=uuid, kvm=kvm)
        self.run(["virsh", "define", "/proc/self/fd/0"], input=xml)

    def readings(self, name: str) -> list[guest.Reading]:
        """Return what the guest `name` has read from its registers so far."""
        return guest.readings(self.path(f"/mnt/{name}.log"))

    def channel_lines(self, name: str) -> list[str]:
        """Return what has come from the energy channel of the guest `name` so far, line by line."""
        return guest.channel_lines(self.path(f"/mnt/{name}.log"))

    def _inside(self, command: Sequence[str]) -> list[str]:
        # With root and working directory, because a mount namespace does not include a chroot around the world.
        # The command dies with nsenter, and so with us.
        enter = ["nsenter", "--target", str(self._pid), *NAMESPACES, "--root", "--wd", "--"]
        return [*enter, "setpriv", "--pdeathsig", "KILL", *command]

    def _wait_for_init(self, words: IO[str]) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return int(line)
        words.seek(0)
        said = words.read()
        reason = _last_line(said) if ready else f"nothing happened within {START_SECONDS:g} s"
        hints = [line.removeprefix("hint: ") for line in said.splitlines() if line.startswith("hint: ")]
        usual = "it needs root, namespaces, overlayfs and, where energy is simulated, FUSE: containers often lack them"
        raise VirtRaplError(f"cannot start a private world: {reason}", hints[-1] if hints else usual)


def check_machine() -> None:
    """Raise VirtRaplError unless this machine can run a world with guests in it."""
    if os.geteuid():
        raise VirtRaplError("a private world needs root", "run it as root, or with sudo")
    for program, package in NEEDED.items():
        if not shutil.which(program, path=SEARCH_PATH):
            raise VirtRaplError(f"{program} is not installed", f"on Debian: apt install {package}")


def _environment() -> dict[str, str]:
    scripts = Path(sys.executable).parent
    return {"PATH": f"{scripts}:{SEARCH_PATH}", "HOME": "/run", "LC_ALL": "C.UTF-8"}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("hint: ")]
    return lines[-1].strip().removeprefix("virt-rapl: error: ") if lines else "it printed nothing"
