"""A Linux guest in which virt-rapl-guest runs, and what it shows: the energy that its host has sent."""

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import linux_guest
from linux_guest import PORT, LinuxGuest

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator.world import World

METER = "/usr/bin/virt-rapl-guest"
OBSERVER = "/usr/bin/observer"
DIRECTORY = "/run/virt-rapl-guest"
"""Where virt-rapl-guest shows counters."""
SEEN = "/run/seen"
SERVICE_PID, METER_PID = "/run/service.pid", "/run/meter.pid"

# What udev and systemd do elsewhere: start it when the port is there, and again when it has ended.
SERVICE = f"""\
while :; do
    while [ ! -c {PORT} ]; do sleep 0.2; done
    {METER} run --textfile {DIRECTORY}/virt-rapl-guest.prom 2>>/run/meter.log &
    echo $! >{METER_PID}
    wait
    sleep 0.5
done &
echo $! >{SERVICE_PID}
"""
# Writes down each line of the host's as soon as the counters show it.
OBSERVE = f"""\
#!/usr/bin/python3
import json
import time

last = None
with open("{SEEN}", "a", buffering=1) as seen:
    while True:
        time.sleep(0.2)
        try:
            with open("{DIRECTORY}/status.json") as file:
                shown = json.load(file)
        except FileNotFoundError:
            continue
        if shown and shown["time"] != last:
            last = shown["time"]
            seen.write(json.dumps([last, shown["host"], shown["zones"]["package"]["energy_joules"]]) + "\\n")
"""


class Seen(NamedTuple):
    """A line of the host's, and what the guest's counters showed after it."""

    time: float
    """Of the host's sample, in seconds since 1970."""
    host: str
    joules: float


class MeteredGuest(LinuxGuest):
    """One in a world that furnish() has furnished."""

    def start_meter(self) -> None:
        """Have virt-rapl-guest run whenever there is the port."""
        self.run(SERVICE)
        self.run(f"{OBSERVER} >/run/observer.log 2>&1 &")

    def stop_meter(self) -> None:
        """Leave the port to others."""
        gone = f"while kill -0 $(cat {METER_PID}); do sleep 0.1; done"
        self.run(f"kill $(cat {SERVICE_PID}); kill $(cat {METER_PID}); {gone} 2>/dev/null")

    def document(self) -> dict[str, Any]:
        """Return what `virt-rapl-guest status` prints. Raises VirtRaplError while no lines come."""
        document = json.loads(self.run(f"{METER} status --json").stdout)
        assert isinstance(document, dict)
        return document

    def is_metered(self) -> bool:
        try:
            return bool(self.document())
        except VirtRaplError:
            return False

    def seen(self, since: float = 0.0) -> list[Seen]:
        """Return the lines that it has seen since then, and the last one before."""
        found = [json.loads(line) for line in self.run(f"cat {SEEN}").stdout.splitlines()]
        lines = [Seen(datetime.fromisoformat(time).timestamp(), host, joules) for time, host, joules in found]
        return lines[max(0, sum(line.time < since for line in lines) - 1) :]


def furnish(world: World, scratch: Path) -> None:
    """Put what they boot into a world's /mnt; `scratch` is a directory for this alone."""
    observer = scratch / "observer"
    observer.write_text(OBSERVE)
    program = Path(__file__).parent.parent / "etc/guest/virt-rapl-guest"
    linux_guest.furnish(world, {METER: program, OBSERVER: observer})


def longest_gap(lines: Sequence[Seen]) -> float:
    """Return the most seconds between a line and the next."""
    return max(after.time - before.time for before, after in pairwise(lines))


def only_grows(lines: Sequence[Seen]) -> bool:
    return all(before.joules <= after.joules for before, after in pairwise(lines))
