"""What used the energy that a zone counted in one interval. Pure arithmetic on integers, no I/O.

Energy is in microjoules, time in nanoseconds. What is given out adds up to what the zone counted, to the microjoule.

In an interval of T ns the n CPUs of a zone could have run threads for C = T * n ns. They were busy for B ns, and the
threads of a domain, vCPUs and all others, ran for t ns. Of the energy E that the zone counted

    model       a domain is charged   other is                idle is
    capacity    E * t / C             E * (B - sum of t) / C  the rest
    active      E * t / B             E * (B - sum of t) / B  0; E when nothing ran
    baseline    as in active, with E - I in place of E        I; E when nothing ran

capacity is how QEMU computes what a guest reads (QEMU documentation, docs/specs/rapl-msr.rst), so host and guest agree;
a domain's charge does not depend on what others do. active shares by CPU time, as Kepler does (its "Power Attribution
Guide"), but shares all the energy: whatever runs pays for idle power too. baseline charges domains only for what they
add to an idle host, as Kepler did before version 0.10; its I is the idle power, the lowest that the zone has shown (see
libvirt_rapl.energy.meter), times T.

The CPUs of a zone, by its kind:

    package        the CPUs of that package
    core, uncore   the same: they are parts of the package, so a domain has the same share of them as of the whole. No
                   clock of a thread shows what integrated graphics use (uncore of a client CPU)
    dram           the CPUs of the package that the memory is attached to. Accesses are not counted by domain (few hosts
                   can); what runs there is assumed to use memory in proportion. Its refresh, which nothing causes,
                   goes to idle in baseline
    psys           all CPUs of the machine, because it covers the whole machine
    any other      as package if it belongs to one, else as psys
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, assert_never

from libvirt_rapl.choices import Model

Key = TypeVar("Key", int, str)


class DomainTime(NamedTuple):
    """What one domain ran on one package in the interval, in nanoseconds."""

    vcpus: Mapping[int, int]
    """Time of each vCPU on this package, by vCPU number; if none is there, of all its vCPUs, with 0. Not empty."""
    non_vcpu: int
    """Time of all its other threads on this package."""

    @property
    def total(self) -> int:
        """Time of all its threads on this package."""
        return sum(self.vcpus.values()) + self.non_vcpu


@dataclass(frozen=True)
class Work:
    """What ran on the CPUs of a zone in one interval, in nanoseconds."""

    capacity: int
    """What all its CPUs could have run: the interval times their number."""
    busy: int
    """How long they were busy, for whatever work."""
    domains: Mapping[str, int]
    """What the threads of each domain ran there, by UUID."""


@dataclass(frozen=True)
class Charges:
    """Where the energy of one zone went in one interval, in microjoules."""

    domains: dict[str, int]
    """By UUID."""
    other: int
    """Host work that is no domain's."""
    idle: int
    """What no work explains."""


def work_for(package: int | None, works: Mapping[int, Work]) -> Work:
    """Return the work that shares a zone's energy: that on its package; the whole machine's if it belongs to none."""
    if package is None:
        return together(works.values())
    return works.get(package, Work(0, 0, {}))  # nothing runs on a package that has no CPU online


def together(works: Collection[Work]) -> Work:
    """Return the work of all packages as the work of one machine."""
    domains: dict[str, int] = {}
    for work in works:
        for uuid, run in work.domains.items():
            domains[uuid] = domains.get(uuid, 0) + run
    return Work(sum(work.capacity for work in works), sum(work.busy for work in works), domains)


def attribute(model: Model, energy: int, idle_energy: int, work: Work) -> Charges:
    """Give out `energy` by that model; only baseline uses `idle_energy`."""
    match model:
        case "capacity":
            return capacity(energy, work)
        case "active":
            return active(energy, work)
        case "baseline":
            return baseline(energy, idle_energy, work)
        case _:
            assert_never(model)


def capacity(energy: int, work: Work) -> Charges:
    """Give out `energy` by the share of all the time the CPUs could have run.

    The clocks differ slightly (see BusyClock and ProcessClock). Domains are believed first: if they ran longer than the
    CPUs were busy, there is no other; if they ran longer than the capacity, they share all the energy.
    """
    run = sum(work.domains.values())
    free = max(0, work.capacity - run)
    other = min(max(0, work.busy - run), free)
    return _charges(energy, work.domains, other, free - other)


def active(energy: int, work: Work) -> Charges:
    """Give out all `energy` by the share of the time the CPUs ran; domains are believed first, as in capacity."""
    return _charges(energy, work.domains, max(0, work.busy - sum(work.domains.values())), 0)


def baseline(energy: int, idle_energy: int, work: Work) -> Charges:
    """Set aside `idle_energy`, which the zone uses in such an interval when nothing runs, and give out the rest."""
    idle = min(idle_energy, energy)
    rest = active(energy - idle, work)
    return Charges(rest.domains, rest.other, rest.idle + idle)


def among_vcpus(charge: int, time: DomainTime) -> dict[int, int]:
    """Divide the charge of a domain on a package among the vCPUs in `time`, by their time.

    The time of threads that are not vCPUs (main loop, disk I/O) is spread evenly over them.
    """
    # Times are multiplied by the number of vCPUs so that an even part of the non-vCPU time is a whole number.
    vcpus, non_vcpu = time
    count = len(vcpus)
    return _apportion(charge, {vcpu: run * count + non_vcpu for vcpu, run in vcpus.items()})


def _charges(energy: int, domains: Mapping[str, int], other: int, idle: int) -> Charges:
    """Divide `energy` in proportion to time. Without any time it is all idle's."""
    parts = _apportion(energy, {**domains, "other": other, "idle": idle})
    given_out = sum(parts.values())
    other, idle = parts.pop("other"), parts.pop("idle")
    return Charges(parts, other, idle + energy - given_out)


def _apportion(amount: int, weights: Mapping[Key, int]) -> dict[Key, int]:
    """Divide `amount` in proportion to `weights` into integers that add up to it (method of the largest remainder).

    A key without weight gets nothing. Among equal remainders the lowest key goes first, so the order does not matter.
    """
    total = sum(weights.values())
    if not total:
        return dict.fromkeys(weights, 0)
    parts, remainders = {}, []
    for key, weight in weights.items():
        parts[key], remainder = divmod(amount * weight, total)
        remainders.append((-remainder, key))
    if left := amount - sum(parts.values()):
        remainders.sort()
        for _, key in remainders[:left]:
            parts[key] += 1
    return parts
