"""How long CPUs were busy."""

import subprocess
import sys
import time
from pathlib import Path
from time import clock_gettime_ns

from fakes.host import write

from libvirt_rapl.host.busy_clock import BusyClock
from libvirt_rapl.host.processes import NANOSECONDS_PER_TICK
from libvirt_rapl.host.topology import packages

S = 1_000_000_000


class Stat:
    """A /proc whose stat file and clock a test sets, in clock ticks."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.time = 0
        self.clock = BusyClock(proc, lambda which: {time.CLOCK_MONOTONIC: self.time}[which])

    def read(self, now: float, cpus: dict[int, tuple[int, int, int]]) -> dict[int, float]:
        """Return how many ticks each CPU was busy, given its idle, iowait and steal."""
        self.time = int(now * NANOSECONDS_PER_TICK)
        lines = [f"cpu{cpu} 1 2 3 {idle} {wait} 4 5 {steal} 6 7" for cpu, (idle, wait, steal) in cpus.items()]
        write(self.proc / "stat", "\n".join(["cpu  9 9 9 9 9 9 9 9 9 9", *lines, "btime 1", ""]))
        return {cpu: busy / NANOSECONDS_PER_TICK for cpu, busy in self.clock.read().items()}


def test_busy_is_neither_idle_nor_waiting_nor_stolen(tmp_path: Path) -> None:
    stat = Stat(tmp_path)
    assert stat.read(500, {0: (1000, 50, 5), 12: (7, 0, 0)}) == {0: 0, 12: 0}
    assert stat.read(600, {0: (1030, 57, 10), 12: (7, 0, 0)}) == {0: 58, 12: 100}
    assert stat.read(700, {0: (1130, 57, 10), 12: (106, 0, 0)}) == {0: 58, 12: 101}


def test_idle_in_whole_ticks_adds_nothing_up(tmp_path: Path) -> None:
    stat = Stat(tmp_path)
    stat.read(0, {0: (0, 0, 0)})
    times = [7 * number / 13 for number in range(1000)]
    readings = [stat.read(now, {0: (int(now * 0.6), int(now * 0.3), int(now * 0.1))})[0] for now in times]
    assert 1 < max(readings) <= 3
    assert sorted(readings) == readings


def test_a_cpu_is_never_busier_than_time_passes(tmp_path: Path) -> None:
    stat = Stat(tmp_path)
    stat.read(500, {0: (1000, 0, 0), 1: (1000, 0, 0)})
    assert stat.read(600, {0: (0, 0, 0), 1: (9000, 0, 0)}) == {0: 100, 1: 0}  # set anew, as old kernels do
    assert stat.read(700, {0: (60, 0, 0), 1: (9060, 0, 0)}) == {0: 140, 1: 40}


def test_a_cpu_that_was_off_line_was_not_busy(tmp_path: Path) -> None:
    stat = Stat(tmp_path)
    stat.read(0, {0: (0, 0, 0), 1: (0, 0, 0)})
    assert stat.read(100, {0: (0, 0, 0), 1: (0, 0, 0)}) == {0: 100, 1: 100}
    assert stat.read(200, {0: (0, 0, 0)}) == {0: 200}
    assert stat.read(300, {0: (0, 0, 0), 1: (0, 0, 0)}) == {0: 300, 1: 100}
    assert stat.read(400, {0: (0, 0, 0), 1: (70, 0, 0)}) == {0: 400, 1: 130}


SHORT_WORK = """
import time
while True:
    end = time.thread_time_ns() + 300_000
    while time.thread_time_ns() < end: pass
    time.sleep(0.003)
"""


def test_the_work_of_a_real_process_is_not_missed() -> None:
    clock = BusyClock(Path("/proc"))
    with subprocess.Popen([sys.executable, "-c", SHORT_WORK]) as process:
        used = clock_gettime_ns(~process.pid << 3 | 2)
        first = sum(clock.read().values())
        while used + S // 5 > (now := clock_gettime_ns(~process.pid << 3 | 2)):
            time.sleep(0.1)
        busy = sum(clock.read().values()) - first
        process.kill()
    cpus = sum(map(len, packages(Path("/sys")).values()))
    assert busy >= now - used - 3 * cpus * NANOSECONDS_PER_TICK


def test_this_machine_lists_the_same_cpus_both_ways() -> None:
    online = [cpu for cpus in packages(Path("/sys")).values() for cpu in cpus]
    assert sorted(online) == sorted(BusyClock(Path("/proc")).read())
