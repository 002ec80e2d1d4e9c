"""What others read from the same files and registers: node_exporter and turbostat see the zones and values that we see.

A counter that moves is read by us before and after the other does: what it says lies between.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.host import Host
from node_exporter import joules_by_directory, node_exporter

from libvirt_rapl.host.powercap import powercap_zones

SIMULATE = [sys.executable, "-m", "libvirt_rapl", "simulate", "--idle-watts=100", "--"]
TURBOSTATS_FILES = 0x8000
"""turbostat raises its limit of open files to that, or gives up."""


@pytest.mark.needs("prometheus-node-exporter")
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
from node_exporter import joules_by_directory, node_exporter

def ours():
    return {zone.path.name: zone.read() / 1_000_000 for zone in powercap_zones(Path("/sys"))}

with node_exporter() as url:
    readings = [[ours(), joules_by_directory(url), ours()] for _ in range(10)]
print(json.dumps(readings))
"""


@pytest.mark.e2e
@pytest.mark.needs("prometheus-node-exporter")
def test_node_exporter_reads_the_simulated_zones() -> None:
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
@pytest.mark.needs("turbostat", "strace")
def test_turbostat_reads_the_same_registers(tmp_path: Path) -> None:
    turbostat = ["turbostat", "--quiet", "--Joules", f"--out={tmp_path}/out"]
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
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=prlimit64:retval=0"]
