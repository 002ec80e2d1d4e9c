"""The meter on a host made of files: what domains are charged while domains, threads, zones and CPUs come and go."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fakes.host import RANGE, Host, Thread

from libvirt_rapl.choices import Model
from libvirt_rapl.energy import meter as meter_module
from libvirt_rapl.energy.meter import Meter, Running
from libvirt_rapl.energy.snapshot import take
from libvirt_rapl.host import energy_source
from libvirt_rapl.host.energy_source import open_source
from libvirt_rapl.host.process_clock import ProcessClock, ThreadRun
from libvirt_rapl.host.processes import NANOSECONDS_PER_TICK

S = 1_000_000_000
JOULE = 1_000_000
A, B = "aaaaaaaa-0000-0000-0000-000000000000", "bbbbbbbb-0000-0000-0000-000000000000"


class Bench:
    """A meter on a host, whose time moves a second at each sample."""

    def __init__(self, root: Path, cpus: dict[int, list[int]]) -> None:
        self.host = Host(root, cpus)
        self.seconds = 0
        for package in cpus:
            self.joules(0, package)

    def start(self, *processes: tuple[str, int], model: Model = "capacity") -> Meter:
        """Make the meter and let it take its first sample."""
        source = open_source("auto", sys=self.host.sys, dev=self.host.dev, proc=self.host.proc)
        self.meter = Meter(source, sys=self.host.sys, proc=self.host.proc, model=model, clock=self.clock)
        self.sample(*processes)
        return self.meter

    def sample(self, *processes: tuple[str, int]) -> None:
        """Let the meter sample domains by UUID and PID."""
        self.meter.sample([Running(uuid, pid, self.host.vcpu_tids.get(pid, {})) for uuid, pid in processes])

    def clock(self, which: int) -> int:
        if which == time.CLOCK_BOOTTIME:  # the first that a sample asks for
            self.seconds += 1
            self.host.up(self.seconds * S // NANOSECONDS_PER_TICK)
        return self.seconds * S

    def joules(self, joules: int, package: int = 0) -> None:
        self.host.zone(f"intel-rapl:{package}", f"package-{package}", joules * JOULE)

    def qemu(self, pid: int, main: int = 0, *vcpus: float, cpu: int = 0, ended: float = 0) -> None:
        """Set the seconds a QEMU's threads have run, all on one CPU."""
        threads = {pid: Thread("qemu-system-x86", main * S, cpu)}
        for number, seconds in enumerate(vcpus):
            threads[pid + 1 + number] = Thread(f"CPU {number}/KVM", int(seconds * S), cpu)
        self.host.process(pid, threads, ended_ns=int(ended * S))

    def conserved(self, joules: float) -> bool:
        """Return whether domains, other and idle make up this much, each domain's vCPUs the domain, and every zone."""
        meter = self.meter
        for uuid, domain in meter.domains.items():
            assert sum(vcpu.microjoules for vcpu in domain.vcpus.values()) == domain.microjoules
            assert take(meter).by_kind(uuid)["package"] == (domain.microjoules, domain.watts)
        for name, zone in meter.zones.items():
            own = sum(domain.zones[name].microjoules for domain in meter.domains.values() if name in domain.zones)
            assert own + zone.other.microjoules + zone.idle.microjoules == zone.microjoules
        given_out = sum(domain.microjoules for domain in meter.domains.values())
        return given_out + meter.other.microjoules + meter.idle.microjoules == joules * JOULE


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(tmp_path: Path) -> MakeBench:
    return lambda cpus=None: Bench(tmp_path, cpus or {0: [0, 1]})


def test_a_first_sample_charges_nobody(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 5, 5)
    meter = bench.start((A, 7))
    assert bench.conserved(0)
    assert (meter.domains, meter.interval_seconds, meter.zones["package-0"].joules) == ({}, 0, 0)


