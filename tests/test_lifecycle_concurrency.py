"""Many things that happen to domains at the same moment."""

import subprocess
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from lifecycle import Host
from walking import CONSTANT_100_WATTS, wait_until

from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

DOMAINS = 20
HOOK = "/etc/libvirt/hooks/qemu.d/virt-rapl"
END_SECONDS = 60


@pytest.fixture
def host() -> Iterator[Host]:
    with World(CONSTANT_100_WATTS, hostname="concurrency") as world:
        yield Host(world)


def at_once(host: Host, *commands: list[str]) -> list[int]:
    """Run the commands at the same moment and return their exit statuses."""
    processes = [host.world.popen(command) for command in commands]
    outputs = [process.communicate(timeout=END_SECONDS) for process in processes]
    print([output for output in outputs if any(output)])
    return [process.returncode for process in processes]


def test_twenty_domains_start_and_end_at_once(host: Host) -> None:
    names = [f"guest-{number}" for number in range(DOMAINS)]
    for name in names:
        host.world.define_guest(name, 5)
    host.world.run(["virt-rapl", "enable", *names])
    began = time.monotonic()
    assert at_once(host, *(["virsh", "start", name] for name in names)) == [0] * DOMAINS
    print(f"{DOMAINS} domains started in {time.monotonic() - began:.1f} s")
    host.check()
    assert at_once(host, *(["virsh", "destroy", name] for name in names)) == [0] * DOMAINS
    host.check()


def test_two_hooks_of_one_domain(host: Host) -> None:
    """As when libvirt is killed during a hook, and starts the domain again."""
    host.world.define_guest("guest", 5)
    host.enable("guest")
    uuid = host.uuid("guest")
    host.world.path("/mnt/guest.xml").write_text(host.xml("guest"))

    def hooks(*operations: str) -> list[int]:
        return at_once(host, *(["sh", "-c", f"exec {HOOK} guest {name} x - </mnt/guest.xml"] for name in operations))

    assert hooks("start", "start", "start") == [0, 0, 0]
    assert host.helpers() == [uuid]
    for _ in range(3):
        assert hooks("start", "stopped") == [0, 0]
        record = host.world.path(f"{host.run_directory}/{uuid}.json")
        assert host.helpers() == ([uuid] if record.exists() else [])
    hooks("release")
    host.check()
    host.virsh("start", "guest")
    host.check()


def test_enabled_while_it_starts(host: Host) -> None:
    for _ in range(2):
        name = f"guest-{uuid4()}"
        host.world.define_guest(name, 5)
        assert at_once(host, ["virsh", "start", name], ["virt-rapl", "enable", name]) == [0, 0]
        host.check()
        host.virsh("destroy", name)
        host.virsh("start", name)
        assert "rapl=true" in host.xml(name)
        host.check()


def test_destroyed_while_it_starts(host: Host) -> None:
    host.world.define_guest("guest", 5)
    host.enable("guest")
    for tenths in (1, 4, 7):
        destroy = f"sleep 0.{tenths}; exec virsh destroy guest"
        at_once(host, ["virsh", "start", "guest"], ["sh", "-c", destroy])
        host.virsh("destroy", "guest", check=False)
        wait_until(lambda: host.state("guest") == "shut off", END_SECONDS, "it has ended")
    host.check()
    host.virsh("start", "guest")
    host.check()


def test_libvirtd_is_killed_while_domains_start(host: Host) -> None:
    names = [f"guest-{number}" for number in range(4)]
    for name in names:
        host.world.define_guest(name, 5)
    host.world.run(["virt-rapl", "enable", *names])
    starts: list[subprocess.Popen[str]] = [host.world.popen(["virsh", "start", name]) for name in names]
    time.sleep(1)
    host.world.stop_libvirtd("KILL")
    for start in starts:
        start.communicate(timeout=END_SECONDS)
    host.world.start_libvirtd()

    def all_run() -> bool:
        """Start what does not run; libvirt may still be looking at what was half started."""
        for name in names:
            if host.state(name) != "running":
                host.virsh("start", name, check=False)
        return all(host.state(name) == "running" for name in names)

    wait_until(all_run, 150, "all run")  # libvirt waits for half a minute for the monitor of each that was half started
    host.check(daemon_logs=("without libvirt for now", "libvirt is back"))
