"""How long a process, and the vCPUs' threads in it, ran, in nanoseconds.

Two clocks are read. The CPU clock of the process (clock_gettime(2)) is the sum of all threads it ever had: those that
came and went between two readings are in it. /proc/PID/task/TID/schedstat is a thread's own, and cheap through a
descriptor that stays open. What the threads that are followed do not explain of the sum, others ran.

Threads only divide what the process ran, and which of them are vCPUs the caller says: a process may give its threads
any names, and make thousands of them. Beside the vCPUs' threads, up to MOST_OTHERS are followed where it matters on
which CPU something ran. Clocks never go back: while the sum stands still no thread has run.

Where the kernel keeps no schedstat, threads have the clock of /proc/PID/task/TID/stat, which counts ticks.
"""

import contextlib
import itertools
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from libvirt_rapl.host.processes import NANOSECONDS_PER_TICK, fields, read
from libvirt_rapl.paths import PROC

NOT_COUNTED = "0 0 0\n"
"""schedstat of every thread where Linux before 5.14 keeps none (no CONFIG_SCHEDSTATS, delay accounting off)."""

MOST_OTHERS = 256
"""Threads of a process that are followed though they are no vCPU's, the oldest: QEMU has 64 workers, and few others."""


def allow_many_descriptors() -> None:
    """Raise this process's limit of open files as far as it may: a clock keeps one or two for each thread."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(slots=True)
class ThreadRun:
    """What one thread did in one interval. Its clock writes the next interval over it."""

    tid: int
    vcpu: int | None = None
    """Number of the vCPU it runs, if that is what it does."""
    nanoseconds: int = 0
    cpu_before: int | None = None
    """Where it had run last when the interval began; None when that is not asked for."""
    cpu: int | None = None
    """Where it ran last."""


class ProcessClock:
    """Follows one process to its end, whatever becomes of its PID: the descriptors kept are bound to this process."""

    def __init__(
        self,
        pid: int,
        *,
        with_cpu: bool,
        vcpu_tids: Mapping[int, int] | None = None,
        whole: bool = False,
        proc: Path = PROC,
    ) -> None:
        """Start from now, or with the `whole` time it has run. Raises ProcessLookupError when it has gone.

        `with_cpu`: say where threads ran last. `vcpu_tids`: the thread of each vCPU, by vCPU number.
        """
        self.pid = pid
        self._with_cpu = with_cpu
        self._proc = proc
        self._real = proc == PROC
        # The main thread has run. Some kernels have no such file at all.
        self._in_ticks = (read(proc / f"{pid}/task/{pid}/schedstat") or NOT_COUNTED) == NOT_COUNTED
        self._exact = self._real and not self._in_ticks
        """Whether both clocks count nanoseconds. One that counts ticks cannot tell that nothing ran."""
        self._vcpu_tids: Mapping[int, int] = {}
        self._threads: dict[int, _Thread] = {}
        """Those that are followed, by TID."""
        self._rest = ThreadRun(pid)
        """What all others ran."""
        self._look = False
        """Whether there may be threads that are to be followed and are not."""
        self._told = 0
        try:
            self._task = os.open(proc / str(pid) / "task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(f"no process {pid}") from error
        try:
            self._start = 0 if whole else self._total()
            self.set_vcpus(vcpu_tids or {})
            self._take_up(0)
        except OSError:
            self.close()
            raise

    def set_vcpus(self, vcpu_tids: Mapping[int, int]) -> None:
        """Take which thread is each vCPU's, by vCPU number. One thread is one vCPU; what is no thread here is none."""
        if vcpu_tids == self._vcpu_tids:
            return
        self._vcpu_tids = vcpu_tids
        vcpu_of = {tid: vcpu for vcpu, tid in vcpu_tids.items()}
        for tid, thread in list(self._threads.items()):
            thread.vcpu = vcpu_of.get(tid)
            if thread.vcpu is None and not self._with_cpu:
                self._threads.pop(tid).close()
        self._look = True

    def advance(self) -> list[ThreadRun]:
        """Return what the process ran since the previous call, nothing when it slept.

        Threads that are not followed, and those that have ended, come first, together under the TID of the main thread.
        All calls together tell the whole time of the process. Raises ProcessLookupError when it has gone.
        """
        # The total comes first: the threads then explain at least as much, and nothing is told twice.
        ran = self._total() - self._start - self._told
        if not ran and self._exact:
            return []
        told = self._read()
        # Where all are followed, what they do not explain was run by one that is new.
        if self._look or (self._with_cpu and told < ran) or not self._exact:
            told += self._take_up(ran - told)
        # Another process may have the PID by now; of the threads that were followed none is left then.
        if ran < 0 or not self._threads or not self._exact:
            self._check_that_it_lives()
        self._rest.nanoseconds = max(0, ran - told)
        self._told += max(ran, told)
        return [self._rest, *self._threads.values()]

    def vcpu_tids(self) -> dict[int, int]:
        """Return the TID of each vCPU whose thread is followed, by vCPU number."""
        return {thread.vcpu: thread.tid for thread in self._threads.values() if thread.vcpu is not None}

    def close(self) -> None:
        """Let go of the process."""
        for thread in self._threads.values():
            thread.close()
        self._threads.clear()
        os.close(self._task)

    def _total(self) -> int:
        """Nanoseconds of all threads there ever were. A tree that is not the real /proc has them in ticks only."""
        try:
            if self._real:
                return time.clock_gettime_ns(~self.pid << 3 | 2)  # the CPU clock of a process, clock_getcpuclockid(3)
            stat = fields((self._proc / str(self.pid) / "stat").read_text(errors="replace"))
        except OSError as error:
            raise ProcessLookupError(f"no process {self.pid}") from error
        return (int(stat[11]) + int(stat[12])) * NANOSECONDS_PER_TICK

    def _read(self) -> int:
        """Read the followed threads and return what they ran; one that has ended is let go."""
        told = 0
        ended = []
        for tid, thread in self._threads.items():
            try:
                told += thread.advance()
            except ProcessLookupError:
                ended.append(tid)
        for tid in ended:
            self._threads.pop(tid).close()
        if self._with_cpu and (main := self._threads.get(self.pid)):
            self._rest.cpu_before, self._rest.cpu = main.cpu_before, main.cpu
        return told

    def _take_up(self, unexplained: int) -> int:
        """Follow threads that are to be followed and are not yet; return what these ran.

        That is no more than is `unexplained`: what one ran before it was followed was told with the rest.
        """
        vcpu_of = {tid: vcpu for vcpu, tid in self._vcpu_tids.items()}
        told = 0
        for tid in [*vcpu_of, *self._others(vcpu_of)]:
            if tid in self._threads:
                continue
            # It may end at any time: it then is as if it had not been there.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                thread = _Thread(self._task, tid, in_ticks=self._in_ticks, with_cpu=self._with_cpu)
                self._threads[tid] = thread
                thread.vcpu = vcpu_of.get(tid)
                thread.advance()
                thread.nanoseconds = max(0, min(thread.nanoseconds, unexplained - told))
                told += thread.nanoseconds
        self._look = False
        return told

    def _others(self, vcpu_of: Mapping[int, int]) -> list[int]:
        """Return the oldest threads that are no vCPU's, as many as are followed; none where nobody asks for CPUs."""
        if not self._with_cpu:
            return []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._task) as entries:
            # The kernel names the oldest first. Of thousands the rest is not even asked for.
            tids = (int(entry.name) for entry in entries)
            return list(itertools.islice((tid for tid in tids if tid not in vcpu_of), MOST_OTHERS))
        return []

    def _check_that_it_lives(self) -> None:
        try:
            os.stat(str(self.pid), dir_fd=self._task)
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessLookupError(f"no process {self.pid}") from None


