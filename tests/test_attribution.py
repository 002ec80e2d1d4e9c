"""The models: known intervals, and what holds for every interval."""

from collections.abc import Mapping
from random import Random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libvirt_rapl.choices import Model
from libvirt_rapl.energy.attribution import Charges, DomainTime, Work, among_vcpus, attribute, together, work_for

S = 1_000_000_000
JOULE = 1_000_000
MODELS: tuple[Model, ...] = get_args(Model)


@pytest.mark.parametrize(
    ("cpus", "busy", "domains", "capacity", "active", "baseline"),  # joules of each domain, of other, of idle
    [
        pytest.param(2, 0, {}, [0, 100], [0, 100], [0, 100], id="nothing ran"),
        pytest.param(2, S, {}, [50, 50], [100, 0], [80, 20], id="the host alone"),
        pytest.param(
            4,
            2 * S,
            {"a": S},
            [25, 25, 50],
            [50, 50, 0],
            [40, 40, 20],
            id="a domain on one CPU of four, the host on another",
        ),
        pytest.param(
            4,
            S,
            {"a": S, "b": 0},
            [25, 0, 0, 75],
            [100, 0, 0, 0],
            [80, 0, 0, 20],
            id="a domain alone, another asleep",
        ),
        pytest.param(
            2,
            S,
            {"a": S + S // 10},
            [55, 0, 45],
            [100, 0, 0],
            [80, 0, 20],
            id="busy time lags behind",
        ),
        pytest.param(
            2,
            2 * S,
            {"a": 3 * S, "b": S},
            [75, 25, 0, 0],
            [75, 25, 0, 0],
            [60, 20, 0, 20],
            id="more time than there was is shared",
        ),
        pytest.param(
            2,
            9 * S,
            {"a": S},
            [50, 50, 0],
            [100 / 9, 800 / 9, 0],
            [80 / 9, 640 / 9, 20],
            id="more busy time than there was",
        ),
        pytest.param(0, 0, {}, [0, 100], [0, 100], [0, 100], id="no CPU online"),
    ],
)
def test_known_intervals_of_a_second_100_joules_and_20_watts_idle(
    cpus: int, busy: int, domains: dict[str, int], capacity: list[float], active: list[float], baseline: list[float]
) -> None:
    wanted: dict[Model, list[float]] = {"capacity": capacity, "active": active, "baseline": baseline}
    for model, expected in wanted.items():
        charges = attribute(model, 100 * JOULE, 20 * JOULE, Work(S * cpus, busy, domains))
        joules = [part / JOULE for part in parts(charges).values()]
        assert joules == pytest.approx(expected), model


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        pytest.param(DomainTime({0: 3 * S, 1: S}, 0), {0: 75, 1: 25}, id="by their time"),
        pytest.param(DomainTime({0: S, 1: 0}, S), {0: 75, 1: 25}, id="non-vCPU time goes evenly, idle ones too"),
        pytest.param(DomainTime({0: 0, 1: 0, 2: 0}, S), {0: 34, 1: 33, 2: 33}, id="what cannot be divided: the first"),
    ],
)
def test_a_charge_of_100_microjoules_among_vcpus(time: DomainTime, expected: dict[int, int]) -> None:
    assert among_vcpus(100, time) == expected


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_microjoule_that_two_have_the_same_right_to(order: str) -> None:
    work = Work(4 * S, 4 * S, dict.fromkeys(order, 2 * S))
    assert attribute("capacity", 3, 0, work).domains == {"a": 2, "b": 1}
    vcpus = dict.fromkeys((0, 1) if order == "ab" else (1, 0), S)
    assert among_vcpus(3, DomainTime(vcpus, 0)) == {0: 2, 1: 1}


def test_the_machine_is_its_packages_together() -> None:
    first, second = Work(4 * S, 3 * S, {"a": S, "b": 7}), Work(2 * S, S, {"a": 5})
    assert together([first, second]) == Work(6 * S, 4 * S, {"a": S + 5, "b": 7})
    assert work_for(None, {0: first, 1: second}) == together([first, second])
    assert [work_for(package, {0: first, 1: second}) for package in (0, 1)] == [first, second]
    assert work_for(2, {0: first, 1: second}) == Work(0, 0, {}), "all its CPUs are offline"


models = st.sampled_from(MODELS)
energies = st.integers(0, 10**10)
times = st.integers(0, 4 * S)
uuids = st.uuids().map(str)
works = st.builds(
    Work,
    st.builds(int.__mul__, st.integers(1, 3 * S), st.integers(1, 256)),
    st.integers(0, 600 * S),
    st.dictionaries(uuids, times, max_size=6),
)
domain_times = st.builds(DomainTime, st.dictionaries(st.integers(0, 15), times, min_size=1, max_size=6), times)


