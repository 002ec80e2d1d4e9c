"""What should be true of two hosts and ten guests while everything goes wrong, and what is."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from walking import run_files, wait_until

from libvirt_rapl import paths
from libvirt_rapl.config import Config
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.helper.run_directory import UUID
from libvirt_rapl.lifecycle import events
from libvirt_rapl.simulator.world import World

RUN, LEDGER = "/run/virt-rapl", "/var/lib/virt-rapl"
FILLER = "filler"

ACTIVE = "active"
HELPER_ENDED = "its helper ended"
HELPER_STOPPED = "its helper is stopped"
NO_SPACE = "No space left on device|left no record|its record was lost"
NO_ENERGY = "RAPL|energy"

WITHIN_SECONDS = 5.0
"""After the last fault all is as it should be."""
COMMAND_SECONDS = 30.0
"""No command of libvirt's takes longer, whatever is wrong with us."""
HOOK_SECONDS = 2 * Config.hook_deadline
"""Nor does any operation of the hook: it promises half of this, on a machine that is not as busy as one with tests."""

CLOCK = "/opt/clock"
"""Directory whose `step` holds by how many seconds the clock is wrong."""
STEPPED_CLOCK = f"""
import pathlib, time
clock, step = time.time, pathlib.Path("{CLOCK}/step")
time.time = lambda: clock() + float(step.read_text())
"""
WITH_CLOCK = ("env", f"PYTHONPATH={CLOCK}")
"""Begins a command that shall see that clock."""


class Host:
    """A world with libvirtd and virt-rapld, and what is wrong with it."""

    def __init__(self, world: World, broken: Path, chance: random.Random) -> None:
        """Take a world whose counters answer EIO while the file `broken` exists."""
        self.world = world
        self.broken = broken
        self.chance = chance
        """Decides what a step leaves to it."""
        self.other = self
        """Where guests migrate to."""
        self.libvirt = True
        self.daemon: int | None = None
        """PID inside of virt-rapld."""
        self.full: set[str] = set()
        """Directories whose file system is full."""
        self.ledger_unread = False
        """virt-rapld was started while its disk was full: it does not know yet what was counted before."""
        self.orphans: set[str] = set()
        """Guests that ended while libvirtd was away: it has not called the hook for them yet."""
        self.reported: dict[str, float] = {}
        """Each energy that virt-rapld has reported, in joules."""
        self.kept: dict[str, float] = {}
        """The same, as far as the disk had room for it."""
        self.events = 0
        """How many events have been looked at."""
        self.lines: Counter[str] = Counter()
        """Of each log of libvirt's, how many lines have been looked at."""

    def virsh(self, *arguments: str) -> str:
        return self.world.run(["virsh", *arguments], timeout=COMMAND_SECONDS).stdout

    def signal(self, pid: int, name: str) -> None:
        self.world.run(["sh", "-c", f"kill -s {name} {pid}"])

    def start_daemon(self) -> None:
        command = f"exec {' '.join(WITH_CLOCK)} virt-rapl daemon >/dev/null 2>>/run/{FILLER}.log </dev/null & echo $!"
        self.daemon = int(self.world.run(["sh", "-c", command]).stdout)
        self.ledger_unread = LEDGER in self.full
        wait_until(self.document, 20, "virt-rapld answers")

    def kill_daemon(self) -> None:
        assert self.daemon
        self.world.kill(self.daemon)
        self.daemon = None
        self.reported = dict(self.kept)

    def kill_libvirtd(self) -> None:
        self.world.stop_libvirtd("KILL")
        self.libvirt = False

    def start_libvirtd(self) -> None:
        self.world.start_libvirtd()
        self.libvirt = True
        self.orphans.clear()

    def pause(self, seconds: float) -> None:
        """Let what has begun go on for a while."""
        time.sleep(seconds)

    def set_clock(self, seconds: float) -> None:
        """Have the clock wrong by that much from now on, for virt-rapld, too, if it looks."""
        step = self.world.path(f"{CLOCK}/step")
        new = step.with_name("new")
        new.write_text(str(seconds))
        new.rename(step)

    def helper_that_starts(self, uuid: str) -> int:
        """Wait until a domain's helper has a process, and return its PID inside."""
        found: list[int] = []

        def begun() -> bool:
            found[:] = [pid for pid, *process in self.processes() if process == [uuid, "helper"]]
            return bool(found)

        wait_until(begun, COMMAND_SECONDS, "the hook starts the helper")
        return found[0]

    def recorded_helper(self, uuid: str) -> int:
        """Return the PID inside of a domain's helper, as the record has it."""
        pid = json.loads(self.world.path(f"{RUN}/{uuid}.json").read_text())["helper_pid"]
        assert isinstance(pid, int)
        return pid

    def new_lines(self, log: str) -> list[str]:
        """Return what has been written to a log of libvirt's since this was asked last."""
        path = self.world.path(f"/var/log/libvirt/{log}")
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        new, self.lines[log] = lines[self.lines[log] :], len(lines)
        return new

    def furnish(self) -> None:
        """Install us and start libvirtd. What we write to gets file systems that are soon full."""
        self.world.run(["mkdir", CLOCK])
        self.world.path(f"{CLOCK}/sitecustomize.py").write_text(STEPPED_CLOCK)
        self.world.path(f"{CLOCK}/step").write_text("0")
        self.world.run(["virt-rapl", "install", "--force"])
        self.world.run(["mkdir", "-p", RUN, LEDGER])
        for directory in (RUN, LEDGER):
            self.world.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=711", "fault", directory])
        self.world.start_libvirtd()

    def fill(self, directory: str) -> None:
        self.full.add(directory)
        self.keep_full()

    def keep_full(self) -> None:
        """Take the room that files left which have gone since."""
        for directory in self.full:
            self.world.run(["sh", "-c", f"cat /dev/zero >>{directory}/{FILLER}"], check=False)

    def free(self, directory: str) -> None:
        self.world.path(f"{directory}/{FILLER}").unlink()
        self.full.discard(directory)

    def document(self) -> dict[str, Any] | None:
        return status_socket.ask(self.world.path(f"{RUN}/{paths.STATUS_SOCKET}"))

    def processes(self) -> Iterator[tuple[int, str, str]]:
        """Yield PID inside and UUID of each QEMU and each helper, and which of both it is."""
        for path in self.world.path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_text(errors="replace")
            except OSError:
                continue  # it has ended
            if command.startswith("/usr/bin/qemu-system-") and (found := re.search(r"-uuid\0([^\0]+)", command)):
                yield int(path.parent.name), found[1], "QEMU"
            elif "libvirt_rapl" in command and (found := UUID.search(command)):
                yield int(path.parent.name), found[0], "helper"


