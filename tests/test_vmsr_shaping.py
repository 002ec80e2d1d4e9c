"""A helper's answers and QEMU's arithmetic together: nothing lost, nothing twice, no garbage, no jump."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.host import stat
from fakes.qemu_oracle import CPUS
from fakes.qemu_oracle import Qemu as Oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from libvirt_rapl.helper.vmsr.cpus import Cpus
from libvirt_rapl.helper.vmsr.energy import Package
from libvirt_rapl.helper.vmsr.shaping import IDLE_NS, WINDOW_NS, Idle, Shaper
from libvirt_rapl.helper.vmsr.threads import Thread

SECOND, TICK = 1_000_000_000, 10_000_000
UNIT = (15625, 256)
"""2**-14 J in microjoules."""
VCPUS = {0: 100, 1: 101}
NAMES = {tid: f"CPU {vcpu}/KVM" for vcpu, tid in VCPUS.items()}


class Zone:
    """A package's counter, moved by hand."""

    name, kind, package, wrap, most_watts = "package-0", "package", 0, 262_143_328_850, 1000

    def __init__(self) -> None:
        self.value = 5

    def read(self) -> int:
        return self.value


class Machine:
    """A QEMU, its helper, and their moments. It stands in for libvirt_rapl.helper.vmsr.threads.Domain, too."""

    def __init__(self, directory: str = "/nowhere/") -> None:
        self.now = 1_000 * SECOND
        self.zone = Zone()
        self.ns = dict.fromkeys(VCPUS.values(), 0)
        """What each thread but the main one has run, by TID."""
        self.ran = self.reported = 0
        """What all threads there ever were have run, and how much of that has been reported to the helper."""
        self.oracle = Oracle()
        self.cpus = Cpus(dict.fromkeys(range(CPUS), 0), directory)
        self.cpu: dict[int, int] = {}
        """Where each thread ran last; CPU 0 unless it is set."""
        self.shaper = Shaper(cast(Any, self), {0: Package([cast(Any, self.zone)])}, self.cpus, UNIT, self.clock)
        (self.side,) = self.shaper._sides.values()
        self.intended = self.delivered = self.allowed = 0

    def clock(self) -> int:
        return self.now

    def tids(self) -> list[int]:
        return list(self.ns)

    def threads(self) -> dict[int, Thread]:
        return self.look(self.ns)

    def look(self, tids: Iterable[int]) -> dict[int, Thread]:
        return {
            tid: Thread(stat(tid, NAMES.get(tid, "worker"), self.ns[tid], self.cpu.get(tid, 0)).encode())
            for tid in tids
            if tid in self.ns
        }

    def run_nanoseconds(self, tid: int) -> int:
        return self.ns[tid]

    def advance(self) -> dict[int, int]:
        run, self.reported = self.ran - self.reported, self.ran
        return {0: run}

    def run(self, runs: Mapping[int, int]) -> None:
        for tid, ns in runs.items():
            self.ns[tid] = self.ns.get(tid, 0) + ns
            self.ran += ns

    def end(self, tids: Iterable[int]) -> None:
        for tid in tids:
            self.ns.pop(tid, None)

    def ticks(self) -> dict[int, int]:
        return {tid: ns // TICK for tid, ns in self.ns.items()}

    def window(
        self,
        millijoules: int,
        runs: Mapping[int, int],
        *,
        dies: Iterable[int] = (),
        dies_early: Iterable[int] = (),
        dies_late: Iterable[int] = (),
        early: Mapping[int, int] | None = None,
        late: Mapping[int, int] | None = None,
    ) -> int:
        """Let a second pass in which threads run so many ns and some end; returns what the guest gained.

        `dies_early`: between QEMU's look at them and the helper's, when the window begins; `dies_late`: when it ends.
        `early`, `late`: what threads run meanwhile.
        """
        before = self.ticks()
        self.end(dies_early)
        self.run(early or {})
        start = self.shaper.energy(0)
        self.now += SECOND
        self.zone.value = (self.zone.value + millijoules * 1000) % self.zone.wrap
        self.run(runs)
        self.end(dies)
        self.intended += millijoules * 1000 * UNIT[1] * min(self.ran - self.reported, SECOND * CPUS) // (SECOND * CPUS)
        end = self.shaper.energy(0)
        assert end >= start > 0
        # What is left of the share was owed before.
        self.allowed = (
            self.side.qemu.share * len(VCPUS)
            + len(VCPUS)
            + max(0, self.side.owed // UNIT[0])
            + millijoules * 1000 * UNIT[1] // UNIT[0]
        )
        self.run(late or {})
        self.end(dies_late)
        gained = sum(self.oracle.window(start, end, VCPUS, before, self.ticks()).values())
        self.delivered += gained
        return gained


WORKERS = range(200, 206)
RUNS = st.integers(0, SECOND)
WINDOWS = st.lists(
    st.tuples(
        st.integers(0, 400_000),
        st.fixed_dictionaries(dict.fromkeys(VCPUS.values(), RUNS), optional=dict.fromkeys(WORKERS, RUNS)),
        st.sets(st.sampled_from(WORKERS)),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(WINDOWS)
def test_carried_and_delivered_are_what_was_intended(windows: list[tuple[int, dict[int, int], set[int]]]) -> None:
    """Whatever runs, begins and ends, as long as QEMU sees what the helper sees."""
    machine = Machine()
    for millijoules, runs, dies in windows:
        gained = machine.window(millijoules, runs, dies=dies)
        assert gained <= machine.allowed
    machine.shaper.energy(0)  # the last window is reckoned when the next begins
    off = machine.side.owed + machine.delivered * UNIT[0] - machine.intended
    # A unit for each half that falls the other way, and what is less than 2**-14 uJ.
    assert abs(off) <= len(windows) * (len(VCPUS) + len(WORKERS)) * UNIT[0]


@settings(deadline=None)
@given(WINDOWS, st.data())
def test_no_jump_where_qemu_sees_a_tick_more(
    windows: list[tuple[int, dict[int, int], set[int]]], data: st.DataObject
) -> None:
    machine = Machine()
    for millijoules, runs, dies in windows:
        living = sorted(machine.ns.keys() - dies)
        late = data.draw(st.dictionaries(st.sampled_from(living), st.integers(0, TICK), max_size=4)) if living else {}
        assert machine.window(millijoules, runs, dies=dies, late=late) <= machine.allowed


def settled() -> Machine:
    machine = Machine()
    for _ in range(3):
        machine.window(100_000, dict.fromkeys(VCPUS.values(), SECOND // 2))
    return machine


BUSY = {100: SECOND // 2, 101: SECOND // 4}


def test_a_steady_guest_gains_its_charge_in_each_window() -> None:
    machine = settled()
    for _ in range(5):
        assert machine.window(100_000, BUSY) * UNIT[0] / UNIT[1] == pytest.approx(100_000_000 * 3 / 8, rel=1e-6)


def test_the_main_thread_and_others_are_charged_over_minutes() -> None:
    """What QEMU leaves out, and what it lets decay."""
    machine = settled()
    before = machine.delivered
    for _ in range(120):
        machine.ran += SECOND // 10  # the main thread
        machine.window(100_000, BUSY | {200: SECOND // 5})
    joules = (machine.delivered - before) * UNIT[0] / UNIT[1] / 1e6
    assert joules == pytest.approx(120 * 100 * (0.5 + 0.25 + 0.1 + 0.2) / CPUS, rel=1e-3)


@pytest.mark.parametrize("moment", ["dies", "dies_early"])
def test_nothing_is_given_in_a_window_in_which_a_thread_ends_and_it_is_given_later(moment: str) -> None:
    machine = settled()
    machine.window(100_000, BUSY | {200: SECOND // 5})
    machine.window(100_000, BUSY)
    early = moment == "dies_early"
    gained = machine.window(100_000, BUSY, dies={200} - {200 * early}, dies_early={200 * early})
    assert gained < 10_000  # what is left of the share
    assert machine.window(100_000, BUSY) * UNIT[0] / UNIT[1] == pytest.approx(2 * 100_000_000 * 3 / 8, rel=0.01)


@pytest.mark.parametrize("went_idle", [0, SECOND - 1])
def test_a_worker_that_ends_for_being_idle_after_the_helpers_look_does_no_harm(went_idle: int) -> None:
    """Whenever in the second between two looks it was that it ran last."""
    machine = settled()
    machine.window(100_000, BUSY | {200: SECOND // 5})
    idle_since = machine.now - SECOND + went_idle
    while machine.now + SECOND < idle_since + IDLE_NS:
        machine.window(100_000, BUSY)
    gained = [machine.window(100_000, BUSY, dies_late={200})] + [machine.window(100_000, BUSY) for _ in range(4)]
    assert max(gained) < 4 * 100_000_000 * UNIT[1] / UNIT[0]


def test_a_thread_that_never_ran_a_tick_may_end() -> None:
    machine = settled()
    machine.window(100_000, BUSY | {200: TICK // 2})
    assert machine.window(100_000, BUSY, dies={200}) * UNIT[0] / UNIT[1] == pytest.approx(37_500_000, rel=0.01)


def test_ticks_between_two_looks_of_the_helper_are_reckoned_as_often_as_qemu_sees_them() -> None:
    """When it looks in between, a third of them is in its window before, a third in neither, a third in that after."""
    machine = settled()
    tick = {100: TICK}
    for _ in range(10):
        machine.window(100_000, BUSY, late=tick)
        machine.run(tick)
        machine.window(100_000, BUSY)
        machine.window(100_000, BUSY, early=tick)
    machine.window(100_000, BUSY)
    machine.shaper.energy(0)
    off = machine.side.owed + machine.delivered * UNIT[0] - machine.intended
    a_tick = 100_000_000 * UNIT[1] // (SECOND * CPUS // TICK)
    assert abs(off) < 0.3 * a_tick


def test_who_asks_too_soon_gets_what_it_got() -> None:
    machine = settled()
    start = machine.shaper.energy(0)
    machine.now += SECOND // 4
    machine.zone.value += 25_000_000
    machine.run(BUSY)
    assert machine.shaper.energy(0) == start
    machine.now += SECOND
    end = machine.shaper.energy(0)
    assert end > start
    assert [machine.shaper.energy(0) for _ in range(3)] == [end] * 3


def test_however_it_is_asked_there_is_one_new_answer_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = settled()
    looks: Counter[str] = Counter()

    def threads() -> dict[int, Thread]:
        looks["threads"] += 1
        return Machine.threads(machine)

    def advance() -> dict[int, int]:
        looks["advance"] += 1
        return Machine.advance(machine)

    monkeypatch.setattr(machine, "threads", threads)
    monkeypatch.setattr(machine, "advance", advance)
    answers = set()
    for _ in range(10_000):
        machine.now += SECOND // 1000
        machine.zone.value += 100_000
        machine.run({100: SECOND // 2000, 101: SECOND // 4000})
        answers.add(machine.shaper.energy(0))
    windows = 10 * SECOND / WINDOW_NS
    assert 5 < len(answers) <= windows + 1
    assert max(looks.values()) <= windows + 1, "asking often costs nothing"


def test_starts_and_ends_that_were_confused_are_right_again_after_a_window() -> None:
    machine = settled()
    machine.shaper.energy(0)  # somebody asked once before QEMU's thread began
    machine.now += 5 * SECOND
    machine.shaper.energy(0)  # its start is taken for an end,
    machine.now += SECOND
    machine.shaper.energy(0)  # its end for a start,
    machine.now += SECOND // 10_000
    machine.shaper.energy(0)  # so its next start goes unseen,
    machine.now += SECOND
    machine.shaper.energy(0)
    for _ in range(3):  # and all that follow are seen as they are
        assert machine.window(100_000, BUSY) * UNIT[0] / UNIT[1] == pytest.approx(100_000_000 * 3 / 8, rel=1e-3)


def test_a_reading_that_fails_leaves_the_window_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = settled()

    def gone() -> dict[int, Thread]:
        raise OSError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(machine, "threads", gone)
        with pytest.raises(OSError, match="gone"):
            machine.shaper.energy(0)
    assert machine.window(100_000, BUSY) * UNIT[0] / UNIT[1] == pytest.approx(100_000_000 * 3 / 8, rel=1e-6)


def test_packages_have_windows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(machine, "advance", lambda: {0: SECOND // 2, 1: SECOND // 4})
    packages = {number: Package([cast(Any, machine.zone)]) for number in (0, 1)}
    cpus = Cpus({0: 0, 1: 1}, "/nowhere/")
    machine.cpu[101] = 1
    shaper = Shaper(cast(Any, machine), packages, cpus, UNIT, machine.clock)

    def window() -> list[bool]:
        """Return of each package whether its end got another answer than its start."""
        starts = [shaper.energy(package) for package in packages]
        machine.now += SECOND
        machine.zone.value += 100_000_000
        machine.run(BUSY)
        ends = [shaper.energy(package) for package in packages]
        return [end != start for start, end in zip(starts, ends, strict=True)]

    for _ in range(3):
        window()
    assert window() == [True, True]
    first = shaper.energy(0)
    machine.now += SECOND // 2
    second = shaper.energy(1)
    machine.now += SECOND // 2
    machine.zone.value += 100_000_000
    machine.run(BUSY)
    assert shaper.energy(0) > first
    assert shaper.energy(1) == second, "its window is half a second old"


def on_line(directory: Path, cpus: int) -> str:
    """Make a sysfs where so many CPUs are on line."""
    for cpu in range(cpus):
        topology = directory / f"cpu{cpu}/topology"
        topology.mkdir(parents=True, exist_ok=True)
        (topology / "physical_package_id").write_text("0\n")
    (directory / "online").write_text(f"0-{cpus - 1}\n")
    return f"{directory}/"


@pytest.mark.parametrize("now", [CPUS - 1, CPUS + 1], ids=["one fewer", "one more"])
def test_the_charge_takes_the_cpus_that_are_on_line_now_and_qemu_those_of_its_start(tmp_path: Path, now: int) -> None:
    machine = Machine(on_line(tmp_path, CPUS))
    for _ in range(5):
        machine.window(100_000, BUSY)
    machine.cpu[101] = now - 1
    on_line(tmp_path, now)
    machine.window(100_000, BUSY)
    before = machine.delivered
    for _ in range(10):
        gained = machine.window(100_000, BUSY) * UNIT[0] / UNIT[1]
        assert gained == pytest.approx(100_000_000 * 3 / 4 / now, rel=0.01)
    assert (machine.delivered - before) * UNIT[0] / UNIT[1] == pytest.approx(10 * 100_000_000 * 3 / 4 / now, rel=1e-3)


def test_a_window_with_a_vcpu_on_a_cpu_that_nobody_knows_gives_nothing_and_it_is_given_later() -> None:
    machine = Machine()
    for _ in range(5):
        machine.window(100_000, BUSY)
    machine.cpu[101] = CPUS
    held = [machine.window(100_000, {100: SECOND // 20, 101: SECOND // 2}) for _ in range(5)]
    assert max(held) < 10_000  # what is left of the share
    machine.cpu[101] = 0
    machine.window(100_000, BUSY)
    machine.shaper.energy(0)
    off = machine.side.owed + machine.delivered * UNIT[0] - machine.intended
    assert abs(off) < 1_000_000 * UNIT[1]


def test_a_package_with_no_cpu_on_line_owes_nothing() -> None:
    machine = settled()
    machine.cpus.counts = {1: CPUS}
    for _ in range(3):
        machine.window(100_000, BUSY)
    assert machine.side.owed <= 0


def test_a_cpu_whose_package_is_not_known_yet_is_looked_at_again(tmp_path: Path) -> None:
    cpus = Cpus({0: 0}, on_line(tmp_path, 1))
    (tmp_path / "online").write_text("0-1\n")
    cpus.look()
    assert (cpus.package_of, cpus.counts) == ({0: 0}, {0: 1})
    on_line(tmp_path, 2)
    cpus.look()
    assert (cpus.package_of, cpus.counts) == ({0: 0, 1: 0}, {0: 2})
    on_line(tmp_path, 1)
    cpus.look()
    assert (cpus.package_of, cpus.counts) == ({0: 0, 1: 0}, {0: 1})


def test_the_first_two_windows_give_nothing_and_it_is_given_later() -> None:
    """vCPU threads are being created then, and QEMU listed them a moment before."""
    machine = Machine()
    answers = [answer(machine) for _ in range(4)]
    used = 100_000_000 * UNIT[1] / UNIT[0]
    assert answers == [0, 0, pytest.approx(3 * used, abs=2), pytest.approx(used, abs=2)]


def answer(machine: Machine, *, reused: Iterable[int] = ()) -> int:
    """Return what QEMU is answered for a window. `reused`: TIDs that another thread gets meanwhile."""
    start = machine.shaper.energy(0)
    machine.now += SECOND
    machine.zone.value += 100_000_000
    machine.run(BUSY)
    machine.ns.update(dict.fromkeys(reused, TICK))
    return machine.shaper.energy(0) - start


def test_a_domain_that_ran_for_longer_than_all_cpus_is_charged_for_these() -> None:
    """Its clocks are read at other moments than the time."""
    machine = settled()
    machine.ran += 5 * SECOND
    gained = [machine.window(100_000, BUSY), machine.window(100_000, BUSY)]
    assert [gain * UNIT[0] / UNIT[1] for gain in gained] == pytest.approx([100_000_000, 37_500_000], rel=1e-3)


@pytest.mark.parametrize("who", [None, 100, 101, 200], ids=["nobody", "the vCPU", "the other vCPU", "a worker"])
def test_a_great_debt_is_paid_but_no_tick_that_was_not_seen_multiplies_it(who: int | None) -> None:
    machine = settled()
    machine.run({200: 0})
    for _ in range(20):
        machine.ran += SECOND // 2  # the main thread alone: no vCPU can gain
        assert machine.window(100_000, {}) == 0
    owed = 20 * 25_000_000 * UNIT[1] / UNIT[0]
    used = 100_000_000 * UNIT[1] / UNIT[0]
    gained = machine.window(100_000, {100: TICK}, late={who: TICK} if who else {})
    assert (owed / 4 if who is None else 0) < gained < owed + used + 10_000


def test_a_worker_at_work_is_not_idle_where_the_kernel_keeps_no_clock_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = settled()
    monkeypatch.setattr(machine, "run_nanoseconds", lambda _: -1)
    gained = [machine.window(100_000, BUSY | {200: SECOND // 10}) for _ in range(15)]
    assert min(gained) * UNIT[0] / UNIT[1] > 0.9 * 100_000_000 * 3 / 8


def test_a_thread_that_gets_the_tid_of_one_that_ended_makes_the_window_worth_nothing() -> None:
    machine = settled()
    machine.window(100_000, BUSY | {200: SECOND // 5})
    assert answer(machine) > 0
    assert answer(machine, reused={200}) == 0
    assert answer(machine) > 0


class Clock:
    """A domain whose threads have run what a test says."""

    def __init__(self) -> None:
        self.runs: dict[int, int] = {}

    def run_nanoseconds(self, tid: int) -> int:
        return self.runs[tid]


@pytest.mark.parametrize(
    ("after", "may_end"),
    [
        (9_749_999_999, False),  # QEMU may read a quarter of a second later
        (9_750_000_000, True),
        (10_000_000_000, True),
        (11_500_000_000, True),  # it may have run until a second later, and may take half a second to end
        (11_500_000_001, False),  # it had more work, unseen
    ],
)
def test_a_worker_may_end_about_ten_seconds_after_it_ran_last(after: int, *, may_end: bool) -> None:
    clock = Clock()
    idle = Idle(cast(Any, clock), 0)
    began = 100 * SECOND
    for seconds in range(20):  # a look each second; from the third on it has run no more
        clock.runs[200] = TICK * (1 + min(2, seconds))
        if began + (seconds - 1) * SECOND <= began + SECOND + after:
            idle.watch({200: thread(200, "worker", clock.runs[200])}, began + seconds * SECOND)
    assert idle.may_end([200], began + SECOND + after) == may_end
    assert not idle.may_end([201], began + SECOND + after), "one that was not looked at"


def thread(tid: int, name: str, ns: int) -> Thread:
    return Thread(stat(tid, name, ns).encode())


@pytest.mark.parametrize(("name", "ns"), [("worker", TICK - 1), ("CPU 0/KVM", 50 * TICK)])
def test_the_end_of_a_thread_that_never_ran_or_is_a_vcpu_is_not_expected(name: str, ns: int) -> None:
    clock = Clock()
    clock.runs[200] = ns
    idle = Idle(cast(Any, clock), 100 * SECOND)
    for seconds in range(12):
        idle.watch({200: thread(200, name, ns)}, (101 + seconds) * SECOND)
        assert not idle.may_end([200], (101 + seconds) * SECOND)


class Pair:
    """A machine of two packages of CPUS CPUs each, and a QEMU whose threads may be on either."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND
        self.zones = [Zone(), Zone()]
        self.ns = dict.fromkeys(VCPUS.values(), 0)
        self.cpu = dict.fromkeys(VCPUS.values(), 0)
        self.runs: dict[int, int] = {}
        """What was run since the helper looked last, by CPU."""
        cpus = Cpus({cpu: cpu // CPUS for cpu in range(2 * CPUS)}, "/nowhere/")
        packages = {number: Package([cast(Any, zone)]) for number, zone in enumerate(self.zones)}
        self.shaper = Shaper(cast(Any, self), packages, cpus, UNIT, lambda: self.now)
        self.oracles = [Oracle(), Oracle()]
        self.delivered = 0
        self.intended = 0.0
        """Units."""

    def tids(self) -> list[int]:
        return list(self.ns)

    def threads(self) -> dict[int, Thread]:
        return self.look(self.ns)

    def look(self, tids: Iterable[int]) -> dict[int, Thread]:
        return {
            tid: Thread(stat(tid, NAMES.get(tid, "worker"), self.ns[tid], self.cpu[tid]).encode())
            for tid in tids
            if tid in self.ns
        }

    def run_nanoseconds(self, tid: int) -> int:
        return self.ns[tid]

    def advance(self) -> dict[int, int]:
        runs, self.runs = self.runs, {}
        return runs

    def window(
        self,
        runs: Mapping[int, int],
        elsewhere: Mapping[int, int] | None = None,
        moves: Mapping[int, int] | None = None,
    ) -> list[int]:
        """Let a second pass in which each package uses 100 J; returns what the guest gained on each, in units.

        `elsewhere`: what the domain's other processes run, by CPU. `moves`: threads that have another CPU at the end.
        """
        before = {tid: ns // TICK for tid, ns in self.ns.items()}
        there = {tid: cpu // CPUS for tid, cpu in self.cpu.items()}
        starts = [self.shaper.energy(package) for package in (0, 1)]
        self.now += SECOND
        for zone in self.zones:
            zone.value += 100_000_000
        self.runs = dict(elsewhere or {})
        for tid, ns in runs.items():
            self.ns[tid] += ns
            self.runs[self.cpu[tid]] = self.runs.get(self.cpu[tid], 0) + ns
        self.intended += 100_000_000 * sum(self.runs.values()) / (SECOND * CPUS) * UNIT[1] / UNIT[0]
        self.cpu.update(moves or {})
        ends = [self.shaper.energy(package) for package in (0, 1)]
        after = {tid: ns // TICK for tid, ns in self.ns.items()}
        gains = []
        for package, oracle in enumerate(self.oracles):
            here = {tid: ticks for tid, ticks in before.items() if there[tid] == package}
            vcpus = {vcpu: tid for vcpu, tid in VCPUS.items() if tid in here}
            if vcpus:
                gains.append(sum(oracle.window(starts[package], ends[package], vcpus, here, after).values()))
            else:
                gains.append(0)
        self.delivered += sum(gains)
        return gains

    def settled(self) -> "Pair":
        for _ in range(3):
            self.window(BUSY)
        return self


CHARGE = 100_000_000 * 3 / 8 * UNIT[1] / UNIT[0]
"""Of a second of BUSY, in units."""


def test_what_is_owed_where_no_vcpu_is_comes_once_where_one_is() -> None:
    pair = Pair().settled()
    for _ in range(5):
        gains = pair.window(BUSY, {CPUS: SECOND // 2})
        assert gains == pytest.approx([CHARGE * (0.75 + 0.5) / 0.75, 0], rel=1e-4)
    assert pair.delivered == pytest.approx(pair.intended, rel=1e-4)


def test_vcpus_on_both_packages_gain_what_each_is_charged_there() -> None:
    pair = Pair()
    pair.cpu[101] = CPUS + 1
    pair.settled()
    for _ in range(5):
        assert pair.window(BUSY) == pytest.approx([CHARGE * 2 / 3, CHARGE / 3], rel=1e-4)


def test_what_nobody_can_gain_is_kept() -> None:
    pair = Pair().settled()
    for _ in range(3):
        assert pair.window({}, {0: SECOND // 2, CPUS: SECOND // 4}) == [0, 0]
    pair.window(BUSY)
    pair.window(BUSY)
    assert pair.delivered == pytest.approx(pair.intended, rel=1e-3)


@pytest.mark.parametrize("when", ["during a window", "between two windows"])
def test_a_vcpu_that_moves_between_two_windows_makes_the_next_one_worth_nothing(when: str) -> None:
    """QEMU may have seen it where it was before."""
    pair = Pair().settled()
    pair.window(BUSY, moves={101: CPUS} if when == "during a window" else {})
    pair.cpu[101] = CPUS
    gains = pair.window(BUSY)
    if when == "during a window":
        assert gains == pytest.approx([CHARGE * 2 / 3, CHARGE / 3], rel=1e-3)
    else:
        assert gains == [0, 0]
    assert pair.window(BUSY)[1] > 0
    assert pair.delivered == pytest.approx(pair.intended, rel=1e-3)


def test_a_thread_on_a_cpu_that_nobody_knows_is_charged_where_the_first_package_is() -> None:
    pair = Pair().settled()
    for _ in range(3):
        pair.window(BUSY, {999: SECOND // 2})
    assert pair.delivered == pytest.approx(pair.intended, rel=1e-3)


def test_a_package_whose_end_was_not_asked_for_begins_anew_with_the_others() -> None:
    pair = Pair()
    pair.cpu[101] = CPUS
    pair.settled()
    starts = [pair.shaper.energy(package) for package in (0, 1)]
    pair.now += SECOND
    for zone in pair.zones:
        zone.value += 100_000_000
    for tid, ns in BUSY.items():
        pair.ns[tid] += ns
    assert pair.shaper.energy(0) >= starts[0]
    assert min(pair.window(BUSY)) > 0
    assert pair.window(BUSY) == pytest.approx([CHARGE * 2 / 3, CHARGE / 3], rel=1e-2)
