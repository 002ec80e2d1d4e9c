"""What virt-rapl-channel costs: the process itself, between the lines of many guests and sockets that read at once.

    python channels.py DIRECTORY DOMAINS VCPUS SECONDS

This process stands for virt-rapld and for all QEMUs. Prints one JSON document.
"""

import json
import os
import random
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import memory

from libvirt_rapl import paths
from libvirt_rapl.daemon import channel_line
from libvirt_rapl.daemon.document import Document, DomainReading, Host, Reading, Vcpu, Zone
from libvirt_rapl.daemon.stream_socket import Streams

ZONES = ("package", "core", "dram")
START_SECONDS = 3.0


class Qemus:
    """Sockets that read whatever is sent to them."""

    def __init__(self, directory: Path, count: int) -> None:
        self.lines = 0
        self._selector = selectors.DefaultSelector()
        self.paths = [directory / f"{number}.sock" for number in range(count)]
        for path in self.paths:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen(1)
            self._selector.register(listener, selectors.EVENT_READ, "listener")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            for key, _ in self._selector.select():
                assert isinstance(key.fileobj, socket.socket)
                if key.data == "listener":
                    peer, _ = key.fileobj.accept()
                    self._selector.register(peer, selectors.EVENT_READ)
                elif data := key.fileobj.recv(1 << 16):
                    self.lines += data.count(b"\n")
                else:
                    self._selector.unregister(key.fileobj)


def domain(number: int, path: Path, vcpus: int) -> DomainReading:
    return DomainReading(
        name=f"domain-{number}",
        uuid=f"00000000-0000-0000-0000-{number:012}",
        id=number,
        state="running",
        pid=os.getpid(),
        vrapl="off",
        reason=None,
        helper=None,
        channel="connected",
        channel_socket=str(path),
        power_watts=random.uniform(0, 20),
        energy_joules=random.randrange(10**12) / 1e6,
        zones={
            kind: Reading(power_watts=random.uniform(0, 20), energy_joules=random.randrange(10**12) / 1e6)
            for kind in ZONES
        },
        vcpus=tuple(
            Vcpu(
                id=vcpu,
                tid=number + vcpu,
                power_watts=random.uniform(0, 5),
                energy_joules=random.randrange(10**12) / 1e6,
            )
            for vcpu in range(vcpus)
        ),
    )


def zone(kind: str) -> Zone:
    return Zone(
        name=f"{kind}-0",
        power_watts=50.0,
        energy_joules=1e6,
        domains_joules=1e6,
        other_joules=0.0,
        idle_joules=0.0,
    )


def document(domains: tuple[DomainReading, ...]) -> Document:
    return Document(
        host=Host(
            source="powercap",
            model=None,
            since="2026-11-22T08:00:00+00:00",
            interval_seconds=1.0,
            zones=tuple(map(zone, ZONES)),
            domains_watts=40.0,
            other_watts=5.0,
            idle_watts=5.0,
        ),
        domains=domains,
    )


@contextmanager
def channel(directory: Path) -> Iterator[int]:
    """Run it; give its PID."""
    file = directory / "channel.yaml"
    file.write_text(f"run_directory: {directory}\n")
    command = [sys.executable, "-m", "libvirt_rapl", "--config", str(file), "channel"]
    with subprocess.Popen(command) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """Return what all threads of a process have run."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def main() -> None:
    directory, count, vcpus, seconds = Path(sys.argv[1]), *map(int, sys.argv[2:4]), float(sys.argv[4])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    (directory / paths.DAEMON).mkdir()
    qemus = Qemus(directory, count)
    made = document(tuple(domain(number, path, vcpus) for number, path in enumerate(qemus.paths)))
    texts: list[bytes] = [b""]
    streams = Streams(directory / paths.CHANNEL_STREAM_SOCKET, lambda: texts[0], print)
    ended = threading.Event()

    def sample() -> None:
        due = time.time()
        while not ended.wait(max(0.0, due - time.time())):
            due += 1.0
            now = time.strftime("%Y-%m-%dT%H:%M:%S.000+00:00", time.gmtime(due))
            texts[0] = channel_line.render(replace(made, host=replace(made.host, sampled_at=now)), "0123456789ab")
            streams.wake()

    sampling = threading.Thread(target=sample)
    sampling.start()
    figures: dict[str, Any] = {"domains": count}
    with channel(directory) as pid:
        time.sleep(START_SECONDS)
        began, cpu, lines = time.monotonic(), cpu_seconds(pid), qemus.lines
        time.sleep(seconds)
        figures["seconds"] = time.monotonic() - began
        figures["cpu_seconds"] = cpu_seconds(pid) - cpu
        figures["lines"] = qemus.lines - lines
        figures.update(memory.of(pid))
    ended.set()
    sampling.join()
    streams.close()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
