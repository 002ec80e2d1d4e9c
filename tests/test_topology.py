"""CPUs: packages, the processor's name."""

from pathlib import Path

import pytest
from fakes.host import Host, write

from libvirt_rapl.host.topology import model_name, packages


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


def test_model_name(tmp_path: Path) -> None:
    assert model_name(Host(tmp_path).proc) == "Fixture CPU @ 2.00GHz"
    write(tmp_path / "proc/cpuinfo", "processor : 0\n")
    assert model_name(tmp_path / "proc") == ""
