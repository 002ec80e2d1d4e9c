"""Live migration between two libvirtds, each with a run directory of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from walking import configure, grows, run_files, start_enabled, status, wait_until

from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[tuple[World, World]]:
    tmp_path.chmod(0o777)  # QEMU's user writes its log there
    with (
        World(shared=tmp_path, hostname="source") as source,
        World(shared=tmp_path, hostname="destination") as destination,
    ):
        for world in (source, destination):
            world.run(["virt-rapl", "install", "--force"])
            world.start_libvirtd()
        configure(destination, run_directory="/run/elsewhere")
        yield source, destination


def test_the_guest_counts_on_where_it_arrives(worlds: tuple[World, World]) -> None:
    source, destination = worlds
    source.define_guest("traveller", 100)
    start_enabled(source, "traveller")
    wait_until(lambda: grows(source, "traveller"), 30, "the guest's counter moves")
    to = "qemu+unix:///system?socket=/mnt/destination/libvirt-sock"
    source.run(["virsh", "migrate", "--live", "--p2p", "traveller", to, "--migrateuri", "unix:///mnt/stream"])
    xml = destination.run(["virsh", "dumpxml", "traveller"]).stdout
    uuid = destination.run(["virsh", "domuuid", "traveller"]).stdout.strip()
    assert f"rapl-helper-socket=/run/elsewhere/{uuid}.sock" in xml
    assert "/run/virt-rapl" not in xml
    joules = sum(guest.joules(destination.readings("traveller")).values())
    wait_until(
        lambda: sum(guest.joules(destination.readings("traveller")).values()) > joules, 30, "the counter moves on"
    )
    assert status(destination, "traveller")["vrapl"] == "active"
    assert run_files(source) == set()
