"""What a helper reads of real processes: hostile ones, too, that have thousands of threads with any names."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.host import Host, Thread, stat

from libvirt_rapl.helper.vmsr import threads
from libvirt_rapl.helper.vmsr.cpus import Cpus
from libvirt_rapl.helper.vmsr.energy import Package
from libvirt_rapl.helper.vmsr.shaping import Shaper
from libvirt_rapl.helper.vmsr.threads import Domain, process_nanoseconds
from libvirt_rapl.host.machine_cgroup import machine_cgroup

SECOND = 1_000_000_000

PROCESS = """
import pathlib, sys, threading, time
threading.stack_size(65536)
def run():
    pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("CPU 0/KVM")
    while True:
        time.sleep(0.001)
def more(count):
    for _ in range(count): threading.Thread(target=run, daemon=True).start()
    print(flush=True)
more(2)
for line in sys.stdin:
    more(int(line))
"""


class Hostile:
    """A process whose threads all call themselves vCPU 0's, and which makes more of them."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.pid = process.pid

    def make(self, count: int) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)
        yield
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setattr(threads, "MOST_THREADS", 20)
    command = [sys.executable, "-c", PROCESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        yield Hostile(process)
        process.kill()


@pytest.mark.parametrize("by_cpu", [False, True])
def test_a_domain_ran_what_the_clock_of_its_process_says(hostile: Hostile, by_cpu: bool) -> None:
    with hostile.stopped():
        domain, start = Domain(hostile.pid, by_cpu=by_cpu), process_nanoseconds(hostile.pid)
    counted = 0
    for more in (0, 5, 40, 0):  # from the third on there are too many to look at
        hostile.make(more)
        time.sleep(0.05)
        with hostile.stopped():
            counted += sum(domain.advance().values())
            assert counted == process_nanoseconds(hostile.pid) - start
    assert domain.tids() == []
    assert domain.threads() == {}


def test_of_too_many_threads_none_is_looked_at_and_the_guest_gains_nothing(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Zone:
        name, kind, package, wrap, most_watts = "package-0", "package", 0, 1 << 40, 1000
        value = 0

        def read(self) -> int:
            return self.value

    zone: Any = Zone()
    now = 1_000 * SECOND
    shaper = Shaper(Domain(hostile.pid, by_cpu=False), {0: Package([zone])}, Cpus({0: 0}), (15625, 256), lambda: now)
    opened: list[str] = []

    def window() -> int:
        nonlocal now
        opened.clear()
        start = shaper.energy(0)
        time.sleep(0.1)
        now += SECOND
        zone.value += 50_000_000
        return shaper.energy(0) - start

    read = threads.read

    def noting(path: str) -> bytes:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(threads, "read", noting)
    for _ in range(3):
        window()
    assert opened
    hostile.make(40)
    assert [window() for _ in range(2)] == [0, 0]
    assert not [path for path in opened if "/task/" in path]
    (side,) = shaper._sides.values()
    assert side.owed > 0  # it is carried, and comes when there are fewer threads


# Processes that a test writes: a /proc and a /sys that are files.

QEMU = 7
VCPU, WORKER, SWTPM, STRANGER = 70, 71, 30, 31
GROUP = "machine/qemu-1-a.libvirt-qemu"


class Rooted:
    """The module `os`, for which the files of `host` are those of the machine."""

    def __init__(self, host: Host) -> None:
        self.root = str(host.proc.parent)

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def open(self, path: str, flags: int) -> int:
        return os.open(self.root + path, flags)

    def scandir(self, path: str) -> "contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]":
        return os.scandir(self.root + path)


class Machine:
    """A QEMU of one vCPU and one worker, in a cgroup of libvirt's, with clocks that a test sets."""

    def __init__(self, root: Path) -> None:
        self.host = Host(root, {0: [0, 1], 1: [2, 3]})
        self.clocks = {QEMU: 100}
        """What each process has run, in ns, with all threads it ever had."""
        self.host.cgroup(QEMU, f"0::/{GROUP}/emulator\n", GROUP)
        self.members(QEMU)
        self.threads()

    def threads(self, **runs: tuple[int, int]) -> None:
        """Set what vcpu and worker have run, in ns, and the CPU of each; those that are not named are gone."""
        names = {"vcpu": (VCPU, "CPU 0/KVM"), "worker": (WORKER, "worker")}
        found = {names[key][0]: Thread(names[key][1], ns, cpu) for key, (ns, cpu) in runs.items()}
        self.host.process(QEMU, {QEMU: Thread("qemu", 50, 1), **found})

    def servant(self, pid: int, run: int, cpu: int) -> None:
        self.clocks[pid] = run
        self.host.process(pid, {pid: Thread("swtpm", run, cpu)})

    def members(self, *pids: int) -> None:
        self.host.members(f"{GROUP}/emulator", *pids)

    def nanoseconds(self, pid: int) -> int:
        if pid not in self.clocks:
            raise ProcessLookupError(pid)
        return self.clocks[pid]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    host = machine.host
    monkeypatch.setattr(threads, "os", Rooted(host))
    monkeypatch.setattr(threads, "process_nanoseconds", machine.nanoseconds)

    def cgroup(pid: int, **_: str) -> tuple[str, int] | None:
        place = machine_cgroup(pid, sys=host.sys, proc=host.proc)
        return place and (place[0].removeprefix(str(tmp_path)), place[1])

    monkeypatch.setattr(threads, "machine_cgroup", cgroup)
    return machine


@pytest.mark.parametrize(
    ("name", "is_vcpu"),
    [
        ("CPU 0/KVM", True),
        ("CPU 12/KVM", True),
        ("CPU 0/TCG", False),
        ("CPU hog", False),
        ("worker/KVM", False),
        ("a CPU 0/KVM", False),
        ("CPU 0/KVM ", False),
        (") S 1 (CPU 0/KVM", False),
        ("CPU ) 0/KVM", True),
    ],
)
def test_a_thread_is_what_its_name_and_its_clock_show(name: str, is_vcpu: bool) -> None:
    thread = threads.Thread(stat(VCPU, name, 1_230_000_000, 5).encode())
    assert (thread.is_vcpu, thread.ticks, thread.cpu) == (is_vcpu, 123, 5)


def test_the_threads_of_a_domain_are_all_but_the_main_one(machine: Machine) -> None:
    machine.threads(vcpu=(20_000_000, 0), worker=(0, 2))
    domain = Domain(QEMU, by_cpu=False)
    assert set(domain.tids()) == {VCPU, WORKER}
    found = {tid: (thread.is_vcpu, thread.ticks, thread.cpu) for tid, thread in domain.threads().items()}
    assert found == {VCPU: (True, 2, 0), WORKER: (False, 0, 2)}
    assert domain.look([WORKER, STRANGER]).keys() == {WORKER}
    assert (domain.run_nanoseconds(VCPU), domain.run_nanoseconds(STRANGER)) == (20_000_000, -1)


@pytest.mark.parametrize(("most", "seen"), [(3, 2), (2, 0)])
def test_all_threads_are_looked_at_or_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, most: int, seen: int
) -> None:
    monkeypatch.setattr(threads, "MOST_THREADS", most)
    machine.threads(vcpu=(0, 0), worker=(0, 2))
    assert len(Domain(QEMU, by_cpu=False).threads()) == seen


@pytest.mark.parametrize(
    ("ran", "runs", "by_cpu"),
    [
        (0, {"vcpu": (20, 0), "worker": (10, 2)}, {1: 0, 0: 0, 2: 0}),
        (70, {"vcpu": (70, 0), "worker": (30, 2)}, {0: 50, 2: 20, 1: 0}),
        (70, {"vcpu": (70, 3), "worker": (10, 2)}, {3: 50, 2: 0, 1: 20}),  # a thread moved, and the main one ran
        (70, {"vcpu": (70, 0)}, {0: 50, 1: 20}),  # a thread ended
        (70, {"vcpu": (900, 0)}, {0: 70, 1: 0}),  # a clock that is ahead of the process's
        (70, {"vcpu": (5, 0), "worker": (900, 2)}, {0: 0, 2: 70, 1: 0}),  # a new thread with an old TID
    ],
)
def test_a_domains_time_is_where_each_thread_was_last(
    machine: Machine, ran: int, runs: dict[str, tuple[int, int]], by_cpu: dict[int, int]
) -> None:
    machine.threads(vcpu=(20, 0), worker=(10, 2))
    domains = {distinguished: Domain(QEMU, by_cpu=distinguished) for distinguished in (True, False)}
    machine.clocks[QEMU] += ran
    machine.threads(**runs)
    assert domains[True].advance() == by_cpu
    assert domains[False].advance() == {0: ran}
    assert set(domains[True].advance().values()) == {0}, "it is reported once"
    assert domains[False].advance() == {0: 0}


def test_a_new_threads_time_is_where_that_is(machine: Machine) -> None:
    machine.threads(vcpu=(20, 0))
    domain = Domain(QEMU, by_cpu=True)
    machine.clocks[QEMU] += 30
    machine.threads(vcpu=(20, 0), worker=(30, 2))
    assert domain.advance() == {0: 0, 2: 30, 1: 0}
    machine.clocks[QEMU] += 10
    machine.threads(vcpu=(25, 0), worker=(33, 2))
    assert domain.advance() == {0: 5, 2: 3, 1: 2}


def test_a_thread_whose_kernel_keeps_no_clock_counts_where_the_main_one_is(machine: Machine) -> None:
    machine.threads(vcpu=(20, 0))
    domain = Domain(QEMU, by_cpu=True)
    machine.clocks[QEMU] += 30
    (machine.host.proc / f"{QEMU}/task/{VCPU}/schedstat").unlink()
    assert domain.advance() == {1: 30}


@pytest.mark.parametrize("by_cpu", [False, True])
def test_what_serves_a_domain_is_charged_to_it_from_when_it_is_first_seen(machine: Machine, *, by_cpu: bool) -> None:
    here, there = (1, 3) if by_cpu else (0, 0)
    domain = Domain(QEMU, by_cpu=by_cpu)
    machine.servant(SWTPM, 1000, 3)
    machine.members(QEMU, SWTPM, 0)
    assert domain.advance() == {here: 0} | {there: 0}
    machine.servant(SWTPM, 1040, 3)
    machine.clocks[QEMU] += 5
    assert sum(domain.advance().values()) == 45
    machine.servant(SWTPM, 1060, 3)
    assert domain.advance()[there] == 20
    machine.servant(SWTPM, 2, 3)  # another process has its PID
    assert domain.advance()[there] == 0
    machine.servant(STRANGER, 500, 2)
    machine.members(QEMU, SWTPM, STRANGER)
    del machine.clocks[SWTPM]  # it ended meanwhile, and the others count
    assert sum(domain.advance().values()) == 0
    machine.servant(STRANGER, 503, 2)
    assert sum(domain.advance().values()) == 3


def test_a_list_of_processes_that_is_cut_loses_its_last_line(machine: Machine) -> None:
    domain = Domain(QEMU, by_cpu=False)
    for pid in (SWTPM, 3):
        machine.servant(pid, 0, 0)
    (machine.host.sys / f"fs/cgroup/{GROUP}/emulator/cgroup.procs").write_text(f"{QEMU}\n{SWTPM}\n3")
    domain.advance()
    machine.servant(SWTPM, 10, 0)
    machine.servant(3, 1000, 0)
    assert domain.advance() == {0: 10}


def test_the_cgroup_of_a_new_qemu_is_found_when_libvirt_has_made_it(machine: Machine) -> None:
    machine.host.cgroup(QEMU, "0::/system.slice/libvirtd.service\n")
    machine.servant(SWTPM, 0, 0)
    machine.members(SWTPM)
    domain = Domain(QEMU, by_cpu=False)
    domain.advance()
    machine.host.cgroup(QEMU, f"0::/{GROUP}/emulator\n")
    domain.advance()
    machine.servant(SWTPM, 10, 0)
    assert domain.advance() == {0: 10}


def test_a_domain_whose_qemu_has_gone_is_an_error(machine: Machine) -> None:
    domain = Domain(QEMU, by_cpu=False)
    machine.host.end(QEMU)
    del machine.clocks[QEMU]
    for call in (domain.advance, domain.threads, domain.tids, lambda: Domain(QEMU, by_cpu=False)):
        with pytest.raises(OSError, match=f"{QEMU}"):
            call()


def test_a_process_that_has_gone_has_no_clock() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        process_nanoseconds(process.pid)


def test_a_file_is_read_and_closed_and_empty_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    before = set(Path("/proc/self/fd").iterdir())
    contents = {name: threads.read(f"{tmp_path}/{name}") for name in ("file", "none", "")}
    assert contents == {"file": b"text\n", "none": b"", "": b""}
    assert set(Path("/proc/self/fd").iterdir()) == before
