"""How long a process, and the vCPUs' threads in it, ran, in nanoseconds.

Two clocks are read. The CPU clock of the process (clock_gettime(2)) is the sum of all threads it ever had: those that
came and went between two readings are in it. /proc/PID/task/TID/schedstat is a thread's own, and cheap through a
descriptor that stays open. What the threads that are followed do not explain of the sum, others ran.

The vCPUs' threads are followed; all are where it matters on which CPU something ran. Clocks never go back: while
the sum stands still no thread has run.

Where the kernel keeps no schedstat, threads have the clock of /proc/PID/task/TID/stat, which counts ticks.
"""

import contextlib
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from libvirt_rapl.host.cpus import NANOSECONDS_PER_TICK
from libvirt_rapl.host.processes import PROC, fields, read, vcpu_number

NOT_COUNTED = "0 0 0\n"
"""schedstat of every thread where Linux before 5.14 keeps none (no CONFIG_SCHEDSTATS, delay accounting off)."""


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

    def __init__(self, pid: int, *, with_cpu: bool, whole: bool = False, proc: Path = PROC) -> None:
        """Start from now, or with the `whole` time it has run. Raises ProcessLookupError when it has gone.

        `with_cpu`: tell where threads ran last.
        """
        self.pid = pid
        self._with_cpu = with_cpu
        self._proc = proc
        self._real = proc == PROC
        # The main thread has run. Some kernels have no such file at all.
        self._in_ticks = (read(proc / f"{pid}/task/{pid}/schedstat") or NOT_COUNTED) == NOT_COUNTED
        self._exact = self._real and not self._in_ticks
        """Whether both clocks count nanoseconds. One that counts ticks cannot tell that nothing ran."""
        self._threads: dict[int, _Thread] = {}
        """Those that are followed, by TID."""
        self._rest = ThreadRun(pid)
        """What all others ran."""
        self._seen: dict[int, int] = {}
        """How often the name of each thread was read: a new one carries its maker's until it has set its own."""
        self._look = False
        """Whether there may be threads that are new."""
        self._told = 0
        try:
            self._task = os.open(proc / str(pid) / "task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(f"no process {pid}") from error
        try:
            self._start = 0 if whole else self._total()
            self._list(0)
        except OSError:
            self.close()
            raise

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
        # Where all are followed, what they do not explain was run by one that is new. Time goes back when another
        # process has the PID: then there is no thread left.
        if self._look or (self._with_cpu and told < ran) or ran < 0 or not self._exact:
            told += self._list(ran - told)
        self._rest.nanoseconds = max(0, ran - told)
        self._told += max(ran, told)
        return [self._rest, *self._threads.values()]

    def look_again(self) -> None:
        """Look for threads that are new when the process has run."""
        self._look = True

    def vcpu_tids(self) -> dict[int, int]:
        """Return the TID of each vCPU that was there when threads were listed last, by vCPU number."""
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

    def _list(self, unexplained: int) -> int:
        """Take up threads that are new, let go those no longer there, and return what the new ones ran.

        That is no more than is `unexplained`: what one ran before it was known to be a vCPU's was told with the rest.
        """
        self._look = False
        try:
            tids = {int(name) for name in os.listdir(self._task)}  # noqa: PTH208  Path knows no descriptors
        except FileNotFoundError:
            tids = set()
        if not tids:
            raise ProcessLookupError(f"no process {self.pid}")
        for tid in self._threads.keys() - tids:
            self._threads.pop(tid).close()
        self._seen = {tid: self._seen.get(tid, 0) for tid in tids}
        told = 0
        for tid in sorted(tids):
            if self._seen[tid] < 2:
                # It may end at any time: it then is as if it had not been listed.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    told += self._take_up(tid, unexplained - told)
        return told

    def _take_up(self, tid: int, unexplained: int) -> int:
        """Follow a thread if it is one to be followed; return what it ran if it is new."""
        name = _read(self._task, f"{tid}/comm").decode(errors="replace").rstrip("\n")
        vcpu = vcpu_number(name)
        self._seen[tid] += 1
        if self._seen[tid] < 2:
            self.look_again()
        if thread := self._threads.get(tid):
            thread.vcpu = vcpu
        elif vcpu is not None or self._with_cpu:
            thread = self._threads[tid] = _Thread(self._task, tid, in_ticks=self._in_ticks, with_cpu=self._with_cpu)
            thread.vcpu = vcpu
            thread.advance()
            thread.nanoseconds = max(0, min(thread.nanoseconds, unexplained))
            return thread.nanoseconds
        return 0


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
        ran = self.nanoseconds = run_ns - self._run_ns
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


def _read(directory: int, path: str) -> bytes:
    with open(_open(directory, path), "rb") as file:
        return file.read()
