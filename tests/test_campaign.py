"""Ten guests on two hosts, and at each of many steps something happens to one of them, or goes wrong.

The seed decides every step: VIRT_RAPL_CAMPAIGN=SEED:STEPS runs one again. What must never happen: a command or a hook
that hangs, a guest that is lost, and, five seconds after a step, anything that is not as it should be (see campaign).
Whether the guests count is looked at after every 25th step, when all is mended: before that many should not.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest
from campaign import (
    ACTIVE,
    COMMAND_SECONDS,
    HELPER_ENDED,
    HELPER_STOPPED,
    LEDGER,
    RUN,
    WITH_CLOCK,
    Guest,
    Host,
    Rehearsal,
    energies,
    settle,
)
from walking import wait_until

from libvirt_rapl.simulator.world import World

SEED, STEPS_TO_GO = map(int, os.environ.get("VIRT_RAPL_CAMPAIGN", "1:200").split(":"))
GUESTS = 10
MEND_EVERY = 25
HOUR = 3600
CLOCKS = (-240 * HOUR, -2 * HOUR, 0, 2 * HOUR, 240 * HOUR)
"""By how much a clock is wrong. Energy of guests that are not there is kept for 30 days."""
SLOW_SECONDS = 2.0
"""How long a helper that starts is held up at most: the hook waits for twice that."""

When = Callable[[Guest], object]


class Step(NamedTuple):
    """Something that happens to a guest, or to the host it is on."""

    do: Callable[[Guest], None]
    when: When
    """Returns whether it can."""
    weight: int
    """How often it does, beside others that can."""
    mends: bool
    """It takes back a fault."""


STEPS: list[Step] = []


def step(weight: int, when: When, *, mends: bool = False) -> Callable[[Callable[[Guest], None]], None]:
    return lambda do: STEPS.append(Step(do, when, weight, mends))


def manageable(guest: Guest) -> bool:
    return guest.runs and guest.host.libvirt


def can_meter(host: Host) -> bool:
    return not host.broken.exists() and RUN not in host.full


@step(12, lambda guest: guest.state in ("shut off", "start") and guest.host.libvirt)
def start(guest: Guest) -> None:
    guest.virsh("start")
    guest.starts(guest.host, guest.resumes_as if guest.state == "start" else "running")


@step(2, lambda guest: guest.state == "shut off" and guest.host.libvirt)
def kill_libvirtd_during_start(guest: Guest) -> None:
    """Whatever is left of the start that failed, the next one takes away."""
    starting = guest.host.world.popen(["sh", "-c", f"exec virsh start {guest.name} 2>&1"])
    guest.host.pause(guest.host.chance.uniform(0, 1))
    guest.host.kill_libvirtd()
    starting.communicate(timeout=COMMAND_SECONDS)
    guest.host.start_libvirtd()
    if guest.virsh("domstate").strip() == "shut off":
        guest.virsh("start")
    guest.starts(guest.host, "running")


@step(3, lambda guest: guest.state == "shut off" and guest.host.libvirt and can_meter(guest.host))
def start_slowly(guest: Guest) -> None:
    """As where systemd is slow, which a world does not have; test_systemd.py has. QEMU may meet a stopped helper."""
    starting = guest.host.world.popen(["sh", "-c", f"exec virsh start {guest.name} 2>&1"])
    helper = guest.host.helper_that_starts(guest.uuid)
    guest.host.signal(helper, "STOP")
    guest.host.pause(guest.host.chance.uniform(0, SLOW_SECONDS))
    guest.host.signal(helper, "CONT")
    starting.communicate(timeout=COMMAND_SECONDS)
    guest.starts(guest.host, "running")


@step(4, manageable)
def destroy(guest: Guest) -> None:
    guest.virsh("destroy")
    guest.ends()


@step(2, lambda guest: guest.runs)
def crash(guest: Guest) -> None:
    guest.host.world.kill(int(guest.host.world.path(f"/run/libvirt/qemu/{guest.name}.pid").read_text()))
    guest.ends()
    if guest.host.libvirt:
        wait_until(lambda: guest.virsh("domstate").strip() == "shut off", COMMAND_SECONDS, "libvirt knows")
    else:
        guest.host.orphans.add(guest.uuid)


@step(4, manageable)
def save(guest: Guest) -> None:
    guest.virsh("save", f"/mnt/{guest.name}.save")
    guest.resumes_as = guest.state
    guest.ends("restore")


@step(12, lambda guest: guest.state == "restore" and guest.host.libvirt)
def restore(guest: Guest) -> None:
    guest.host.virsh("restore", f"/mnt/{guest.name}.save")
    guest.starts(guest.host, guest.resumes_as)


@step(4, manageable)
def managedsave(guest: Guest) -> None:
    guest.virsh("managedsave")
    guest.resumes_as = guest.state
    guest.ends("start")


@step(3, lambda guest: guest.state == "running" and guest.host.libvirt)
def suspend(guest: Guest) -> None:
    guest.virsh("suspend")
    guest.state = "paused"


@step(6, lambda guest: guest.state == "paused" and guest.host.libvirt)
def resume(guest: Guest) -> None:
    guest.virsh("resume")
    guest.state = "running"


@step(3, manageable)
def reset(guest: Guest) -> None:
    guest.virsh("reset")


@step(6, lambda guest: manageable(guest) and guest.host.other.libvirt)
def migrate(guest: Guest) -> None:
    to = f"qemu+unix:///system?socket=/mnt/{guest.host.other.world.hostname}/libvirt-sock"
    options = ["--live", "--p2p", "--persistent", "--undefinesource", "--migrateuri", "unix:///mnt/stream"]
    guest.virsh("migrate", to, *options)
    guest.starts(guest.host.other, guest.state)


@step(3, lambda guest: guest.meter in (ACTIVE, HELPER_STOPPED))
def kill_helper(guest: Guest) -> None:
    guest.host.world.kill(guest.helper)
    guest.meter = HELPER_ENDED


@step(3, lambda guest: guest.meter == ACTIVE)
def stop_helper(guest: Guest) -> None:
    guest.host.signal(guest.helper, "STOP")
    guest.meter = HELPER_STOPPED


@step(6, lambda guest: guest.meter == HELPER_STOPPED, mends=True)
def continue_helper(guest: Guest) -> None:
    guest.host.signal(guest.helper, "CONT")
    guest.meter = ACTIVE


@step(3, lambda guest: guest.host.daemon)
def kill_daemon(guest: Guest) -> None:
    guest.host.kill_daemon()
    if guest.host.libvirt and not guest.host.broken.exists():
        guest.host.world.run([*WITH_CLOCK, "virt-rapl", "status"], timeout=COMMAND_SECONDS)


@step(9, lambda guest: not guest.host.daemon and not guest.host.broken.exists(), mends=True)
def start_daemon(guest: Guest) -> None:
    guest.host.start_daemon()


@step(2, lambda guest: guest.host.daemon)
def set_clock(guest: Guest) -> None:
    """The machine's own must stay: virt-rapld and the commands read another time."""
    guest.host.set_clock(guest.host.chance.choice(CLOCKS))


