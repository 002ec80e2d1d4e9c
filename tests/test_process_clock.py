"""Thread clocks: nothing is lost and nothing is counted twice, in a tree of files and on real processes."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.host import Host, Thread
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libvirt_rapl.host import process_clock
from libvirt_rapl.host.process_clock import MOST_OTHERS, ProcessClock, allow_many_descriptors

MS = 1_000_000
QEMU = "qemu-system-x86"
REST = None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def advance(clock: ProcessClock) -> dict[int | None, int]:
    """What each vCPU ran, by its number, and what all the rest did."""
    counted: dict[int | None, int] = {}
    for run in clock.advance():
        counted[run.vcpu] = counted.get(run.vcpu, 0) + run.nanoseconds
    return counted


def test_what_each_thread_ran_and_where(host: Host) -> None:
    host.process(7, {7: Thread(QEMU, 10 * MS), 9: Thread("CPU 0/KVM", 5 * MS, cpu=1), 11: Thread("worker", 0, cpu=1)})
    clock = ProcessClock(7, with_cpu=True, vcpu_tids={0: 9}, proc=host.proc)
    host.process(7, {7: Thread(QEMU, 30 * MS, cpu=1), 9: Thread("CPU 0/KVM", 905 * MS), 11: Thread("worker", 30 * MS)})
    counted = {(run.tid, run.vcpu, run.nanoseconds, run.cpu_before, run.cpu) for run in clock.advance()}
    assert counted == {(7, REST, 0, 0, 1), (7, REST, 20 * MS, 0, 1), (9, 0, 900 * MS, 1, 0), (11, REST, 30 * MS, 1, 0)}
    assert {(run.tid, run.cpu_before, run.cpu) for run in clock.advance()} == {(7, 1, 1), (9, 0, 0), (11, 0, 0)}
    assert set(advance(clock).values()) == {0}
    clock.close()


def test_a_domain_of_one_package_needs_its_vcpus_only(host: Host) -> None:
    host.process(7, {7: Thread(QEMU, 10 * MS), 9: Thread("CPU 0/KVM", 5 * MS), 11: Thread("worker", 0)})
    clock = ProcessClock(7, with_cpu=False, vcpu_tids={0: 9}, proc=host.proc)
    host.process(7, {7: Thread(QEMU, 20 * MS), 9: Thread("CPU 0/KVM", 905 * MS), 11: Thread("worker", 30 * MS)})
    counted = {(run.tid, run.vcpu, run.nanoseconds, run.cpu) for run in clock.advance()}
    assert counted == {(7, REST, 40 * MS, None), (9, 0, 900 * MS, None)}
    assert (advance(clock), clock.vcpu_tids()) == ({REST: 0, 0: 0}, {0: 9})
    clock.close()


@pytest.mark.parametrize("schedstat", [None, "0 0 0\n"])
@pytest.mark.parametrize("with_cpu", [False, True])
def test_ticks_where_there_is_no_schedstat(host: Host, with_cpu: bool, schedstat: str | None) -> None:
    host.process(7, {7: Thread(QEMU, 10 * MS)}, schedstat=schedstat)
    clock = ProcessClock(7, with_cpu=with_cpu, proc=host.proc)
    clock.set_vcpus({0: 9})
    host.process(7, {7: Thread(QEMU, 70 * MS), 9: Thread("CPU 0/KVM", 330 * MS)}, schedstat=schedstat)
    assert advance(clock) == {REST: 60 * MS, 0: 330 * MS}
    clock.close()


@pytest.mark.parametrize("with_cpu", [False, True])
def test_threads_that_ended_are_counted_with_the_rest(host: Host, with_cpu: bool) -> None:
    host.process(7, {7: Thread(QEMU, 0, cpu=1), 9: Thread("worker", 100 * MS)})
    clock = ProcessClock(7, with_cpu=with_cpu, proc=host.proc)
    # worker 9 ran 50 ms more and ended, another came and went with 30 ms
    host.process(7, {7: Thread(QEMU, 20 * MS, cpu=1)}, ended_ns=180 * MS)
    runs = clock.advance()
    assert sum(run.nanoseconds for run in runs) == 100 * MS
    assert {run.cpu for run in runs if run.nanoseconds} == {1 if with_cpu else None}
    assert advance(clock) == {REST: 0}
    clock.close()


@pytest.mark.parametrize("with_cpu", [False, True])
def test_a_vcpu_that_is_plugged_and_unplugged(host: Host, with_cpu: bool) -> None:
    host.process(7, {7: Thread(QEMU, 0)})
    clock = ProcessClock(7, with_cpu=with_cpu, proc=host.proc)
    host.process(7, {7: Thread(QEMU, 0), 9: Thread("CPU 3/KVM", 10 * MS)})
    assert sum(advance(clock).values()) == 10 * MS  # libvirt has not recorded it yet
    assert clock.vcpu_tids() == {}
    clock.set_vcpus({3: 9})
    host.process(7, {7: Thread(QEMU, 0), 9: Thread("CPU 3/KVM", 30 * MS)})
    assert advance(clock) == {REST: 0, 3: 20 * MS}
    clock.set_vcpus({})
    host.process(7, {7: Thread(QEMU, 0), 9: Thread("CPU 3/KVM", 70 * MS)})
    assert advance(clock) == {REST: 40 * MS}
    clock.close()


@pytest.mark.parametrize("with_cpu", [False, True])
def test_what_a_thread_calls_itself_means_nothing(host: Host, with_cpu: bool) -> None:
    host.process(7, {7: Thread(QEMU, 0), 9: Thread("CPU 0/KVM", 0), 10: Thread("worker", 0)})
    clock = ProcessClock(7, with_cpu=with_cpu, vcpu_tids={0: 9}, proc=host.proc)
    host.process(7, {7: Thread("CPU 0/KVM", 0), 9: Thread("worker", 50 * MS), 10: Thread("CPU 0/KVM", 20 * MS)})
    assert advance(clock) == {0: 50 * MS, REST: 20 * MS}
    clock.close()


class Kernel:
    """A host whose process clock counts nanoseconds, as the real one's does, and which notes what is read of it.

    A file of a thread that has ended answers ESRCH, also where it was opened before.
    """

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = host
        self.reads: list[str] = []
        self.total = 0
        self.patch = monkeypatch
        monkeypatch.setattr(process_clock, "PROC", host.proc)
        monkeypatch.setattr(time, "clock_gettime_ns", lambda _: self.total)
        for name in ("pread", "scandir"):
            monkeypatch.setattr(os, name, self._noting(name))

    def _noting(self, name: str) -> Callable[..., object]:
        original = getattr(os, name)

        def noting(descriptor: int, *arguments: object) -> object:
            self.reads.append(name)
            if name == "pread" and not os.fstat(descriptor).st_nlink:
                raise ProcessLookupError
            return original(descriptor, *arguments)

        return noting

    def set(self, threads: dict[int, Thread], ended_ns: int = 0) -> None:
        self.host.process(7, threads, ended_ns=ended_ns)
        self.reads.clear()
        self.total = sum(thread.ns for thread in threads.values()) + ended_ns

    def clock(self, *, with_cpu: bool = False) -> ProcessClock:
        return ProcessClock(7, with_cpu=with_cpu, vcpu_tids=self.host.vcpu_tids[7], proc=self.host.proc)


@pytest.fixture
def kernel(host: Host, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(host, monkeypatch)


def test_of_a_process_that_slept_nothing_is_read(kernel: Kernel) -> None:
    threads = {7: Thread(QEMU, 100), 9: Thread("CPU 0/KVM", 200)}
    kernel.set(threads)
    clock = kernel.clock()
    kernel.set({7: Thread(QEMU, 103), 9: Thread("CPU 0/KVM", 205)})
    assert advance(clock) == {REST: 3, 0: 5}
    kernel.reads.clear()
    assert advance(clock) == {}
    assert kernel.reads == []
    clock.close()


@pytest.mark.parametrize("with_cpu", [False, True])
def test_what_threads_run_between_two_readings_is_counted_once(kernel: Kernel, *, with_cpu: bool) -> None:
    """The sum is read first: when a thread is read, it may have run for longer."""
    kernel.set({7: Thread(QEMU, 100), 9: Thread("CPU 0/KVM", 200)})
    clock = kernel.clock(with_cpu=with_cpu)
    kernel.set({7: Thread(QEMU, 100), 9: Thread("CPU 0/KVM", 250)})
    kernel.total -= 20
    assert advance(clock) == {REST: 0, 0: 50}
    kernel.total += 20
    assert sum(advance(clock).values()) == 0
    kernel.set({7: Thread(QEMU, 101), 9: Thread("CPU 0/KVM", 250)})
    assert advance(clock) == {REST: 1, 0: 0}
    clock.close()


def test_a_thread_whose_clock_goes_back_has_not_run(kernel: Kernel) -> None:
    """One that calls execve(2) gets the main thread's TID, and keeps its own clock."""
    kernel.set({7: Thread(QEMU, 900), 9: Thread("worker", 10)})
    clock = kernel.clock(with_cpu=True)
    kernel.set({7: Thread(QEMU, 40)}, ended_ns=900)
    assert {(run.tid, run.nanoseconds) for run in clock.advance()} == {(7, 30), (7, 0)}
    kernel.set({7: Thread(QEMU, 45)}, ended_ns=900)
    assert {(run.tid, run.nanoseconds) for run in clock.advance()} == {(7, 0), (7, 5)}
    clock.close()


