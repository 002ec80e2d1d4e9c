"""The cgroup of a QEMU process, and the processes beside it there."""

import errno
import os
import time
from pathlib import Path

import pytest
from fakes.host import Host, Thread

from libvirt_rapl.host import machine_clock
from libvirt_rapl.host.machine_cgroup import machine_cgroup
from libvirt_rapl.host.machine_clock import MachineClock
from libvirt_rapl.host.processes import NANOSECONDS_PER_TICK

SCOPE = "machine.slice/machine-qemu\\x2d1\\x2dweb.scope"
S = 1_000_000_000


@pytest.mark.parametrize(
    ("lines", "directory", "version"),
    [
        (f"0::/{SCOPE}/libvirt/emulator\n", SCOPE, 2),
        (f"0::/{SCOPE}\n", SCOPE, 2),
        ("0::/machine/qemu-1-web.libvirt-qemu/emulator\n", "machine/qemu-1-web.libvirt-qemu", 2),
        (
            f"12:pids:/\n7:cpu,cpuacct:/{SCOPE}/emulator\n1:name=systemd:/{SCOPE}\n0::/{SCOPE}\n",
            f"cpu,cpuacct/{SCOPE}",
            1,
        ),
        ("3:memory:/libvirt/qemu/web\n", "memory/libvirt/qemu/web", 1),
        ("3:cpuset:/libvirt/qemu/web/emulator\n0::/\n", "cpuset/libvirt/qemu/web", 1),
        ("3:memory:/big.partition/qemu-2-a.libvirt-qemu\n", "memory/big.partition/qemu-2-a.libvirt-qemu", 1),
    ],
)
def test_libvirts_layouts(tmp_path: Path, lines: str, directory: str, version: int) -> None:
    host = Host(tmp_path)
    host.cgroup(7, lines, directory)
    assert machine_cgroup(7, sys=host.sys, proc=host.proc) == (str(host.sys / "fs/cgroup" / directory), version)


@pytest.mark.parametrize(
    "lines",
    [
        "0::/\n",
        "0::/user.slice/user-1000.slice/session-3.scope\n",
        "0::/system.slice/libvirtd.service\n",
        "0::/machine.slice/machine-lxc\\x2d1\\x2dweb.scope\n",
        f"1:name=systemd:/{SCOPE}\n0::/system.slice/libvirtd.service\n",
        f"0::/{SCOPE}-that-nobody-mounted\n",
        "",
    ],
)
def test_no_cgroup_of_its_own(tmp_path: Path, lines: str) -> None:
    host = Host(tmp_path)
    host.cgroup(7, lines, "system.slice/libvirtd.service", f"systemd/{SCOPE}", f"name=systemd/{SCOPE}")
    assert machine_cgroup(7, sys=host.sys, proc=host.proc) is None


def test_a_process_that_has_gone(tmp_path: Path) -> None:
    assert machine_cgroup(7, sys=tmp_path, proc=tmp_path) is None
    with pytest.raises(ProcessLookupError):
        MachineClock(7, with_cpu=False, vcpu_tids={}, sys=tmp_path, proc=tmp_path)


def machine(host: Host, *, with_cpu: bool = False) -> MachineClock:
    return MachineClock(7, with_cpu=with_cpu, vcpu_tids={}, sys=host.sys, proc=host.proc)


def process(host: Host, pid: int, name: str, seconds: int, cpu: int = 0) -> None:
    host.process(pid, {pid: Thread(name, seconds * S, cpu)})


def ran(clock: MachineClock) -> dict[tuple[int, int | None], int]:
    """What each thread ran, by its TID and vCPU; those that did not are left out."""
    return {(run.tid, run.vcpu): run.nanoseconds for run in clock.advance() if run.nanoseconds}


LAYOUTS = pytest.mark.parametrize(
    ("lines", "directory"),
    [
        (f"0::/{SCOPE}/libvirt/emulator\n", SCOPE),
        (f"5:cpu,cpuacct:/{SCOPE}/libvirt/emulator\n", f"cpu,cpuacct/{SCOPE}"),
        ("5:memory:/machine/qemu-1-web.libvirt-qemu\n", "memory/machine/qemu-1-web.libvirt-qemu"),
    ],
)


