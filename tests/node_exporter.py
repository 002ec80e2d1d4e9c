"""A node_exporter that exports the zones of powercap. Programs within the simulator import it, too."""

import contextlib
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

SECONDS = 20.0


@contextlib.contextmanager
def node_exporter(*, sysfs: Path = Path("/sys")) -> Iterator[str]:
    """Run it on a free port; give the URL of its metrics when they can be had."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    options = ["--collector.disable-defaults", "--collector.rapl", f"--path.sysfs={sysfs}"]
    process = subprocess.Popen(
        ["prometheus-node-exporter", *options, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{address}/").close()
                break
            time.sleep(0.05)
        yield f"http://{address}/metrics"
    finally:
        process.terminate()
        process.wait()


def joules_by_directory(url: str) -> dict[str, float]:
    """Scrape the energy of each powercap directory."""
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    found = re.findall(r'^node_rapl_\w+_joules_total{.*path="[^"]*/([^"/]+)"} (\S+)$', text, re.MULTILINE)
    return {directory: float(value) for directory, value in found}
