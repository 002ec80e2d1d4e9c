"""How long each thread of a process ran, in nanoseconds.

Two clocks are read. /proc/PID/task/TID/schedstat is a thread's own, and cheap through a descriptor that stays open.
The CPU clock of the process (clock_gettime(2)) is the sum of all threads it ever had: what the living threads do not
explain was run by threads that ended since, and is counted with the main thread.

Where the kernel keeps no schedstat, threads have the clock of /proc/PID/task/TID/stat, which counts ticks.
"""

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


def boot_nanoseconds() -> int:
    """Return nanoseconds since the machine was started, those in which it was suspended among them."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class ThreadRun:
    """What one thread did in one interval."""

    tid: int
    name: str
    nanoseconds: int
    cpu_before: int | None
    """Where it had run last when the interval began; None when that is not asked for."""
    cpu: int | None
    """Where it ran last."""


class ProcessClock:
    """Follows one process to its end, whatever becomes of its PID: the descriptors kept are bound to this process."""

    def __init__(self, pid: int, *, with_cpu: bool, proc: Path = PROC) -> None:
        """Start from now. `with_cpu`: tell where threads ran last. Raises ProcessLookupError when it has gone."""
        self.pid = pid
        self._with_cpu = with_cpu
        self._proc = proc
        self._threads: dict[int, _Thread] = {}
        self._told = 0
        try:
            self._task = os.open(proc / str(pid) / "task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(f"no process {pid}") from error
        try:
            self._start = self._total()
            # The main thread has run. Some kernels have no such file at all.
            self._in_ticks = (read(proc / f"{pid}/task/{pid}/schedstat") or NOT_COUNTED) == NOT_COUNTED
            self._read_threads()
        except OSError:
            self.close()
            raise

    def advance(self) -> list[ThreadRun]:
        """Return what each living thread ran since the previous call. Raises ProcessLookupError when it has gone.

        Threads come by TID; one that is new is told whole. All calls together tell the whole time of the process.
        """
        # The total comes first: the threads then explain at least as much, and nothing is told twice.
        total = self._total() - self._start
        runs = self._read_threads()
        self._told += sum(run for run, _, _ in runs.values())
        ended = max(0, total - self._told)
        self._told += ended
        return [
            ThreadRun(tid, self._threads[tid].name, run + (ended if tid == self.pid else 0), cpu_before, cpu)
            for tid, (run, cpu_before, cpu) in runs.items()
        ]

    def vcpu_tids(self) -> dict[int, int]:
        """Return the TID of each vCPU that was there at the last reading, by vCPU number."""
        numbers = {tid: vcpu_number(thread.name) for tid, thread in self._threads.items()}
        return {vcpu: tid for tid, vcpu in numbers.items() if vcpu is not None}

    def close(self) -> None:
        """Let go of the process."""
        for thread in self._threads.values():
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

    def _read_threads(self) -> dict[int, tuple[int, int | None, int | None]]:
        """Time since the previous reading, last CPU then and now, of each thread that is there now."""
        tids = {int(name) for name in os.listdir(self._task)}  # noqa: PTH208  Path knows no descriptors
        if not tids:
            raise ProcessLookupError(f"no process {self.pid}")
        for tid in self._threads.keys() - tids:
            self._threads.pop(tid).close()
        runs = {}
        for tid in sorted(tids):
            try:
                if tid not in self._threads:
                    self._threads[tid] = _Thread(self._task, tid, in_ticks=self._in_ticks, with_cpu=self._with_cpu)
                runs[tid] = self._threads[tid].advance()
            except (FileNotFoundError, ProcessLookupError):
                # It ended just now. A new thread of the same TID is taken up at the next reading.
                if thread := self._threads.pop(tid, None):
                    thread.close()
        return runs


class _Thread:
    """One thread's open files. Those of an ended thread answer ESRCH, also when its TID is in use again."""

    def __init__(self, task: int, tid: int, *, in_ticks: bool, with_cpu: bool) -> None:
        """Open the thread's files below `task`, a descriptor of /proc/PID/task. Raises OSError when it has gone."""
        self.name = ""
        self._readings = 0
        self._run_ns = 0
        self._cpu: int | None = None
        self._with_cpu = with_cpu
        self._directory = (task, tid)
        self._schedstat = None if in_ticks else self._open("schedstat")
        self._stat: int | None = None
        try:
            if with_cpu or in_ticks:
                self._stat = self._open("stat")
        except OSError:
            self.close()
            raise

    def advance(self) -> tuple[int, int | None, int | None]:
        """Return nanoseconds run since the previous call, or since the thread began, and its last CPU then and now."""
        self._readings += 1
        if self._readings <= 2:  # a new thread carries its maker's name until it has set its own
            with open(self._open("comm"), "rb") as file:
                self.name = file.read().decode(errors="replace").rstrip("\n")
        stat = [] if self._stat is None else fields(os.pread(self._stat, 1024, 0).decode(errors="replace"))
        if self._schedstat is None:
            run_ns = (int(stat[11]) + int(stat[12])) * NANOSECONDS_PER_TICK
        else:
            run_ns = int(os.pread(self._schedstat, 64, 0).split()[0])
        since, self._run_ns = run_ns - self._run_ns, run_ns
        if not self._with_cpu:
            return since, None, None
        cpu_before, self._cpu = self._cpu, int(stat[36])
        return since, self._cpu if cpu_before is None else cpu_before, self._cpu

    def close(self) -> None:
        for descriptor in (self._schedstat, self._stat):
            if descriptor is not None:
                os.close(descriptor)

    def _open(self, name: str) -> int:
        task, tid = self._directory
        return os.open(f"{tid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=task)
