"""How long a process, and the vCPUs' threads in it, ran, in nanoseconds.

Two clocks are read. The CPU clock of the process (clock_gettime(2)) is the sum of all threads it ever had, including
those that came and went between two readings. /proc/PID/task/TID/schedstat is a thread's own clock, and cheap to read
through a descriptor that stays open. The part of the sum that the followed threads do not explain was run by others.

Threads only divide what the process ran, and the caller says which of them are vCPUs: a process may give its threads
any names, and make thousands of them. In addition to the vCPUs' threads, up to MOST_OTHERS are followed if it matters
on which CPU they ran. Clocks never go back: while the sum stands still no thread has run.

If the kernel keeps no schedstat, the clock of a thread is /proc/PID/task/TID/stat, which counts ticks.
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
"""schedstat of every thread if Linux before 5.14 keeps none (no CONFIG_SCHEDSTATS, delay accounting off)."""

MOST_OTHERS = 256
"""How many threads are followed that are no vCPU's, the oldest ones: QEMU has 64 workers, and few others."""


def allow_many_descriptors() -> None:
    """Raise this process's limit of open files as far as possible: a clock keeps one or two for each thread."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(slots=True)
class ThreadRun:
    """What one thread did in one interval. Its clock overwrites it with the next interval."""

    tid: int
    vcpu: int | None = None
    """Number of the vCPU it runs, if it runs one."""
    nanoseconds: int = 0
    cpu_before: int | None = None
    """CPU it had last run on when the interval began; None if not requested."""
    cpu: int | None = None
    """CPU it last ran on."""


class ProcessClock:
    """Follows one process to its end, even if its PID is used again: the open descriptors belong to this process."""

    def __init__(
        self,
        pid: int,
        *,
        with_cpu: bool,
        vcpu_tids: Mapping[int, int] | None = None,
        whole: bool = False,
        proc: Path = PROC,
    ) -> None:
        """Start from now, or with the `whole` time it has run so far. Raises ProcessLookupError when it has gone.

        `with_cpu`: report where threads ran last. `vcpu_tids`: the thread of each vCPU, by vCPU number.
        """
        self.pid = pid
        self._with_cpu = with_cpu
        self._proc = proc
        self._real = proc == PROC
        # The main thread has run, so a clock of 0 counts nothing. Some kernels have no such file at all.
        self._in_ticks = (read(proc / f"{pid}/task/{pid}/schedstat") or NOT_COUNTED) == NOT_COUNTED
        self._exact = self._real and not self._in_ticks
        """Whether both clocks count nanoseconds. A clock that counts ticks cannot show that nothing ran."""
        self._vcpu_tids: Mapping[int, int] = {}
        self._threads: dict[int, _Thread] = {}
        """The followed threads, by TID."""
        self._rest = ThreadRun(pid)
        """What all other threads ran."""
        self._look = False
        """Whether there may be threads that should be followed and are not yet."""
        self._reported = 0
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
        """Set the thread of each vCPU, by vCPU number. One thread is one vCPU; other TIDs are ignored."""
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

        The first element, under the TID of the main thread, is for all threads that are not followed or have ended.
        All calls together return the whole time of the process. Raises ProcessLookupError when it has gone.
        """
        # The total is read first: the threads then explain at least as much, and nothing is counted twice.
        ran = self._total() - self._start - self._reported
        if not ran and self._exact:
            return []
        explained = self._read()
        # If all are followed, what they do not explain was run by a new thread.
        if self._look or (self._with_cpu and explained < ran):
            explained += self._take_up(ran - explained)
        # Another process may have the PID by now; then none of the followed threads is left.
        if not self._threads or not self._exact:
            self._check_that_it_lives()
        self._rest.nanoseconds = max(0, ran - explained)
        self._reported += max(ran, explained)
        return [self._rest, *self._threads.values()]

    def vcpu_tids(self) -> dict[int, int]:
        """Return the TID of each vCPU whose thread is followed, by vCPU number."""
        return {thread.vcpu: thread.tid for thread in self._threads.values() if thread.vcpu is not None}

    def close(self) -> None:
        """Close all files."""
        for thread in self._threads.values():
            thread.close()
        self._threads.clear()
        os.close(self._task)

    def _total(self) -> int:
        """Return the nanoseconds of all threads there ever were. A tree that is not the real /proc has only ticks."""
        try:
            if self._real:
                return time.clock_gettime_ns(~self.pid << 3 | 2)  # the CPU clock of a process, clock_getcpuclockid(3)
            stat = fields((self._proc / str(self.pid) / "stat").read_text(errors="replace"))
        except OSError as error:
            raise ProcessLookupError(f"no process {self.pid}") from error
        return (int(stat[11]) + int(stat[12])) * NANOSECONDS_PER_TICK

    def _read(self) -> int:
        """Read the followed threads and return what they ran; drop those that have ended."""
        explained = 0
        ended = []
        for tid, thread in self._threads.items():
            try:
                explained += thread.advance()
            except ProcessLookupError:
                ended.append(tid)
        for tid in ended:
            self._threads.pop(tid).close()
        if self._with_cpu and (main := self._threads.get(self.pid)):
            self._rest.cpu_before, self._rest.cpu = main.cpu_before, main.cpu
        return explained

    def _take_up(self, unexplained: int) -> int:
        """Start to follow threads that should be followed and are not yet; return what these ran.

        That is at most `unexplained`: what a thread ran before it was followed was reported with the rest.
        """
        vcpu_of = {tid: vcpu for vcpu, tid in self._vcpu_tids.items()}
        explained = 0
        for tid in [*vcpu_of, *self._others(vcpu_of)]:
            if tid in self._threads:
                continue
            # It may end at any time; then it is as if it had never been there.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                thread = _Thread(self._task, tid, in_ticks=self._in_ticks, with_cpu=self._with_cpu)
                self._threads[tid] = thread
                thread.vcpu = vcpu_of.get(tid)
                thread.advance()
                thread.nanoseconds = max(0, min(thread.nanoseconds, unexplained - explained))
                explained += thread.nanoseconds
        self._look = False
        return explained

    def _others(self, vcpu_of: Mapping[int, int]) -> list[int]:
        """Return the oldest threads that are no vCPU's, at most MOST_OTHERS; none if CPUs are not requested."""
        if not self._with_cpu:
            return []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._task) as entries:
            # The kernel lists the oldest first. If there are thousands the rest is not even read.
            tids = (int(entry.name) for entry in entries)
            return list(itertools.islice((tid for tid in tids if tid not in vcpu_of), MOST_OTHERS))
        return []

    def _check_that_it_lives(self) -> None:
        try:
            os.stat(str(self.pid), dir_fd=self._task)
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessLookupError(f"no process {self.pid}") from None


class _Thread(ThreadRun):
    """One thread's open files. For an ended thread they answer ESRCH, even when its TID is in use again."""

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
        """Return, and keep, the nanoseconds run since the previous call, or since the thread began."""
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
