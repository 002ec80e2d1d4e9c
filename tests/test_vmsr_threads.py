"""What a helper reads of real processes: hostile ones, too, that have thousands of threads with any names."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from libvirt_rapl.helper.vmsr import threads
from libvirt_rapl.helper.vmsr.cpus import Cpus
from libvirt_rapl.helper.vmsr.energy import Package
from libvirt_rapl.helper.vmsr.shaping import Shaper
from libvirt_rapl.helper.vmsr.threads import Domain, process_nanoseconds

SECOND = 1_000_000_000

PROCESS = """
import pathlib, sys, threading, time
threading.stack_size(65536)
def run():
    pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("CPU 0/KVM")
    while True:
        time.sleep(0.001)
def more(count):
    for _ in range(count): threading.Thread(target=run, daemon=True).start()
    print(flush=True)
more(2)
for line in sys.stdin:
    more(int(line))
"""


class Hostile:
    """A process whose threads all call themselves vCPU 0's, and which makes more of them."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.pid = process.pid

    def make(self, count: int) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)
        yield
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setattr(threads, "MOST_THREADS", 20)
    command = [sys.executable, "-c", PROCESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        yield Hostile(process)
        process.kill()


@pytest.mark.parametrize("by_cpu", [False, True])
def test_a_domain_ran_what_the_clock_of_its_process_says(hostile: Hostile, by_cpu: bool) -> None:
    with hostile.stopped():
        domain, start = Domain(hostile.pid, by_cpu=by_cpu), process_nanoseconds(hostile.pid)
    counted = 0
    for more in (0, 5, 40, 0):  # from the third on there are too many to look at
        hostile.make(more)
        time.sleep(0.05)
        with hostile.stopped():
            counted += sum(domain.advance().values())
            assert counted == process_nanoseconds(hostile.pid) - start
    assert domain.tids() == []
    assert domain.threads() == {}


def test_of_too_many_threads_none_is_looked_at_and_the_guest_gains_nothing(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Zone:
        name, kind, package, wrap, most_watts = "package-0", "package", 0, 1 << 40, 1000
        value = 0

        def read(self) -> int:
            return self.value

    zone: Any = Zone()
    now = 1_000 * SECOND
    shaper = Shaper(Domain(hostile.pid, by_cpu=False), {0: Package([zone])}, Cpus({0: 0}), (15625, 256), lambda: now)
    opened: list[str] = []

    def window() -> int:
        nonlocal now
        opened.clear()
        start = shaper.energy(0)
        time.sleep(0.1)
        now += SECOND
        zone.value += 50_000_000
        return shaper.energy(0) - start

    read = threads.read

    def noting(path: str) -> bytes:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(threads, "read", noting)
    for _ in range(3):
        window()
    assert opened
    hostile.make(40)
    assert [window() for _ in range(2)] == [0, 0]
    assert not [path for path in opened if "/task/" in path]
    (side,) = shaper._sides.values()
    assert side.owed > 0  # it is carried, and comes when there are fewer threads
