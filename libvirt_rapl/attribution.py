"""Who used the energy that a package counted in one interval. Pure arithmetic on integers, no I/O.

Energy is in microjoules, time in nanoseconds. What is given out adds up to what the package counted, to the microjoule.

The `capacity` model: in an interval of T ns the n CPUs of a package could have run T * n ns of threads, and

    charge of a thread = E * run_ns / (T * n)

This is how QEMU computes what a guest reads (QEMU documentation, docs/specs/rapl-msr.rst), so host and guest agree.
The time of a domain's threads that are no vCPU (main loop, disk I/O) is spread evenly over its vCPUs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", int, str)


class DomainTime(NamedTuple):
    """What one domain ran on one package in the interval, in nanoseconds."""

    vcpus: Mapping[int, int]
    """Time of each vCPU that is on this package, by vCPU number: of all its vCPUs, with 0, when none is. Not empty."""
    non_vcpu: int
    """Time of all its other threads on this package."""


@dataclass(frozen=True)
class Charges:
    """Where the energy of one package went in one interval, in microjoules."""

    vcpus: dict[str, dict[int, int]]
    """Charge of each vCPU, by domain (UUID) and vCPU number. A domain's charge is the sum of its vCPUs'."""
    other: int
    """Host work that is no domain's."""
    idle: int
    """What nobody's work explains."""


def capacity(energy: int, interval: int, cpus: int, busy: int, domains: Mapping[str, DomainTime]) -> Charges:
    """Give out the `energy` of a package whose `cpus` CPUs were busy for `busy` ns together; `domains` by UUID.

    Other is the busy time that is no domain's, idle is the rest of the capacity `interval` * `cpus`, both at least 1.
    The clocks differ slightly (busy time is counted in ticks). Domains are believed first: where they ran longer than
    `busy` there is no other; where they ran longer than the capacity they share all the energy by their time.
    """
    shares = {uuid: sum(domain.vcpus.values()) + domain.non_vcpu for uuid, domain in domains.items()}
    run = sum(shares.values())
    free = max(0, interval * cpus - run)
    other = min(max(0, busy - run), free)
    charges = _apportion(energy, {**shares, "other": other, "idle": free - other})
    return Charges(
        vcpus={uuid: _among_vcpus(charges[uuid], domain) for uuid, domain in domains.items()},
        other=charges["other"],
        idle=charges["idle"],
    )


def _among_vcpus(charge: int, domain: DomainTime) -> dict[int, int]:
    # Times are multiplied by the number of vCPUs so that an even part of the non-vCPU time is a whole number.
    count = len(domain.vcpus)
    return _apportion(charge, {vcpu: run * count + domain.non_vcpu for vcpu, run in domain.vcpus.items()})


def _apportion(amount: int, weights: Mapping[Key, int]) -> dict[Key, int]:
    """Divide `amount` in proportion to `weights` into integers that add up to it (method of the largest remainder).

    What has no weight gets nothing. Among equal remainders the lowest key goes first, so the order does not matter.
    """
    total = sum(weights.values())
    if not total:
        return dict.fromkeys(weights, 0)
    parts = {key: amount * weight // total for key, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda key: (-(amount * weights[key] % total), key))
    for key in by_remainder[: amount - sum(parts.values())]:
        parts[key] += 1
    return parts