class _Thread(ThreadRun):
    """One thread's open files. Those of an ended thread answer ESRCH, also when its TID is in use again."""

    __slots__ = ("_run_ns", "_schedstat", "_stat", "_with_cpu")

    def __init__(self, task: int, tid: int, *, in_ticks: bool, with_cpu: bool) -> None:
        """Open the thread's files below `task`, a descriptor of /proc/PID/task. Raises OSError when it has gone."""
        super().__init__(tid)
        self._run_ns = 0
        self._with_cpu = with_cpu
        self._schedstat = None if in_ticks else _open(task, f"{tid}/schedstat")
        self._stat: int | None = None
        try:
            if with_cpu or in_ticks:
                self._stat = _open(task, f"{tid}/stat")
        except OSError:
            self.close()
            raise

    def advance(self) -> int:
        """Return, and note, nanoseconds since the previous call, or since the thread began."""
        if self._schedstat is None:
            stat = self._fields()
            run_ns = (int(stat[11]) + int(stat[12])) * NANOSECONDS_PER_TICK
        else:
            run_ns = int(os.pread(self._schedstat, 64, 0).split(None, 1)[0])
        ran = self.nanoseconds = max(0, run_ns - self._run_ns)  # a thread that calls execve(2) gets the main one's TID
        self._run_ns = run_ns
        if self._with_cpu:
            self.cpu_before = self.cpu
            if ran or self.cpu is None:
                self.cpu = int(self._fields()[36])
            if self.cpu_before is None:
                self.cpu_before = self.cpu
        return ran

    def close(self) -> None:
        for descriptor in (self._schedstat, self._stat):
            if descriptor is not None:
                os.close(descriptor)

    def _fields(self) -> list[str]:
        assert self._stat is not None
        return fields(os.pread(self._stat, 1024, 0).decode(errors="replace"))


def _open(directory: int, path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