def test_energies_add_up_and_powers_are_of_the_last_interval(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 10, 10)
    bench.qemu(20, 0, 0)
    meter = bench.start((A, 7), (B, 20))

    bench.joules(100)
    bench.host.busy({0: 100, 1: 50})
    bench.qemu(7, 0, 10.5, 10.25)
    bench.qemu(20, 0, 0.25)
    bench.sample((A, 7), (B, 20))
    assert {vcpu: usage.joules for vcpu, usage in meter.domains[A].vcpus.items()} == {0: 25, 1: 12.5}
    assert (meter.domains[A].watts, meter.domains[B].watts, meter.domains_watts) == (37.5, 12.5, 50)
    assert (meter.other.watts, meter.idle.watts, meter.zones["package-0"].watts) == (25, 25, 100)
    assert meter.interval_seconds == 1

    bench.joules(120)
    bench.seconds += 1  # two seconds this time
    bench.qemu(7, 0, 12.5, 10.25)
    bench.sample((A, 7), (B, 20))
    assert (meter.domains[A].joules, meter.domains[A].watts) == (47.5, 5)
    assert (meter.domains[B].joules, meter.domains[B].watts) == (12.5, 0)
    assert (meter.interval_seconds, meter.zones["package-0"].watts) == (2, 10)
    assert bench.conserved(120)


def test_how_many_cpus_a_domain_kept_busy(make_bench: MakeBench) -> None:
    """All its threads, on all packages, over the last interval, however long that was."""
    bench = make_bench({0: [0, 1], 1: [2, 3]})
    bench.qemu(7, 0, 0, 0, cpu=0)
    meter = bench.start((A, 7))

    def cpus() -> float:
        return take(meter).domains[A].cpus

    bench.joules(1)
    bench.qemu(7, 1, 1, 0.5, cpu=2)  # half of this counts on either package
    bench.sample((A, 7))
    assert cpus() == 2.5
    bench.joules(2)
    bench.seconds += 3
    bench.qemu(7, 1, 2, 0.5, cpu=2)
    bench.sample((A, 7))
    assert cpus() == 0.25
    bench.host.end(7)
    bench.sample((A, 7))
    assert cpus() == 0


def test_whose_power_is_known(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench({0: [0], 1: [1]})
    bench.qemu(7, 0, 0)
    bench.qemu(20, 0, 0)
    meter = bench.start((A, 7))
    both = {"package-0", "package-1"}
    assert (set(meter.read_domains), set(meter.unread_zones)) == (set(), both), "of one reading nothing can be known"
    bench.sample((A, 7), (B, 20))
    assert (set(meter.read_domains), set(meter.unread_zones)) == ({A}, set())
    energy = bench.host.powercap / "intel-rapl:1/energy_uj"
    energy.write_text("nonsense\n")
    bench.sample((A, 7), (B, 20))
    assert (set(meter.read_domains), set(meter.unread_zones)) == ({A, B}, {"package-1"})
    bench.host.end(7)
    bench.joules(1, 1)
    bench.sample((A, 7), (B, 20))
    assert (set(meter.read_domains), set(meter.unread_zones)) == ({B}, {"package-1"})
    bench.sample((B, 20))
    assert (set(meter.read_domains), set(meter.unread_zones), meter.sampled_at) == ({B}, set(), 5)
    (bench.host.proc / "stat").rename(bench.host.proc / "away")
    monkeypatch.setattr(bench.host, "up", lambda _: None)
    with pytest.raises(FileNotFoundError):
        bench.sample((B, 20))
    assert (set(meter.read_domains), set(meter.unread_zones), meter.sampled_at) == (set(), both, 5)


def test_the_work_of_qemu_itself_goes_to_the_vcpus(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 0, 0)
    meter = bench.start((A, 7))
    bench.joules(100)
    bench.qemu(7, 1, 0, 0, ended=1)  # a second of the main thread, and one of a worker that came and went
    bench.sample((A, 7))
    assert {vcpu: usage.joules for vcpu, usage in meter.domains[A].vcpus.items()} == {0: 50, 1: 50}


def test_a_domain_that_has_no_vcpus_yet(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0)
    meter = bench.start((A, 7))
    bench.joules(100)
    bench.qemu(7, 1)
    bench.sample((A, 7))
    assert {vcpu: usage.joules for vcpu, usage in meter.domains[A].vcpus.items()} == {0: 50}


def test_a_second_thread_with_a_vcpus_name_hides_nothing(make_bench: MakeBench) -> None:
    """Nor do thousands make anything grow: vCPUs are those that libvirt knows."""
    bench = make_bench()
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7))
    known = dict(bench.host.vcpu_tids[7])
    for second in (1, 2):
        bench.joules(100 * second)
        names = {9: "CPU 0/KVM", **{10 + number: f"CPU {1000 * second + number}/KVM" for number in range(50)}}
        others = {tid: Thread(name, 0) for tid, name in names.items()}
        bench.host.process(7, {7: Thread("CPU 0/KVM", 0), 8: Thread("CPU 0/KVM", second * S), **others})
        meter.sample([Running(A, 7, known)])
    assert {vcpu: usage.joules for vcpu, usage in meter.domains[A].vcpus.items()} == {0: 100}
    assert bench.conserved(200)


