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

from fixtures import Host

from libvirt_rapl.host.clocks import allow_many_descriptors
from libvirt_rapl.host.source import open_source
from libvirt_rapl.meter import Meter

ZONES = {"package-0": "intel-rapl:0", "core": "intel-rapl:0:0", "dram": "intel-rapl:0:1"}
WARM_UP = 3
"""Samples that are not counted: threads are taken up, and their names read."""
LISTING = 10
"""Every tenth sample looks for new threads and processes, as the meter does in every tenth second."""
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
        """Choose whether the next sample looks for new threads and processes; for the meter, the clock does."""
        for process in self._processes.values():
            process._list_due = 0.0 if wanted else math.inf

    @property
    def told_ns(self) -> int:
        """What all domains ran since the meter began, by the clocks that were read."""
        return sum(process._qemu._told for process in self._processes.values())


@contextlib.contextmanager
def stop_watch(took: dict[str, float], name: str) -> Iterator[None]:
    begin = time.thread_time_ns()
    yield
    took[name] = (time.thread_time_ns() - begin) / 1000


def measure(directory: Path, pids: list[int], ticks: int, run: Callable[[], None]) -> dict[str, Any]:
    """Sample `ticks` times: the meter, C and psutil, in turns, while the processes are as they were left by `run`."""
    host = Host(directory / "host")
    zones = [host.powercap / entry / "energy_uj" for entry in ZONES.values()]

    def count(energy: int) -> None:
        for part, (name, entry) in enumerate(ZONES.items(), 1):
            host.zone(entry, name, energy // part)

    count(0)
    before = memory.of(os.getpid())
    meter = TimedMeter(host)
    processes = [(f"00000000-0000-0000-0000-{pid:012}", pid) for pid in pids]
    took: dict[str, list[float]] = defaultdict(list)
    listing: dict[str, list[float]] = defaultdict(list)
    sums: list[tuple[int, ...]] = []
    told = 0
    with contextlib.ExitStack() as stack:
        same, plain = (
            stack.enter_context(programs.Reads(directory, what, zones, pids)) for what in ("same", "all")
        )
        grown: dict[str, int] = {}
        psutil_sample: Callable[[], None] = lambda: None
        for tick in range(WARM_UP + ticks):
            run()
            count((tick + 1) * 50_000_000)
            lists = tick % LISTING == LISTING - 1
            now: dict[str, float] = {}

            def ours() -> None:
                meter.set_listing(lists or tick < WARM_UP)
                with stop_watch(now, "ours"):
                    meter.sample(processes)

            costs: dict[str, programs.Cost] = {}

            def theirs(name: str, program: programs.Reads) -> Callable[[], None]:
                def sample() -> None:
                    costs[name] = program.sample(listing=lists)
                    now[name] = costs[name].cpu_ns / 1000

                return sample

            def peer() -> None:
                with stop_watch(now, "psutil"):
                    psutil_sample()

            turns = [ours, theirs("c_same", same), theirs("c_all", plain), peer]
            for turn in turns[tick % 4 :] + turns[: tick % 4]:
                turn()
            if tick == WARM_UP - 1:
                grown = {name: size - before[name] for name, size in memory.of(os.getpid()).items()}
                psutil_sample = with_psutil(pids)
                psutil_sample()
            if tick >= WARM_UP:
                now |= meter.took
                for name, microseconds in now.items():
                    (listing if lists and name != "psutil" else took)[name].append(microseconds / len(pids))
                sums.append((meter.told_ns - told, costs["c_same"].ran_ns, costs["c_all"].ran_ns))
            told = meter.told_ns
    figures = {name: median(values) for name, values in took.items()}
    return {
        "domains": len(pids),
        "microseconds": figures,
        "listing_microseconds": {
            name: (median(values) - figures[name]) / LISTING for name, values in listing.items() if name in figures
        },
        "memory": {**memory.of(os.getpid()), **{f"grown_{name}": size for name, size in grown.items()}},
        "ran_ns": sums,
    }


def with_psutil(pids: list[int]) -> Callable[[], None]:
    """Return a function that reads with psutil what the meter reads of processes."""
    import psutil  # after memory was measured

    processes = [psutil.Process(pid) for pid in pids]

    def sample() -> None:
        for process in processes:
            process.cpu_times()
            process.threads()

    return sample


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
