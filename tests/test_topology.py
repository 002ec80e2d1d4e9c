"""CPUs: packages, dies, cores, and what the processor is."""

from pathlib import Path

import pytest
from fakes.host import Host, write

from libvirt_rapl.host.topology import dies, first_of_core, first_of_each_core, model_name, packages, processor


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


def test_dies_of_packages(tmp_path: Path) -> None:
    host = Host(tmp_path, {0: [0, 1, 2], 1: [3]})
    assert dies(host.sys) == {(0, 0): [0, 1, 2], (1, 0): [3]}, "old kernels do not report them"
    for cpu, die in enumerate((0, 1, 1, 0)):
        host.place(cpu, cpu // 3, die=die)
    assert dies(host.sys) == {(0, 0): [0], (0, 1): [1, 2], (1, 0): [3]}
    assert packages(host.sys) == {0: [0, 1, 2], 1: [3]}


@pytest.mark.parametrize(
    ("siblings", "first"),
    [
        (["0,2", "1,3", "0,2", "1,3"], [0, 1, 0, 1]),
        (["0-1", "0-1", "2-3", "2-3"], [0, 0, 2, 2]),
        (["0", "1", "2", "3"], [0, 1, 2, 3]),
    ],
)
def test_the_first_thread_of_each_core(tmp_path: Path, siblings: list[str], first: list[int]) -> None:
    host = Host(tmp_path, {0: [0, 1, 2, 3]})
    for cpu, threads in enumerate(siblings):
        host.place(cpu, 0, siblings=threads)
    assert [first_of_core(host.sys, cpu) for cpu in range(4)] == first
    assert first_of_each_core(host.sys, [3, 2, 1, 0]) == sorted(set(first))
    assert first_of_each_core(host.sys, [3]) == [first[3]]


def test_the_processor(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.processor("HygonGenuine", 0x18, 2)
    assert processor(host.proc) == ("HygonGenuine", 0x18, 2)
    write(host.proc / "cpuinfo", "processor : 0\n")  # as on other architectures
    assert processor(host.proc) == ("", 0, 0)


def test_model_name(tmp_path: Path) -> None:
    assert model_name(Host(tmp_path).proc) == "Fixture CPU @ 2.00GHz"
    write(tmp_path / "proc/cpuinfo", "processor : 0\n")
    assert model_name(tmp_path / "proc") == ""