def test_domains_come_and_go_and_come_again(make_bench: MakeBench) -> None:
    bench = make_bench()
    meter = bench.start()
    bench.joules(100)
    bench.qemu(7, 0, 0.5)
    bench.sample((A, 7))
    assert A not in meter.domains  # it is followed from now on

    bench.joules(200)
    bench.qemu(7, 0, 1.5)
    bench.sample((A, 7))
    assert meter.domains[A].joules == 50

    bench.joules(300)
    bench.host.end(7)
    bench.sample((A, 7))  # libvirt has not noticed
    bench.sample()
    assert (meter.domains[A].joules, meter.domains[A].watts, meter.domains[A].vcpus[0].watts) == (50, 0, 0)

    bench.qemu(7, 0, 9)  # a new QEMU with the old PID
    bench.sample((A, 7))
    bench.joules(400)
    bench.qemu(7, 0, 10)
    bench.sample((A, 7))
    assert meter.domains[A].joules == 100
    assert bench.conserved(400)


def test_a_process_that_cannot_be_read_costs_its_own_readings_only(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7))
    advance = ProcessClock.advance

    def too_many_files(clock: ProcessClock) -> list[ThreadRun]:
        if clock.pid == 20:
            raise OSError(errno.EMFILE, "too many open files")
        return advance(clock)

    bench.qemu(20, 0, 0)
    bench.sample((A, 7), (B, 20))
    monkeypatch.setattr(ProcessClock, "advance", too_many_files)
    bench.qemu(7, 0, 1)
    bench.qemu(20, 0, 1)
    bench.joules(100)
    bench.sample((A, 7), (B, 20))
    assert "too many open files" in meter.trouble
    assert (meter.domains[A].joules, B in meter.domains) == (50, False)
    monkeypatch.undo()
    bench.joules(200)
    bench.sample((A, 7), (B, 20))  # what it ran is known now
    assert (meter.trouble, meter.domains[B].joules) == ("", 50)
    assert bench.conserved(200)


def test_what_is_counted_while_the_host_cannot_be_read_is_given_out_later(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7))
    bench.joules(100)
    stat = bench.host.proc / "stat"
    stat.unlink()
    stat.mkdir()
    meter._clock = lambda _: bench.seconds * S  # which does not write the file again
    with pytest.raises(OSError, match="stat"):
        bench.sample((A, 7))
    stat.rmdir()
    meter._clock = bench.clock
    bench.qemu(7, 0, 1)
    bench.sample((A, 7))
    assert meter.domains[A].joules == 50
    assert bench.conserved(100)


def test_a_pid_taken_over_by_another_process(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7))
    bench.host.end(7)
    bench.qemu(7, 0, 9999)
    bench.joules(100)
    for _ in range(2):
        bench.sample((A, 7))
        bench.qemu(7, 0, 10_000)
    assert A not in meter.domains
    assert bench.conserved(100)


