"""A guest's energy channel from outside, and somebody who writes to it in virt-rapl's place."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

from libvirt_rapl.simulator.world import World

NAME = "org.virt-rapl.energy.0"
ELEMENT = f"<channel type='unix'><source mode='bind'/><target type='virtio' name='{NAME}'/></channel>"
"""What a domain has for it."""


def element(world: World, name: str) -> str:
    """Return the element as libvirt has it while the domain runs."""
    xml = world.run(["virsh", "dumpxml", name]).stdout
    return next(found[0] for found in re.finditer(r"<channel .*?</channel>", xml, re.DOTALL) if NAME in found[0])


def line(energy: float) -> dict[str, Any]:
    """Return what is written in a second, as an object."""
    return {
        "schema": 1,
        "time": "2026-11-28T12:00:00.000Z",
        "host": "0123456789ab",
        "since": "2026-11-28T11:00:00.000Z",
        "source": "simulated",
        "simulated": True,
        "interval_seconds": 1.0,
        "power_watts": 10.0,
        "energy_joules": energy,
        "zones": {"package": {"power_watts": 10.0, "energy_joules": energy}},
        "vcpus": [{"id": 0, "power_watts": 10.0, "energy_joules": energy}],
    }


@contextlib.contextmanager
def writer(world: World, name: str) -> Iterator[None]:
    """Write lines to a running domain, ten in a second, the energy of which is 0, 1, 2, ...; while it reads them."""
    path = element(world, name).partition(" path='")[2].partition("'")[0]
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(world.path(path)))

        def write() -> None:
            for energy in count():
                with contextlib.suppress(BlockingIOError):
                    connection.send(json.dumps(line(energy)).encode() + b"\n", socket.MSG_DONTWAIT)
                if done.wait(0.1):
                    return

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
