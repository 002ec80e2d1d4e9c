"""On which packages the threads of domains ran. Pure arithmetic on integers, no I/O.

Linux says where a thread ran last, not how long it ran where. So half its time in an interval is counted on the package
where it was at the beginning, and half on the one where it is at the end. That is right on average; if it moves once in
an interval, at most half its time is in the wrong place; if more often, at most all.

How long the CPUs of each package were busy says more. If domains seem to have run longer than that, the excess ran on
packages that were busy for longer than is explained. A domain that is alone on its packages is placed exactly.
"""

from collections.abc import Collection, Mapping
from fractions import Fraction

from libvirt_rapl.energy.attribution import DomainTime

Places = dict[int, DomainTime]
"""What a domain ran on each package."""


def settle(domains: Mapping[str, Places], roaming: Collection[str], busy: Mapping[int, int]) -> dict[str, Places]:
    """Return what each domain ran on each package, from what it seems to be and how long each was busy.

    Only the time of `roaming` domains, whose threads have moved, is moved: the clocks differ by milliseconds, and a
    domain that stays on its package must not be charged for others.
    """
    left = {
        package: ran - sum(times[package].total for uuid, times in domains.items() if uuid not in roaming)
        for package, ran in busy.items()
    }
    seemingly = {package: sum(domains[uuid][package].total for uuid in roaming) for package in busy}
    parts = _elsewhere(seemingly, left)
    return {uuid: _move(times, parts) if uuid in roaming else times for uuid, times in domains.items()}


def _elsewhere(seemingly: Mapping[int, int], left: Mapping[int, int]) -> dict[tuple[int, int], Fraction]:
    """Return which part of the time on one package was on another, by both packages, as far as there is room."""
    too_much = {package: min(ran, ran - left[package]) for package, ran in seemingly.items() if ran > left[package]}
    room = {package: left[package] - ran for package, ran in seemingly.items() if left[package] > ran}
    total = max(sum(too_much.values()), sum(room.values()))
    return {
        (there, here): Fraction(much * free, seemingly[there] * total)
        for there, much in too_much.items()
        for here, free in room.items()
        if much
    }


def _move(times: Places, parts: Mapping[tuple[int, int], Fraction]) -> Places:
    vcpus = {package: dict(time.vcpus) for package, time in times.items()}
    non_vcpu = {package: time.non_vcpu for package, time in times.items()}
    for (there, here), part in parts.items():
        for vcpu, ran in times[there].vcpus.items():
            moved = int(ran * part)
            vcpus[there][vcpu] -= moved
            vcpus[here][vcpu] = vcpus[here].get(vcpu, 0) + moved
        moved = int(times[there].non_vcpu * part)
        non_vcpu[there] -= moved
        non_vcpu[here] += moved
    return {package: DomainTime(vcpus[package], non_vcpu[package]) for package in times}
