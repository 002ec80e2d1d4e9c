"""Copies of a meter's figures, how a meter continues from what was kept, and which domains are gone for good."""

import time
from collections.abc import Collection
from pathlib import Path

import pytest
from fakes.host import Host, Thread

from libvirt_rapl.energy.meter import Meter, Running
from libvirt_rapl.energy.snapshot import (
    GONE,
    GONE_SECONDS,
    HOST,
    IDLE,
    OTHER,
    PACKAGE,
    WHOLE,
    Kept,
    Part,
    Totals,
    add,
    imbalance,
    kept,
    retire,
    take,
)
from libvirt_rapl.host.energy_source import open_source

A, B = "aaaaaaaa-0000-0000-0000-000000000000", "bbbbbbbb-0000-0000-0000-000000000000"
S = 1_000_000_000


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")
    return host


@pytest.fixture
def meter(host: Host) -> Meter:
    """A meter whose clock moves a second at each sample, and that has not sampled yet."""
    now = 0

    def clock(which: int) -> int:
        nonlocal now
        now += which == time.CLOCK_BOOTTIME
        return now * S

    source = open_source("powercap", sys=host.sys, dev=host.dev, proc=host.proc)
    return Meter(source, sys=host.sys, proc=host.proc, clock=clock)


def use(host: Host, meter: Meter, joules: int) -> None:
    """Let domain A run on one CPU of two, all the time."""
    host.zone("intel-rapl:0", "package-0", joules * 1_000_000)
    host.process(7, {7: Thread("qemu", 0), 8: Thread("CPU 0/KVM", joules * S)})
    meter.sample([Running(A, 7, {0: 8})])


def test_a_copy_does_not_change_with_its_meter(host: Host, meter: Meter) -> None:
    for joules in (0, 1):
        use(host, meter, joules)
    copy = take(meter)
    shown, described = kept(copy), repr(copy)
    assert shown.totals[Part(A, 0, PACKAGE)] == copy.domains[A].vcpus[0].microjoules > 0
    for joules in (2, 3):
        use(host, meter, joules)
    retire(meter, running={A}, known=None)
    assert (kept(copy), repr(copy)) == (shown, described)


NOW = 2 * GONE_SECONDS
LONG_AGO = NOW - GONE_SECONDS - 1


@pytest.mark.parametrize(
    ("last_ran", "running", "known", "then"),  # when it ran last then; "retired" when it has gone for good
    [
        pytest.param(LONG_AGO, (), (), "retired", id="long ago"),
        pytest.param(LONG_AGO, (), (B,), "retired", id="others are known"),
        pytest.param(NOW - GONE_SECONDS, (), (), NOW - GONE_SECONDS, id="not so long ago"),
        pytest.param(LONG_AGO, (), (A,), LONG_AGO, id="libvirt knows it"),
        pytest.param(LONG_AGO, (), None, LONG_AGO, id="libvirt has not said"),
        pytest.param(LONG_AGO, (A,), (), NOW, id="it runs"),
        pytest.param(None, (), (), NOW, id="nobody knows when"),
        pytest.param(None, (), None, NOW, id="nobody knows when, nor has libvirt said"),
    ],
)
def test_when_a_domain_is_gone_for_good(
    meter: Meter, last_ran: float | None, running: Collection[str], known: Collection[str] | None, then: float | str
) -> None:
    meter.metered = NOW
    domain = meter.domains[A]
    domain.last_ran, domain.microjoules = last_ran, 7
    domain.zones["dram-0"].microjoules = 5
    for vcpu in (0, 3):
        domain.vcpus[vcpu].microjoules = 3 + vcpu // 3
    assert retire(meter, running=running, known=known) == ({A} if then == "retired" else set())
    if then == "retired":
        heir = meter.domains[GONE]
        assert meter.domains.keys() == {GONE}
        assert (heir.microjoules, heir.zones["dram-0"].microjoules) == (7, 5)
        assert {vcpu: usage.microjoules for vcpu, usage in heir.vcpus.items()} == {0: 3, 3: 4}
    else:
        assert meter.domains.keys() == {A}
        assert domain.last_ran == then


