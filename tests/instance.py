"""Live helper instances on a simulated host, native or QEMU's own, without libvirt: tests talk to them as QEMU does."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from libvirt_rapl.helper.process import OWNER
from libvirt_rapl.helper.vmsr.client import probe
from libvirt_rapl.helper.vmsr.protocol import REPLY, REQUEST

START_SECONDS = 15.0
UUID = "11111111-2222-4333-8444-{:012d}"


class Rapl:
    """A mount namespace with simulated registers and powercap, as long as it is entered."""

    def __init__(self, *options: str) -> None:
        self.options = options or ("--idle-watts=100", "--cpu-watts=0")

    def __enter__(self) -> "Rapl":
        command = [sys.executable, "-m", "libvirt_rapl", "simulate", *self.options, "--"]
        self._simulate = subprocess.Popen(
            [*command, "sh", "-c", "echo $$; exec sleep 3600"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._simulate.stdout
        self.pid = int(self._simulate.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._simulate.communicate(timeout=30)

    def inside(self, command: list[str]) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--", *command]


class Instance:
    """One instance, started as the hook does without systemd; `directory` is its run directory."""

    def __init__(
        self,
        rapl: Rapl,
        directory: Path,
        *,
        backend: str = "native",
        number: int = 1,
        source: str = "auto",
        program: Sequence[str] = (sys.executable, "-I", "-m", "libvirt_rapl"),
    ) -> None:
        self.uuid = UUID.format(number)
        self.path = directory / f"{self.uuid}.sock"
        self.record = {"uuid": self.uuid, "name": "vm", "backend": backend, "owner_uid": 0, "owner_gid": 0}
        self.directory = directory
        configuration = directory / f"{self.uuid}.yaml"  # others are just read
        configuration.write_text(f"run_directory: {directory}\nsource: {source}\n")
        (directory / f"{self.uuid}.json").write_text(json.dumps({**self.record, "vcpu_tids": {}}))
        command = [*program, f"--config={configuration}", "helper", self.uuid]
        with open(directory / f"{self.uuid}.log", "w") as log:
            self.process = subprocess.Popen(
                rapl.inside(command),
                env={**os.environ, OWNER: self.uuid},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self.process.pid  # nsenter becomes the helper

    def wait(self) -> "Instance":
        """Return when it answers."""
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                probe(self.path, START_SECONDS)
            except (ConnectionError, FileNotFoundError):
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < until, self.log()
                time.sleep(0.02)
            else:
                return self

    def __enter__(self) -> "Instance":
        return self.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(10)

    def log(self) -> str:
        return (self.directory / f"{self.uuid}.log").read_text()

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(self.path))
        peer.settimeout(10)
        return peer

    def status(self, field: str) -> str:
        """Return a field of /proc/PID/status."""
        (value,) = re.findall(rf"^{field}:\s+(.*)$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        return str(value)

    def memory(self, field: str) -> int:
        """Return a field of /proc/PID/smaps_rollup in KiB: `Pss`, `Private_Dirty`."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        (value,) = re.findall(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
        return int(value)

    def run_nanoseconds(self) -> int:
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0])


def ask(peer: socket.socket, register: int, cpu: int = 0, tid: int | None = None) -> int | None:
    """Ask as QEMU does; None when the helper hung up."""
    try:
        peer.sendall(REQUEST.pack(register, cpu, os.getpid() if tid is None else tid))
        return answer(peer)
    except BrokenPipeError:
        return None


def answer(peer: socket.socket) -> int | None:
    """Return the answer; None when the helper hung up."""
    try:
        reply = peer.recv(REPLY.size, socket.MSG_WAITALL)
    except ConnectionResetError:  # it hung up without reading all that was sent
        return None
    return int(REPLY.unpack(reply)[0]) if reply else None