def test_a_domain_started_anew_before_its_end_was_noticed(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7))
    bench.host.end(7)
    bench.sample((A, 7))  # libvirt has not noticed
    bench.qemu(20, 0, 5)
    bench.sample((A, 20))
    bench.joules(100)
    bench.qemu(20, 0, 6)
    bench.sample((A, 20))
    assert (meter.domains[A].joules, meter.vcpu_tids(A)) == (50, {0: 21})
    assert bench.conserved(100)


def test_of_domains_that_have_gone_no_file_stays_open(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.start()
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        for pid in (7, 20, 30):
            bench.qemu(pid, 0, 0)
        bench.sample((A, 7), (B, 20))
        bench.host.end(7)
        bench.sample((A, 7), (B, 30))  # one has ended, one was started anew
        bench.sample()
        assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "too many open files"), ProcessLookupError(errno.ESRCH, "7")])
def test_a_process_that_cannot_be_followed_yet_is_tried_again(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    bench = make_bench()
    bench.host.zone("intel-rapl:0:0", "dram")
    meter = bench.start()
    bench.qemu(7, 0, 0)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(meter_module, "MachineClock", fail)
    bench.host.zone("intel-rapl:0:0", "dram", RANGE + 1)
    bench.sample((A, 7))
    assert ("too many" in meter.trouble) == (error.errno == errno.EMFILE)
    assert "dram-0: " in meter.trouble
    monkeypatch.undo()
    bench.host.zone("intel-rapl:0:0", "dram", 0)
    bench.sample((A, 7))
    bench.joules(100)
    bench.qemu(7, 0, 1)
    bench.sample((A, 7))
    assert (meter.trouble, meter.domains[A].joules) == ("", 50)


def test_the_threads_of_vcpus(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 0, 0)
    meter = bench.start((A, 7))
    assert (meter.vcpu_tids(A), meter.vcpu_tids(B)) == ({0: 8, 1: 9}, {})
    bench.qemu(7, 0, 0)
    bench.sample((A, 7))
    assert meter.vcpu_tids(A) == {0: 8}


def test_a_counter_that_wraps(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.host.zone("intel-rapl:0", "package-0", RANGE - 10 * JOULE + 1)
    meter = bench.start()
    bench.joules(15)
    bench.sample()
    assert meter.zones["package-0"].joules == 25
    assert bench.conserved(25)


def test_a_zone_that_fails_costs_its_own_readings_only(make_bench: MakeBench) -> None:
    bench = make_bench({0: [0], 1: [1]})
    bench.host.zone("intel-rapl:0:0", "dram")
    bench.qemu(7, 0, 0, cpu=1)
    meter = bench.start((A, 7))
    energy = bench.host.powercap / "intel-rapl:0/energy_uj"

    energy.rename(energy.with_name("away"))
    bench.joules(100, 1)
    bench.host.zone("intel-rapl:0:0", "dram", 5 * JOULE)
    bench.qemu(7, 0, 1, cpu=1)
    bench.sample((A, 7))
    assert (meter.zones["package-0"].joules, meter.zones["dram-0"].joules, meter.domains[A].joules) == (0, 5, 100)

    assert "package-0: " in meter.trouble

    for joules in (70, 80):  # it is back, and the time it was away is nobody's
        bench.joules(joules)
        bench.sample((A, 7))
    assert (meter.zones["package-0"].joules, meter.trouble) == (10, "")
    assert bench.conserved(110)


def test_each_package_is_attributed_to_those_who_ran_there(make_bench: MakeBench) -> None:
    bench = make_bench({0: [0, 1], 1: [2, 3]})

    def run(ns: int) -> None:
        bench.host.process(
            20,
            {
                20: Thread("qemu-system-x86", ns, cpu=0),
                21: Thread("CPU 0/KVM", ns, cpu=2),
                22: Thread("CPU 1/KVM", 0, cpu=3),
            },
        )

    bench.qemu(7, 0, 0, cpu=0)
    run(0)
    meter = bench.start((A, 7), (B, 20))
    bench.joules(100, 0)
    bench.joules(10, 1)
    bench.qemu(7, 0, 1, cpu=1)
    run(S)
    bench.sample((A, 7), (B, 20))
    assert meter.domains[A].joules == 50
    # On package 1 its vCPU 0 ran; on package 0 only its main thread did, which both vCPUs share.
    assert {vcpu: usage.joules for vcpu, usage in meter.domains[B].vcpus.items()} == {0: 30, 1: 25}
    assert meter.domains[B].watts == 55
    assert meter.domains[A].zones.keys() == {"package-0"}, "it has never run on the other"
    assert bench.conserved(110)


def test_half_the_time_of_a_thread_that_moved_goes_to_each_package(make_bench: MakeBench) -> None:
    bench = make_bench({0: [0, 1], 1: [2, 3]})
    bench.qemu(7, 0, 0, cpu=0)
    meter = bench.start((A, 7))
    bench.joules(100, 0)
    bench.joules(10, 1)
    bench.host.busy({0: 100, 1: 50, 2: 100, 3: 50})
    bench.qemu(7, 0, 1, cpu=2)
    bench.sample((A, 7))
    assert meter.domains[A].joules == 25 + 2.5
    bench.joules(200, 0)
    bench.joules(20, 1)
    bench.qemu(7, 0, 2, cpu=3)  # it stayed on the package
    bench.sample((A, 7))
    assert meter.domains[A].joules == 25 + 2.5 + 5
    bench.joules(300, 0)
    bench.joules(30, 1)
    bench.host.busy({0: 120, 1: 50, 2: 180, 3: 50})  # it was alone
    bench.qemu(7, 0, 3, cpu=1)
    bench.sample((A, 7))
    assert meter.domains[A].joules == 25 + 2.5 + 5 + 10 + 4
    assert bench.conserved(330)


def test_a_domain_that_moves_alone_is_charged_for_all_that_was_busy(make_bench: MakeBench) -> None:
    bench = make_bench({0: [0, 1], 1: [2, 3]})
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7), model="active")
    first = last = 0
    for second, moved_after in enumerate((20, 0, 95, 50, 71), 1):  # ticks: from the first package and back, in turn
        first += moved_after if second % 2 else 100 - moved_after
        last += 100 - moved_after if second % 2 else moved_after
        bench.host.busy({0: first, 1: 0, 2: 0, 3: last})
        bench.joules(first, 0)
        bench.joules(3 * last, 1)
        bench.qemu(7, 0, second, cpu=3 if second % 2 else 1)
        bench.sample((A, 7))
        assert meter.other.joules == 0
    assert meter.domains[A].joules == first + 3 * last
    assert bench.conserved(first + 3 * last)


