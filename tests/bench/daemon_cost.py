"""What the daemon itself costs: virt-rapld's own loop on stand-ins, its CPU time and memory as the kernel counts them.

    python daemon_cost.py SYS DIRECTORY SECONDS PID...

Zones are read below SYS; the ledger and the status socket are below DIRECTORY. Prints one JSON document. libvirt is
left out: the domains are given, and none comes or goes.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import memory
from programs import vcpu_tids

from libvirt_rapl.config import Config
from libvirt_rapl.daemon import host_meter, loop
from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.inventory import Entry, Inventory
from libvirt_rapl.labels import Labels


class Given(Inventory):
    """Knows the domains without asking libvirt."""

    def __init__(
        self, uri: str, log: Callable[[str], None], changed: Callable[[Iterable[str]], None], labels: Labels
    ) -> None:
        super().__init__(uri, log, changed, labels)
        self.entries = {entry.uuid: entry for entry in map(entry_of, map(int, sys.argv[4:]))}
        self.listed = True
        self.attempted.set()

    def start(self) -> None:
        """Do nothing: no domain comes or goes."""


def entry_of(pid: int) -> Entry:
    uuid = f"00000000-0000-0000-0000-{pid:012}"
    return Entry(
        name=f"domain-{pid}",
        uuid=uuid,
        id=pid,
        state="running",
        pid=pid,
        vcpu_tids=vcpu_tids(pid),
        mark=None,
        channel=Channel(f"/run/libvirt/qemu/channel/{pid}-domain/org.virt-rapl.energy.0", open=True),
    )


def main() -> None:
    sys_root, directory, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    # To mypy these names there are not for others.
    setattr(host_meter, "SYS", sys_root)  # noqa: B010
    setattr(loop, "Inventory", Given)  # noqa: B010
    figures = {}

    def measure() -> None:
        time.sleep(3)  # it has begun: descriptors are open
        begin, cpu = time.monotonic(), time.process_time()
        time.sleep(seconds)
        figures["seconds"] = time.monotonic() - begin
        figures["cpu_seconds"] = time.process_time() - cpu
        figures.update(memory.of(os.getpid()))
        os.kill(os.getpid(), loop.END[0])

    signal.pthread_sigmask(signal.SIG_BLOCK, loop.END)  # the daemon waits for them; no other thread may take them
    threading.Thread(target=measure, daemon=True).start()
    loop.run(Config(run_directory=directory / "run", state_directory=directory / "state"), "test:///default")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
