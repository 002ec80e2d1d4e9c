"""What a helper reads of its domain: QEMU's threads as QEMU itself sees them, and the CPU time of the whole domain.

A thread's name says whether it is a vCPU, because QEMU gives vCPU threads fixed names. A QEMU that its guest has taken
over may name its threads as it likes, and make the helper count vCPUs that are none: then that guest's own counter is
wrong, which such a QEMU could write as it likes anyway. What the domain owes comes from the clocks of its processes,
which it can neither stop nor divide. On the host's side libvirt says which thread is which vCPU.

Imports next to nothing: this is in the memory of each domain's helper. libvirt_rapl.host.processes and process_clock
read the same files, but with pathlib and contextlib, which would make a helper of 3.4 MB one of 5.1 MB.
"""

from __future__ import annotations

import os
import time
from itertools import islice

from libvirt_rapl.host.machine_cgroup import BELOW, machine_cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_THREADS = 1024
"""If a QEMU has more, none is read, because that would cost a part of a core, and its guest gains nothing.
QEMU has one for each vCPU, up to 64 workers, and few others."""


class Thread:
    """The contents of a thread's stat file."""

    __slots__ = ("cpu", "is_vcpu", "ticks")

    def __init__(self, stat: bytes) -> None:
        """Take the line of the file."""
        begin, end = stat.index(b"(") + 1, stat.rindex(b")")
        self.is_vcpu = stat.startswith(b"CPU ", begin, end) and stat.endswith(b"/KVM", begin, end)
        fields = stat[end + 2 :].split(None, 37)  # field n of proc_stat(5) is at index n - 3
        self.ticks = int(fields[11]) + int(fields[12])
        """Clock ticks that it ran; utime and stime are each rounded down."""
        self.cpu = int(fields[36])
        """The CPU it last ran on."""


class Domain:
    """QEMU's process, and the processes that serve it in its cgroup."""

    def __init__(self, pid: int, *, by_cpu: bool) -> None:
        """Take QEMU's PID. `by_cpu`: advance() distinguishes CPUs. Raises OSError when the process has gone."""
        self.pid = pid
        self._by_cpu = by_cpu
        self._task = f"/proc/{pid}/task/"
        self._begin = process_nanoseconds(pid)
        self._reported = 0
        self._lists = ""
        """The directory that lists the processes of its cgroup; not known at first."""
        self._servants: dict[int, int] = {}
        self._thread_runs = {tid: self.run_nanoseconds(tid) for tid in self._all()} if by_cpu else {}

    def threads(self) -> dict[int, Thread]:
        """Return all threads but the main one, none where there are too many. Raises OSError when QEMU has gone."""
        return self.look(self.tids())

    def tids(self) -> list[int]:
        """Return the TIDs of all threads but the main one, none where there are too many. Raises OSError as above."""
        return [tid for tid in self._all() if tid != self.pid]

    def look(self, tids: Iterable[int]) -> dict[int, Thread]:
        """Return these threads, except those that have gone."""
        return {tid: Thread(stat) for tid in tids if (stat := read(f"{self._task}{tid}/stat"))}

    def run_nanoseconds(self, tid: int) -> int:
        """Return how long a thread has run; -1 when it has gone or the kernel does not say."""
        return int((read(f"{self._task}{tid}/schedstat") or b"-1").split()[0])

    def advance(self) -> dict[int, int]:
        """Return the nanoseconds that the domain ran since the previous call, by the CPU where each thread was last.

        All CPUs are CPU 0 unless they are distinguished. Threads that have ended count where the main thread is, and a
        process that serves QEMU where its own main thread is. Threads only divide the time of the process's clock.
        Raises OSError when QEMU has gone.
        """
        rest = process_nanoseconds(self.pid) - self._begin - self._reported
        self._reported += rest
        runs: dict[int, int] = {}
        for cpu, run in self._threads_advance() if self._by_cpu else ():
            run = min(run, rest)
            runs[cpu] = runs.get(cpu, 0) + run
            rest -= run
        home = self._cpu(self.pid)
        runs[home] = runs.get(home, 0) + rest
        for cpu, run in self._servants_advance():
            runs[cpu] = runs.get(cpu, 0) + run
        return runs

    def _all(self) -> list[int]:
        """Return the TIDs of all threads; none if there are more than MOST_THREADS (the rest is not even listed)."""
        with os.scandir(self._task) as entries:
            tids = [int(entry.name) for entry in islice(entries, MOST_THREADS + 1)]
        return tids if len(tids) <= MOST_THREADS else []

    def _threads_advance(self) -> Iterable[tuple[int, int]]:
        last, self._thread_runs = self._thread_runs, {}
        for tid in self._all():
            run = self.run_nanoseconds(tid)
            thread = self.look((tid,)).get(tid)
            if thread and run >= 0:
                self._thread_runs[tid] = run
                yield thread.cpu, max(0, run - last.get(tid, 0))

    def _servants_advance(self) -> Iterable[tuple[int, int]]:
        """Yield CPU and run time of each; each is followed from the first call that finds it."""
        last, self._servants = self._servants, {}
        for pid in self._listed():
            try:
                run = self._servants[pid] = process_nanoseconds(pid)
            except ProcessLookupError:
                continue
            yield self._cpu(pid), max(0, run - last.get(pid, run))

    def _listed(self) -> set[int]:
        """Return the PIDs of the processes beside QEMU. Those of another PID namespace read as 0."""
        if not self._lists:  # libvirt moves a new QEMU there a moment after it has started it
            place = machine_cgroup(self.pid, sys="/sys", proc="/proc")
            if place is None:
                return set()
            self._lists, _ = place
        lists = [read(f"{self._lists}/{below}/cgroup.procs") for below in BELOW]
        pids = {int(pid) for text in lists for pid in text[: text.rfind(b"\n") + 1].split()}  # the last line may be cut
        return pids - {0, self.pid}

    def _cpu(self, pid: int) -> int:
        if not self._by_cpu:
            return 0
        stat = read(f"/proc/{pid}/stat")
        return Thread(stat).cpu if stat else 0


def process_nanoseconds(pid: int) -> int:
    """Return how long all threads that a process ever had have run. Raises ProcessLookupError when it has gone."""
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)  # the CPU clock of a process, clock_getcpuclockid(3)
    except OSError as error:
        raise ProcessLookupError(f"no process {pid}") from error


def read(path: str) -> bytes:
    """Return a small file of /proc or /sys; empty when it has gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