def test_what_new_threads_ran_before_is_counted_once(kernel: Kernel) -> None:
    """Of each it is not more than is left of what the process ran since the last reading."""
    kernel.set({7: Thread(QEMU, 0), 9: Thread("worker", 0), 10: Thread("worker", 0)})
    clock = ProcessClock(7, with_cpu=False, proc=kernel.host.proc)
    kernel.set({7: Thread(QEMU, 0), 9: Thread("worker", 8), 10: Thread("worker", 8)})
    assert advance(clock) == {REST: 16}
    clock.set_vcpus({0: 9, 1: 10})
    kernel.set({7: Thread(QEMU, 0), 9: Thread("worker", 13), 10: Thread("worker", 13)})
    assert advance(clock) == {REST: 0, 0: 10, 1: 0}
    clock.close()


def test_threads_of_vcpus_are_read_and_nothing_is_listed(kernel: Kernel) -> None:
    kernel.set({7: Thread(QEMU, 100), 9: Thread("CPU 0/KVM", 200)})
    clock = kernel.clock()
    kernel.set({7: Thread(QEMU, 111), 9: Thread("CPU 0/KVM", 222), 10: Thread("CPU 1/KVM", 33)})
    assert advance(clock) == {REST: 44, 0: 22}
    assert kernel.reads == ["pread"]
    clock.set_vcpus({0: 9, 1: 10})
    kernel.set({7: Thread(QEMU, 111), 9: Thread("CPU 0/KVM", 223), 10: Thread("CPU 1/KVM", 35)})
    assert advance(clock) == {REST: 0, 0: 1, 1: 2}
    assert clock.vcpu_tids() == {0: 9, 1: 10}
    clock.set_vcpus({0: 9})
    kernel.set({7: Thread(QEMU, 111), 9: Thread("CPU 0/KVM", 223)}, ended_ns=44)
    assert advance(clock) == {REST: 9, 0: 0}
    assert clock.vcpu_tids() == {0: 9}
    assert "scandir" not in kernel.reads
    clock.close()