@LAYOUTS
def test_what_serves_a_machine_is_counted_with_it(tmp_path: Path, lines: str, directory: str) -> None:
    host = Host(tmp_path)
    process(host, 7, "qemu", 100)
    process(host, 20, "swtpm", 10)
    process(host, 30, "qemu-pr-helper", 10)
    process(host, 40, "somebody else", 10)
    process(host, 0, "of another PID namespace", 10)
    host.cgroup(7, lines, directory, f"{directory}/libvirt")
    host.members(directory, 0, 30)
    host.members(f"{directory}/libvirt/emulator", 7, 20)
    host.members(f"{directory}/libvirt/vcpu0", 40)
    clock = machine(host)
    process(host, 7, "qemu", 101)
    process(host, 20, "swtpm", 12)
    process(host, 30, "qemu-pr-helper", 13)
    process(host, 40, "somebody else", 14)
    process(host, 0, "of another PID namespace", 14)
    assert {(run.tid, run.nanoseconds) for run in clock.advance()} == {(7, S), (20, 2 * S), (30, 3 * S)}
    clock.close()


@LAYOUTS
def test_servants_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, directory: str) -> None:
    monkeypatch.setattr(machine_clock, "PROCESSES_SECONDS", 0)
    host = Host(tmp_path)
    process(host, 7, "qemu", 0)
    host.cgroup(7, lines)
    clock = machine(host)
    host.members(f"{directory}/emulator", 7)  # libvirt moves QEMU there a little later
    assert ran(clock) == {}

    process(host, 20, "CPU 0/KVM", 10, cpu=1)
    host.members(f"{directory}/emulator", 7, 20)
    assert ran(clock) == {}  # it is followed from now on
    process(host, 20, "CPU 0/KVM", 11, cpu=1)
    assert ran(clock) == {(20, None): S}

    host.end(20)
    assert ran(clock) == {}
    process(host, 20, "another", 50)
    assert ran(clock) == {}
    process(host, 20, "another", 51)
    assert ran(clock) == {(20, None): S}
    host.members(f"{directory}/emulator", 7)  # it was moved away
    process(host, 20, "another", 52)
    assert ran(clock) == {}

    host.end(7)
    with pytest.raises(ProcessLookupError):
        clock.advance()
    clock.close()


def test_servants_are_not_looked_for_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    host = Host(tmp_path)
    process(host, 7, "qemu", 0)
    process(host, 20, "swtpm", 0)
    host.cgroup(7, f"0::/{SCOPE}\n")
    host.members(SCOPE, 7)
    clock = machine(host)
    clock.advance()
    host.members(SCOPE, 7, 20)
    now += machine_clock.PROCESSES_SECONDS - 1
    assert {run.tid for run in clock.advance()} == {7}
    now += 1
    clock.advance()
    process(host, 20, "swtpm", 1)
    assert {(run.tid, run.nanoseconds) for run in clock.advance()} == {(7, 0), (20, S)}
    clock.close()


def test_a_servant_that_is_new_is_counted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_clock, "PROCESSES_SECONDS", 0)
    up = 4710 * NANOSECONDS_PER_TICK
    monkeypatch.setattr(machine_clock, "_now", lambda: up)
    host = Host(tmp_path)
    process(host, 7, "qemu", 0)
    host.cgroup(7, f"0::/{SCOPE}\n")
    host.members(SCOPE, 7)
    clock = machine(host)
    clock.advance()
    process(host, 20, "passt", 3)  # every process here was started at tick 4711
    host.members(SCOPE, 7, 20)
    up += 2 * NANOSECONDS_PER_TICK
    assert ran(clock) == {(20, None): 3 * S}
    process(host, 30, "moved", 5)
    host.members(SCOPE, 7, 20, 30)
    assert ran(clock) == {}
    clock.close()


def test_a_servant_that_begins_in_the_tick_of_a_look_is_counted_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_clock, "PROCESSES_SECONDS", 0)
    monkeypatch.setattr(machine_clock, "_now", lambda: 4711 * NANOSECONDS_PER_TICK)
    host = Host(tmp_path)
    process(host, 7, "qemu", 0)
    host.cgroup(7, f"0::/{SCOPE}\n")
    host.members(SCOPE, 7)
    clock = machine(host)
    process(host, 20, "passt", 3)
    host.members(SCOPE, 7, 20)
    assert ran(clock) == {(20, None): 3 * S}
    clock.close()


