"""The model of QEMU's thread: equal to an independent one, which is held against a real QEMU, and its inverse."""

import pytest
from fakes.qemu_oracle import CPUS, TICKS_PER_SECOND
from fakes.qemu_oracle import Qemu as Oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from libvirt_rapl.helper.vmsr.qemu_arithmetic import MOST, Qemu, known

TICKS = st.integers(0, TICKS_PER_SECOND + 3)
WINDOWS = st.lists(
    st.tuples(st.integers(0, 1 << 24), st.lists(TICKS, min_size=1, max_size=4), st.lists(TICKS, max_size=6)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(WINDOWS)
def test_equal_to_the_oracle_over_any_windows(windows: list[tuple[int, list[int], list[int]]]) -> None:
    model, oracle = Qemu(CPUS * TICKS_PER_SECOND), Oracle()
    off = 0
    for difference, vcpus, others in windows:
        tids = {vcpu: 100 + vcpu for vcpu in range(len(vcpus))}
        after = dict(zip(tids.values(), vcpus, strict=True)) | dict(enumerate(others))
        gained = oracle.window(7, 7 + difference, tids, dict.fromkeys(after, 0), after)
        # The oracle divides exactly, QEMU in double precision: halves may fall either way, and stay in the share.
        off = len(others) + off + 1
        for mine, theirs in zip(model.gains(difference, vcpus, others), gained.values(), strict=True):
            assert abs(mine - theirs) <= off
        model.advance(difference, vcpus, others)


@settings(deadline=None)
@given(WINDOWS, st.integers(0, 1 << 24))
def test_the_solution_is_the_largest_that_is_not_too_large(
    windows: list[tuple[int, list[int], list[int]]], most: int
) -> None:
    model = Qemu(CPUS * TICKS_PER_SECOND)
    for difference, vcpus, others in windows[:-1]:
        model.advance(difference, vcpus, others)
    _, vcpus, others = windows[-1]
    solution = model.solve(most, vcpus, others)
    if not any(vcpus) or not most:
        assert solution == 0
        return
    assert solution == 0 or sum(model.gains(solution, vcpus, others)) <= most
    assert sum(model.gains(solution + 1, vcpus, others)) > most


def test_the_most_that_can_be_solved_for() -> None:
    model = Qemu(512 * TICKS_PER_SECOND)
    assert sum(model.gains(model.solve(MOST, [1], []), [1], [])) == MOST


def test_a_window_that_gives_nothing_still_makes_the_share_smaller() -> None:
    model = Qemu(200)
    model.advance(1_000_000, [50, 50], [60])
    share = model.share
    assert share == 150_000
    assert model.gains(0, [1, 0], []) == [share // 4, 0]
    model.advance(0, [1, 0], [])
    assert (model.share, model.vcpus_counted) == (share // 4, 4)


@pytest.mark.parametrize(
    ("version", "is_known"), [("9.0.4", False), ("9.1.0", True), ("10.0.2", True), ("11.2.1", True), ("12.0.0", False)]
)
def test_versions(version: str, is_known: bool) -> None:
    assert known(version) == is_known


@pytest.mark.parametrize(
    ("vcpus", "others", "gains", "share"),
    [
        ([50], [], [500], 0),
        ([50, 25], [50], [750, 500], 250),
        ([50, 0], [50], [750, 0], 250),
        ([100], [-60], [1000], 0),  # a new thread has the TID of one that ended
        ([100, -60], [40], [1200, 0], 200),
        ([0.15], [0.15], [4, 0], 2),
        ([], [50], [], 500),
    ],
)
def test_what_vcpus_gain_of_ten_units_a_tick(
    vcpus: list[float], others: list[float], gains: list[int], share: int
) -> None:
    model = Qemu(100)
    assert model.gains(1000, vcpus, others) == gains[: len(vcpus)]
    assert (model.share, model.vcpus_counted) == (0, 0), "nothing has passed yet"
    assert model.advance(1000, vcpus, others) == sum(gains[: len(vcpus)])
    assert (model.share, model.vcpus_counted) == (share, len(vcpus))


@pytest.mark.parametrize(
    ("maxticks", "vcpus", "others", "most"),
    [
        (1600, [1], [99, 19], 1816273020),
        (1600, [2, 2, 2], [14, 37, 30, 77, 99], 1293756812),
        (6400, [0, 0, 1], [22, 65, 55, 2, 75, 47, 62, 90, 36, 28], 643116074),
        (200, [1], [100] * 60, MOST),
    ],
)
def test_a_great_debt_is_not_paid_with_a_wrap_where_others_ran_far_more_than_vcpus(
    maxticks: int, vcpus: list[int], others: list[int], most: int
) -> None:
    model = Qemu(maxticks)
    solution = model.solve(most, vcpus, others)
    assert sum(model.gains(solution + 1, vcpus, others)) > most
    assert model.advance(solution, vcpus, others) <= most
    assert 0 < model.share <= most, "nor later, with what is left"


@pytest.mark.parametrize(("vcpus", "most"), [([], 1000), ([0], 1000), ([0, 0], 1000), ([5], 0), ([5], -1000)])
def test_no_difference_where_no_vcpu_ran_or_nothing_is_owed(vcpus: list[int], most: int) -> None:
    assert Qemu(100).solve(most, vcpus, [50]) == 0


@pytest.mark.parametrize(
    ("maxticks", "vcpus", "others", "most", "solution"),
    [
        (1000, [1] * 10, [], 4, 499),  # each part is rounded down
        (1000, [1] * 10, [], 10, 1499),
        (100, [100], [], 7, 7),
        (100, [50], [], 1, 2),
        (100, [50], [50], 1, 0),  # a half and a half are 2
        (100, [50, 0], [50], 1_000_000, 1_333_334),
    ],
)
def test_solutions(maxticks: int, vcpus: list[int], others: list[int], most: int, solution: int) -> None:
    assert Qemu(maxticks).solve(most, vcpus, others) == solution
