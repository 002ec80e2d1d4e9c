"""How long each thread of a process ran, in nanoseconds.

Two clocks are read. /proc/PID/task/TID/schedstat is a thread's own, and cheap through a descriptor that stays open.
The CPU clock of the process (clock_gettime(2)) is the sum of all threads it ever had: what the living threads do not
explain was run by threads that ended since, and is counted with the main thread.

The sum also tells what need not be read. Clocks never go back, so as soon as the threads read so far explain all that
the process ran, no other has run: no known one, no new one, none that has ended. Most threads of a QEMU sleep.
"""

import contextlib
import math
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from libvirt_rapl.host.cpus import NANOSECONDS_PER_TICK
from libvirt_rapl.host.processes import PROC, fields, vcpu_number


GONE = (FileNotFoundError, ProcessLookupError)
"""How /proc says that a thread has ended: its files cannot be opened, or read."""


def allow_many_descriptors() -> None:
    """Raise this process's limit of open files as far as it may: a clock keeps one or two for each thread."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def boot_nanoseconds() -> int:
    """Return nanoseconds since the machine was started, those in which it was suspended among them."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class ThreadRun:
    """What one thread did in one interval. Its clock writes the next interval over it."""

    tid: int
    name: str
    nanoseconds: int
    cpu: int | None
    """Where it ran last; None when that is not asked for."""


class ProcessClock:
    """Follows one process to its end, whatever becomes of its PID: the descriptors kept are bound to this process."""

    def __init__(self, pid: int, *, with_cpu: bool, proc: Path = PROC) -> None:
        """Start from now. `with_cpu`: tell where threads ran last. Raises ProcessLookupError when it has gone."""
        self.pid = pid
        self._with_cpu = with_cpu
        self._proc = proc
        self._threads: list[_Thread] = []
        """In the order in which they are read: those that ran last come first."""
        self._told = 0
        try:
            self._task = os.open(proc / str(pid) / "task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(f"no process {pid}") from error
        try:
            self._start = self._total()
            self._list()
        except OSError:
            self.close()
            raise
        self._exact = proc == PROC and all(thread.exact for thread in self._threads)
        """Whether the process and its threads have the same clock. One that counts ticks cannot tell that none ran."""

    def advance(self) -> list[ThreadRun]:
        """Return what each living thread ran since the previous call. Raises ProcessLookupError when it has gone.

        One that is new is told whole. All calls together tell the whole time of the process.
        """
        for thread in self._threads:
            thread.run.nanoseconds = 0
        # The total comes first: the threads then explain at least as much, and nothing is told twice.
        ran = self._total() - self._start - self._told
        told = self._read(ran if self._exact else math.inf)
        if told < ran or ran < 0 or not self._exact:  # time goes back when another process has the PID
            told += self._list()
        if told < ran:
            for thread in self._threads:
                if thread.run.tid == self.pid:
                    thread.run.nanoseconds += ran - told
            told = ran
        self._told += told
        return [thread.run for thread in self._threads]

    def vcpu_tids(self) -> dict[int, int]:
        """Return the TID of each vCPU that was there at the last reading, by vCPU number."""
        numbers = {thread.run.tid: vcpu_number(thread.run.name) for thread in self._threads}
        return {vcpu: tid for tid, vcpu in numbers.items() if vcpu is not None}

    def close(self) -> None:
        """Let go of the process."""
        for thread in self._threads:
            thread.close()
        self._threads.clear()
        os.close(self._task)

    def _total(self) -> int:
        """Nanoseconds of all threads there ever were. A tree that is not the real /proc has them in ticks only."""
        try:
            if self._proc == PROC:
                return time.clock_gettime_ns(~self.pid << 3 | 2)  # the CPU clock of a process, clock_getcpuclockid(3)
            stat = fields((self._proc / str(self.pid) / "stat").read_text(errors="replace"))
        except OSError as error:
            raise ProcessLookupError(f"no process {self.pid}") from error
        return (int(stat[11]) + int(stat[12])) * NANOSECONDS_PER_TICK

    def _read(self, enough: float) -> int:
        """Read the known threads until what they ran is `enough`, and return that; threads that ended are let go."""
        told = 0
        ended, slept = [], False
        for thread in self._threads:
            if told >= enough:
                break
            try:
                ran = thread.advance()
            except GONE:
                ended.append(thread)
                continue
            told += ran
            slept = slept or not ran
        for thread in ended:
            self._forget(thread)
        if slept and self._exact:
            self._threads.sort(key=lambda thread: thread.run.nanoseconds == 0)
        return told

    def _list(self) -> int:
        """Take up threads that are new, let go those no longer there, and return what the new ones ran."""
        try:
            tids = {int(name) for name in os.listdir(self._task)}  # noqa: PTH208  Path knows no descriptors
        except FileNotFoundError:
            tids = set()
        if not tids:
            raise ProcessLookupError(f"no process {self.pid}")
        for thread in [thread for thread in self._threads if thread.run.tid not in tids]:
            self._forget(thread)
        told = 0
        for tid in sorted(tids - {thread.run.tid for thread in self._threads}):
            with contextlib.suppress(*GONE):  # it ended just now; that is noticed when it is read next
                self._threads.append(_Thread(self._task, tid, with_cpu=self._with_cpu))
                told += self._threads[-1].advance()
        return told

    def _forget(self, thread: "_Thread") -> None:
        self._threads.remove(thread)
        thread.close()


class _Thread:
    """One thread's open files. Those of an ended thread answer ESRCH, also when its TID is in use again."""

    def __init__(self, task: int, tid: int, *, with_cpu: bool) -> None:
        """Open the thread's files below `task`, a descriptor of /proc/PID/task. Raises OSError when it has gone."""
        self.run = ThreadRun(tid, "", 0, None)
        self._readings = 0
        self._run_ns = 0
        self._with_cpu = with_cpu
        self._directory = (task, tid)
        self._schedstat: int | None = None
        self._stat: int | None = None
        with contextlib.suppress(FileNotFoundError):  # not every kernel has it; ticks are everywhere
            self._schedstat = self._open("schedstat")
        self.exact = self._schedstat is not None
        try:
            if with_cpu or self._schedstat is None:
                self._stat = self._open("stat")
        except OSError:
            self.close()
            raise

    def advance(self) -> int:
        """Add to `run`, and return, nanoseconds since the previous call, or since the thread began."""
        if self._readings < 2:  # a new thread carries its maker's name until it has set its own
            self._readings += 1
            with open(self._open("comm"), "rb") as file:
                self.run.name = file.read().decode(errors="replace").rstrip("\n")
        if self._schedstat is None:
            stat = self._read_stat()
            run_ns = (int(stat[11]) + int(stat[12])) * NANOSECONDS_PER_TICK
        else:
            run_ns = int(os.pread(self._schedstat, 64, 0).split()[0])
        ran, self._run_ns = run_ns - self._run_ns, run_ns
        if self._with_cpu and (ran or self.run.cpu is None):
            self.run.cpu = int(self._read_stat()[36])
        self.run.nanoseconds += ran
        return ran

    def close(self) -> None:
        for descriptor in (self._schedstat, self._stat):
            if descriptor is not None:
                os.close(descriptor)

    def _read_stat(self) -> list[str]:
        assert self._stat is not None
        return fields(os.pread(self._stat, 1024, 0).decode(errors="replace"))

    def _open(self, name: str) -> int:
        task, tid = self._directory
        return os.open(f"{tid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=task)
