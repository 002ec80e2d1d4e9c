"""Start two real guests in a private world, and compare what they read with what `virt-rapl status` says.

The machine's own libvirt, guests and configuration are neither seen nor touched, and nothing is left afterwards. If
the machine has no RAPL the energy is simulated. Guests read registers where QEMU gives them some, and else what comes
by the energy channel.
"""

import argparse
import json
import sys
import time
from functools import partial
from typing import Any

from libvirt_rapl.cli import aligned, count
from libvirt_rapl.errors import VirtRaplError, message_of
from libvirt_rapl.host.energy_source import open_source
from libvirt_rapl.host.requirements import check_host
from libvirt_rapl.paths import DEV, SYS
from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.kvm import check_kvm
from libvirt_rapl.simulator.world import World, check_machine

GUESTS = {"busy": 100, "calm": 30}
"""Name, and how busy its vCPU is, in per cent."""

SETTLING_SECONDS = 2
"""A guest's first readings include the energy of its start; after this they do not."""

HEADINGS = ("DOMAIN", "VCPU LOAD", "WATTS", "JOULES", "GUEST'S JOULES", "DIFFERENCE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "--cpu",
        choices=("intel", "amd"),
        help="simulate a machine with such a processor (default: this machine or, if it has no RAPL, intel)",
    )
    parser.add_argument(
        "--seconds", metavar="N", type=count, default=15, help="how long to compare (default %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Show the comparison once a second."""
    check_machine()
    print(f"starting libvirt and {len(GUESTS)} guests in a private world", flush=True)
    simulate = ("--cpu", options.cpu) if options.cpu else () if _lacks_rapl() else None
    with World(simulate=simulate) as world:
        screen = Screen(world, _start_guests(world))
        with world.popen(["virt-rapl", "status", "--json", "--watch"]) as status:
            assert status.stdout is not None
            for second, line in zip(range(-SETTLING_SECONDS, options.seconds + 1), status.stdout, strict=False):
                if second >= 0:
                    screen.show(json.loads(line), second, options.seconds)
            status.kill()
    if screen.shown < options.seconds:
        raise VirtRaplError("`virt-rapl status` ended too early", "see its message above")
    print("done: guests, libvirt and everything they wrote are gone, nothing is left behind")
    return 0


def _lacks_rapl() -> bool:
    try:
        open_source("auto", sys=SYS, dev=DEV)
    except VirtRaplError:
        return True
    return False


def _start_guests(world: World) -> str:
    """Do what an operator would; return what is to be known of how guests get their energy, empty if by registers."""
    no_kvm = message_of(check_kvm)
    no_registers = no_kvm or message_of(partial(check_host, sys=world.path("/sys"), proc=world.path("/proc")))
    world.run(["virt-rapl", "install", "--force"])  # other users may be able to change a checkout
    world.start_libvirtd()
    if no_registers:
        for command in ("daemon", "channel"):
            world.run(["sh", "-c", f"exec virt-rapl {command} >/dev/null 2>&1 </dev/null &"])
    trouble = ""
    for name, duty in GUESTS.items():
        world.define_guest(name, duty, kvm=not no_kvm)
        via = ["--via", "channel"] if no_registers else []
        trouble = trouble or message_of(partial(_start_with_meter, world, via, name))
        if trouble:
            world.run(["virsh", "start", name])
    if trouble:
        return f"no guest can read its energy here: {trouble}; this is the host's side"
    return f"guests get their energy by the channel: {no_registers}" if no_registers else ""


def _start_with_meter(world: World, via: list[str], name: str) -> None:
    world.run(["virt-rapl", "enable", *via, name])
    try:
        world.run(["virsh", "start", name])
    except VirtRaplError:
        world.run(["virt-rapl", "disable", name])
        raise


class Screen:
    """What is shown. Everything is counted from the first document of `virt-rapl status` on."""

    def __init__(self, world: World, note: str) -> None:
        """Show the guests of `world`, and a note above them if there is one."""
        self.world = world
        self.note = note
        self.shown = 0
        self._height = 0
        self._before: dict[str, tuple[float, float]] = {}
        """For each domain: monotonic seconds and vCPU seconds, at the previous screen."""
        self._first: dict[tuple[str, bool], tuple[float, float]] = {}
        """For each domain, and whether it reads its energy: joules by status and by the guest, at the beginning."""
        self._charged: dict[tuple[str, str], float] = {}
        """Joules by status, by domain and time of the sample."""

    def show(self, document: dict[str, Any], second: int, seconds: int) -> None:
        """Show the comparison for one document, on a terminal in place of the previous one."""
        rows = [self._row(domain, document["host"]["sampled_at"]) for domain in document["domains"]]
        if second == 0:
            return
        lines = self._lines(document["host"], rows, second, seconds)
        if sys.stdout.isatty() and self._height:
            print(f"\033[{self._height}A\033[J", end="")
        print("\n".join(lines), flush=True)
        self._height = len(lines)
        self.shown = second

    def _row(self, domain: dict[str, Any], sampled_at: str) -> tuple[str, ...]:
        name, whole = domain["name"], domain["energy_joules"]
        self._charged[name, sampled_at] = whole
        compared = self._by_registers(domain) if domain["vrapl"] == "active" else self._by_channel(name)
        charged, own = compared or (whole, 0.0)
        charged_first, own_first = self._first.setdefault((name, bool(compared)), (charged, own))
        charged, own = charged - charged_first, own - own_first
        figures = (name, self._load(domain), f"{domain['power_watts']:.1f} W", f"{charged:.1f} J")
        difference = f"{(own - charged) / charged:+.1%}" if compared and charged else "-"
        return (*figures, f"{own:.1f} J" if compared else "-", difference)

    def _by_registers(self, domain: dict[str, Any]) -> tuple[float, float]:
        """Return the joules by status and by the guest, at one moment."""
        readings = self.world.readings(domain["name"])
        # QEMU moves the guest's counter once a second: compare with what status would have shown at that moment.
        unmoved = domain["power_watts"] * guest.unmoved_seconds(readings)
        return domain["energy_joules"] - unmoved, sum(guest.joules(readings).values())

    def _by_channel(self, name: str) -> tuple[float, float] | None:
        """Return the joules by status and by the guest, of the newest sample that the guest has heard of; or None."""
        for line in reversed(self.world.channel_lines(name)):
            heard = json.loads(line)
            charged = self._charged.get((name, heard["time"]))
            return None if charged is None else (charged, heard["energy_joules"])
        return None

    def _load(self, domain: dict[str, Any]) -> str:
        now, ran = time.monotonic(), self._vcpu_seconds(domain)
        before, ran_before = self._before.get(domain["name"], (now, ran))
        self._before[domain["name"]] = now, ran
        return f"{(ran - ran_before) / (now - before):.0%}" if now > before else "-"

    def _vcpu_seconds(self, domain: dict[str, Any]) -> float:
        tasks = self.world.path(f"/proc/{domain['pid']}/task")
        clocks = [tasks / str(vcpu["tid"]) / "schedstat" for vcpu in domain["vcpus"] if vcpu["tid"]]
        return sum(int(clock.read_text().split()[0]) for clock in clocks) / 1e9

    def _lines(self, host: dict[str, Any], rows: list[tuple[str, ...]], second: int, seconds: int) -> list[str]:
        package = sum(zone["power_watts"] for zone in host["zones"] if zone["name"].startswith("package"))
        return [
            "",
            *(["energy is SIMULATED: this is not what the machine uses"] if host["source"] == "simulated" else []),
            *([self.note] if self.note else []),
            *aligned([HEADINGS, *rows], right=range(1, len(HEADINGS))),
            f"package {package:.1f} W: domains {host['domains_watts']:.1f} W, other {host['other_watts']:.1f} W, "
            f"idle {host['idle_watts']:.1f} W; second {second} of {seconds}",
        ]
