"""The capacity model: known intervals, and what holds for every interval."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libvirt_rapl.attribution import Charges, DomainTime, capacity

S = 1_000_000_000
JOULE = 1_000_000


@pytest.mark.parametrize(
    ("cpus", "busy", "domains", "expected"),
    [
        pytest.param(2, 0, {}, Charges({}, 0, 100 * JOULE), id="nobody"),
        pytest.param(2, S, {}, Charges({}, 50 * JOULE, 50 * JOULE), id="the host alone"),
        pytest.param(
            4,
            2 * S,
            {"a": DomainTime({0: S, 1: 0}, 0)},
            Charges({"a": {0: 25 * JOULE, 1: 0}}, 25 * JOULE, 50 * JOULE),
            id="a vCPU is a quarter of the package, the host another",
        ),
        pytest.param(
            2,
            S,
            {"a": DomainTime({0: S // 2, 1: 0}, S // 2)},
            Charges({"a": {0: 37_500_000, 1: 12_500_000}}, 0, 50 * JOULE),
            id="non-vCPU time goes evenly to the vCPUs, idle ones too",
        ),
        pytest.param(
            2,
            S,
            {"a": DomainTime({0: 0, 1: 0, 2: 0}, S)},
            Charges({"a": {0: 16_666_667, 1: 16_666_667, 2: 16_666_666}}, 0, 50 * JOULE),
            id="microjoules that cannot be divided go to the first",
        ),
        pytest.param(
            2,
            S,
            {"a": DomainTime({0: S + S // 10}, 0)},
            Charges({"a": {0: 55 * JOULE}}, 0, 45 * JOULE),
            id="busy ticks lag behind",
        ),
        pytest.param(
            2,
            2 * S,
            {"a": DomainTime({0: 3 * S}, 0), "b": DomainTime({0: S}, 0)},
            Charges({"a": {0: 75 * JOULE}, "b": {0: 25 * JOULE}}, 0, 0),
            id="more time than there was is shared",
        ),
        pytest.param(
            2,
            9 * S,
            {"a": DomainTime({0: S}, 0)},
            Charges({"a": {0: 50 * JOULE}}, 50 * JOULE, 0),
            id="more busy time than there was",
        ),
    ],
)
def test_known_intervals_of_a_second_and_100_joules(
    cpus: int, busy: int, domains: dict[str, DomainTime], expected: Charges
) -> None:
    assert capacity(100 * JOULE, S, cpus, busy, domains) == expected


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_microjoule_that_two_have_the_same_right_to(order: str) -> None:
    domains = {uuid: DomainTime(dict.fromkeys((0, 1) if order == "ab" else (1, 0), S), 0) for uuid in order}
    charges = capacity(6, S, 4, 4 * S, domains)
    assert charges.vcpus == {"a": {0: 2, 1: 1}, "b": {0: 2, 1: 1}}
    assert capacity(3, S, 4, 4 * S, domains).vcpus == {"a": {0: 1, 1: 1}, "b": {0: 1, 1: 0}}


times = st.integers(0, 4 * S)
domain_times = st.builds(DomainTime, st.dictionaries(st.integers(0, 15), times, min_size=1, max_size=6), times)
domains_of_a_host = st.dictionaries(st.uuids().map(str), domain_times, max_size=6)
energies = st.integers(0, 10**10)
intervals = st.integers(1, 3 * S)
cpu_counts = st.integers(1, 256)
busy_times = st.integers(0, 600 * S)


@settings(deadline=None)
@given(energies, intervals, cpu_counts, busy_times, domains_of_a_host)
def test_all_is_given_out_and_nobody_is_charged_less_than_nothing(
    energy: int, interval: int, cpus: int, busy: int, domains: dict[str, DomainTime]
) -> None:
    charges = capacity(energy, interval, cpus, busy, domains)
    given_out = [charge for vcpus in charges.vcpus.values() for charge in vcpus.values()] + [
        charges.other,
        charges.idle,
    ]
    assert sum(given_out) == energy
    assert min(given_out) >= 0
    assert {uuid: set(vcpus) for uuid, vcpus in charges.vcpus.items()} == {
        uuid: set(domain.vcpus) for uuid, domain in domains.items()
    }


@settings(deadline=None)
@given(energies, intervals, cpu_counts, busy_times, domains_of_a_host)
def test_a_domain_is_charged_its_share_of_the_capacity(
    energy: int, interval: int, cpus: int, busy: int, domains: dict[str, DomainTime]
) -> None:
    charges = capacity(energy, interval, cpus, busy, domains)
    run = {uuid: sum(domain.vcpus.values()) + domain.non_vcpu for uuid, domain in domains.items()}
    whole = max(interval * cpus, sum(run.values()))
    for uuid, vcpus in charges.vcpus.items():
        assert abs(sum(vcpus.values()) * whole - energy * run[uuid]) < whole  # less than a microjoule off


@settings(deadline=None)
@given(energies, intervals, cpu_counts, busy_times, domains_of_a_host, st.randoms(use_true_random=False))
def test_the_order_of_domains_and_vcpus_does_not_matter(
    energy: int, interval: int, cpus: int, busy: int, domains: dict[str, DomainTime], chance: object
) -> None:
    shuffled = {
        uuid: DomainTime(dict(sorted(domain.vcpus.items(), reverse=True)), domain.non_vcpu)
        for uuid, domain in sorted(domains.items(), key=lambda _: chance.random())  # type: ignore[attr-defined]
    }
    assert capacity(energy, interval, cpus, busy, shuffled) == capacity(energy, interval, cpus, busy, domains)


@settings(deadline=None)
@given(energies, intervals, cpu_counts, busy_times, domains_of_a_host, st.uuids().map(str), st.integers(1, 8))
def test_an_idle_domain_changes_nobodys_charge(
    energy: int, interval: int, cpus: int, busy: int, domains: dict[str, DomainTime], uuid: str, vcpus: int
) -> None:
    without = {name: domain for name, domain in domains.items() if name != uuid}
    idle = DomainTime(dict.fromkeys(range(vcpus), 0), 0)
    before = capacity(energy, interval, cpus, busy, without)
    after = capacity(energy, interval, cpus, busy, {uuid: idle, **without})
    assert after.vcpus.pop(uuid) == dict.fromkeys(range(vcpus), 0)
    assert after == before


@settings(deadline=None)
@given(energies, intervals, cpu_counts, domains_of_a_host, busy_times, busy_times)
def test_the_hosts_own_work_changes_no_domains_charge(
    energy: int, interval: int, cpus: int, domains: dict[str, DomainTime], busy: int, more: int
) -> None:
    quiet, loud = (capacity(energy, interval, cpus, work, domains) for work in (busy, busy + more))
    assert loud.other >= quiet.other - 1
    for uuid, vcpus in quiet.vcpus.items():
        assert abs(sum(vcpus.values()) - sum(loud.vcpus[uuid].values())) <= 1  # the last microjoule may move
