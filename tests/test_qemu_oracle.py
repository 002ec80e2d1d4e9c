"""Our capacity model against QEMU's arithmetic: equal where QEMU is right, and different where it is not.

`Qemu` is QEMU in the tests' own words. It is held against a recording of a real QEMU first, the register its guest read
included. Energies are in units of the register, 2**-14 J; times in clock ticks of 10 ms.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from fakes.qemu_oracle import CPUS, RECORDING, TICKS_PER_SECOND, U32, Qemu
from hypothesis import given, settings
from hypothesis import strategies as st

from libvirt_rapl.energy.attribution import DomainTime, Work, among_vcpus, capacity

WINDOWS_BEFORE = 2
"""How many windows of a second QEMU had behind it when the recording began, three seconds after its start."""
SECOND, TICK = 1_000_000_000, 10_000_000
MICROJOULES_PER_UNIT = 1_000_000 / (1 << RECORDING["exponent"])


@dataclass(frozen=True)
class Second:
    """What was recorded in one second, of the threads that QEMU looks at."""

    start: int
    end: int
    before: dict[int, int]
    after: dict[int, int]
    main: int
    """Ticks of the main thread."""
    guest: dict[int, int]
    """What each vCPU had read last, at the end."""

    @property
    def died(self) -> set[int]:
        return {tid for tid in self.before.keys() - self.after.keys() if self.before[tid]}

    def ran(self, tid: int) -> int:
        return self.after[tid] - self.before[tid]


def seconds() -> Iterator[Second]:
    pid = str(RECORDING["pid"])
    for first, last in pairwise(RECORDING["samples"]):
        before, after = (ticks_but_main(sample["threads"], pid) for sample in (first, last))
        main = last["threads"][pid]["ticks"] - first["threads"][pid]["ticks"]
        guest = {int(vcpu): energy for vcpu, energy in last["guest"].items()}
        yield Second(first["energy"], last["energy"], before, after, main, guest)


def ticks_but_main(threads: dict[str, dict[str, Any]], pid: str) -> dict[int, int]:
    return {int(tid): thread["ticks"] for tid, thread in threads.items() if tid != pid}


THREADS: dict[str, dict[str, Any]] = RECORDING["samples"][0]["threads"]
VCPUS = {vcpu: int(tid) for tid, each in THREADS.items() for vcpu in (0, 1) if each["name"] == f"CPU {vcpu}/KVM"}
SECONDS = list(seconds())
(DISK_SECOND,) = [second for second in SECONDS if second.main > 10]
(FATAL_SECOND,) = [second for second in SECONDS if second.died]


def ours(units: int, vcpus: Mapping[int, int], non_vcpu: int) -> dict[int, float]:
    """Charge the same second by our capacity model: ticks of each vCPU and of all other threads -> units."""
    time = DomainTime({vcpu: ticks * TICK for vcpu, ticks in vcpus.items()}, non_vcpu * TICK)
    work = Work(SECOND * CPUS, time.total, {"guest": time.total})
    charge = capacity(int(units * MICROJOULES_PER_UNIT), work).domains["guest"]
    return {vcpu: part / MICROJOULES_PER_UNIT for vcpu, part in among_vcpus(charge, time).items()}


def ours_of(second: Second, *, main: bool = False) -> dict[int, float]:
    non_vcpu = sum(second.ran(tid) for tid in second.after.keys() & second.before.keys() - VCPUS.values())
    vcpus = {vcpu: second.ran(tid) for vcpu, tid in VCPUS.items()}
    return ours(second.end - second.start, vcpus, non_vcpu + main * second.main)


def qemu_of(second: Second, qemu: Qemu | None = None) -> dict[int, int]:
    return (qemu or Qemu()).window(second.start, second.end, VCPUS, second.before, second.after)


def test_the_oracle_says_what_the_guest_of_a_real_qemu_read() -> None:
    """Through good seconds and, after a thread has ended, through garbage."""
    before = {int(vcpu): energy for vcpu, energy in RECORDING["samples"][0]["guest"].items()}
    qemu = Qemu(dict(before), WINDOWS_BEFORE * len(VCPUS))
    ended: dict[int, int] = {}
    for second in SECONDS:
        # QEMU's windows begin a moment before our seconds, and in that moment the thread ended: for QEMU it was alive
        # when the window after began.
        died = {tid: second.before[tid] for tid in second.died}
        qemu.window(second.start, second.end, VCPUS, second.before | ended, second.after | died)
        ended = died
        for vcpu, energy in second.guest.items():
            # What the moment makes out was never more than a twentieth of a second.
            off = (qemu.counters[vcpu] - energy + U32 // 2) % U32 - U32 // 2
            assert abs(off) < 0.05 * (second.end - second.start)
    assert SECONDS[-1].guest[0] - SECONDS[-3].guest[0] > 100 * (SECONDS[-1].end - SECONDS[-3].start)


@pytest.mark.parametrize("second", [second for second in SECONDS if not second.died])
def test_equal_in_the_first_second_after_qemu_has_started(second: Second) -> None:
    # Nobody's rounding is more than half a unit a thread, a unit in QEMU's whole division, and our microjoules.
    assert qemu_of(second) == pytest.approx(ours_of(second), abs=2)


def test_equal_whether_time_is_counted_in_ticks_or_in_nanoseconds() -> None:
    """Over all good seconds, by the clocks and the intervals that our meter reads."""
    by_ticks = by_nanoseconds = 0.0
    for second, (first, last) in zip(SECONDS, pairwise(RECORDING["samples"]), strict=True):
        if not second.died:
            runs = {tid: each["ns"] - first["threads"][tid]["ns"] for tid, each in last["threads"].items()}
            run = sum(runs.values()) - runs[str(RECORDING["pid"])]
            work = Work((last["ns"] - first["ns"]) * CPUS, run, {"guest": run})
            by_nanoseconds += capacity(second.end - second.start, work).domains["guest"]
            by_ticks += sum(qemu_of(second).values())
    assert by_ticks == pytest.approx(by_nanoseconds, rel=0.005)


@settings(deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.dictionaries(st.integers(0, 15), st.integers(1, 60), min_size=1, max_size=CPUS),
    st.lists(st.integers(0, 20), max_size=4),
)
def test_equal_for_any_threads_while_every_vcpu_runs(units: int, vcpus: dict[int, int], others: list[int]) -> None:
    tids = {vcpu: 100 + vcpu for vcpu in vcpus}
    after = {tids[vcpu]: run for vcpu, run in vcpus.items()} | dict(enumerate(others))
    charged = Qemu().window(0, units, tids, dict.fromkeys(after, 0), after)
    assert charged == pytest.approx(ours(units, vcpus, sum(others)), abs=2 + len(others) / 2)


def test_a_the_part_of_other_threads_decays() -> None:
    """The second in which QEMU read its disk, for a minute: every one should cost the same."""
    qemu = Qemu()
    charged = [sum(qemu_of(DISK_SECOND, qemu).values()) for _ in range(60)]
    all_of_it = sum(ours_of(DISK_SECOND).values())
    vcpus_alone = sum(ours(DISK_SECOND.end - DISK_SECOND.start, ran_by_vcpus(DISK_SECOND), 0).values())
    assert charged[0] == pytest.approx(all_of_it, abs=4)
    assert 0 < charged[-1] - vcpus_alone < 0.02 * (all_of_it - vcpus_alone)


def ran_by_vcpus(second: Second) -> dict[int, int]:
    return {vcpu: second.ran(tid) for vcpu, tid in VCPUS.items()}


def test_b_a_thread_that_ends_makes_garbage() -> None:
    """A vCPU is charged more than the whole package has counted; we charge what the living ran."""
    package = FATAL_SECOND.end - FATAL_SECOND.start
    qemu = Qemu(vcpus_counted=4)
    assert max(qemu_of(FATAL_SECOND, qemu).values()) > 100 * package
    assert max(qemu_of(DISK_SECOND, qemu).values()) > 100 * package  # and it goes on
    charge = ours_of(FATAL_SECOND)
    vcpus_alone = ours(package, ran_by_vcpus(FATAL_SECOND), 0)
    assert charge == pytest.approx(vcpus_alone, abs=2)
    assert sum(charge.values()) < package


def test_c_a_counter_that_wraps_drops_the_second() -> None:
    second = DISK_SECOND
    late = U32 - 1000 - second.start  # the counter is about to wrap
    wrapped = Second(U32 - 1000, (second.end + late) % U32, second.before, second.after, second.main, second.guest)
    assert wrapped.end < wrapped.start
    assert set(qemu_of(wrapped).values()) == {0}
    # What we are given is the difference of the counter, wrap and all (libvirt_rapl.host.energy_counter.EnergyCounter).
    assert sum(ours((wrapped.end - wrapped.start) % U32, ran_by_vcpus(second), 0).values()) > 1_000_000


def test_d_a_helper_that_answers_0_drops_the_second_or_charges_everything_there_ever_was() -> None:
    """QEMU's helper does so when the thread that QEMU names in its question has just ended."""
    second, units = DISK_SECOND, DISK_SECOND.end - DISK_SECOND.start
    assert set(Qemu().window(second.start, 0, VCPUS, second.before, second.after).values()) == {0}
    assert max(Qemu().window(0, second.end, VCPUS, second.before, second.after).values()) > 100 * units
    assert sum(ours_of(second).values()) < units  # our energy does not depend on a thread


def test_e_the_main_thread_is_left_out() -> None:
    """It ran for 21 of 200 ticks in the second in which it read the disk."""
    units = DISK_SECOND.end - DISK_SECOND.start
    missing = sum(ours_of(DISK_SECOND, main=True).values()) - sum(qemu_of(DISK_SECOND).values())
    assert missing == pytest.approx(units * DISK_SECOND.main / (TICKS_PER_SECOND * CPUS), abs=4)
    assert missing > 0.1 * units


def test_a_vcpu_that_sleeps_is_not_given_its_part_of_other_threads() -> None:
    """QEMU drops it; with us the domain is charged in full."""
    charged = Qemu().window(0, 1_000_000, {0: 10, 1: 11}, {10: 0, 11: 0, 12: 0}, {10: 50, 11: 0, 12: 50})
    assert charged == {0: 375_000, 1: 0}
    assert ours(1_000_000, {0: 50, 1: 0}, 50) == pytest.approx({0: 375_000, 1: 125_000}, abs=1)