def test_what_is_gone_for_good_is_never_retired_itself(meter: Meter) -> None:
    meter.metered = NOW
    meter.domains[GONE].microjoules, meter.domains[GONE].last_ran = 7, 0
    assert retire(meter, running=(), known=()) == set()
    assert meter.domains[GONE].microjoules == 7


@pytest.mark.parametrize(
    ("own", "before", "then"),
    [
        (5.0, 40.0, 105.0),  # since this meter began: its time comes after the earlier one's
        (None, 40.0, 40.0),
        (5.0, None, 105.0),
        (0.0, 40.0, 100.0),
        (None, 0.0, 0.0),
        (None, None, None),
    ],
)
def test_when_a_domain_ran_last_is_the_newest_that_is_known(
    meter: Meter, own: float | None, before: float | None, then: float | None
) -> None:
    meter.domains[A].last_ran, meter.metered = own, 9.0
    add(meter, Kept(last_ran={} if before is None else {A: before}, metered=100.0))
    assert (meter.domains[A].last_ran, meter.metered) == (then, 109.0)


def test_a_zone_that_only_a_domains_totals_name_is_shown(meter: Meter) -> None:
    add(meter, Kept({Part(A, WHOLE, "dram-7"): 5, Part(A, WHOLE, "package-0"): 2}))
    shown = take(meter)
    assert {kind: figures.microjoules for kind, figures in shown.by_kind(A).items()} == {"dram": 5, "package": 2}
    assert {kind: figures.microjoules for kind, figures in shown.by_kind(B).items()} == {"dram": 0, "package": 0}
    assert shown.zones["dram-7"].counted.microjoules == 0


def test_what_was_kept_is_added_to_what_each_counts(meter: Meter) -> None:
    parts = [Part(owner, WHOLE, zone) for owner in (HOST, OTHER, IDLE, A) for zone in ("package-0", "psys")]
    parts += [Part(owner, WHOLE, PACKAGE) for owner in (OTHER, IDLE, A)] + [Part(A, vcpu, PACKAGE) for vcpu in (0, 9)]
    totals = {part: number for number, part in enumerate(parts, 1)}
    add(meter, Kept(totals))
    assert kept(take(meter)).totals == {**dict.fromkeys(totals, 0), **totals}
    add(meter, Kept(totals))
    assert kept(take(meter)).totals == {part: 2 * number for part, number in totals.items()}


@pytest.mark.parametrize(
    ("own", "before", "then"),
    [
        ((20, 2), (5, 1), (5, 1)),  # 10 and 5 microjoules per nanosecond
        ((20, 4), (6, 1), (20, 4)),
        ((0, 0), (6, 1), (6, 1)),  # none of its own yet
    ],
)
def test_the_lowest_power_is_the_lowest_of_both(
    meter: Meter, own: tuple[int, int], before: tuple[int, int], then: tuple[int, int]
) -> None:
    meter.zones["package-0"].lowest = own
    add(meter, Kept(lowest={"package-0": before, "dram-0": (7, 1)}))
    assert kept(take(meter)).lowest == {"package-0": then, "dram-0": (7, 1)}


BALANCED: Totals = {
    Part(HOST, WHOLE, "package-0"): 30,
    Part(HOST, WHOLE, "package-1"): 20,
    Part(HOST, WHOLE, "psys"): 1000,
    Part(OTHER, WHOLE, PACKAGE): 4,
    Part(IDLE, WHOLE, PACKAGE): 6,
    Part(GONE, WHOLE, PACKAGE): 10,
    Part(GONE, 0, PACKAGE): 10,
    Part(A, WHOLE, PACKAGE): 30,
    Part(A, WHOLE, "dram-0"): 99,
    Part(A, 0, PACKAGE): 18,
    Part(A, 1, PACKAGE): 12,
}


def test_totals_that_add_up() -> None:
    assert imbalance({}) == imbalance(BALANCED) == ""
    for part in BALANCED:
        more = imbalance({**BALANCED, part: BALANCED[part] + 1})
        assert bool(more) == (part.zone not in ("psys", "dram-0")), part
    assert A in imbalance({**BALANCED, Part(A, 2, PACKAGE): 1})
    assert B in imbalance({**BALANCED, Part(B, 0, PACKAGE): 1})
