"""How long the processes of one virtual machine ran: QEMU, and those in its cgroup (swtpm, passt, vhost, ...)."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from libvirt_rapl.host.machine_cgroup import BELOW, machine_cgroup
from libvirt_rapl.host.process_clock import ProcessClock, ThreadRun
from libvirt_rapl.host.processes import NANOSECONDS_PER_TICK, start_time
from libvirt_rapl.paths import PROC, SYS

PROCESSES_SECONDS = 2.0
"""How often to look for new processes."""


class MachineClock:
    """Follows a QEMU process, and the processes that serve it, until QEMU ends."""

    def __init__(
        self, pid: int, *, with_cpu: bool, vcpu_tids: Mapping[int, int], sys: Path = SYS, proc: Path = PROC
    ) -> None:
        """Start from now; see ProcessClock. Raises ProcessLookupError when QEMU has gone."""
        self.pid = pid
        self._with_cpu = with_cpu
        self._sys = sys
        self._proc = proc
        self._qemu = ProcessClock(pid, with_cpu=with_cpu, vcpu_tids=vcpu_tids, proc=proc)
        self._servants: dict[int, ProcessClock] = {}
        self._lists: list[_ProcessList] = []
        self._moved = False
        self._processes_due = 0.0
        self._listed = _now()
        """When processes were listed last."""
        self._open_lists()
        self._list_servants()

    def advance(self) -> list[ThreadRun]:
        """Return what each living thread ran since the previous call. Raises ProcessLookupError when QEMU has gone.

        Threads of other processes than QEMU are no vCPUs. Such a process is found within PROCESSES_SECONDS. A new one
        is then reported with all its time, one that was moved there from then on; what it runs between the last call
        and its end is not reported.
        """
        now = time.monotonic()
        if now >= self._processes_due:
            if not self._moved:  # libvirt moves a new QEMU to its place in several steps
                self._open_lists()
                self._moved = True
            self._list_servants()
            self._processes_due = now + PROCESSES_SECONDS
        runs = self._qemu.advance()
        return runs + self._advance_servants() if self._servants else runs

    def set_vcpus(self, vcpu_tids: Mapping[int, int]) -> None:
        """Take which thread of QEMU is each vCPU's; see ProcessClock."""
        self._qemu.set_vcpus(vcpu_tids)

    def vcpu_tids(self) -> dict[int, int]:
        """Return the TID of each vCPU; see ProcessClock."""
        return self._qemu.vcpu_tids()

    def close(self) -> None:
        """Close the files of all processes."""
        for clock in (self._qemu, *self._servants.values()):
            clock.close()
        self._servants.clear()
        self._close_lists()

    def _list_servants(self) -> None:
        """Start to follow new processes, and drop those that are no longer listed."""
        before, self._listed = self._listed, _now()
        pids = {pid for each in self._lists for pid in each.read()}
        pids -= {0, self.pid}  # those of another PID namespace read as 0
        for pid in self._servants.keys() - pids:
            self._servants.pop(pid).close()
        for pid in pids - self._servants.keys():
            new = (start_time(pid, self._proc) or 0) * NANOSECONDS_PER_TICK >= before
            with contextlib.suppress(ProcessLookupError):
                self._servants[pid] = ProcessClock(pid, with_cpu=self._with_cpu, whole=new, proc=self._proc)

    def _advance_servants(self) -> list[ThreadRun]:
        runs: list[ThreadRun] = []
        for pid, clock in list(self._servants.items()):
            try:
                runs += clock.advance()
            except ProcessLookupError:  # it has gone; a new process may have its PID
                self._servants.pop(pid).close()
        return runs

    def _open_lists(self) -> None:
        self._close_lists()
        place = machine_cgroup(self.pid, sys=self._sys, proc=self._proc)
        if place is None:
            return
        directory, version = place
        for below in BELOW:
            with contextlib.suppress(OSError):  # not there, or holds threads only (v2) and answers EOPNOTSUPP
                self._lists.append(_ProcessList(Path(directory, below, "cgroup.procs"), keep=version == 2))

    def _close_lists(self) -> None:
        while self._lists:
            self._lists.pop().close()


class _ProcessList:
    """A cgroup.procs. Reading is twice as cheap if it stays open; in v1 it would then always show its first content."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        """Read the file once. Raises OSError if that fails."""
        self._path = path
        self._kept: int | None = None
        descriptor = self._open()
        try:
            _pids(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        if keep:
            self._kept = descriptor
        else:
            os.close(descriptor)

    def read(self) -> list[int]:
        """Return the PIDs; none when the cgroup has gone."""
        with contextlib.suppress(OSError):
            if self._kept is not None:
                return _pids(self._kept)
            descriptor = self._open()
            try:
                return _pids(descriptor)
            finally:
                os.close(descriptor)
        return []

    def close(self) -> None:
        if self._kept is not None:
            os.close(self._kept)

    def _open(self) -> int:
        return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)


def _now() -> int:
    """Return nanoseconds since the machine was started, as start_time() has ticks since then."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _pids(descriptor: int) -> list[int]:
    text = b""
    while chunk := os.pread(descriptor, 4096, len(text)):
        text += chunk
        if len(chunk) < 2048:  # the kernel gives a page at a time: a short part is the last
            break
    return [int(word) for word in text.split()]
