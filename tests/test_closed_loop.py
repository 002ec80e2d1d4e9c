"""Real guests with known loads, energy from a known power model: what status charges them against the truth.

The simulator's package uses idle watts, and watts for each busy CPU. Each attribution model is right for one such
machine, and there a domain's true energy follows from the CPU time of its QEMU alone, which the kernel counts exactly.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from libvirt_rapl.host.cpus import NANOSECONDS_PER_TICK, packages
from libvirt_rapl.host.processes import fields
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

SECONDS = 30
QUIET_SECONDS = 4
GUESTS = {"one-busy": (100,), "one-calm": (30,), "two-vcpus": (20, 10), "four-vcpus": (5, 0, 10, 5)}
CPUS = sum(map(len, packages(Path("/sys")).values()))

# model: idle watts, watts of a busy CPU, true joules of a CPU second
MODELS = {"capacity": (100, 0, 100 / CPUS), "active": (0, 40, 40), "baseline": (20, 40, 40)}


def cpu_seconds(world: World, domain: dict[str, Any]) -> float:
    stat = fields(world.path(f"/proc/{domain['pid']}/stat").read_text())
    return (int(stat[11]) + int(stat[12])) * NANOSECONDS_PER_TICK / 1e9


@pytest.mark.parametrize("model", MODELS)
def test_every_domain_is_charged_what_it_used(model: str) -> None:
    idle_watts, cpu_watts, joules_per_cpu_second = MODELS[model]
    with World((f"--idle-watts={idle_watts}", f"--cpu-watts={cpu_watts}", "--seed=7")) as world:
        world.run(["virt-rapl", "install"])
        world.path("/etc/virt-rapl/virt-rapl.yaml").write_text(f"model: {model}\n")
        world.start_libvirtd()
        for name, duties in GUESTS.items():
            world.define_guest(name, *duties, vcpus=len(duties))
        time.sleep(1)
        with world.popen(["virt-rapl", "status", "--json", "--watch"]) as status:
            assert status.stdout is not None
            for _ in range(QUIET_SECONDS):  # in which `baseline` learns the idle power
                status.stdout.readline()
            for name in GUESTS:
                world.run(["virsh", "start", name])
            first: dict[str, dict[str, Any]] = {}
            last: dict[str, dict[str, Any]] = {}
            used: dict[str, float] = {}
            begin = end = 0.0
            before: dict[str, float] = {}
            for line in status.stdout:
                document = json.loads(line)
                last = {domain["name"]: domain for domain in document["domains"] if domain["pid"]}
                if last.keys() != GUESTS.keys():
                    continue
                used = {name: cpu_seconds(world, domain) for name, domain in last.items()}
                end = time.monotonic()
                if not first and all(domain["power_watts"] for domain in last.values()):
                    first, begin, before = last, end, used
                if first and end > begin + SECONDS:
                    break
            status.kill()
    errors = {}
    for name in GUESTS:
        charged = last[name]["energy_joules"] - first[name]["energy_joules"]
        true = (used[name] - before[name]) * joules_per_cpu_second
        errors[name] = charged / true - 1
        print(f"{model}: {name}: charged {charged:.2f} J, true {true:.2f} J, {errors[name]:+.2%}")
    assert sum(map(abs, errors.values())) / len(errors) <= 0.01
