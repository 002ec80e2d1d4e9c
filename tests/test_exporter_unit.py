"""On a machine with systemd, virt-rapl-exporter.service asks virt-rapld and serves metrics, with no other right."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fetch import FETCH
from machine import Machine
from walking import wait_until

from libvirt_rapl.exporter import last_scrape

pytestmark = pytest.mark.e2e

UNIT = "virt-rapl-exporter"
ASK = [*FETCH, "http://127.0.0.1:9762/metrics"]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        machine.run(["virt-rapl", "install", "--force"])
        yield machine


def up(machine: Machine) -> str:
    (value,) = re.findall(r"^virt_rapl_up (\S+)$", machine.run(ASK).stdout, re.MULTILINE)
    return str(value)


def test_it_serves_what_virt_rapld_measures(machine: Machine) -> None:
    machine.run(["systemctl", "start", UNIT])
    assert up(machine) == "0.0"
    machine.run(["systemctl", "start", "virt-rapld"])
    wait_until(lambda: up(machine) == "1.0", 30, "virt-rapld answers")
    assert 'virt_rapl_zone_energy_joules_total{zone="package-0"}' in machine.run(ASK).stdout


def test_systemd_and_doctor_know_that_it_is_scraped(machine: Machine) -> None:
    show = ["systemctl", "show", "--property=StatusText", "--value", UNIT]
    assert up(machine)
    status = last_scrape.parse(machine.run(show).stdout)
    assert status
    assert status[1], "scraped"
    checks = json.loads(machine.run(["virt-rapl", "doctor", "--json"], check=False).stdout)["checks"]
    assert [check["state"] for check in checks if check["name"] == "exporter"] == ["ok"]


def test_it_may_do_nothing_else(machine: Machine) -> None:
    pid = machine.run(["systemctl", "show", "--property=MainPID", "--value", UNIT]).stdout.strip()
    status = Path(machine.path("/proc"), pid, "status").read_text()
    fields = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    assert {name: int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "CapPrm": 0,
        "CapEff": 0,
        "CapBnd": 0,
        "CapAmb": 0,
    }
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert "0" not in fields["Uid"].split()


def test_it_ends_cleanly(machine: Machine) -> None:
    machine.run(["systemctl", "stop", UNIT])
    assert machine.run(["systemctl", "show", "--property=Result", "--value", UNIT]).stdout.strip() == "success"
