"""A world whose domains live and die, and what must hold after each step of theirs, whatever it was."""

import json
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walking import CONFIGURATION, wait_until

from libvirt_rapl import paths
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.run_files import running_domains
from libvirt_rapl.helper.plans import PROCESS
from libvirt_rapl.lifecycle import events
from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.world import World

DAEMON_LOG = "/var/log/virt-rapld.log"
SETTLE_SECONDS = 5
"""How long the hook and the daemon may take to follow what has happened to a domain."""
PATIENCE_SECONDS = 20
"""How long a guest may take to count on a machine that is busy."""
BEGINNING_JOULES = 100.0
"""A counter that begins at 0 has no more when the guest reads it first: what the whole host uses in a second."""
PERSISTING = {"json", "state", "sock", "alive", "log", "lock"}
"""Files in the run directory of a domain that runs with its meter."""
NONE: Mapping[str, str] = {}


@dataclass
class Counted:
    """What has been looked at of the counters that a guest reads."""

    qemu: tuple[str, int]
    """Host and PID of the QEMU that it ran in."""
    readings: int
    energies: dict[int, int]
    """The last reading of each vCPU, in energy units."""


class Host:
    """A world with virt-rapl installed, libvirtd and virt-rapld running."""

    def __init__(
        self, world: World, run_directory: str = "/run/virt-rapl", counted: dict[str, Counted] | None = None
    ) -> None:
        """Furnish the world. `counted`: the other host's, where guests move between both."""
        self.world = world
        self.run_directory = run_directory
        self.counted = {} if counted is None else counted
        """By UUID."""
        self._energies: dict[tuple[str, ...], float] = {}
        self._lines: Counter[Path] = Counter()
        """Of each log, how many lines have been looked at."""
        self._events = 0
        """How many events have been looked at."""
        world.run(["virt-rapl", "install", "--force"])
        self.configure()
        world.start_libvirtd()
        self.start_daemon()

    def configure(self, **settings: object) -> None:
        """Have only these settings beside the run directory; virt-rapld keeps those that it was started with."""
        settings = {"run_directory": self.run_directory, **settings}
        self.world.path(CONFIGURATION).write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))

    def virsh(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.world.run(["virsh", *arguments], check=check)

    def define(self, xml: str) -> None:
        self.world.run(["virsh", "define", "/proc/self/fd/0"], input=xml)

    def enable(self, name: str) -> None:
        self.world.run(["virt-rapl", "enable", name])

    def xml(self, name: str, *options: str) -> str:
        return self.virsh("dumpxml", *options, name).stdout

    def uuid(self, name: str) -> str:
        return self.virsh("domuuid", name).stdout.strip()

    def state(self, name: str) -> str:
        return self.virsh("domstate", name).stdout.strip()

    def qemu(self, name: str) -> int:
        """Return the PID of a domain's QEMU."""
        return int(self.world.path(f"/run/libvirt/qemu/{name}.pid").read_text())

    def signal_libvirtd(self, name: str) -> None:
        """Send libvirtd a signal that does not end it."""
        pid = self.world.path("/run/libvirtd.pid").read_text()
        self.world.run(["sh", "-c", 'kill -s "$1" "$2"', "sh", name, pid])

    def start_daemon(self) -> None:
        command = f"exec virt-rapl daemon >/dev/null 2>>{DAEMON_LOG} </dev/null & echo $!"
        self.daemon = int(self.world.run(["sh", "-c", command]).stdout)
        wait_until(self.asked, PATIENCE_SECONDS, "virt-rapld answers")

    def asked(self) -> dict[str, Any] | None:
        """Return virt-rapld's document; None when it does not answer."""
        return status_socket.ask(self.world.path(f"{self.run_directory}/{paths.STATUS_SOCKET}"))

    def are_alive(self, *names: str, counting: Collection[str] = ()) -> None:
        """Wait until guests have run a bit from now, and the counters that some of them read have moved."""
        before = {name: len(self.world.readings(name)) for name in names}

        def alive(name: str) -> bool:
            new = self.world.readings(name)[before[name] :]
            return _moves(new) if name in counting else bool(new)

        wait_until(lambda: all(map(alive, names)), PATIENCE_SECONDS, f"of {names} all run, and {counting} count")

    def check(self, *, degraded: Mapping[str, str] = NONE, daemon_logs: tuple[str, ...] = ()) -> None:
        """Hold what must be true whatever has happened.

        `degraded`: domains that run without their meter, and a part of the reported reason; all other domains with a
        mark have it. `daemon_logs`: beginnings of the lines that virt-rapld wrote meanwhile, the last of which may
        come late; it writes no others.
        """
        found = running_domains(self.world.path("/run/libvirt/qemu"), self.world.path("/proc"))
        running = {domain.uuid: domain.name for domain in found}
        assert sorted(running.values()) == sorted(filter(None, self.virsh("list", "--name").stdout.split("\n")))
        marked = {domain.uuid: domain.name for domain in found if Definition.parse(domain.xml).is_marked}
        metered = {uuid: name for uuid, name in marked.items() if name not in degraded}
        wait_until(lambda: self.helpers() == sorted(metered), SETTLE_SECONDS, f"helpers of {sorted(metered)} alone run")
        self._check_files(metered, {uuid for uuid, name in marked.items() if name in degraded})
        self._check_states(running, marked, degraded)
        moving = {domain.uuid: domain.name for domain in found if domain.state == "running"}
        self.are_alive(*moving.values(), counting=metered.values())
        for uuid, name in moving.items():
            self._check_counters(uuid, name)
        self._check_energies()
        self._check_events(set(degraded))
        self._check_logs(set(degraded), daemon_logs)

    def helpers(self) -> list[str]:
        """Return the UUIDs of the domains that helper processes serve, sorted."""
        found = []
        for directory in self.world.path("/proc").glob("[0-9]*"):
            try:
                arguments = (directory / "cmdline").read_text().split("\0")
            except OSError:
                continue  # it has ended
            if PROCESS in arguments:
                found.append(Path(arguments[arguments.index(PROCESS) + 1]).stem)
        return sorted(found)

    def _check_files(self, metered: Mapping[str, str], degraded: set[str]) -> None:
        directory = self.world.path(self.run_directory)
        shared = {Path(paths.STATUS_SOCKET).parts[0], paths.EVENTS, paths.REMEMBERED}
        wanted = {f"{uuid}.{suffix}" for uuid in metered for suffix in PERSISTING}

        def mine() -> set[str]:
            names = {path.name for path in directory.iterdir()} - shared
            return {name for name in names if name.partition(".")[0] not in degraded}

        # What the hook does behind libvirt's back replaces files, each of which has another name until it is complete.
        wait_until(lambda: mine() == wanted, SETTLE_SECONDS, f"of {metered} there are all files, and no others")
        for uuid, name in metered.items():
            path = directory / f"{uuid}.json"
            wait_until(lambda: json.loads(path.read_text())["pid"] is not None, SETTLE_SECONDS, "it is followed")  # noqa: B023
            record = json.loads(path.read_text())
            assert (record["name"], record["state"], record["pid"]) == (name, "ready", self.qemu(name))
            threads = {int(path.name) for path in self.world.path(f"/proc/{record['pid']}/task").iterdir()}
            assert record["vcpu_tids"]
            assert set(record["vcpu_tids"].values()) <= threads

    def _check_states(self, running: Mapping[str, str], marked: Mapping[str, str], degraded: Mapping[str, str]) -> None:
        wanted = {name: "degraded" if name in degraded else "active" for name in marked.values()}
        wanted |= {name: "off" for uuid, name in running.items() if uuid not in marked}

        def is_reported() -> bool:
            shown = (self.asked() or {"domains": []})["domains"]
            states = {
                domain["name"]: {"pending": "off"}.get(domain["vrapl"], domain["vrapl"])
                for domain in shown
                if domain["pid"] is not None
            }
            reasons = {domain["name"]: domain["reason"] for domain in shown}
            return states == wanted and all(
                degraded[name] in (reason or "") if name in degraded and name in states else reason is None
                for name, reason in reasons.items()
            )

        wait_until(is_reported, SETTLE_SECONDS, f"virt-rapld reports {wanted}, and no reasons but those of {degraded}")

    def _check_counters(self, uuid: str, name: str) -> None:
        """Hold that what a guest reads went on in the QEMU it was in, and has begun at 0 again in another."""
        readings, before = self.world.readings(name), self.counted.get(uuid)
        counted = Counted((self.world.hostname, self.qemu(name)), len(readings), {r.vcpu: r.energy for r in readings})
        self.counted[uuid] = counted
        if before is None:
            return
        last, new, begun = dict(before.energies), readings[before.readings :], set()
        for vcpu, unit, energy in new:
            if energy < last.get(vcpu, 0):
                assert counted.qemu != before.qemu, f"vCPU {vcpu} of {name} read {last[vcpu]}, and then {energy}"
                assert energy / (1 << (unit >> 8 & 31)) <= BEGINNING_JOULES
                begun.add(vcpu)
            last[vcpu] = energy
        if counted.qemu != before.qemu:
            assert begun >= {reading.vcpu for reading in new if before.energies.get(reading.vcpu)}

    def _check_energies(self) -> None:
        """Hold that no total of virt-rapld has gone back, of a domain, a vCPU or a zone."""
        document = self.asked()
        assert document
        energies: dict[tuple[str, ...], float] = {}
        for zone in document["host"]["zones"]:
            energies["zone", zone["name"]] = zone["energy_joules"]
            assert "lost_intervals" not in zone
        for domain in document["domains"]:
            energies["domain", domain["uuid"]] = domain["energy_joules"]
            for vcpu in domain["vcpus"]:
                energies["vcpu", domain["uuid"], str(vcpu["id"])] = vcpu["energy_joules"]
        for key in self._energies.keys() & energies.keys():
            assert energies[key] >= self._energies[key], f"{key} went back"
        self._energies |= energies

    def _check_events(self, degraded: set[str]) -> None:
        """Hold that the hook has done what it was called for: where it fails, libvirt's logs need not say so."""
        recorded = list(events.read_unchecked(self.world.path(self.run_directory)))
        new, self._events = recorded[self._events :], len(recorded)
        assert [event for event in new if event.result in events.TROUBLE and event.domain not in degraded] == []

    def _check_logs(self, degraded: set[str], daemon_logs: tuple[str, ...]) -> None:
        """Hold that nobody has complained: we to libvirt or to a domain's log, libvirt of our hook, virt-rapld."""
        logs = self.world.path("/var/log/libvirt")
        for path in (logs / "libvirtd.log", *logs.glob("qemu/*.log")):
            words = [line for line in self._new_lines(path) if "virt-rapl: " in line or "hook" in line.lower()]
            # What libvirt says of each restored or incoming domain whose XML a hook has changed, as it shall here.
            words = [line for line in words if not line.endswith("is tainted: hook-script")]
            assert [line for line in words if not any(name in (path.stem, *line.split()) for name in degraded)] == []
        logged: list[str] = []

        def all_logged() -> bool:
            logged.extend(self._new_lines(self.world.path(DAEMON_LOG)))
            return not daemon_logs or any(f"virt-rapl: {daemon_logs[-1]}" in line for line in logged)

        wait_until(all_logged, PATIENCE_SECONDS, f"virt-rapld logs {daemon_logs}")
        assert [
            line for line in logged if not line.removeprefix("virt-rapl: ").startswith(daemon_logs or ("\0",))
        ] == []

    def _new_lines(self, path: Path) -> list[str]:
        lines = path.read_text(errors="replace").splitlines()
        new = lines[self._lines[path] :]
        self._lines[path] = len(lines)
        return new


def _moves(readings: Iterable[guest.Reading]) -> bool:
    """Return whether the counter of a vCPU grows in these."""
    last: dict[int, int] = {}
    for vcpu, _, energy in readings:
        if energy > last.get(vcpu, energy):
            return True
        last[vcpu] = energy
    return False
