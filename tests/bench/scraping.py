"""What a scrape costs: the exporter beside virt-rapld's own loop on stand-ins, and node_exporter in the same run.

    python scraping.py SYS DIRECTORY SECONDS PID...

For SECONDS nobody asks; then each program is scraped every two seconds as Prometheus does, in turn, for as long. Prints
one JSON document: how long scrapes took, the exporter's memory, and how late samples began, alone and while scraped.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import memory
from daemon_cost import Given

from libvirt_rapl.config import Config
from libvirt_rapl.daemon import host_meter, loop
from libvirt_rapl.daemon.kept_meter import KeptMeter

sys.path.insert(0, str(Path(__file__).parent.parent))

from node_exporter import node_exporter

INTERVAL = 2.0
AS_PROMETHEUS = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}
BEGUN: list[float] = []
"""When samples began, in monotonic seconds."""


class Noted(KeptMeter):
    """Notes when samples begin."""

    def sample(self) -> bool:
        BEGUN.append(time.monotonic())
        return super().sample()


def main() -> None:
    sys_root, directory, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    # To mypy these names there are not for others.
    setattr(host_meter, "SYS", sys_root)  # noqa: B010
    setattr(loop, "Inventory", Given)  # noqa: B010
    setattr(loop, "KeptMeter", Noted)  # noqa: B010
    config = Config(run_directory=directory / "run", state_directory=directory / "state")
    figures: dict[str, Any] = {}

    def measure() -> None:
        try:
            figures.update(measured(sys_root, directory, config, seconds))
        finally:
            os.kill(os.getpid(), loop.END[0])

    signal.pthread_sigmask(signal.SIG_BLOCK, loop.END)  # the daemon waits for them; no other thread may take them
    threading.Thread(target=measure, daemon=True).start()
    loop.run(config, "test:///default")
    print(json.dumps(figures))


def measured(sys_root: Path, directory: Path, config: Config, seconds: float) -> dict[str, Any]:
    """Measure once virt-rapld has begun: descriptors are open then."""
    time.sleep(3)
    alone = time.monotonic()
    time.sleep(seconds)
    with exporter(directory, config) as (ours, pid), node_exporter(sysfs=sys_root) as theirs:
        scrape(ours), scrape(theirs)
        scraped, times, size = time.monotonic(), dict[str, list[float]](ours=[], node_exporter=[]), 0
        while time.monotonic() < scraped + seconds:
            began = time.monotonic()
            for name, url in (("ours", ours), ("node_exporter", theirs)):
                milliseconds, read = scrape(url)
                times[name].append(milliseconds)
                size = read if name == "ours" else size
            time.sleep(max(0.0, INTERVAL - (time.monotonic() - began)))
        return {
            "scrape_ms": {name: {"median": median(each), "max": max(each)} for name, each in times.items()},
            "bytes": size,
            "exporter": memory.of(pid),
            "late_ms": {"alone": lateness(alone, alone + seconds), "scraped": lateness(scraped, scraped + seconds)},
        }


@contextmanager
def exporter(directory: Path, config: Config) -> Iterator[tuple[str, int]]:
    """Run it; give its URL and PID."""
    file = directory / "exporter.yaml"
    file.write_text(f"run_directory: {config.run_directory}\n")
    command = [sys.executable, "-m", "libvirt_rapl", "--config", str(file), "exporter", "--vcpus"]
    with subprocess.Popen(
        [*command, "--web.listen-address", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            assert process.stderr is not None
            yield process.stderr.readline().split()[-1], process.pid  # virt-rapl: listening on URL
        finally:
            process.terminate()


def scrape(url: str) -> tuple[float, int]:
    """Return how many milliseconds a scrape takes, and how many bytes it brings."""
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, headers=AS_PROMETHEUS)) as answer:
        size = len(answer.read())
    return 1000 * (time.perf_counter() - began), size


def lateness(since: float, until: float) -> dict[str, float]:
    """Return by how many milliseconds samples began later than a second after the one before."""
    begun = [each for each in BEGUN if since <= each < until]
    late = [1000 * max(0.0, later - earlier - 1) for earlier, later in pairwise(begun)] or [0.0]
    return {"median": median(late), "p99": quantiles(late, n=100)[98] if len(late) > 1 else late[0], "max": max(late)}


if __name__ == "__main__":
    main()
