"""What the ledger's history costs: prints JSON. Arguments: directory, domains, vCPUs, zones, days.

A ledger of so many days is filled, bucket by bucket, and compacted as virt-rapld would. Then it is written as every ten
seconds, with history and without, in turn, and a month is reported by the command.
"""

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from libvirt_rapl.choices import KEEP_HISTORY, KeepHistory
from libvirt_rapl.energy import history
from libvirt_rapl.energy.history import DAY, HOUR, QUARTER, Identity, Moment
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.snapshot import HOST, IDLE, OTHER, WHOLE, Kept, Part

WRITES = 30
REPORTS = 5


def main(directory: Path, domains: int, vcpus: int, zones: int, days: int) -> None:
    """Measure."""
    machine = Machine(directory, domains, vcpus, zones)
    machine.fill(days)
    path = directory / "ledger.db"
    figures: dict[str, Any] = {
        "bytes": path.stat().st_size,
        "write_ms": {"with": [], "without": []},
        "report_s": {},
        "compact_hour_ms": machine.compact(),
    }
    for _ in range(WRITES):
        for name, keep in (("with", KEEP_HISTORY), ("without", KeepHistory(on=False))):
            figures["write_ms"][name].append(machine.write(keep))
    config = directory / "virt-rapl.yaml"
    night = "{from: 22:00, to: 06:00, price: 0.2}"
    config.write_text(f"state_directory: {directory}\ntariff: {{currency: EUR, price: 0.3, windows: [{night}]}}\n")
    config.chmod(0o644)
    for by in ("domain", "total", "day,domain"):
        figures["report_s"][by] = median(timed(lambda by=by: report(config, by)) for _ in range(REPORTS))  # type: ignore[misc]
    figures["write_ms"] = {name: median(times) for name, times in figures["write_ms"].items()}
    print(json.dumps(figures))


class Machine:
    """A ledger and what is written to it."""

    def __init__(self, directory: Path, domains: int, vcpus: int, zones: int) -> None:
        self.path = directory / "ledger.db"
        self.uuids = [str(UUID(int=number + 2**100)) for number in range(domains)]
        self.zones = ["package-0", *(f"zone-{number}" for number in range(1, zones))]
        self.vcpus = vcpus
        self.names = {uuid: Identity(f"domain-{uuid}") for uuid in self.uuids}
        self.totals: dict[Part, int] = {}
        self.metered = 0.0
        self.chance = random.Random(7)
        self.grow()
        self.write(KEEP_HISTORY)

    def grow(self) -> None:
        """Use energy for ten seconds."""
        self.metered += 10
        for zone in self.zones:
            for owner in (*self.uuids, OTHER, IDLE):
                self.add(Part(owner, WHOLE, zone), microjoules := self.chance.randrange(10**6, 10**8))
                self.add(Part(HOST, WHOLE, zone), microjoules)
                if zone == "package-0":
                    self.add(Part(owner, WHOLE, "package"), microjoules)
                    if owner in self.names:
                        for vcpu in range(self.vcpus):
                            share = (
                                microjoules // self.vcpus
                                if vcpu
                                else microjoules - microjoules // self.vcpus * (self.vcpus - 1)
                            )
                            self.add(Part(owner, vcpu, "package"), share)

    def add(self, part: Part, microjoules: int) -> None:
        self.totals[part] = self.totals.get(part, 0) + microjoules

    def write(self, keep: KeepHistory) -> float:
        """Return how many milliseconds a write takes, of a ledger that has been loaded."""
        self.grow()
        ledger = Ledger(self.path, simulated=True, log=print, history=keep)
        ledger.load()
        moment = Moment(model="capacity", source="simulated", domains=self.names)
        return 1000 * timed(lambda: ledger.write(Kept(self.totals, metered=self.metered), (), moment))

    def fill(self, days: int) -> None:
        """Write buckets of so many days before now."""
        end = int(time.time() // QUARTER) * QUARTER
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            parts = dict(database.execute("SELECT id, owner FROM part WHERE owner <> 'host'"))
            zones = dict(database.execute("SELECT id, zone FROM part"))
            hosts = {
                zone: number for number, zone in database.execute("SELECT id, zone FROM part WHERE owner = 'host'")
            }
            for start in range(end - days * DAY, end, QUARTER):
                energies = {part: self.chance.randrange(10**7, 10**10) for part in parts}
                sums = dict.fromkeys(hosts, 0)
                for part, microjoules in energies.items():
                    sums[zones[part]] += microjoules
                energies |= {hosts[zone]: microjoules for zone, microjoules in sums.items()}
                rows = [(QUARTER, start, part, microjoules) for part, microjoules in energies.items()]
                database.executemany("INSERT INTO history VALUES (?, ?, ?, ?)", rows)
            database.commit()
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def compact(self) -> float:
        """Return how many milliseconds it takes to add up the oldest hour, as happens once an hour."""
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            (oldest,) = database.execute("SELECT min(start) FROM history").fetchone()
            now = oldest + HOUR + KEEP_HISTORY.quarter_hours * DAY + QUARTER

            def compact() -> None:
                history.compact(database, now, KEEP_HISTORY)
                database.commit()

            return 1000 * timed(compact)


def report(config: Path, by: str) -> None:
    command = [sys.executable, "-m", "libvirt_rapl", "--config", str(config), "report", "--by", by, "--since", "30d"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
