"""A node_exporter that exports the zones of powercap. Programs within the simulator import it, too."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS = 20.0


def program(name: str, package: str) -> str:
    """Find a program; without it the test is skipped, or fails where CI=true."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{name} is missing: apt install {package}")
    return path


@contextlib.contextmanager
def node_exporter(*prefix: str, sysfs: Path = Path("/sys")) -> Iterator[str]:
    """Run it on a free port; give the URL of its metrics when they can be had."""
    command = program("prometheus-node-exporter", "prometheus-node-exporter")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    options = ["--collector.disable-defaults", "--collector.rapl", f"--path.sysfs={sysfs}"]
    process = subprocess.Popen(
        [*prefix, command, *options, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL
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