def test_a_thread_that_moves_between_packages_is_charged_rightly_on_average(make_bench: MakeBench) -> None:
    """A vCPU that moves once a second on average, on packages of 100 W and of 20 W, of whose time it can have half."""
    chance = Random(6)
    bench = make_bench({0: [0, 1], 1: [2, 3]})
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7))
    package, due, total = 0, chance.expovariate(1), 0.0
    for second in range(1, 201):
        ran_on, now, moves = [0.0, 0.0], second - 1.0, 0
        while due < second:
            ran_on[package] += due - now
            now, package, moves = due, 1 - package, moves + 1
            due += chance.expovariate(1)
        ran_on[package] += second - now
        true = 50 * ran_on[0] + 10 * ran_on[1]
        total += true
        bench.joules(100 * second, 0)
        bench.joules(20 * second, 1)
        bench.host.busy(dict.fromkeys(range(4), 100 * second))  # with others, so that busy time says nothing
        bench.qemu(7, 0, second, cpu=2 * package)
        bench.sample((A, 7))
        wrongly_placed = (0, 0.5, 1)[min(moves, 2)]  # at most, seconds
        assert abs(meter.domains[A].watts - true) <= 40 * wrongly_placed + 1e-3
    assert meter.domains[A].joules == pytest.approx(total, rel=0.05)
    assert bench.conserved(120 * 200)


