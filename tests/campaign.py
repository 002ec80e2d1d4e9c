"""What should be true of two hosts and ten guests while everything goes wrong, and what is."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walking import run_files, wait_until

from libvirt_rapl import status_socket
from libvirt_rapl.registry import UUID
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
        """Guests that ended while libvirtd was away: it has yet to tell the hook."""
        self.told: dict[str, float] = {}
        """Each energy that virt-rapld has told, in joules."""
        self.kept: dict[str, float] = {}
        """The same, as far as the disk had room for it."""

    def virsh(self, *arguments: str) -> str:
        return self.world.run(["virsh", *arguments], timeout=COMMAND_SECONDS).stdout

    def signal(self, pid: int, name: str) -> None:
        self.world.run(["sh", "-c", f"kill -s {name} {pid}"])

    def start_daemon(self) -> None:
        command = f"exec virt-rapl daemon >/dev/null 2>>/run/{FILLER}.log </dev/null & echo $!"
        self.daemon = int(self.world.run(["sh", "-c", command]).stdout)
        self.ledger_unread = LEDGER in self.full
        wait_until(self.document, 20, "virt-rapld answers")

    def kill_daemon(self) -> None:
        assert self.daemon
        self.world.kill(self.daemon)
        self.daemon = None
        self.told = dict(self.kept)

    def kill_libvirtd(self) -> None:
        self.world.stop_libvirtd("KILL")
        self.libvirt = False

    def start_libvirtd(self) -> None:
        self.world.start_libvirtd()
        self.libvirt = True
        self.orphans.clear()

    def furnish(self) -> None:
        """Install us and start libvirtd. What we write to gets file systems that are soon full."""
        self.world.run(["virt-rapl", "install"])
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
        return status_socket.ask(self.world.path(f"{RUN}/{status_socket.NAME}"))

    def processes(self) -> Iterator[tuple[str, str]]:
        """Yield the UUID of each QEMU and each helper, and which of both it is."""
        for path in self.world.path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_text(errors="replace")
            except OSError:
                continue  # it has ended
            if command.startswith("/usr/bin/qemu-system-") and (found := re.search(r"-uuid\0([^\0]+)", command)):
                yield found[1], "QEMU"
            elif "libvirt_rapl" in command and (found := UUID.search(command)):
                yield found[0], "helper"


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
        """PID inside of its helper, as the record has it."""
        pid = json.loads(self.host.world.path(f"{RUN}/{self.uuid}.json").read_text())["helper_pid"]
        assert isinstance(pid, int)
        return pid

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
    """Wait until all is as it should be. Raises AssertionError with what is not."""
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


def _complaints(host: Host, here: dict[str, Guest]) -> Iterator[str]:
    """Yield what is not as it should be on one host, with these guests by UUID."""
    running = {uuid for uuid, guest in here.items() if guest.runs}
    helped = {uuid for uuid, guest in here.items() if guest.meter in (ACTIVE, HELPER_STOPPED)}
    expected = Counter([*((uuid, "QEMU") for uuid in running), *((uuid, "helper") for uuid in helped)])
    seen = Counter(process for process in host.processes() if process[0] not in host.orphans)
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
            yield f"{guest.name} is not told of"


def _complaints_of_energy(host: Host, document: dict[str, Any]) -> Iterator[str]:
    energies = {zone["name"]: zone["energy_joules"] for zone in document["host"]["zones"]}
    for domain in document["domains"]:
        energies[domain["uuid"]] = domain["energy_joules"]
        energies |= {f"{domain['uuid']} {vcpu['id']}": vcpu["energy_joules"] for vcpu in domain["vcpus"]}
    back = [name for name, joules in energies.items() if joules < host.told.get(name, 0.0)]
    if back:
        if not (host.ledger_unread and LEDGER in host.full):
            yield from (f"{name} went back to {energies[name]} J from {host.told[name]} J" for name in back)
        return
    host.ledger_unread &= LEDGER in host.full
    host.told |= energies
    if LEDGER not in host.full:
        host.kept |= energies


def _judged(guest: Guest, domain: dict[str, Any]) -> Iterator[str]:
    state = guest.state if guest.runs else "shut off"
    if domain["state"] != state:
        yield f"it is {domain['state']}, not {state}"
    vrapl = "pending" if not guest.runs else "active" if guest.meter == ACTIVE else "degraded"
    if domain["vrapl"] != vrapl:
        yield f"it is told to be {domain['vrapl']} ({domain['reason']}), not {vrapl} ({guest.meter})"
    elif vrapl == "degraded" and not re.search(guest.meter, domain["reason"]):
        yield f"the reason is {domain['reason']!r}, not {guest.meter!r}"


def units(domain: Guest) -> int:
    """Return the counter that a guest read last; 0 before it has read any."""
    readings = domain.host.world.readings(domain.name)
    return readings[-1].energy if readings else 0
