"""What others read from the same files and registers: node_exporter and turbostat see the zones and values that we see.

A counter that moves is read by us before and after the other does: what it says lies between.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import Host

from libvirt_rapl.host.powercap import powercap_zones

SECONDS = 20.0
SIMULATE = [sys.executable, "-m", "libvirt_rapl", "simulate", "--idle-watts=100", "--"]
TURBOSTATS_FILES = 0x8000
"""turbostat raises its limit of open files to that, or gives up."""


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


def test_node_exporter_sees_the_same_zones_and_values(tmp_path: Path) -> None:
    host = Host(tmp_path)
    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "uncore",
        "intel-rapl:0:2": "dram",
        "intel-rapl:1": "package-1-die-0",
        "intel-rapl:1:0": "dram",
        "intel-rapl:2": "package-1-die-1",
        "intel-rapl:3": "psys",
        "intel-rapl:4": "psys-1",
        "intel-rapl-mmio:1": "package-3",
    }
    for number, (directory, name) in enumerate(names.items()):
        host.zone(directory, name, energy=261_000_000_000 + 1_234_567 * number)
    (host.powercap / "intel-rapl").mkdir()
    with node_exporter(sysfs=host.sys) as url:
        theirs = joules_by_directory(url)
    ours = {zone.path.name: zone.read() / 1_000_000 for zone in powercap_zones(host.sys)}
    assert ours.keys() == names.keys()
    assert theirs == pytest.approx(ours, abs=1e-6)


IN_SIMULATION = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from libvirt_rapl.host.powercap import powercap_zones
from test_second_opinion import joules_by_directory, node_exporter

def ours():
    return {zone.path.name: zone.read() / 1_000_000 for zone in powercap_zones(Path("/sys"))}

with node_exporter() as url:
    readings = [[ours(), joules_by_directory(url), ours()] for _ in range(10)]
print(json.dumps(readings))
"""


@pytest.mark.e2e
def test_node_exporter_reads_the_simulated_zones() -> None:
    program("prometheus-node-exporter", "prometheus-node-exporter")
    command = [*SIMULATE, sys.executable, "-c", IN_SIMULATION, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for before, theirs, after in json.loads(done.stdout):
        assert set(theirs) == set(before) == {"intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:1"}
        assert all(before[zone] <= theirs[zone] <= after[zone] for zone in theirs)


READ_REGISTERS = """
import json, sys
from pathlib import Path
from libvirt_rapl.host.msr import msr_zones

zones = msr_zones(sys=Path("/sys"), proc=Path("/proc"), dev=Path("/dev"))

def read():
    return {zone.kind: zone.read() / 1_000_000 for zone in zones}
"""
INSIDE_TURBOSTAT = (
    READ_REGISTERS
    + """
import time
before = read()
time.sleep(1)
after = read()
Path(sys.argv[1]).write_text(json.dumps([before, after]))
"""
)
AROUND_TURBOSTAT = (
    READ_REGISTERS
    + """
import subprocess
before = read()
subprocess.run(sys.argv[1:], check=True)
print(json.dumps([before, read(), {zone.kind: float(zone.unit) / 1_000_000 for zone in zones}]))
"""
)
REGISTERS = {"PKG_RAW": (0x611, "package"), "PP0_RAW": (0x639, "core"), "RAM_RAW": (0x619, "dram")}
"""Columns for registers that we have it show, as they are. It takes `package` and `core` for words of its own."""
OWN_COLUMNS = {"Pkg_J": "package", "Cor_J": "core", "RAM_J": "dram"}
"""turbostat's own, in joules; it shows them where it knows the processor."""


@pytest.mark.e2e
def test_turbostat_reads_the_same_registers(tmp_path: Path) -> None:
    turbostat = [program("turbostat", "linux-cpupower"), "--quiet", "--Joules", f"--out={tmp_path}/out"]
    for column, (register, _) in REGISTERS.items():
        turbostat.append(f"--add=msr{register:#x},u32,package,delta,{column}")
    turbostat.append(f"--show={','.join([*REGISTERS, *OWN_COLUMNS])}")
    inside = [sys.executable, "-c", INSIDE_TURBOSTAT, str(tmp_path / "inside")]
    around = [sys.executable, "-c", AROUND_TURBOSTAT]
    command = [*SIMULATE, *around, *_with_enough_files(), *turbostat, *inside]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

    before, after = json.loads((tmp_path / "inside").read_text())
    first, last, joules_of_unit = json.loads(done.stdout)
    _seconds, header, totals = (line.split() for line in (tmp_path / "out").read_text().splitlines()[:3])
    assert set(REGISTERS) <= set(header)
    for column, text in zip(header, totals, strict=True):
        if column in REGISTERS:
            kind = REGISTERS[column][1]
            value, rounding = int(text) * joules_of_unit[kind], 1e-4
        else:
            kind = OWN_COLUMNS[column]
            value, rounding = float(text), 0.005
        assert after[kind] - before[kind] - rounding <= value <= last[kind] - first[kind] + rounding, column


def _with_enough_files() -> list[str]:
    """Where the limit may not be raised, let turbostat believe that it was."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard >= TURBOSTATS_FILES:
        return []
    return [program("strace", "strace"), "-f", "-qq", "-o", "/dev/null", "-e", "inject=prlimit64:retval=0"]