def test_not_a_nanosecond_of_a_thread_that_moved_is_lost(make_bench: MakeBench) -> None:
    """Of three one is where it was, and two are where it is. Nothing else runs, so that they make a difference."""
    bench = make_bench({0: [0], 1: [1]})

    def run(ns: int, cpu: int) -> None:
        bench.host.process(7, {7: Thread("qemu-system-x86", 0), 8: Thread("CPU 0/KVM", 3 * ns, cpu)})
        bench.host.process(20, {20: Thread("qemu-system-x86", 0), 21: Thread("CPU 0/KVM", ns, cpu=1)})

    run(0, 0)
    meter = bench.start((A, 7), (B, 20), model="active")
    bench.joules(100, 0)
    bench.joules(90, 1)
    run(1, 1)
    bench.sample((A, 7), (B, 20))
    assert (meter.domains[A].joules, meter.domains[B].joules) == (100 + 60, 30)
    assert bench.conserved(190)


def test_that_threads_have_moved_is_forgotten_with_their_process(make_bench: MakeBench) -> None:
    """Of one that stays on its package nothing is moved, though the clocks differ."""
    bench = make_bench({0: [0, 1], 1: [2, 3]})
    bench.qemu(7, 0, 0, cpu=0)
    meter = bench.start((A, 7))
    bench.qemu(7, 0, 1, cpu=2)
    bench.sample((A, 7))
    bench.qemu(20, 0, 0, cpu=0)
    bench.sample((A, 20))
    bench.host.busy({0: 90, 1: 0, 2: 50, 3: 0})
    bench.qemu(20, 0, 1, cpu=0)
    for package in (0, 1):
        bench.joules(100, package)
    bench.sample((A, 20))
    assert {name: usage.joules for name, usage in meter.domains[A].zones.items()} == {"package-0": 50, "package-1": 0}
    assert bench.conserved(200)


def test_what_a_cpu_was_busy_before_it_was_off_line_is_not_counted_again(make_bench: MakeBench) -> None:
    bench = make_bench({0: [0, 1], 1: [2, 3]})
    meter = bench.start()
    bench.host.busy({0: 0, 1: 0, 2: 0, 3: 50})
    bench.joules(100, 1)
    bench.sample()
    assert meter.other.joules == 25
    bench.host.busy({0: 0, 1: 0, 2: 0})
    bench.sample()
    bench.host.busy({0: 0, 1: 0, 2: 0, 3: 50})
    bench.joules(200, 1)
    bench.sample()
    assert meter.other.joules == 25
    assert bench.conserved(200)


def test_a_cpu_goes_off_line_and_comes_back(make_bench: MakeBench) -> None:
    bench = make_bench({0: [0, 1], 1: [2, 3]})
    bench.qemu(7, 0, 0, cpu=3)
    meter = bench.start((A, 7))
    bench.host.busy({0: 0, 1: 0, 2: 50})
    for package in (0, 1):
        bench.joules(100, package)
    bench.qemu(7, 0, 0.5, cpu=3)
    bench.sample((A, 7))
    # It ran on a CPU that is no longer there: half a second on the first package, which has two CPUs.
    assert (meter.domains[A].joules, meter.other.joules) == (25, 50)
    bench.host.busy({0: 0, 1: 0, 2: 50, 3: 900})
    bench.joules(200, 1)
    bench.sample((A, 7))
    assert meter.other.joules == 50
    assert bench.conserved(300)


