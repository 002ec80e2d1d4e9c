"""The whole path on real libvirt, QEMU and KVM: enable, start, and the guest reads its own joules."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from walking import NewGuest, configure, grows, run_files, start_enabled, status, wait_until

from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("default_configuration")]

RUN = "/run/virt-rapl"
HOST_UNIT = 0xA0E03


@pytest.mark.parametrize("backend", ["native", "qemu"])
def test_the_guest_reads_its_joules_and_status_shows_it(world: World, new_guest: NewGuest, backend: str) -> None:
    configure(world, helper=backend)
    name = new_guest(100)
    start_enabled(world, name)
    wait_until(lambda: grows(world, name), 30, "the guest's counter moves")
    assert {reading.unit for reading in world.readings(name)} == {HOST_UNIT}
    domain = status(world, name)
    assert domain["vrapl"] == "active"
    assert domain["helper"]["backend"] == backend
    assert domain["helper"]["healthy"] is True
    assert domain["power_watts"] > 10
    (vcpu,) = domain["vcpus"]
    assert vcpu["tid"] in {int(task.name) for task in world.path(f"/proc/{domain['pid']}/task").iterdir()}
    qemu_owner = world.path(f"/proc/{domain['pid']}").stat().st_uid
    socket = world.path(domain["helper"]["socket"]).stat()
    assert qemu_owner != 0
    assert (socket.st_uid, socket.st_mode & 0o777) == (0, 0o660)
    assert world.path(RUN).stat().st_mode & 0o777 == 0o711
    world.run(["virsh", "destroy", name])
    wait_until(lambda: not run_files(world), 5, "nothing of the domain is left")
    assert not world.path(f"/proc/{domain['helper']['pid']}").exists()


def test_the_argument_alone_reads_nothing(world: World, new_guest: NewGuest) -> None:
    """What the wrapper is for: QEMU ignores the second -accel in silence."""
    name = new_guest(100)
    start_enabled(world, name)
    wait_until(lambda: grows(world, name), 30, "with the wrapper the counter moves")
    world.run(["virsh", "destroy", name])
    world.path(f"/mnt/{name}.log").unlink()
    xml = world.run(["virsh", "dumpxml", "--inactive", name]).stdout
    without = xml.replace("qemu-system-x86_64-rapl</emulator>", "qemu-system-x86_64</emulator>")
    assert without != xml
    assert "rapl=true" in without
    world.run(["virsh", "define", "/dev/stdin"], input=without)
    world.run(["virsh", "start", name])
    time.sleep(4)
    assert {(reading.unit, reading.energy) for reading in world.readings(name)} == {(0, 0)}
    world.run(["virsh", "define", "/dev/stdin"], input=xml)


@contextmanager
def watched(world: World, name: str) -> Iterator[list[tuple[float, float]]]:
    """Collect (time, joules) of the domain as `status --watch --json` prints them."""
    points: list[tuple[float, float]] = []
    process = world.popen(["virt-rapl", "status", "--json", "--watch", name])
    assert process.stdout is not None

    def collect(lines: Iterator[str]) -> None:
        points.extend((time.monotonic(), json.loads(line)["domains"][0]["energy_joules"]) for line in lines)

    thread = threading.Thread(target=collect, args=(iter(process.stdout),))
    thread.start()
    try:
        yield points
    finally:
        process.kill()
        process.wait()
        thread.join()
        process.stdout.close()


def interpolated(points: list[tuple[float, float]], instant: float) -> float:
    for (t0, j0), (t1, j1) in pairwise(points):
        if t0 <= instant <= t1:
            return j0 + (j1 - j0) * (instant - t0) / (t1 - t0)
    raise AssertionError("the watch did not cover this instant")


def counted(world: World, name: str, seconds: float) -> list[tuple[float, float]]:
    """Return (time, joules) at each change of the guest's own counter."""
    points: list[tuple[float, float]] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        joules = guest.joules(world.readings(name))[0]
        if not points or joules != points[-1][1]:
            points.append((time.monotonic(), joules))
        time.sleep(0.02)
    return points[1:]  # when the first value came is not known


@pytest.mark.parametrize("backend", ["native", "qemu"])
def test_guest_and_status_agree(world: World, new_guest: NewGuest, backend: str) -> None:
    configure(world, helper=backend)
    name = new_guest(100)
    start_enabled(world, name)
    wait_until(lambda: grows(world, name), 30, "the guest's counter moves")
    with watched(world, name) as points:
        wait_until(lambda: points, 30, "status prints something")
        guest_points = counted(world, name, 22)
        time.sleep(1.5)
    (begin, first), (end, last) = guest_points[0], guest_points[-1]
    by_guest = last - first
    by_status = interpolated(points, end) - interpolated(points, begin)
    print(f"{backend}: over {end - begin:.2f} s the guest counted {by_guest:.2f} J, status {by_status:.2f} J")
    assert end - begin > 19
    assert by_guest == pytest.approx(by_status, rel=0.03)


def test_disable_restores_the_definition(world: World, new_guest: NewGuest) -> None:
    name = new_guest(0)
    before = world.run(["virsh", "dumpxml", "--inactive", name]).stdout
    world.run(["virt-rapl", "enable", name])
    assert world.run(["virsh", "dumpxml", "--inactive", name]).stdout != before
    world.run(["virt-rapl", "disable", name])
    assert world.run(["virsh", "dumpxml", "--inactive", name]).stdout == before


def test_a_domain_without_us_is_listed_as_off(world: World, new_guest: NewGuest) -> None:
    name = new_guest(100)
    world.run(["virsh", "start", name])
    domain = status(world, name)
    assert (domain["vrapl"], domain["helper"]) == ("off", None)
    assert domain["power_watts"] > 10


def test_a_domain_saved_without_comes_back_with_it(world: World, new_guest: NewGuest) -> None:
    name = new_guest(100)
    world.run(["virsh", "start", name])
    wait_until(lambda: world.readings(name), 30, "the guest runs")
    assert not grows(world, name)
    saved = f"/mnt/{name}.save"
    world.run(["virsh", "save", name, saved])
    configure(world, domains=f"[{name}]")
    world.run(["virsh", "restore", saved])
    world.path(saved).unlink()
    wait_until(lambda: grows(world, name), 30, "the restored guest's counter moves")
    assert status(world, name)["vrapl"] == "active"


def test_libvirtd_killed_and_restarted_leaves_vm_and_helper_alone(world: World, new_guest: NewGuest) -> None:
    name = new_guest(100)
    start_enabled(world, name)
    wait_until(lambda: grows(world, name), 30, "the guest's counter moves")
    before = status(world, name)
    world.stop_libvirtd("KILL")
    world.start_libvirtd()
    after = status(world, name)
    assert (after["pid"], after["helper"], after["vrapl"]) == (before["pid"], before["helper"], "active")
    joules = guest.joules(world.readings(name))[0]
    wait_until(lambda: guest.joules(world.readings(name))[0] > joules, 30, "the guest's counter still moves")