def parts(charges: Charges) -> dict[str, int]:
    return {**charges.domains, "other": charges.other, "idle": charges.idle}


def scaled(work: Work, factor: int) -> Work:
    return Work(work.capacity * factor, work.busy * factor, {uuid: run * factor for uuid, run in work.domains.items()})


def furthest(first: Mapping[str, int], second: Mapping[str, int]) -> int:
    """Return by how much the charges differ where they differ most."""
    assert first.keys() == second.keys()
    return max(abs(first[key] - second[key]) for key in first)


@settings(deadline=None)
@given(models, energies, energies, works)
def test_all_is_given_out_and_nobody_is_charged_less_than_nothing(
    model: Model, energy: int, idle_energy: int, work: Work
) -> None:
    charged = parts(attribute(model, energy, idle_energy, work))
    assert sum(charged.values()) == energy
    assert min(charged.values()) >= 0
    assert charged.keys() == work.domains.keys() | {"other", "idle"}
    assert not any(charged[uuid] for uuid, run in work.domains.items() if not run)


@settings(deadline=None)
@given(energies, domain_times)
def test_the_vcpus_make_up_their_domain(charge: int, time: DomainTime) -> None:
    vcpus = among_vcpus(charge if time.total else 0, time)
    assert sum(vcpus.values()) == (charge if time.total else 0)
    assert min(vcpus.values()) >= 0
    assert vcpus.keys() == time.vcpus.keys()
    for vcpu, run in time.vcpus.items():
        exact = charge * (run + time.non_vcpu / len(time.vcpus)) / max(1, time.total)
        assert abs(vcpus[vcpu] - exact) < 1 + 1e-5  # of floating point


@settings(deadline=None)
@given(energies, energies, works)
def test_a_domain_is_charged_its_share(energy: int, idle_energy: int, work: Work) -> None:
    run = sum(work.domains.values())
    rest = energy - min(energy, idle_energy)
    shares: dict[Model, tuple[int, int]] = {
        "capacity": (energy, max(work.capacity, run)),
        "active": (energy, max(work.busy, run)),
        "baseline": (rest, max(work.busy, run)),
    }
    for model, (given_out, whole) in shares.items():
        charges = attribute(model, energy, idle_energy, work)
        for uuid, charge in charges.domains.items():
            assert abs(charge * whole - given_out * work.domains[uuid]) < max(1, whole)  # less than a microjoule off


@settings(deadline=None)
@given(energies, energies, works)
def test_what_is_idle(energy: int, idle_energy: int, work: Work) -> None:
    nothing_ran = not work.busy and not any(work.domains.values())
    assert attribute("active", energy, idle_energy, work).idle == (energy if nothing_ran else 0)
    assert attribute("baseline", energy, idle_energy, work).idle == (
        energy if nothing_ran else min(energy, idle_energy)
    )


@settings(deadline=None)
@given(models, energies, energies, works, st.randoms(use_true_random=False))
def test_the_order_of_domains_does_not_matter(
    model: Model, energy: int, idle_energy: int, work: Work, chance: Random
) -> None:
    domains = list(work.domains.items())
    chance.shuffle(domains)
    shuffled = Work(work.capacity, work.busy, dict(domains))
    assert attribute(model, energy, idle_energy, shuffled) == attribute(model, energy, idle_energy, work)


@settings(deadline=None)
@given(energies, domain_times, st.randoms(use_true_random=False))
def test_the_order_of_vcpus_does_not_matter(charge: int, time: DomainTime, chance: Random) -> None:
    vcpus = list(time.vcpus.items())
    chance.shuffle(vcpus)
    assert among_vcpus(charge, DomainTime(dict(vcpus), time.non_vcpu)) == among_vcpus(charge, time)


@settings(deadline=None)
@given(models, energies, energies, works, uuids)
def test_an_idle_domain_changes_nobodys_charge(
    model: Model, energy: int, idle_energy: int, work: Work, uuid: str
) -> None:
    without = Work(work.capacity, work.busy, {name: run for name, run in work.domains.items() if name != uuid})
    idle = Work(work.capacity, work.busy, {uuid: 0, **without.domains})
    before, after = (attribute(model, energy, idle_energy, each) for each in (without, idle))
    assert after.domains.pop(uuid) == 0
    assert after == before


@settings(deadline=None)
@given(energies, works, st.integers(0, 600 * S))
def test_the_hosts_own_work_changes_no_domains_charge_in_capacity(energy: int, work: Work, more: int) -> None:
    loud = Work(work.capacity, work.busy + more, work.domains)
    before, after = (attribute("capacity", energy, 0, each) for each in (work, loud))
    assert after.other >= before.other - 1
    if work.domains:
        assert furthest(after.domains, before.domains) <= 1  # the last microjoule may move