def test_every_zone_is_given_out(make_bench: MakeBench) -> None:
    bench = make_bench({0: [0, 1], 1: [2, 3]})

    def count(joules: int) -> None:
        for package in (0, 1):
            bench.joules(10 * joules, package)
            bench.host.zone(f"intel-rapl:{package}:0", "core", 4 * joules * JOULE)
            bench.host.zone(f"intel-rapl:{package}:1", "dram", (1 + package) * joules * JOULE)
        bench.host.zone("intel-rapl:2", "psys", 40 * joules * JOULE)

    count(0)
    bench.qemu(7, 0, 0, 0, cpu=0)
    bench.qemu(20, 0, 0, cpu=3)
    meter = bench.start((A, 7), (B, 20))
    count(10)
    bench.host.busy({0: 100, 1: 50, 2: 0, 3: 50})
    bench.qemu(7, 0, 0.75, 0.25, cpu=0)
    bench.qemu(20, 0, 0.5, cpu=3)
    bench.sample((A, 7), (B, 20))
    # A had half of package 0, B a quarter of package 1; they had a quarter and an eighth of the machine.
    assert {kind: usage.joules for kind, usage in take(meter).by_kind(A).items()} == {
        "package": 50,
        "core": 20,
        "dram": 5,
        "psys": 100,
    }
    assert {kind: usage.watts for kind, usage in take(meter).by_kind(B).items()} == {
        "package": 25,
        "core": 10,
        "dram": 5,
        "psys": 50,
    }
    assert (meter.domains[A].zones["dram-0"].joules, meter.domains[B].zones["dram-1"].watts) == (5, 5)
    assert (meter.domains[A].joules, meter.other.joules, meter.idle.joules) == (50, 25, 100)
    assert (meter.zones["psys"].other.joules, meter.zones["psys"].idle.watts) == (50, 200)
    assert bench.conserved(200)
    count(11)
    bench.sample((A, 7), (B, 20))  # nothing ran
    assert (meter.zones["psys"].other.watts, meter.zones["psys"].idle.watts, meter.idle.watts) == (0, 40, 20)
    assert take(meter).by_kind(A)["psys"] == (100 * JOULE, 0)


def test_active_leaves_nothing_over(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7), model="active")
    bench.joules(100)
    bench.host.busy({0: 80, 1: 0})
    bench.qemu(7, 0, 0.2)
    bench.sample((A, 7))
    assert (meter.domains[A].joules, meter.other.joules, meter.idle.joules) == (25, 75, 0)
    bench.joules(120)
    bench.sample((A, 7))  # nothing ran
    assert (meter.domains[A].watts, meter.other.watts, meter.idle.watts) == (0, 0, 20)
    assert bench.conserved(120)


def test_baseline_learns_the_idle_power_of_each_zone(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 0)
    bench.host.zone("intel-rapl:0:0", "dram")
    meter = bench.start((A, 7), model="baseline")

    def run(second: int, joules: int, dram: int, seconds: int = 1) -> tuple[float, float, float]:
        bench.joules(joules)
        bench.host.zone("intel-rapl:0:0", "dram", dram * JOULE)
        bench.qemu(7, 0, second)
        bench.seconds += seconds - 1
        bench.sample((A, 7))
        return meter.domains[A].watts, meter.idle.watts, take(meter).by_kind(A)["dram"].watts

    assert run(1, 60, 5) == (0, 60, 0)  # it may all be idle power: nothing less has been seen
    assert run(1, 80, 9) == (0, 20, 0)  # nothing ran
    assert run(2, 140, 14) == (40, 20, 1)  # dram was never seen below 4 W
    assert run(4, 260, 30, seconds=2) == (40, 20, 4)
    assert run(4, 290, 38, seconds=2) == (0, 15, 0)  # less power than before, though more energy
    assert run(5, 330, 42) == (25, 15, 0)
    assert bench.conserved(330)


def test_a_package_whose_cpus_are_off_line(make_bench: MakeBench) -> None:
    bench = make_bench({0: [0, 1], 1: [2]})
    bench.host.busy({0: 0, 1: 0})
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7))
    bench.joules(30, 1)
    bench.qemu(7, 0, 1)
    bench.sample((A, 7))
    assert (meter.domains[A].joules, meter.idle.joules) == (0, 30)
    assert bench.conserved(30)


def test_a_package_of_two_dies(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.host.zone("intel-rapl:0", "package-0-die-0")
    bench.host.zone("intel-rapl:1", "package-0-die-1")
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7))
    bench.host.zone("intel-rapl:0", "package-0-die-0", 60 * JOULE)
    bench.host.zone("intel-rapl:1", "package-0-die-1", 40 * JOULE)
    bench.qemu(7, 0, 1)
    bench.sample((A, 7))
    assert meter.domains[A].joules == 50
    assert bench.conserved(100)


