"""Run COMMAND on a simulated machine with RAPL, Intel's or AMD's, with simulated energy.

COMMAND finds /dev/cpu/N/msr and /sys/class/powercap in a mount namespace of its own; its processes are ordinary
processes of this host. Power follows the real load of the CPUs. /sys/class/powercap/virt-rapl-simulator/truth shows
the energy that was really simulated. If --cpu names another vendor than the processor's own, /proc/cpuinfo says so,
and QEMU and qemu-vmsr-helper are copies that believe it. A /proc that COMMAND mounts anew does not say so, until
/sys/class/powercap/virt-rapl-simulator/cpuinfo is mounted on its cpuinfo. Processes that COMMAND leaves running when it
ends are killed.
"""

import argparse
import errno
import math
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import get_args

from libvirt_rapl.cli import count, warn
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host import topology
from libvirt_rapl.host.busy_clock import BusyClock
from libvirt_rapl.paths import PROC, SYS
from libvirt_rapl.simulator import keeper, namespace, processor, server
from libvirt_rapl.simulator.files import Files
from libvirt_rapl.simulator.power import Model, PackageEnergy, Simulation, deal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `virt-rapl simulate`."""
    model = Model()
    parser.usage = "%(prog)s [options] -- COMMAND [ARGUMENT...]"
    parser.add_argument(
        "--cpu",
        choices=get_args(processor.Vendor),
        default=model.cpu,
        help="vendor of the processor; QEMU gives guests RAPL only on Intel's (default %(default)s)",
    )
    parser.add_argument(
        "--packages", metavar="N", type=count, default=model.packages, help="CPU packages (default %(default)s)"
    )
    parser.add_argument(
        "--idle-watts", metavar="W", type=_watts, default=model.idle_watts, help="of each package (default %(default)g)"
    )
    parser.add_argument(
        "--cpu-watts", metavar="W", type=_watts, default=model.cpu_watts, help="of each busy CPU (default %(default)g)"
    )
    parser.add_argument("--wrap-soon", action="store_true", help="let the energy counters wrap within seconds")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=model.seed, help="where the counters start (default %(default)s)"
    )
    parser.add_argument(
        "--fail-while", metavar="FILE", type=Path, help="answer EIO, as broken hardware does, while this file exists"
    )
    # REMAINDER takes all that follows as it is, `--` included.
    parser.add_argument("command_line", metavar="COMMAND", nargs=argparse.REMAINDER, help="with its own arguments")
    parser.set_defaults(usage_error=parser.error)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises VirtRaplError if the machine cannot be simulated."""
    command = options.command_line[options.command_line[:1] == ["--"] :]
    if not command:
        options.usage_error("COMMAND is missing")
    if os.geteuid() != 0:
        raise VirtRaplError("simulate mounts file systems, which only root may", "run it with sudo")
    model = Model(
        cpu=options.cpu,
        packages=options.packages,
        idle_watts=options.idle_watts,
        cpu_watts=options.cpu_watts,
        wrap_soon=options.wrap_soon,
        seed=options.seed,
    )
    library = server.load_library()
    online = sorted(cpu for package in topology.packages(SYS).values() for cpu in package)
    cores = {cpu: topology.first_of_core(SYS, cpu) for cpu in online}
    packages = deal(cores, model.packages)
    cpuinfo = (PROC / "cpuinfo").read_text(errors="replace")
    programs = processor.copies(processor.vendor_of(cpuinfo), model.cpu)
    for stubborn in (path for path, content in programs.items() if content is None):
        warn(
            f"{stubborn} cannot be made to believe that this processor is {processor.NAMES[model.cpu]}'s",
            "it acts on the real processor: only with a distribution's QEMU do simulated guests behave as real ones",
        )

    def prepare() -> None:
        busy = BusyClock(PROC)
        simulation = Simulation(model, packages, time.monotonic_ns(), busy.read(), cores)

        def sample() -> list[PackageEnergy]:
            if options.fail_while and options.fail_while.exists():
                raise OSError(errno.EIO, "the counters are out of order")
            return simulation.advance(time.monotonic_ns(), busy.read())

        files = Files(simulation, sample, processor.cpuinfo_of(cpuinfo, model.cpu))
        namespace.enter(
            online,
            lambda mountpoint: keeper.start_server(partial(server.serve, library, files.entries, mountpoint)),
            {path: content for path, content in programs.items() if content is not None},
        )
        print(
            f"virt-rapl: energy is SIMULATED: {model.packages} {processor.NAMES[model.cpu]} "
            f"package{'s' * (model.packages > 1)}, "
            f"{model.idle_watts:g} W idle and {model.cpu_watts:g} W more for each busy CPU",
            file=sys.stderr,
            flush=True,
        )

    return keeper.run(command, prepare)


def _watts(text: str) -> float:
    try:
        watts = float(text)
    except ValueError:
        watts = math.nan
    if not 0 <= watts <= 100_000:
        raise argparse.ArgumentTypeError(f"expected watts from 0 to 100000, found {text!r}")
    return watts
