"""What a sample of the meter costs: one process a measurement, as memory is measured too.

    python sampling.py DIRECTORY LOAD TICKS COUNT     on as many stand-ins
    python sampling.py DIRECTORY LOAD TICKS = PID...  on processes that run as they like

Prints one JSON document; times are microseconds of this thread's CPU time per domain and sample, medians.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import memory
import programs

sys.path.insert(0, str(Path(__file__).parent.parent))

from fakes.host import Host

from libvirt_rapl.energy.meter import Meter, Running
from libvirt_rapl.host.energy_source import open_source
from libvirt_rapl.host.process_clock import allow_many_descriptors

ZONES = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
WARM_UP = 3
"""Samples that are not counted: threads are taken up. The first is no interval yet."""
LISTING = 10
"""Every tenth sample looks for new processes; the meter does every other second."""
PHASES = {"read": "_read", "attribute": "_give_out", "count": "_count"}


class TimedMeter(Meter):
    """The meter, with a stop watch at each of its steps."""

    def __init__(self, host: Host) -> None:
        super().__init__(open_source("powercap", sys=host.sys, dev=host.dev), sys=host.sys)
        self.took: dict[str, float] = {}
        for phase, method in PHASES.items():
            setattr(self, method, self._timed(phase, getattr(self, method)))

    def _timed(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: object) -> Any:  # noqa: ANN401
            with stop_watch(self.took, phase):
                return method(*arguments)

        return timed

    def set_listing(self, wanted: bool) -> None:
        """Choose whether the next sample looks for new processes; for the meter, the clock does."""
        for process in self._processes.values():
            process._processes_due = 0.0 if wanted else math.inf

    @property
    def reported_ns(self) -> int:
        """What all domains ran since the meter began, by the clocks that were read."""
        return sum(process._qemu._reported for process in self._processes.values())


@contextlib.contextmanager
def stop_watch(took: dict[str, float], name: str) -> Iterator[None]:
    begin = time.thread_time_ns()
    yield
    took[name] = (time.thread_time_ns() - begin) / 1000


class Rivals:
    """The meter, C and psutil, on the same processes."""

    def __init__(self, meter: TimedMeter, pids: list[int], same: programs.Reads, plain: programs.Reads) -> None:
        import psutil  # after memory was measured

        self._meter = meter
        self._processes = domains(pids)
        self._psutil = [psutil.Process(pid) for pid in pids]
        self._programs = {"c_same": same, "c_all": plain}

    def compete(self, first: int, *, listing: bool) -> tuple[dict[str, float], list[int]]:
        """Sample once each, one of them first. Return what it took, and what the processes ran by each one's word."""
        took: dict[str, float] = {}
        ran: dict[str, int] = {}
        turns = ["ours", *self._programs, "psutil"]
        for name in turns[first % 4 :] + turns[: first % 4]:
            if name == "ours":
                before = self._meter.reported_ns
                self._meter.set_listing(listing)
                with stop_watch(took, name):
                    self._meter.sample(self._processes)
                ran[name] = self._meter.reported_ns - before
            elif name == "psutil":
                with stop_watch(took, name):
                    self._ask_psutil()
            else:
                cost = self._programs[name].sample(listing=listing)
                took[name], ran[name] = cost.cpu_ns / 1000, cost.ran_ns
        return took | self._meter.took, list(ran.values())

    def _ask_psutil(self) -> None:
        for process in self._psutil:
            process.cpu_times()
            process.threads()


def measure(directory: Path, pids: list[int], ticks: int, run: Callable[[], None]) -> dict[str, Any]:
    """Let the rivals sample `ticks` times in turns, while the processes are as they were left by `run`."""
    host = Host(directory / "host")
    energy = 0

    def next_second() -> None:
        nonlocal energy
        run()
        energy += 50_000_000
        for part, (entry, name) in enumerate(ZONES.items(), 1):
            host.zone(entry, name, energy // part)

    next_second()
    before = memory.of(os.getpid())
    meter = TimedMeter(host)
    for _ in range(WARM_UP):
        next_second()
        meter.sample(domains(pids))
    after = memory.of(os.getpid())
    took: dict[str, list[float]] = defaultdict(list)
    listing: dict[str, list[float]] = defaultdict(list)
    zones = [host.powercap / entry / "energy_uj" for entry in ZONES]
    with (
        programs.Reads(directory, "same", zones, pids) as same,
        programs.Reads(directory, "all", zones, pids) as plain,
    ):
        rivals = Rivals(meter, pids, same, plain)
        sums = []
        for tick in range(ticks):
            next_second()
            lists = tick % LISTING == LISTING - 1
            microseconds, ran = rivals.compete(tick, listing=lists)
            for name, each in microseconds.items():
                (listing if lists else took)[name].append(each / len(pids))
            sums.append(ran)
    figures = {name: median(values) for name, values in took.items()}
    return {
        "domains": len(pids),
        "microseconds": figures,
        "listing_microseconds": {name: (median(all_) - figures[name]) / LISTING for name, all_ in listing.items()},
        "memory": {**after, **{f"grown_{name}": size - before[name] for name, size in after.items()}},
        "ran_ns": sums,
    }


def domains(pids: list[int]) -> list[Running]:
    return [Running(f"00000000-0000-0000-0000-{pid:012}", pid, programs.vcpu_tids(pid)) for pid in pids]


def main() -> None:
    directory, load, ticks = Path(sys.argv[1]), programs.LOADS[sys.argv[2]], int(sys.argv[3])
    allow_many_descriptors()
    if sys.argv[4] == "=":
        figures = measure(directory, [int(pid) for pid in sys.argv[5:]], ticks, lambda: time.sleep(1))
    else:
        with programs.Herd(directory, int(sys.argv[4])) as herd:
            figures = measure(directory, herd.pids, ticks, lambda: herd.run(load))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