class Rehearsal(Host):
    """A host on which nothing happens: steps only note how all should be."""

    def __init__(self, hostname: str, broken: Path, chance: random.Random) -> None:
        super().__init__(MagicMock(hostname=hostname), broken, chance)

    def virsh(self, *arguments: str) -> str:
        return "shut off"

    def pause(self, seconds: float) -> None:
        pass

    def set_clock(self, seconds: float) -> None:
        pass

    def helper_that_starts(self, uuid: str) -> int:
        return 1

    def recorded_helper(self, uuid: str) -> int:
        return 1

    def document(self) -> dict[str, Any]:
        return {"domains": []}


@dataclass
class Guest:
    """One domain: where it is, and how it should be."""

    name: str
    uuid: str
    host: Host
    state: str = "shut off"
    """virsh's word; or the command that brings it back: `restore` (from a file), `start` (from libvirt's own image)."""
    resumes_as: str = "running"
    meter: str = ""
    """While it runs: ACTIVE, or what the reason matches."""

    def virsh(self, command: str, *arguments: str) -> str:
        return self.host.virsh(command, self.name, *arguments)

    @property
    def helper(self) -> int:
        """PID inside of its helper."""
        return self.host.recorded_helper(self.uuid)

    @property
    def runs(self) -> bool:
        return self.state in ("running", "paused")

    def starts(self, host: Host, state: str) -> None:
        """Note that it runs on `host` from now on, with such a meter as that host can give."""
        self.host, self.state, self.meter = host, state, ACTIVE
        if RUN in host.full:
            self.meter = NO_SPACE
        elif host.broken.exists():
            self.meter = NO_ENERGY

    def ends(self, state: str = "shut off") -> None:
        """Note that it runs no more."""
        self.state, self.meter = state, ""


