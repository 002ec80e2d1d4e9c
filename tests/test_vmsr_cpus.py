"""Which package each CPU belongs to, from a sysfs made of files."""

from pathlib import Path

import pytest
from fakes.host import write

from libvirt_rapl.helper.vmsr.cpus import Cpus


def sysfs(directory: Path, online: str, packages: dict[int, int]) -> Cpus:
    """Show the CPUs of a machine of two, both of package 0, that look() has not seen change yet."""
    write(directory / "online", "0-1\n")
    cpus = Cpus({0: 0, 1: 0}, f"{directory}/")
    for cpu, package in packages.items():
        write(directory / f"cpu{cpu}/topology/physical_package_id", f"{package}\n")
    write(directory / "online", online)
    return cpus


@pytest.mark.parametrize(
    ("online", "packages", "package_of", "counts"),
    [
        ("0-1\n", {0: 9, 1: 9}, {0: 0, 1: 0}, {0: 2}),  # nothing has changed, and nothing is read
        ("", {0: 9, 1: 9}, {0: 0, 1: 0}, {0: 2}),
        ("0-3\n", {0: 0, 1: 0, 2: 1, 3: 1}, {0: 0, 1: 0, 2: 1, 3: 1}, {0: 2, 1: 2}),
        ("0-1,4,6-7\n", {0: 0, 1: 0, 4: 1, 6: 1, 7: 1}, {0: 0, 1: 0, 4: 1, 6: 1, 7: 1}, {0: 2, 1: 3}),
        ("0\n", {0: 0}, {0: 0, 1: 0}, {0: 1}),  # where one was that is offline is still known
        ("10-11\n", {10: 2, 11: 2}, {0: 0, 1: 0, 10: 2, 11: 2}, {2: 2}),
    ],
)
def test_packages_of_the_cpus_that_are_online(
    tmp_path: Path, online: str, packages: dict[int, int], package_of: dict[int, int], counts: dict[int, int]
) -> None:
    cpus = sysfs(tmp_path, online, packages)
    cpus.look()
    assert (cpus.package_of, cpus.counts) == (package_of, counts)


def test_a_cpu_that_shows_no_package_yet_is_read_again(tmp_path: Path) -> None:
    cpus = sysfs(tmp_path, "0-2\n", {0: 0, 1: 0})
    cpus.look()
    assert (cpus.package_of, cpus.counts) == ({0: 0, 1: 0}, {0: 2})
    write(tmp_path / "cpu2/topology/physical_package_id", "1\n")
    cpus.look()
    assert (cpus.package_of, cpus.counts) == ({0: 0, 1: 0, 2: 1}, {0: 2, 1: 1})


def test_the_packages_that_were_given_are_not_changed(tmp_path: Path) -> None:
    given = {0: 0}
    write(tmp_path / "online", "0\n")
    cpus = Cpus(given, f"{tmp_path}/")
    write(tmp_path / "online", "0-1\n")
    write(tmp_path / "cpu1/topology/physical_package_id", "0\n")
    cpus.look()
    assert given == {0: 0}