def test_as_many_threads_as_before_but_not_the_same(kernel: Kernel) -> None:
    kernel.set({7: Thread(QEMU, 0), 9: Thread("worker", 0)})
    clock = kernel.clock()
    kernel.set({7: Thread(QEMU, 2), 10: Thread("CPU 0/KVM", 5)})
    assert advance(clock) == {REST: 7}  # it is the domain's; whose thread it is has not been recorded yet
    clock.set_vcpus({0: 10})
    kernel.set({7: Thread(QEMU, 3), 10: Thread("CPU 0/KVM", 15)})
    assert advance(clock) == {REST: 0, 0: 11}  # all that is left: it is not known which part was the main thread's
    kernel.set({7: Thread(QEMU, 4), 10: Thread("CPU 0/KVM", 25)})
    assert advance(clock) == {REST: 1, 0: 10}
    clock.close()


def test_of_thousands_of_threads_few_are_looked_at(kernel: Kernel) -> None:
    def threads(ns: int) -> dict[int, Thread]:
        return {7: Thread(QEMU, ns), **{tid: Thread(f"CPU {tid}/KVM", ns) for tid in range(10, 10 + 8 * MOST_OTHERS)}}

    before = len(list(Path("/proc/self/fd").iterdir()))
    kernel.set(threads(0))
    clock = ProcessClock(7, with_cpu=True, vcpu_tids={0: 10, 1: 2000}, proc=kernel.host.proc)
    kernel.set(threads(MS))
    assert sum(advance(clock).values()) == (8 * MOST_OTHERS + 1) * MS
    assert clock.vcpu_tids() == {0: 10, 1: 2000}
    assert len(kernel.reads) <= 3 * (MOST_OTHERS + 2)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 2 * (MOST_OTHERS + 2) + 1
    clock.close()