@step(2, lambda guest: guest.host.libvirt)
def kill_libvirtd(guest: Guest) -> None:
    guest.host.kill_libvirtd()


@step(9, lambda guest: not guest.host.libvirt, mends=True)
def start_libvirtd(guest: Guest) -> None:
    guest.host.start_libvirtd()


@step(2, lambda guest: RUN not in guest.host.full)
def fill_run_directory(guest: Guest) -> None:
    guest.host.fill(RUN)


@step(6, lambda guest: RUN in guest.host.full, mends=True)
def free_run_directory(guest: Guest) -> None:
    guest.host.free(RUN)


@step(2, lambda guest: LEDGER not in guest.host.full)
def fill_ledger(guest: Guest) -> None:
    guest.host.fill(LEDGER)


@step(6, lambda guest: LEDGER in guest.host.full, mends=True)
def free_ledger(guest: Guest) -> None:
    guest.host.free(LEDGER)


@step(2, lambda guest: not guest.host.broken.exists())
def break_counters(guest: Guest) -> None:
    guest.host.broken.touch()


@step(6, lambda guest: guest.host.broken.exists(), mends=True)
def mend_counters(guest: Guest) -> None:
    guest.host.broken.unlink()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)  # QEMU's user writes there
    left_broken, right_broken = tmp_path / "left-broken", tmp_path / "right-broken"
    chance = random.Random(SEED)
    with (
        World([f"--fail-while={left_broken}"], shared=shared, hostname="left") as left,
        World([f"--fail-while={right_broken}"], shared=shared, hostname="right") as right,
    ):
        hosts = [Host(left, left_broken, chance), Host(right, right_broken, chance)]
        for host in hosts:
            host.furnish()
        yield hosts


