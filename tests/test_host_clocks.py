"""Thread clocks: nothing is lost and nothing is told twice, in a tree of files and on real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import Host, Thread

from libvirt_rapl.host.clocks import ProcessClock, ThreadRun

MS = 1_000_000
QEMU = "qemu-system-x86"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_what_each_thread_ran(host: Host) -> None:
    host.process(7, {7: Thread(QEMU, 10 * MS), 9: Thread("CPU 0/KVM", 5 * MS, cpu=1)})
    clock = ProcessClock(7, with_cpu=True, proc=host.proc)
    host.process(7, {7: Thread(QEMU, 12 * MS), 9: Thread("CPU 0/KVM", 905 * MS, cpu=0)})
    assert clock.advance() == [ThreadRun(7, QEMU, 2 * MS, 0, 0), ThreadRun(9, "CPU 0/KVM", 900 * MS, 1, 0)]
    assert clock.advance() == [ThreadRun(7, QEMU, 0, 0, 0), ThreadRun(9, "CPU 0/KVM", 0, 0, 0)]
    clock.close()


@pytest.mark.parametrize("schedstat", [None, "0 0 0\n"])
def test_ticks_where_there_is_no_schedstat(host: Host, schedstat: str | None) -> None:
    host.process(7, {7: Thread(QEMU, 10 * MS)}, schedstat=schedstat)
    clock = ProcessClock(7, with_cpu=False, proc=host.proc)
    host.process(7, {7: Thread(QEMU, 70 * MS), 9: Thread("CPU 0/KVM", 330 * MS)}, schedstat=schedstat)
    assert clock.advance() == [ThreadRun(7, QEMU, 60 * MS, None, None), ThreadRun(9, "CPU 0/KVM", 330 * MS, None, None)]
    clock.close()


def test_threads_that_ended_are_counted_with_the_main_thread(host: Host) -> None:
    host.process(7, {7: Thread(QEMU, 0), 9: Thread("worker", 100 * MS)})
    clock = ProcessClock(7, with_cpu=False, proc=host.proc)
    # worker 9 ran 50 ms more and ended, another came and went with 30 ms
    host.process(7, {7: Thread(QEMU, 20 * MS)}, ended_ns=180 * MS)
    assert clock.advance() == [ThreadRun(7, QEMU, 100 * MS, None, None)]
    assert clock.advance() == [ThreadRun(7, QEMU, 0, None, None)]
    clock.close()


def test_a_thread_carries_its_makers_name_at_first(host: Host) -> None:
    host.process(7, {7: Thread(QEMU, 0)})
    clock = ProcessClock(7, with_cpu=False, proc=host.proc)
    host.process(7, {7: Thread(QEMU, 0), 9: Thread(QEMU, 1 * MS)})
    clock.advance()
    host.process(7, {7: Thread(QEMU, 0), 9: Thread("CPU 3/KVM", 2 * MS)})
    assert [run.name for run in clock.advance()] == [QEMU, "CPU 3/KVM"]
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
    told = 0
    for _ in range(5):
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
        stop(pid)
        told += sum(run.nanoseconds for run in clock.advance())
    time.sleep(0.05)  # a thread that was about to end when it was told to stop has ended now
    told += sum(run.nanoseconds for run in clock.advance())
    assert told == time.clock_gettime_ns(~pid << 3 | 2) - start > 0
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