def settle(hosts: list[Host], guests: list[Guest], said: str) -> None:
    """Wait until all is as it should be, and see that it became so in a proper way.

    Raises AssertionError with what is not, or was not.
    """
    complaints: list[str] = []

    def consistent() -> bool:
        complaints[:] = [
            f"{host.world.hostname}: {complaint}"
            for host in hosts
            for complaint in _complaints(host, {guest.uuid: guest for guest in guests if guest.host is host})
        ]
        return not complaints

    try:
        wait_until(consistent, WITHIN_SECONDS, said)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *complaints])) from None
    improper = [
        f"{host.world.hostname}: {what}"
        for host in hosts
        for what in _improper(host, [guest for guest in guests if guest.host is host])
    ]
    assert not improper, "\n".join([said, *improper])


def _improper(host: Host, here: list[Guest]) -> Iterator[str]:
    """Yield what the hook has done wrong since the last call, according to events and libvirt's logs."""
    recorded = list(events.read_unchecked(host.world.path(RUN)))
    for event in recorded[host.events :]:
        no_space = RUN in host.full and re.search(NO_SPACE, event.reason)
        if (event.result == "failed" and not no_space) or event.milliseconds > 1000 * HOOK_SECONDS:
            yield str(event)
    host.events = len(recorded)
    yield from (line for line in host.new_lines("libvirtd.log") if "hook" in line.lower() or "virt-rapl" in line)
    for guest in here:
        lines = host.new_lines(f"qemu/{guest.name}.log")
        if guest.meter in (ACTIVE, ""):
            yield from (line for line in lines if "virt-rapl: " in line)


def _complaints(host: Host, here: dict[str, Guest]) -> Iterator[str]:
    """Yield what is not as it should be on one host, with these guests by UUID."""
    running = {uuid for uuid, guest in here.items() if guest.runs}
    helped = {uuid for uuid, guest in here.items() if guest.meter in (ACTIVE, HELPER_STOPPED)}
    expected = Counter([*((uuid, "QEMU") for uuid in running), *((uuid, "helper") for uuid in helped)])
    seen = Counter((uuid, kind) for _, uuid, kind in host.processes() if uuid not in host.orphans)
    yield from (f"{process} is missing" for process in (expected - seen).elements())
    yield from (f"{process} is too many" for process in (seen - expected).elements())
    for name in run_files(host.world):
        if UUID.match(name) and name.partition(".")[0] not in running | host.orphans:
            yield f"{name} is stale"
    if host.daemon:
        if document := host.document():
            yield from _complaints_of_guests(host, here, document)
            yield from _complaints_of_energy(host, document)
        else:
            yield "virt-rapld does not answer"


def _complaints_of_guests(host: Host, here: dict[str, Guest], document: dict[str, Any]) -> Iterator[str]:
    domains = {domain["uuid"]: domain for domain in document["domains"]}
    for uuid, guest in here.items():
        if domain := domains.get(uuid):
            yield from (f"{guest.name}: {complaint}" for complaint in _judged(guest, domain))
        elif guest.runs or host.libvirt:  # what does not run only libvirt knows
            yield f"{guest.name} is not reported"


def _complaints_of_energy(host: Host, document: dict[str, Any]) -> Iterator[str]:
    energies = {zone["name"]: zone["energy_joules"] for zone in document["host"]["zones"]}
    for domain in document["domains"]:
        energies[domain["uuid"]] = domain["energy_joules"]
        energies |= {f"{domain['uuid']} {vcpu['id']}": vcpu["energy_joules"] for vcpu in domain["vcpus"]}
    back = [name for name, joules in energies.items() if joules < host.reported.get(name, 0.0)]
    if back:
        if not (host.ledger_unread and LEDGER in host.full):
            yield from (f"{name} went back to {energies[name]} J from {host.reported[name]} J" for name in back)
        return
    host.ledger_unread &= LEDGER in host.full
    host.reported |= energies
    if LEDGER not in host.full:
        host.kept |= energies


def _judged(guest: Guest, domain: dict[str, Any]) -> Iterator[str]:
    state = guest.state if guest.runs else "shut off"
    if domain["state"] != state:
        yield f"it is {domain['state']}, not {state}"
    vrapl = "pending" if not guest.runs else "active" if guest.meter == ACTIVE else "degraded"
    if domain["vrapl"] != vrapl:
        yield f"it is reported as {domain['vrapl']} ({domain['reason']}), not {vrapl} ({guest.meter})"
    elif vrapl == "degraded" and not re.search(guest.meter, domain["reason"]):
        yield f"the reason is {domain['reason']!r}, not {guest.meter!r}"


def energies(guest: Guest) -> list[int]:
    """Return what a guest has read from its counter so far, in this run and in earlier ones, in energy units."""
    return [reading.energy for reading in guest.host.world.readings(guest.name)]
