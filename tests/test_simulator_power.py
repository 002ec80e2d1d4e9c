"""The power model and the registers made of it: tables and properties, no I/O."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator.power import ZONES, Model, Simulation, deal
from libvirt_rapl.simulator.processor import Vendor
from libvirt_rapl.simulator.registers import LAYOUTS, Counters, Limits

SECOND = 1_000_000_000

models = st.builds(
    Model,
    cpu=st.sampled_from(["intel", "amd"]),
    packages=st.integers(1, 4),
    idle_watts=st.floats(0, 1000),
    cpu_watts=st.floats(0, 1000),
    wrap_soon=st.booleans(),
    seed=st.integers(),
)
# What passes between two readings of the clocks: time, and busy time of CPUs 0 to 3.
steps = st.lists(st.tuples(st.integers(0, 10**11), st.lists(st.integers(0, 10**11), min_size=4, max_size=4)))


@pytest.mark.parametrize(
    ("idle_watts", "cpu_watts", "elapsed", "busy", "expected"),
    [
        (20, 40, 0, 0, (0, 0, 0)),
        (20, 40, SECOND, 0, (20_000_000, 0, 2_000_000)),
        (20, 40, SECOND, 2 * SECOND, (100_000_000, 80_000_000, 10_000_000)),
        (100, 0, 3 * SECOND, SECOND, (300_000_000, 0, 30_000_000)),
        (0, 40, SECOND, SECOND // 2, (20_000_000, 20_000_000, 2_000_000)),
        (0.5, 0, SECOND, 0, (500_000, 0, 50_000)),
        (20, 40, 49, 0, (0, 0, 0)),
        (20, 40, 50, 0, (1, 0, 0)),
    ],
)
def test_energy_of_the_zones(
    idle_watts: float, cpu_watts: float, elapsed: int, busy: int, expected: tuple[int, int, int]
) -> None:
    energy = Model(idle_watts=idle_watts, cpu_watts=cpu_watts).microjoules(elapsed, busy)
    assert energy == dict(zip(ZONES["intel"], expected, strict=True))
    energy = Model(cpu="amd", idle_watts=idle_watts, cpu_watts=cpu_watts).microjoules(elapsed, busy)
    assert energy == dict(zip(ZONES["amd"], expected[:2], strict=True))


@given(models, steps)
def test_many_readings_lose_nothing_and_never_go_back(model: Model, steps: list[tuple[int, list[int]]]) -> None:
    packages = deal({cpu: cpu for cpu in range(4)}, model.packages)
    start = 5 * SECOND
    often = Simulation(model, packages, start, dict.fromkeys(range(4), 7))
    time, busy = start, [7, 7, 7, 7]
    seen = [often.advance(time, dict(enumerate(busy)))]
    for elapsed, worked in steps:
        time += elapsed
        busy = [before + more for before, more in zip(busy, worked, strict=True)]
        seen.append(often.advance(time, dict(enumerate(busy))))
    once = Simulation(model, packages, start, dict.fromkeys(range(4), 7))
    assert once.advance(time, dict(enumerate(busy))) == seen[-1]
    for earlier, later in pairwise(seen):
        for before, after in zip(earlier, later, strict=True):
            assert all(before.zones[zone] <= after.zones[zone] for zone in ZONES[model.cpu])
            assert all(before.cores[core] <= after.cores[core] for core in before.cores)
    for package in seen[-1]:
        assert package.zones["core"] <= package.zones["package"]
        assert package.zones.get("dram", 0) == (package.zones["package"] // 10 if model.cpu == "intel" else 0)
        assert 0 <= package.zones["core"] - sum(package.cores.values()) < len(package.cores)


def test_each_package_pays_for_its_own_cpus() -> None:
    simulation = Simulation(Model(packages=2), [[0, 1], [2, 3]], 0, dict.fromkeys(range(4), 0))
    first, second = simulation.advance(SECOND, {0: SECOND, 1: SECOND, 2: 0, 3: SECOND // 2})
    assert (first.busy, second.busy) == (2 * SECOND, SECOND // 2)
    assert (first.zones["package"], second.zones["package"]) == (100_000_000, 40_000_000)


def test_each_core_pays_for_its_own_threads() -> None:
    busy = dict.fromkeys(range(4), 0)
    simulation = Simulation(Model(cpu="amd"), [[0, 1, 2, 3]], 0, busy, cores={0: 0, 1: 1, 2: 0, 3: 1})
    (package,) = simulation.advance(SECOND, {0: SECOND, 1: 0, 2: SECOND // 2, 3: SECOND // 4})
    assert package.cores == {0: 60_000_000, 1: 10_000_000}
    assert package.zones == {"package": 90_000_000, "core": 70_000_000}


def test_a_clock_that_goes_back_or_a_cpu_that_vanishes_takes_no_energy_back() -> None:
    simulation = Simulation(Model(), [[0, 1]], 10, {0: 100, 1: 100})
    before = simulation.advance(SECOND, {0: SECOND, 1: SECOND})
    assert simulation.advance(SECOND - 5, {0: SECOND - 5}) == before
    assert simulation.time == SECOND


@given(st.dictionaries(st.integers(0, 999), st.integers(0, 99), min_size=1, max_size=64), st.data())
def test_cores_are_dealt_equally_and_whole(cores: dict[int, int], data: st.DataObject) -> None:
    number = len(set(cores.values()))
    packages = deal(cores, data.draw(st.integers(1, number)))
    assert sorted(cpu for package in packages for cpu in package) == sorted(cores)
    dealt = [{cores[cpu] for cpu in package} for package in packages]
    assert sum(map(len, dealt)) == number, "no core is in two packages"
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all(package == sorted(package) for package in packages)


def test_more_packages_than_cores_are_refused() -> None:
    with pytest.raises(VirtRaplError, match="3 packages need as many cores, and this machine has 2 online"):
        deal({0: 0, 1: 1, 2: 0, 3: 1}, 3)


@pytest.mark.parametrize(("cpu", "units", "microjoules"), [("intel", 1 << 14, 61), ("amd", 1 << 16, 15)])
def test_units(cpu: Vendor, units: int, microjoules: int) -> None:
    counters = Counters(Model(cpu=cpu))
    start = counters.register(0, "package", 0)
    assert (counters.register(0, "package", 1_000_000) - start) % 2**32 == units
    grown = [counters.register(0, "package", microjoules + more) - start for more in (0, 1)]
    assert grown == [0, 1]


def test_powercap_has_the_range_of_real_machines() -> None:
    assert LAYOUTS["intel"].max_energy_range == 262_143_328_850
    assert LAYOUTS["amd"].max_energy_range == 65_532_610_987


@given(models, st.integers(0, 10**13), st.sampled_from(ZONES["intel"]))
def test_both_views_of_a_counter_agree(model: Model, microjoules: int, zone: str) -> None:
    counters = Counters(model)
    register = counters.register(0, zone, microjoules)
    assert 0 <= register < 2**32
    assert 0 <= counters.energy_uj(0, zone, microjoules) <= counters.layout.max_energy_range
    assert counters.energy_uj(0, zone, microjoules) == register * {"intel": 61035, "amd": 15258}[model.cpu] // 1000


@given(models, st.sampled_from(ZONES["intel"]), st.integers(0, 10**12), st.integers(0, 6 * 10**10))
def test_a_wrap_loses_no_energy(model: Model, zone: str, start: int, more: int) -> None:
    counters = Counters(model)
    units = (counters.register(0, zone, start + more) - counters.register(0, zone, start)) % 2**32
    assert abs(units * 1_000_000 / counters.layout.units_per_joule - more) < 62


@given(st.integers(), st.integers(1, 8))
def test_wrap_soon_is_a_few_joules_before_the_wrap_in_both_views(seed: int, packages: int) -> None:
    counters = Counters(Model(seed=seed, packages=packages, wrap_soon=True))
    for package in range(packages):
        for zone, joules in {"package": 80, "core": 80, "dram": 8}.items():
            soon = joules * 1_000_000
            assert counters.register(package, zone, soon) < counters.register(package, zone, 0)
            assert counters.energy_uj(package, zone, soon) < counters.energy_uj(package, zone, 0)


def test_the_seed_decides_where_counters_start() -> None:
    def starts(seed: int) -> list[int]:
        counters = Counters(Model(seed=seed, packages=2))
        return [counters.register(package, zone, 0) for package in range(2) for zone in ZONES["intel"]]

    assert starts(1) == starts(1)
    assert starts(1) != starts(2)
    assert len(set(starts(1))) == 6


@given(models, st.integers(1, 512))
def test_limits_are_never_0_and_agree_with_powercap(model: Model, cpus: int) -> None:
    limits = Limits(model, cpus)
    (_, long, window), (_, short, _) = limits.constraints
    assert limits.power_limit & 0x7FFF == limits.power_info & 0x7FFF == min(long // 125_000, 0x7FFF) > 0
    assert limits.power_limit >> 32 & 0x7FFF == limits.power_info >> 32 & 0x7FFF == min(short // 125_000, 0x7FFF)
    assert limits.power_limit >> 15 & 1 == limits.power_limit >> 47 & 1 == 1
    exponent, quarters = limits.power_limit >> 17 & 0x1F, limits.power_limit >> 22 & 3
    assert 2**exponent * (4 + quarters) * 976 // 4 == window