Threads = dict[int, tuple[str, int]]
NAMES = st.sampled_from([QEMU, "CPU 0/KVM", "CPU 1/KVM", "worker"])


@given(
    seconds=st.lists(
        st.tuples(
            st.dictionaries(st.integers(8, 12), st.tuples(NAMES, st.integers(0, 50)), max_size=4),  # the threads
            st.dictionaries(st.integers(0, 3), st.integers(6, 13)),  # which threads are vCPUs, by libvirt's word
            st.integers(0, 50),  # what the main thread ran
            st.integers(0, 50),  # what came and went
        ),
        max_size=6,
    ),
    with_cpu=st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_threads_do_all_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory,
    seconds: list[tuple[Threads, dict[int, int], int, int]],
    with_cpu: bool,
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = Kernel(Host(tmp_path_factory.mktemp("host")), monkeypatch)
        kernel.set({7: Thread(QEMU, 1000)})
        clock = kernel.clock(with_cpu=with_cpu)
        main, ended, last = 1000, 0, dict[int, Thread]()
        for there, vcpu_tids, ran, gone in seconds:
            main, ended = main + ran, ended + gone
            threads = {}
            for tid, (name, more) in there.items():
                before = last.pop(tid).ns if tid in last else 0
                threads[tid] = Thread(name, before + more)
            ended += sum(thread.ns for thread in last.values())
            last = dict(threads)
            begin, counted = kernel.total, 0
            clock.set_vcpus(vcpu_tids)
            kernel.set({7: Thread(QEMU, main), **threads}, ended_ns=ended)
            runs = clock.advance()
            counted = sum(run.nanoseconds for run in runs)
            assert counted == kernel.total - begin
            assert all(run.nanoseconds >= 0 for run in runs)
            vcpus = [run.vcpu for run in runs if run.vcpu is not None]
            assert len(vcpus) == len(set(vcpus))
            assert set(vcpus) <= vcpu_tids.keys()
        clock.close()


def test_a_process_that_is_not_there(host: Host) -> None:
    with pytest.raises(ProcessLookupError):
        ProcessClock(7, with_cpu=False, proc=host.proc)


def test_a_process_that_ends(host: Host) -> None:
    host.process(7, {7: Thread(QEMU, 0)})
    clock = ProcessClock(7, with_cpu=False, proc=host.proc)
    host.end(7)
    with pytest.raises(ProcessLookupError):
        clock.advance()
    clock.close()


def test_another_process_with_the_same_pid_is_not_followed(host: Host) -> None:
    host.process(7, {7: Thread(QEMU, 0)})
    clock = ProcessClock(7, with_cpu=False, proc=host.proc)
    host.end(7)
    host.process(7, {7: Thread("stranger", 5000 * MS)})
    with pytest.raises(ProcessLookupError):
        clock.advance()
    clock.close()


@pytest.mark.parametrize("with_cpu", [False, True])
@pytest.mark.parametrize("ran", [1, 900, 5000])
def test_another_process_with_the_same_pid_is_noticed_by_its_threads(
    kernel: Kernel, ran: int, *, with_cpu: bool
) -> None:
    """Whether it has run for less than the one that was followed, or for longer."""
    kernel.set({7: Thread(QEMU, 400), 9: Thread("CPU 0/KVM", 200)})
    clock = kernel.clock(with_cpu=with_cpu)
    kernel.host.end(7)
    kernel.set({7: Thread("stranger", ran)})
    with pytest.raises(ProcessLookupError):
        clock.advance()
    clock.close()


def test_of_a_process_without_vcpus_another_with_the_same_pid_is_noticed(kernel: Kernel) -> None:
    kernel.set({7: Thread(QEMU, 400)})
    clock = kernel.clock()
    kernel.host.end(7)
    kernel.set({7: Thread("stranger", 5000)})
    with pytest.raises(ProcessLookupError):
        clock.advance()
    clock.close()


@pytest.mark.parametrize("with_cpu", [False, True])
def test_where_files_cannot_be_opened_none_stays_open(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, *, with_cpu: bool
) -> None:
    """Whichever of them is the first that is one too many."""
    kernel.set({7: Thread(QEMU, 0), 9: Thread("CPU 0/KVM", 0), 10: Thread("worker", 0)})
    before = set(Path("/proc/self/fd").iterdir())
    opened, left = os.open, 0

    def open_few(path: str | Path, flags: int, *, dir_fd: int | None = None) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_few)
    needed = 7 if with_cpu else 2  # the directory, and one or two of each thread that is followed
    for few in range(needed):
        left = few
        with pytest.raises(OSError, match="Too many"):
            kernel.clock(with_cpu=with_cpu)
        assert set(Path("/proc/self/fd").iterdir()) == before
    left = needed
    kernel.clock(with_cpu=with_cpu).close()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_of_a_process_that_ends_while_it_is_taken_up_nothing_stays_open(host: Host) -> None:
    host.process(7, {7: Thread(QEMU, 0)})
    (host.proc / "7/stat").unlink()
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(ProcessLookupError):
        ProcessClock(7, with_cpu=True, proc=host.proc)
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("with_cpu", [False, True])
def test_of_threads_that_have_gone_nothing_stays_open(kernel: Kernel, *, with_cpu: bool) -> None:
    main = {7: Thread(QEMU, 0)}
    kernel.set(main)
    clock = kernel.clock(with_cpu=with_cpu)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    for second in range(1, 4):
        kernel.set({**main, 9: Thread("CPU 0/KVM", second), 10: Thread("CPU 1/KVM", second)}, ended_ns=4 * second)
        clock.set_vcpus({0: 9, 1: 10})
        clock.advance()
        clock.set_vcpus({0: 9})  # one is no vCPU's any more, and both end
        kernel.set(main, ended_ns=6 * second + 4)
        clock.advance()
        assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    clock.close()