@settings(deadline=None)
@given(st.sampled_from(["active", "baseline"]), energies, energies, works, st.integers(0, S))
def test_a_busy_clock_that_is_off_costs_no_more_than_its_error(
    model: Model, energy: int, idle_energy: int, work: Work, off: int
) -> None:
    """Also where it says less than the domains ran. The error of a charge is E times the error of B over B."""
    run = sum(work.domains.values())
    busy = max(work.busy, run)
    right = attribute(model, energy, idle_energy, Work(work.capacity, busy, work.domains))
    for wrong in (busy + off, max(0, busy - off)):
        charges = attribute(model, energy, idle_energy, Work(work.capacity, wrong, work.domains))
        for uuid, charge in charges.domains.items():
            assert abs(charge - right.domains[uuid]) * max(1, busy) <= energy * off + 2 * max(1, busy)


@settings(deadline=None)
@given(energies, st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(1, S), st.integers(0, S))
def test_thread_clocks_that_are_ahead_change_nothing(energy: int, parts: list[int], unit: int, ahead: int) -> None:
    """Domains keep all CPUs busy, and their clocks count more than the CPUs could have run: each gets its part."""
    right, wrong = (
        attribute(
            "capacity",
            energy,
            0,
            Work(
                sum(parts) * unit, sum(parts) * unit, {str(number): part * length for number, part in enumerate(parts)}
            ),
        )
        for length in (unit, unit + ahead)
    )
    assert right == wrong
    assert right.other == right.idle == 0


shares = st.integers(1, 1000)


@settings(deadline=None)
@given(models, energies, energies, energies, energies, works, shares, shares)
def test_an_interval_in_two_parts_of_the_same_load(
    model: Model, first: int, first_idle: int, second: int, second_idle: int, work: Work, before: int, after: int
) -> None:
    """Whatever power each part has. Each of three roundings is less than a microjoule off: at most two remain."""
    first_idle, second_idle = min(first, first_idle), min(second, second_idle)
    one = attribute(model, first, first_idle, scaled(work, before))
    two = attribute(model, second, second_idle, scaled(work, after))
    whole = attribute(model, first + second, first_idle + second_idle, scaled(work, before + after))
    halves = {key: part + parts(two)[key] for key, part in parts(one).items()}
    assert furthest(halves, parts(whole)) <= 2


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 64), shares, shares, st.data())
def test_an_interval_in_two_parts_of_the_same_power(
    watts: int, cpus: int, before: int, after: int, data: st.DataObject
) -> None:
    """Whatever ran in each part; in capacity. At most two microjoules, as above."""

    def part(milliseconds: int) -> Work:
        most = milliseconds * cpus * 250_000  # of four domains, they run no longer than there is time
        domains = {uuid: data.draw(st.integers(0, most), f"time of {uuid}") for uuid in "abcd"}
        busy = data.draw(st.integers(sum(domains.values()), 4 * most), "busy")
        return Work(4 * most, busy, domains)

    works = part(before), part(after)
    energies = watts * before * 1000, watts * after * 1000
    one, two = (attribute("capacity", energy, 0, work) for energy, work in zip(energies, works, strict=True))
    whole = attribute("capacity", sum(energies), 0, together(works))
    halves = {key: charge + parts(two)[key] for key, charge in parts(one).items()}
    assert furthest(halves, parts(whole)) <= 2


@settings(deadline=None)
@given(energies, energies, works, domain_times, shares, shares)
def test_the_vcpus_of_an_interval_in_two_parts(
    first: int, second: int, work: Work, time: DomainTime, before: int, after: int
) -> None:
    """A vCPU's charge is rounded after its domain's: less than two microjoules off, so at most five remain of three."""

    def charged(energy: int, factor: int) -> dict[int, int]:
        own = DomainTime({vcpu: run * factor for vcpu, run in time.vcpus.items()}, time.non_vcpu * factor)
        others = scaled(work, factor)
        all_of_it = Work(others.capacity, others.busy, {**others.domains, "own": own.total})
        return among_vcpus(attribute("capacity", energy, 0, all_of_it).domains["own"], own)

    one, two, whole = charged(first, before), charged(second, after), charged(first + second, before + after)
    assert all(abs(one[vcpu] + two[vcpu] - whole[vcpu]) <= 5 for vcpu in whole)


def test_an_unknown_model_is_none_of_the_known() -> None:
    with pytest.raises(AssertionError, match="fair"):
        attribute("fair", JOULE, 0, Work(S, 0, {}))  # type: ignore[arg-type]