def test_a_zone_that_appears_later(make_bench: MakeBench) -> None:
    bench = make_bench({0: [0], 1: [1]})
    (bench.host.powercap / "intel-rapl:1/name").rename(bench.host.powercap / "intel-rapl:1/away")
    meter = bench.start()
    assert list(meter.zones) == ["package-0"]
    (bench.host.powercap / "intel-rapl:1/away").rename(bench.host.powercap / "intel-rapl:1/name")
    bench.host.zone("intel-rapl:0:0", "dram", 5 * JOULE)
    bench.sample()
    assert list(meter.zones) == ["package-0"]  # nobody looks at every sample

    bench.seconds += 9
    bench.sample()
    bench.joules(30, 1)
    bench.host.zone("intel-rapl:0:0", "dram", 7 * JOULE)
    bench.sample()
    assert {name: usage.joules for name, usage in meter.zones.items()} == {"package-0": 0, "dram-0": 2, "package-1": 30}
    assert bench.conserved(30)
    assert set(meter.lost.values()) == {0}

    bench.host.zone("intel-rapl:1:0", "dram")
    bench.sample()
    assert "dram-1" not in meter.zones  # nor at every sample from then on
    bench.seconds += 9
    bench.sample()
    assert "dram-1" in meter.zones


@pytest.mark.parametrize("error", [OSError(errno.EIO, "not now"), ValueError("not now")])
def test_zones_that_cannot_be_listed_again_are_read_as_before(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench = make_bench()

    def fail(_: Path) -> None:
        raise error

    meter = bench.start()
    monkeypatch.setattr(energy_source, "powercap_zones", fail)
    bench.seconds += 20
    bench.joules(10)
    bench.sample()
    assert (meter.zones["package-0"].joules, meter.trouble) == (10, "")
    assert (meter.metered, meter.interval_seconds) == (21, 21)


def test_a_zone_that_comes_back_in_another_place(make_bench: MakeBench) -> None:
    bench = make_bench()
    meter = bench.start()
    bench.host.powercap.joinpath("intel-rapl:0").rename(bench.host.powercap / "intel-rapl:4")
    for _ in range(3):
        bench.sample()
    assert meter.lost == {"package-0": 1}
    bench.seconds += 10
    bench.sample()
    bench.host.zone("intel-rapl:4", "package-0", 40 * JOULE)
    bench.sample()
    assert (meter.zones["package-0"].joules, meter.lost) == (40, {"package-0": 1})


def test_an_interval_that_may_hide_a_wrap_is_nobodys(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.qemu(7, 0, 0)
    meter = bench.start((A, 7))
    bench.seconds += 3600
    bench.joules(100)
    bench.qemu(7, 0, 1)
    bench.sample((A, 7))
    assert (meter.zones["package-0"].joules, meter.lost) == (0, {"package-0": 1})
    bench.joules(120)
    bench.qemu(7, 0, 2)
    bench.sample((A, 7))
    assert (meter.zones["package-0"].joules, meter.domains[A].joules) == (20, 10)
    assert bench.conserved(20)


def test_what_serves_a_domain_in_its_cgroup_is_the_domains(make_bench: MakeBench) -> None:
    bench = make_bench()
    group = "machine/qemu-1-a.libvirt-qemu"
    bench.qemu(7, 0, 0, 0)
    bench.host.process(30, {30: Thread("swtpm", 0)})
    bench.host.cgroup(7, f"0::/{group}/emulator\n", group)
    bench.host.members(f"{group}/emulator", 7, 30)
    meter = bench.start((A, 7))
    bench.joules(100)
    bench.qemu(7, 0, 1, 0)
    bench.host.process(30, {30: Thread("swtpm", S // 2)})
    bench.sample((A, 7))
    assert {vcpu: usage.joules for vcpu, usage in meter.domains[A].vcpus.items()} == {0: 62.5, 1: 12.5}
    assert bench.conserved(100)
