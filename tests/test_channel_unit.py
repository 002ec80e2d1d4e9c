"""On a machine with systemd, virt-rapl-channel runs beside virt-rapld, with two groups' rights, and guests read."""

import itertools
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, document
from walking import wait_until

from libvirt_rapl.daemon import channel_report
from libvirt_rapl.simulator import guest

pytestmark = pytest.mark.e2e

UNIT = "virt-rapl-channel"
NAME = "channelled"
LOG = f"/var/log/libvirt/qemu/{NAME}.out"
PATIENCE = 120.0
PATIENCE_SAMPLES = 60


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with a guest that has the channel and runs, and with virt-rapld."""
    with Machine() as machine:
        machine.run(["virt-rapl", "install", "--force"])
        machine.run(["systemctl", "start", "virt-rapld"])
        rom = f"/var/lib/libvirt/images/{NAME}.rom"
        machine.path(rom).write_bytes(guest.rom(30))
        machine.path("/root/guest.xml").write_text(guest.domain_xml(NAME, rom, LOG))
        machine.run(["virsh", "define", "/root/guest.xml"])
        machine.run(["virt-rapl", "enable", "--via", "channel", NAME])
        machine.run(["virsh", "start", NAME])
        yield machine


def show(machine: Machine, name: str, unit: str = UNIT) -> str:
    return machine.run(["systemctl", "show", f"--property={name}", "--value", unit]).stdout.strip()


def lines(machine: Machine) -> list[dict[str, Any]]:
    """Return what the guest has read from its channel, whole lines only: it is written byte by byte."""
    return [json.loads(line) for line in guest.channel_lines(machine.path(LOG))]


def domain(machine: Machine) -> dict[str, Any]:
    (found,) = document(machine)["domains"]
    assert isinstance(found, dict)
    return found


def reads_on(machine: Machine) -> None:
    """Hold that the guest gets more lines, and that no energy in them has gone back."""
    before = len(lines(machine))
    wait_until(lambda: len(lines(machine)) >= before + 3, PATIENCE, "the guest reads its energy")
    energies = [line["energy_joules"] for line in lines(machine)]
    assert energies == sorted(energies)


def longest_gap(read: list[dict[str, Any]]) -> float:
    """Return how many seconds at most were between two lines, by the times of their samples."""
    times = [datetime.fromisoformat(line["time"]) for line in read]
    return max((later - earlier).total_seconds() for earlier, later in itertools.pairwise(times))


def test_the_guest_reads_what_status_shows(machine: Machine) -> None:
    reads_on(machine)
    wait_until(lambda: domain(machine)["channel"] == "connected", PATIENCE, "it is shown as connected")
    compared = 0
    for _ in range(PATIENCE_SAMPLES):
        shown_of_host = document(machine)
        (shown,) = shown_of_host["domains"]
        sampled_at = shown_of_host["host"]["sampled_at"]
        wait_until(lambda: lines(machine)[-1]["time"] >= sampled_at, PATIENCE, "the guest reads on")  # noqa: B023
        for line in lines(machine):
            if line["time"] == sampled_at:  # a guest that has not read its last line gets none of this sample
                compared += 1
                assert line["energy_joules"] == shown["energy_joules"]
                assert line["zones"] == shown["zones"]
        if compared >= 3:
            break
    assert compared >= 3
    read = lines(machine)
    assert {line["host"] for line in read} == {read[0]["host"]}
    assert (read[-1]["source"], read[-1]["simulated"]) == ("simulated", True)
    assert read[-1]["zones"].keys() == shown["zones"].keys()
    assert [vcpu["id"] for vcpu in read[-1]["vcpus"]] == [0]


def test_it_may_do_nothing_but_what_its_two_groups_may(machine: Machine) -> None:
    pid = show(machine, "MainPID")
    status = Path(machine.path("/proc"), pid, "status").read_text()
    fields = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    assert [int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 4
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    user, group = fields["Uid"].split()[0], fields["Gid"].split()[0]
    assert user != "0"
    groups = set(fields["Groups"].split()) - {group}  # its own has a name only where there is libnss-systemd
    assert {machine.run(["getent", "group", number]).stdout.split(":")[0] for number in groups} == {
        "virt-rapl",
        "libvirt-qemu",
    }
    inside = Path(f"/proc/{machine_pid(machine, pid)}/root")
    assert not (inside / "var/lib/libvirt/images").exists(), "images that QEMU's group may read"
    report = machine.run(["stat", "-c", "%u %a", "/run/virt-rapl/channel", "/run/virt-rapl/channel/report.json"])
    assert report.stdout == f"{user} 755\n{user} 644\n"


def machine_pid(machine: Machine, pid: str) -> int:
    """Return the PID that a process of the machine has outside."""
    its = Path(f"/proc/{machine.leader}/ns/pid").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            numbers = re.search(r"^NSpid:\s*(.*)$", (process / "status").read_text(), re.MULTILINE)
            if numbers and numbers[1].split()[-1] == pid and (process / "ns/pid").readlink() == its:
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"process {pid} of the machine is not found")


def test_doctor_finds_it_in_order(machine: Machine) -> None:
    reads_on(machine)
    wait_until(lambda: domain(machine)["channel"] == "connected", PATIENCE, "it is shown as connected")
    checks = json.loads(machine.run(["virt-rapl", "doctor", "--json"], check=False).stdout)["checks"]
    (check,) = [check for check in checks if check["name"] == "channel"]
    assert (check["state"], "1 guests with a channel 1 read" in check["message"]) == ("ok", True), check


def test_it_goes_on_over_every_restart(machine: Machine) -> None:
    for restart in (
        ["systemctl", "restart", "virt-rapld"],
        ["systemctl", "kill", "--signal=KILL", "virt-rapld"],
        ["systemctl", "restart", UNIT],
        ["systemctl", "kill", "--signal=KILL", UNIT],
        ["systemctl", "restart", "libvirtd"],
    ):
        before = len(lines(machine))
        machine.run(restart)
        reads_on(machine)
        print(f"{' '.join(restart)}: {longest_gap(lines(machine)[before - 1 :]):.1f} s without a line")
    machine.run(["virsh", "domblkerror", NAME])  # libvirtd has reconnected to it


def test_a_domain_that_is_started_anew_is_met_again(machine: Machine) -> None:
    machine.run(["virsh", "destroy", NAME])
    machine.path(LOG).unlink()
    machine.run(["virsh", "start", NAME])
    wait_until(lambda: machine.path(LOG).exists(), PATIENCE, "it runs")
    reads_on(machine)


def test_it_ends_and_begins_with_virt_rapld(machine: Machine) -> None:
    machine.run(["systemctl", "stop", "virt-rapld"])
    wait_until(lambda: show(machine, "ActiveState") == "inactive", PATIENCE, "it ends, too")  # systemctl waits for one
    assert show(machine, "Result") == "success"
    assert channel_report.read(machine.path("/run/virt-rapl")) is None
    machine.run(["systemctl", "start", "virt-rapld"])
    wait_until(lambda: show(machine, "ActiveState") == "active", PATIENCE, "it runs again")
    reads_on(machine)


def test_a_mask_keeps_it_off_and_is_reported(machine: Machine) -> None:
    machine.path(f"/etc/systemd/system/{UNIT}.service").rename(machine.path("/root/unit"))
    machine.run(["systemctl", "mask", "--now", UNIT])
    machine.run(["systemctl", "restart", "virt-rapld"])
    assert show(machine, "ActiveState") == "inactive"
    shown = domain(machine)
    assert (shown["channel"], shown["channel_reason"]) == ("waiting", "virt-rapl-channel does not run")
    checks = json.loads(machine.run(["virt-rapl", "doctor", "--json"], check=False).stdout)["checks"]
    (check,) = [check for check in checks if check["name"] == "channel"]
    assert (check["state"], "systemctl unmask" in check["hint"]) == ("failed", True)
    machine.run(["systemctl", "unmask", UNIT])
    machine.path("/root/unit").rename(machine.path(f"/etc/systemd/system/{UNIT}.service"))
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "start", UNIT])
    reads_on(machine)


def test_uninstalling_takes_it_away(machine: Machine) -> None:
    machine.run(["virt-rapl", "uninstall", "--disable-domains"])
    assert show(machine, "LoadState") == "not-found"
    assert machine.run(["pgrep", "-f", "libvirt_rapl channel"], check=False).stdout == ""
    assert not machine.path("/run/virt-rapl/channel").exists()
    assert machine.run(["virsh", "domstate", NAME]).stdout.strip() == "running"
