"""Real guests with known loads, energy from a known power model: what status charges them against the truth.

The simulator's package uses idle watts, and watts for each busy CPU. Each attribution model is right for one such
machine, and there a domain's true energy follows from the CPU time of its QEMU alone, which the kernel counts exactly,
with that of threads which have ended.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
from walking import wait_until

from libvirt_rapl import paths
from libvirt_rapl.host.processes import NANOSECONDS_PER_TICK, fields
from libvirt_rapl.host.topology import packages
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

SECONDS = 30
QUIET_SECONDS = 4
GUESTS = {"one-busy": (100,), "one-calm": (30,), "two-vcpus": (20, 10), "four-vcpus": (5, 0, 10, 5), "disk": (0,)}
ONLINE = sorted(cpu for cpus in packages(Path("/sys")).values() for cpu in cpus)
CPUS = len(ONLINE)

# model: packages, idle watts of each, watts of a busy CPU, true joules of a CPU second
MODELS = {
    "capacity": (1, 100, 0, 100 / CPUS),
    "active": (min(2, CPUS), 0, 40, 40),
    "baseline": (1, 20, 40, 40),
}

# Worker threads of QEMU read the disk, and end when they had nothing to do for ten seconds.
DISK = "/mnt/disk.raw"
READ = "qemu-monitor-command disk --hmp 'qemu-io libvirt-1-storage \"read 0 60M\"'; "
READ_DISK = 'while :; do virsh "$1"; sleep 11; done'
# From the first CPU to the last and back; the step and the second of a sample are never in time with each other.
MOVE = 'while :; do for cpu in "$2" "$3"; do taskset --all-tasks --cpu-list --pid "$cpu" "$1"; sleep 0.73; done; done'


class State(NamedTuple):
    """What status said, and what was true a little later."""

    used: dict[str, float]
    """CPU seconds of each domain."""
    charged: dict[str, float]
    true: list[float]
    """Joules of each package."""
    counted: list[float]
    disk_threads: set[str]


def cpu_seconds(world: World, domain: dict[str, Any]) -> float:
    stat = fields(world.path(f"/proc/{domain['pid']}/stat").read_text())
    return (int(stat[11]) + int(stat[12])) * NANOSECONDS_PER_TICK / 1e9


def package_joules(world: World) -> list[float]:
    truth = json.loads(world.path("/sys/class/powercap/virt-rapl-simulator/truth").read_text())
    return [package["zones"]["package"] / 1e6 for package in truth["packages"]]


def states(world: World, documents: Iterable[str]) -> Iterator[State]:
    """Read what is true after each document of status."""
    for line in documents:
        document = json.loads(line)
        domains = {domain["name"]: domain for domain in document["domains"]}
        yield State(
            {name: cpu_seconds(world, domain) for name, domain in domains.items()},
            {name: domain["energy_joules"] for name, domain in domains.items()},
            package_joules(world),
            [zone["energy_joules"] for zone in document["host"]["zones"] if zone["name"].startswith("package")],
            {task.name for task in world.path(f"/proc/{domains['disk']['pid']}/task").iterdir()},
        )


def prepare(world: World, model: str) -> None:
    world.run(["virt-rapl", "install", "--force"])
    world.path("/etc/virt-rapl/virt-rapl.yaml").write_text(f"model: {model}\n")
    world.start_libvirtd()
    for name, duties in GUESTS.items():
        world.define_guest(name, *duties, vcpus=len(duties))
    world.run(["truncate", "--size=64M", DISK])
    world.run(["virsh", "attach-disk", "disk", DISK, "vda", "--config"])
    for name in GUESTS:
        world.run(["virsh", "start", name, "--paused"])
    time.sleep(1)


TEACH = """
import sys
from pathlib import Path
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.snapshot import Kept
ledger = Ledger(Path("/var/lib/virt-rapl/ledger.db"), simulated=True, log=sys.exit)
ledger.load()
ledger.write(Kept(lowest={"package-0": (int(sys.argv[1]) * 10**6, 10**9)}))
"""
"""Lets virt-rapld know the idle power of the package: nobody promises that the machine is ever idle meanwhile."""


def measure(world: World, *, daemon: bool) -> list[State]:
    """Let the guests run for SECONDS seconds, and return what was each second, by status or by the daemon it asks.

    They rest at the beginning and at the end, so it does not matter that we read a little later than status did.
    """
    with contextlib.ExitStack() as ends, contextlib.ExitStack() as loops:

        def start(stack: contextlib.ExitStack, *command: str) -> IO[str]:
            process = stack.enter_context(world.popen(command))
            stack.callback(process.kill)
            assert process.stdout is not None
            return process.stdout

        def all_guests(command: str) -> None:
            world.run(["virsh", "; ".join(f"{command} {name}" for name in GUESTS)])

        if daemon:
            start(ends, "virt-rapl", "daemon")
            wait_until(world.path(f"/run/virt-rapl/{paths.STATUS_SOCKET}").exists, 30, "the daemon answers")
        reported = states(world, start(ends, "virt-rapl", "status", "--json", "--watch"))
        measured = list(islice(reported, QUIET_SECONDS))
        all_guests("resume")
        pid = world.path("/run/libvirt/qemu/one-busy.pid").read_text().strip()
        start(loops, "sh", "-c", READ_DISK, "sh", READ * 20)
        start(loops, "sh", "-c", MOVE, "sh", pid, str(ONLINE[0]), str(ONLINE[-1]))
        measured += islice(reported, SECONDS)
        loops.close()
        all_guests("suspend")
        measured += islice(reported, 3)
        return measured[QUIET_SECONDS - 1 :]


@pytest.mark.parametrize("model", MODELS)
def test_every_domain_is_charged_what_it_used(model: str) -> None:
    """One that is moved from package to package too, and one whose threads come and go."""
    sockets, idle_watts, cpu_watts, joules_per_cpu_second = MODELS[model]
    options = (f"--packages={sockets}", f"--idle-watts={idle_watts}", f"--cpu-watts={cpu_watts}", "--seed=7")
    with World(options) as world:
        prepare(world, model)
        if model == "baseline":
            world.run([sys.executable, "-I", "-c", TEACH, str(idle_watts)])
        measured = measure(world, daemon=model == "baseline")
    first, last = measured[0], measured[-1]
    threads = [state.disk_threads for state in measured]
    assert set.union(*threads) > threads[-1], "threads ended"
    for true, counted in zip(since(first.true, last.true), since(first.counted, last.counted), strict=True):
        print(f"{model}: package: counted {counted:.2f} J, true {true:.2f} J")
        assert counted == pytest.approx(true, rel=0.03)  # packages never rest: we read a little later
    errors = {}
    for name in GUESTS:
        charged = last.charged[name] - first.charged[name]
        true = (last.used[name] - first.used[name]) * joules_per_cpu_second
        errors[name] = charged / true - 1
        print(f"{model}: {name}: charged {charged:.2f} J, true {true:.2f} J, {errors[name]:+.2%}")
    assert sum(map(abs, errors.values())) / len(errors) <= 0.01


def since(before: list[float], after: list[float]) -> list[float]:
    return [end - begin for begin, end in zip(before, after, strict=True)]