def test_in_version_1_the_list_is_opened_at_each_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open one shows its first content for ever; here that is a file in whose place another is put."""
    monkeypatch.setattr(machine_clock, "PROCESSES_SECONDS", 0)
    host = Host(tmp_path)
    process(host, 7, "qemu", 0)
    host.cgroup(7, "5:memory:/machine/qemu-1-web.libvirt-qemu\n")
    host.members("memory/machine/qemu-1-web.libvirt-qemu", 7)
    clock = machine(host)
    clock.advance()
    process(host, 20, "swtpm", 0)
    host.members("memory/machine/qemu-1-web.libvirt-qemu/new", 7, 20)
    directory = host.sys / "fs/cgroup/memory/machine/qemu-1-web.libvirt-qemu"
    (directory / "new/cgroup.procs").replace(directory / "cgroup.procs")
    clock.advance()
    process(host, 20, "swtpm", 1)
    assert ran(clock) == {(20, None): S}
    clock.close()


def answer_as_the_kernel(monkeypatch: pytest.MonkeyPatch, answers: dict[str, OSError]) -> None:
    """Give whole lines, at most a page of them; for some lists, by a part of their path, an error."""
    pread = os.pread

    def answer(descriptor: int, size: int, offset: int) -> bytes:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        for part, error in answers.items():
            if path.match(part):
                raise error
        text = pread(descriptor, size, offset)
        return text[: text.rindex(b"\n") + 1] if path.name == "cgroup.procs" and text else text

    monkeypatch.setattr(os, "pread", answer)


def test_cgroups_that_hold_threads_only_and_cgroups_that_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_clock, "PROCESSES_SECONDS", 0)
    answers = {"emulator/cgroup.procs": OSError(errno.EOPNOTSUPP, "holds threads only")}
    answer_as_the_kernel(monkeypatch, answers)
    before = set(Path("/proc/self/fd").iterdir())
    host = Host(tmp_path)
    for pid in (7, 20):
        process(host, pid, "qemu", 0)
    host.cgroup(7, f"0::/{SCOPE}\n")
    host.members(f"{SCOPE}/emulator", 7)
    host.members(SCOPE, 7, 20)
    clock = machine(host)
    for seconds in (1, 2):
        process(host, 20, "swtpm", seconds)
        assert ran(clock) == {(20, None): S}
    answers["cgroup.procs"] = OSError(errno.ENODEV, "has gone")
    for pid in (7, 20):
        process(host, pid, "qemu", 9)
    assert ran(clock) == {(7, None): 9 * S}
    clock.close()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_long_list_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_as_the_kernel(monkeypatch, {})
    host = Host(tmp_path)
    pids = list(range(1000, 3000))
    process(host, 7, "qemu", 0)
    process(host, pids[-1], "last", 0)
    host.cgroup(7, f"0::/{SCOPE}\n")
    host.members(SCOPE, 7, *pids)
    clock = machine(host)
    process(host, pids[-1], "last", 1)
    assert [(run.tid, run.nanoseconds) for run in clock.advance()] == [(7, 0), (pids[-1], S)]
    clock.close()


@LAYOUTS
@pytest.mark.parametrize("with_cpu", [False, True])
def test_no_descriptor_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, directory: str, *, with_cpu: bool
) -> None:
    monkeypatch.setattr(machine_clock, "PROCESSES_SECONDS", 0)
    before = set(Path("/proc/self/fd").iterdir())
    host = Host(tmp_path)
    process(host, 7, "qemu", 0)
    host.cgroup(7, lines, f"{directory}/emulator")
    clock = machine(host, with_cpu=with_cpu)
    for pid in (20, 30, 40):
        process(host, pid, "swtpm", 0)
    host.members(directory, 7, 20, 30, 40)
    clock.advance()
    host.members(directory, 7, 20, 30)  # one was moved away,
    host.end(20)  # one has ended,
    clock.advance()
    host.members(directory, 7, 30, 50)  # and one ends before it is looked at
    clock.advance()
    clock.close()
    assert set(Path("/proc/self/fd").iterdir()) == before
