"""Every way a domain can move: two hosts with virt-rapl, each with a run directory of its own, and one without."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
from lifecycle import PATIENCE_SECONDS, Host
from walking import CONSTANT_100_WATTS, wait_until

from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

DISK = "/var/disk"
"""Each host has its own."""
SHARED_DISK = "/mnt/disk"
"""One file for all hosts."""
DISK_BYTES = 16 << 20


@dataclass
class Hosts:
    here: Host
    there: Host
    """With another run directory."""
    stranger: World
    """Without virt-rapl."""

    def check(self) -> None:
        self.here.check()
        self.there.check()


@pytest.fixture(scope="module")
def all_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o777)  # QEMU's user writes its log there

    def world(hostname: str) -> World:
        return World(CONSTANT_100_WATTS, shared=shared, hostname=hostname)

    with world("here") as here, world("there") as there, world("stranger") as stranger:
        stranger.start_libvirtd()
        left = Host(here)
        yield Hosts(left, Host(there, "/run/elsewhere", left.counted), stranger)


@pytest.fixture
def hosts(all_hosts: Hosts) -> Iterator[Hosts]:
    """The hosts. Domains go with the test, and leave nothing."""
    yield all_hosts
    for host in (all_hosts.here, all_hosts.there):
        host.configure()
    for world in (all_hosts.here.world, all_hosts.there.world, all_hosts.stranger):
        for name in world.run(["virsh", "list", "--all", "--name"]).stdout.split():
            world.run(["virsh", "destroy", name], check=False)
            world.run(["virsh", "undefine", name], check=False)
    all_hosts.check()


@pytest.fixture
def disk() -> str:
    return DISK


@pytest.fixture
def name(hosts: Hosts, disk: str) -> str:
    """A guest that is enabled and runs here."""
    name = f"guest-{uuid4()}"
    hosts.here.world.path(f"/mnt/{name}.rom").write_bytes(guest.rom(100))
    xml = guest.domain_xml(name, f"/mnt/{name}.rom", f"/mnt/{name}.log")
    drive = f"<disk type='file'><driver type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>"
    hosts.here.define(xml.replace("<devices>", f"<devices>{drive}"))
    for world in (hosts.stranger, hosts.there.world, hosts.here.world):
        world.path(disk).write_bytes(os.urandom(DISK_BYTES))
    hosts.here.enable(name)
    hosts.here.virsh("start", name)
    return name


def command(name: str, hostname: str, *options: str) -> list[str]:
    to = f"qemu+unix:///system?socket=/mnt/{hostname}/libvirt-sock"
    # libvirt does not know that the disk is shared; or, where it is not, it need not care: the guest never touches it.
    return ["virsh", "migrate", "--live", "--unsafe", name, to, "--migrateuri", "unix:///mnt/stream", *options]


@pytest.mark.parametrize(
    ("disk", "options"),
    [
        (SHARED_DISK, ()),
        (SHARED_DISK, ("--p2p", "--persistent", "--undefinesource")),
        (DISK, ("--copy-storage-all", "--disks-uri", "unix:///mnt/blocks")),
    ],
    ids=["plain", "p2p", "copy-storage-all"],
)
def test_there_and_back(hosts: Hosts, name: str, options: tuple[str, ...]) -> None:
    hosts.here.world.run(command(name, "there", *options))
    xml = hosts.there.xml(name)
    assert f"rapl-helper-socket=/run/elsewhere/{hosts.there.uuid(name)}.sock" in xml
    assert "/run/virt-rapl" not in xml
    hosts.check()
    hosts.there.world.run(command(name, "here", *options))
    assert f"rapl-helper-socket=/run/virt-rapl/{hosts.here.uuid(name)}.sock" in hosts.here.xml(name)
    hosts.check()


def test_a_definition_that_came_along_is_enabled_for_this_host(hosts: Hosts, name: str) -> None:
    """libvirt takes the definition as it was at the source: no hook may change it."""
    hosts.here.world.run(command(name, "there", "--persistent", "--undefinesource"))
    hosts.check()
    hosts.there.virsh("destroy", name)
    hosts.there.enable(name)
    hosts.there.virsh("start", name)
    hosts.check()


def test_only_the_source_has_us(hosts: Hosts, name: str) -> None:
    refused = hosts.here.world.run(command(name, "stranger"), check=False)
    assert "/usr/bin/qemu-system-x86_64-rapl" in refused.stderr
    assert hosts.here.state(name) == "running"
    hosts.check()

    plain = hosts.here.world.run(["virt-rapl", "strip"], input=hosts.here.xml(name, "--migratable")).stdout
    hosts.here.world.path("/mnt/plain.xml").write_text(plain)
    hosts.here.world.run(command(name, "stranger", "--xml", "/mnt/plain.xml"))
    arrived = hosts.stranger.run(["virsh", "dumpxml", name]).stdout
    assert not Definition.parse(arrived).is_marked
    assert "rapl" not in arrived
    hosts.check()

    hosts.stranger.run(command(name, "here"))  # where its definition still has the mark
    assert Definition.parse(hosts.here.xml(name)).is_marked
    hosts.check()


def test_only_the_destination_has_us(hosts: Hosts, name: str) -> None:
    hosts.here.virsh("destroy", name)
    plain = hosts.here.world.run(["virt-rapl", "strip"], input=hosts.here.xml(name)).stdout
    hosts.here.virsh("undefine", name)
    hosts.stranger.run(["virsh", "create", "/proc/self/fd/0"], input=plain)
    hosts.stranger.run(command(name, "here"))
    hosts.check()  # it came as it was
    assert not Definition.parse(hosts.here.xml(name)).is_marked
    hosts.there.configure(domains=f"[{name}]")
    hosts.here.world.run(command(name, "there"))
    assert Definition.parse(hosts.there.xml(name)).is_marked  # the operator has chosen it
    hosts.check()


def test_cancelled(hosts: Hosts, name: str) -> None:
    slowly = command(name, "there", "--copy-storage-all", "--disks-uri", "unix:///mnt/blocks")
    hosts.here.virsh("migrate-setspeed", name, "1")
    migration = hosts.here.world.popen(slowly)
    assert migration.stdout
    with migration.stdout:
        wait_until(
            lambda: hosts.there.virsh("domstate", name, check=False).stdout.strip() == "paused",
            PATIENCE_SECONDS,
            "it is on its way",
        )
        wait_until(
            lambda: hosts.here.virsh("domjobabort", name, check=False).returncode == 0,
            PATIENCE_SECONDS,
            "it is aborted",
        )
        assert migration.wait(PATIENCE_SECONDS) != 0
    assert hosts.here.state(name) == "running"
    hosts.check()
    hosts.here.virsh("migrate-setspeed", name, "1000")
    hosts.here.world.run(slowly)
    hosts.check()


def test_the_destination_refuses(hosts: Hosts, name: str) -> None:
    hosts.there.configure(helper="qemu", on_failure="refuse")
    helper = hosts.there.world.path("/usr/bin/qemu-vmsr-helper")
    aside = helper.rename(f"{helper}.aside")
    try:
        refused = hosts.here.world.run(command(name, "there"), check=False)
        why = f"virt-rapl: {name} is not started without RAPL: qemu-vmsr-helper is not installed"
        assert why in refused.stderr
        hosts.here.check()
        hosts.there.check(degraded={name: why})  # as its log says, too; it does not run
        hosts.there.configure(helper="qemu")
        hosts.here.world.run(command(name, "there"))
        hosts.here.check()
        hosts.there.check(degraded={name: "qemu-vmsr-helper is not installed"})
    finally:
        aside.rename(helper)
    hosts.there.configure()
    hosts.there.world.run(command(name, "here"))
    hosts.check()
