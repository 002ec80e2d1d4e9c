"""CPUs: packages, busy time, the processor's name."""

from pathlib import Path

import pytest
from fixtures import Host, write

from libvirt_rapl.host.cpus import NANOSECONDS_PER_TICK, busy_nanoseconds, model_name, packages


@pytest.mark.parametrize(
    ("online", "expected"),
    [
        ("0-3\n", {0: [0, 2], 1: [1, 3]}),
        ("0,2-3\n", {0: [0, 2], 1: [3]}),
        ("3\n", {1: [3]}),
    ],
)
def test_packages_hold_the_cpus_that_are_online(tmp_path: Path, online: str, expected: dict[int, list[int]]) -> None:
    host = Host(tmp_path, {0: [0, 2], 1: [1, 3]})
    write(host.sys / "devices/system/cpu/online", online)
    assert packages(host.sys) == expected


def test_busy_is_neither_idle_nor_waiting_nor_stolen(tmp_path: Path) -> None:
    write(
        tmp_path / "stat",
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 20 3 7777 8888 40 5 9999 60 6\ncpu12 1 0 0 0 0 0 0\nbtime 1\n",
    )
    assert busy_nanoseconds(tmp_path) == {0: 168 * NANOSECONDS_PER_TICK, 12: NANOSECONDS_PER_TICK}


def test_this_machine_tells_the_same_cpus_both_ways() -> None:
    online = [cpu for cpus in packages(Path("/sys")).values() for cpu in cpus]
    assert sorted(online) == sorted(busy_nanoseconds(Path("/proc")))


def test_model_name(tmp_path: Path) -> None:
    assert model_name(Host(tmp_path).proc) == "Fixture CPU @ 2.00GHz"
    write(tmp_path / "proc/cpuinfo", "processor : 0\n")
    assert model_name(tmp_path / "proc") == ""