def test_as_many_files_as_the_administrator_allows_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 524288))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limit: limits.append((what, limit)))
    allow_many_descriptors()
    assert limits == [(resource.RLIMIT_NOFILE, (524288, 524288))]


HOSTILE = """
import pathlib, threading, time
def rename(name):
    pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
def burn(name, seconds):
    rename(name)
    while time.thread_time() < seconds: pass
def vcpu():
    print(threading.get_native_id(), flush=True)
    while True:
        for name in ("CPU 0/KVM", "worker", "CPU 7/KVM", "CPU 1/KVM"):
            rename(name)
threading.Thread(target=vcpu).start()
number = 0
while True:
    number += 1
    rename(f"CPU {number}/KVM")
    others = [threading.Thread(target=burn, args=("CPU 0/KVM", 0.004)) for _ in range(3)]
    for thread in others: thread.start()
    for thread in others: thread.join()
"""
"""A QEMU that gives its threads other names all the time: its vCPU's, those that come and go, and its main one's."""


@pytest.mark.parametrize("with_cpu", [False, True])
def test_a_hostile_process_is_counted_whole_whatever_it_calls_its_threads(with_cpu: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", HOSTILE], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            tid = int(process.stdout.readline())
            stop(process.pid)
            clock = ProcessClock(process.pid, with_cpu=with_cpu, vcpu_tids={0: tid})
            start = time.clock_gettime_ns(~process.pid << 3 | 2)
            schedstat = Path(f"/proc/{process.pid}/task/{tid}/schedstat")
            vcpu_start = int(schedstat.read_text().split()[0])
            counted: dict[int | None, int] = {}
            for _ in range(10):
                os.kill(process.pid, signal.SIGCONT)
                time.sleep(0.05)
                stop(process.pid)
                for vcpu, nanoseconds in advance(clock).items():
                    counted[vcpu] = counted.get(vcpu, 0) + nanoseconds
            time.sleep(0.05)  # a thread that was about to end when it was stopped has ended now
            for vcpu, nanoseconds in advance(clock).items():
                counted[vcpu] += nanoseconds
            assert sum(counted.values()) == time.clock_gettime_ns(~process.pid << 3 | 2) - start > 0
            assert counted.keys() == {REST, 0}
            assert counted[0] == int(schedstat.read_text().split()[0]) - vcpu_start > 0
            clock.close()
        finally:
            process.kill()


SHORT_THREADS = """
import threading, time
def burn():
    while time.thread_time() < 0.02: pass
print(flush=True)
while True:
    thread = threading.Thread(target=burn); thread.start(); thread.join()
"""


@pytest.fixture
def short_threads() -> Iterator[subprocess.Popen[bytes]]:
    """A process of threads which live 20 ms each. It is stopped, so that its clocks stand still."""
    process = subprocess.Popen([sys.executable, "-c", SHORT_THREADS], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    stop(process.pid)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


@pytest.mark.parametrize("with_cpu", [False, True])
def test_not_a_nanosecond_of_a_real_process_is_lost(short_threads: subprocess.Popen[bytes], with_cpu: bool) -> None:
    pid = short_threads.pid
    clock = ProcessClock(pid, with_cpu=with_cpu)
    start = time.clock_gettime_ns(~pid << 3 | 2)
    counted = 0
    for _ in range(5):
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
        stop(pid)
        counted += sum(run.nanoseconds for run in clock.advance())
    time.sleep(0.05)  # a thread that was about to end when it was stopped has ended now
    counted += sum(run.nanoseconds for run in clock.advance())
    assert counted == time.clock_gettime_ns(~pid << 3 | 2) - start > 0
    clock.close()


def test_a_real_process_that_ends(short_threads: subprocess.Popen[bytes]) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    clock = ProcessClock(short_threads.pid, with_cpu=True)
    clock.advance()
    short_threads.kill()
    short_threads.wait()
    with pytest.raises(ProcessLookupError):
        clock.advance()
    clock.close()
    assert set(Path("/proc/self/fd").iterdir()) == before
