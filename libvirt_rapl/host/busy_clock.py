"""How long each of the host's CPUs was busy."""

import time
from collections.abc import Callable
from pathlib import Path

from libvirt_rapl.host.processes import NANOSECONDS_PER_TICK

_COARSE = 3 * NANOSECONDS_PER_TICK
"""Each of idle, iowait and steal is in whole ticks."""


class BusyClock:
    """How long each CPU has been busy: all the time, less what proc_stat(5) calls idle, iowait and steal.

    Linux measures idle and iowait, from when a CPU runs out of work until it has some (CONFIG_NO_HZ_IDLE or _FULL,
    which distributions set). Busy time itself (user, system, ...) most kernels only sample: they see what runs when the
    timer ticks, so work of less than a tick is missed. Booted with nohz=off Linux samples idle in the same way, and
    this clock is no better than a sum of user, system and so on. Interrupts count as busy wherever they happen. steal
    is what a hypervisor below us took.

    Other clocks are worse: /proc/schedstat (if there is one) counts a thread when it leaves the CPU, which a thread
    that has the CPU to itself may never do; cpuidle/state*/time is late in the same way for idle; cpuacct.usage_percpu
    is gone with version 1 of cgroups.
    """

    def __init__(self, proc: Path, clock: Callable[[int], int] = time.clock_gettime_ns) -> None:
        """Take the path of /proc; nothing is read yet. `clock` returns the nanoseconds of a clock by its id."""
        self._proc = proc
        self._clock = clock
        self._time = 0
        self._at: dict[int, int] = {}
        self._total: dict[int, int] = {}

    def read(self) -> dict[int, int]:
        """Return how many nanoseconds each CPU that is online has been busy since it was first read; it never falls.

        The result is off by no more than three clock ticks (_COARSE), however often it is read.
        """
        now = self._clock(time.CLOCK_MONOTONIC)  # no CPU idles while the machine is suspended
        elapsed, self._time = now - self._time, now
        before, self._at = self._at, {}
        for cpu, not_busy in self._not_busy().items():
            at = now - not_busy
            run = at - before.get(cpu, at)
            # Seemingly a CPU goes back for as long as idle is between two ticks. Further only if idle was set anew.
            self._at[cpu] = before[cpu] if -_COARSE <= run < 0 else at
            self._total[cpu] = self._total.get(cpu, 0) + min(max(0, run), elapsed)
        return {cpu: self._total[cpu] for cpu in self._at}

    def _not_busy(self) -> dict[int, int]:
        result = {}
        with open(f"{self._proc}/stat", "rb", buffering=0) as file:  # a third of the time of read_text()
            lines = file.read().splitlines()
        for line in lines:
            if not line.startswith(b"cpu"):  # those of CPUs come first
                break
            name, *values = line.split()
            if name != b"cpu":
                _user, _nice, _system, idle, iowait, _irq, _softirq, steal = map(int, values[:8])
                result[int(name[3:])] = (idle + iowait + steal) * NANOSECONDS_PER_TICK
        return result