def inhabit(hosts: list[Host]) -> list[Guest]:
    """Return guests for both hosts, which know each other from now on."""
    hosts[0].other, hosts[1].other = hosts[1], hosts[0]
    return [Guest(f"guest-{number}", str(UUID(int=number)), hosts[number % 2]) for number in range(1, GUESTS + 1)]


def mend_all(guests: list[Guest]) -> None:
    # The disks first: what the hook does while they are full may fail, and afterwards that would be no excuse.
    for mend in sorted(STEPS, key=lambda step: not step.do.__name__.startswith("free_")):
        for guest in guests:
            if mend.mends and mend.when(guest):
                mend.do(guest)


def count_on(guests: list[Guest]) -> None:
    """See that each guest that runs with its meter counts: an earlier run of it may have counted further."""
    read = {guest.name: len(energies(guest)) for guest in guests if (guest.state, guest.meter) == ("running", ACTIVE)}

    def counts(guest: Guest) -> bool:
        since = energies(guest)[read[guest.name] :]
        return bool(since) and since[-1] > since[0]

    for guest in guests:
        if guest.name in read:
            wait_until(partial(counts, guest), 20, f"{guest.name} counts on")


def steps(guests: list[Guest], number_of_steps: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield each step, and what to say of it; it must be taken before the next can be chosen."""
    chance = guests[0].host.chance
    yield "0: all is mended", partial(mend_all, guests)  # which starts virt-rapld
    for number in range(1, number_of_steps + 1):
        guest = chance.choice(guests)
        possible = [step for step in STEPS if step.when(guest)]
        (step,) = chance.choices(possible, [step.weight for step in possible])
        yield f"{number}: {step.do.__name__}, {guest.name} on {guest.host.world.hostname}", partial(step.do, guest)
        if number % MEND_EVERY == 0 or number == number_of_steps:
            yield f"{number}: all is mended", partial(mend_all, guests)


def rehearsed(seed: int, number_of_steps: int, directory: Path) -> list[str]:
    """Return the steps of a run in which nothing happens."""
    chance = random.Random(seed)
    directory.mkdir()
    said = []
    guests = inhabit([Rehearsal(name, directory / name, chance) for name in ("left", "right")])
    for what, take in steps(guests, number_of_steps):
        take()
        said.append(what)
    return said


def test_the_same_seed_is_the_same_run(tmp_path: Path) -> None:
    first = rehearsed(1, 200, tmp_path / "first")
    assert rehearsed(1, 200, tmp_path / "again") == first
    assert rehearsed(2, 200, tmp_path / "other") != first
    taken = {what.partition(": ")[2].partition(",")[0] for what in first}
    assert {step.do.__name__ for step in STEPS} <= taken


@pytest.mark.e2e
def test_campaign(hosts: list[Host], tmp_path: Path) -> None:
    print(f"VIRT_RAPL_CAMPAIGN={SEED}:{STEPS_TO_GO}")
    guests = inhabit(hosts)
    for guest in guests:
        guest.host.world.define_guest(guest.name, 3, uuid=guest.uuid)
        guest.host.world.run(["virt-rapl", "enable", guest.name])
    plan = rehearsed(SEED, STEPS_TO_GO, tmp_path / "rehearsal")
    for number, (said, take) in enumerate(steps(guests, STEPS_TO_GO)):
        assert said == plan[number]
        for host in hosts:
            host.keep_full()
        began = time.monotonic()
        take()
        done = time.monotonic()
        settle(hosts, guests, said)
        print(f"{said}: {done - began:.1f} s, settled after {time.monotonic() - done:.1f} s", flush=True)
        if said.endswith("mended"):
            count_on(guests)
