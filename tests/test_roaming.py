"""Where threads ran, on machines of several packages: known cases, and what holds for all."""

from hypothesis import given, settings
from hypothesis import strategies as st

from libvirt_rapl.energy.attribution import DomainTime
from libvirt_rapl.energy.roaming import Places, settle

PACKAGES = range(3)


def vm(*times: int, non_vcpu: tuple[int, ...] = (0, 0)) -> Places:
    """A domain whose one vCPU ran so long on each package."""
    return {package: DomainTime({0: ran}, non_vcpu[package]) for package, ran in enumerate(times)}


def test_what_is_too_much_ran_where_there_is_room() -> None:
    assert settle({"a": vm(50, 50)}, {"a"}, {0: 30, 1: 70}) == {"a": vm(30, 70)}
    assert settle({"a": vm(50, 50)}, {"a"}, {0: 70, 1: 70}) == {"a": vm(50, 50)}
    assert settle({"a": vm(50, 50)}, {"a"}, {0: 30, 1: 60}) == {"a": vm(40, 60)}, "the clocks differ"
    assert settle({"a": vm(50, 50), "b": vm(20, 0)}, {"a"}, {0: 50, 1: 90}) == {"a": vm(30, 70), "b": vm(20, 0)}
    assert settle({"a": vm(80, 0), "b": vm(40, 0)}, {"a", "b"}, {0: 60, 1: 70}) == {"a": vm(40, 40), "b": vm(20, 20)}
    assert settle({"a": vm(0, 0)}, {"a"}, {0: 0, 1: 70}) == {"a": vm(0, 0)}
    assert settle({"a": vm(9, 0), "b": vm(20, 0)}, {"a"}, {0: 10, 1: 9}) == {"a": vm(0, 9), "b": vm(20, 0)}


def test_who_stays_is_not_moved() -> None:
    domains = {"a": vm(101, 0), "b": vm(0, 99)}
    assert settle(domains, (), {0: 100, 1: 100}) == domains


def test_vcpus_and_other_threads_move_by_the_same_part() -> None:
    domain = {0: DomainTime({0: 60, 1: 20}, 20), 1: DomainTime({1: 10}, 0), 2: DomainTime({0: 0, 1: 0}, 0)}
    assert settle({"a": domain}, {"a"}, {0: 50, 1: 35, 2: 25}) == {
        "a": {0: DomainTime({0: 30, 1: 10}, 10), 1: DomainTime({0: 15, 1: 15}, 5), 2: DomainTime({0: 15, 1: 5}, 5)}
    }


times = st.integers(0, 10**10)
places = st.fixed_dictionaries(
    {
        package: st.builds(DomainTime, st.dictionaries(st.integers(0, 3), times, min_size=1), times)
        for package in PACKAGES
    }
)
domains = st.dictionaries(st.sampled_from("abcd"), places)
busy = st.fixed_dictionaries(dict.fromkeys(PACKAGES, times))


def total(places: Places) -> int:
    return sum(time.total for time in places.values())


@settings(deadline=None)
@given(domains, st.sets(st.sampled_from("abcd")), busy)
def test_nobodys_time_is_lost(domains: dict[str, Places], roaming: set[str], busy: dict[int, int]) -> None:
    settled = settle(domains, roaming & domains.keys(), busy)
    assert settled.keys() == domains.keys()
    for uuid, seemingly in domains.items():
        assert total(settled[uuid]) == total(seemingly)
        assert min(min(*time.vcpus.values(), time.non_vcpu) for time in settled[uuid].values()) >= 0
        if uuid not in roaming:
            assert settled[uuid] == seemingly


@settings(deadline=None)
@given(domains, st.data())
def test_all_is_explained_when_nobody_else_runs(domains: dict[str, Places], data: st.DataObject) -> None:
    """However wrong the places seem. A nanosecond of each thread on each package is lost in rounding."""
    ran = sum(map(total, domains.values()))
    first = data.draw(st.integers(0, ran))
    second = data.draw(st.integers(first, ran))
    busy = {0: first, 1: second - first, 2: ran - second}
    settled = settle(domains, domains.keys(), busy)
    for package in PACKAGES:
        placed = sum(places[package].total for places in settled.values())
        assert abs(placed - busy[package]) <= len(domains) * 5 * len(PACKAGES)


@settings(deadline=None)
@given(domains, busy)
def test_the_order_of_domains_does_not_matter(domains: dict[str, Places], busy: dict[int, int]) -> None:
    turned = dict(reversed(domains.items()))
    assert settle(turned, turned.keys(), busy) == settle(domains, domains.keys(), busy)
