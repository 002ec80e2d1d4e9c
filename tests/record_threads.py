"""Record the threads of a real QEMU with a meter for its guest, as tests/data/threads/disk-io.json holds them.

    python tests/record_threads.py > tests/data/threads/disk-io.json

A guest of two vCPUs, one busy and one half busy, on a simulated 100 W package. Two seconds after the beginning QEMU
reads a disk; the worker threads that did it end ten seconds later.
"""

import json
import time
from pathlib import Path
from typing import Any

from libvirt_rapl.host.msr import read_register
from libvirt_rapl.host.processes import fields
from libvirt_rapl.host.topology import packages
from libvirt_rapl.simulator.world import World

SECONDS = 16
READS = 5  # so many that a worker thread runs for some clock ticks
DISK = "/mnt/disk.raw"


def threads(task: Path) -> dict[int, dict[str, Any]]:
    """Return what QEMU, and we, read of each thread: clock ticks, and nanoseconds."""
    found = {}
    for directory in sorted(task.iterdir(), key=lambda path: int(path.name)):
        stat = fields((directory / "stat").read_text())
        found[int(directory.name)] = {
            "name": (directory / "comm").read_text().strip(),
            "ticks": int(stat[11]) + int(stat[12]),
            "ns": int((directory / "schedstat").read_text().split()[0]),
        }
    return found


def record() -> dict[str, Any]:
    with World(("--idle-watts=100", "--cpu-watts=0")) as world:
        world.run(["virt-rapl", "install", "--force"])
        world.start_libvirtd()
        world.define_guest("guest", 100, 50, vcpus=2)
        world.run(["truncate", "--size=64M", DISK])
        world.run(["virsh", "attach-disk", "guest", DISK, "vda", "--config"])
        world.run(["virt-rapl", "enable", "guest"])
        world.run(["virsh", "start", "guest"])
        pid = int(world.path("/run/libvirt/qemu/guest.pid").read_text())
        dev, task = world.path("/dev"), world.path(f"/proc/{pid}/task")
        time.sleep(3)
        samples = []
        due = time.monotonic()
        for second in range(SECONDS + 1):
            time.sleep(max(0.0, due - time.monotonic()))
            due += 1
            samples.append(
                {
                    "ns": time.monotonic_ns(),
                    "energy": read_register(dev, 0, 0x611) & 0xFFFFFFFF,
                    "guest": {reading.vcpu: reading.energy for reading in world.readings("guest")},
                    "threads": threads(task),
                }
            )
            if second == 2:
                for _ in range(READS):
                    read = 'qemu-io libvirt-1-storage "read 0 60M"'
                    world.run(["virsh", "qemu-monitor-command", "--hmp", "guest", read])
        return {
            "pid": pid,
            "cpus": len(packages(Path("/sys"))[0]),
            "exponent": read_register(dev, 0, 0x606) >> 8 & 31,
            "samples": samples,
        }


if __name__ == "__main__":
    print(json.dumps(record(), separators=(",", ":")))
