"""A machine with systemd is rebooted while guests run: autostarted ones have their meter again, and nothing is lost."""

import contextlib
import json
from typing import Any

import pytest
from machine import RAPL, Machine
from walking import wait_until

from libvirt_rapl.simulator import guest

pytestmark = pytest.mark.e2e

BOOT_SECONDS = 90
RAPL_UNIT = """\
[Unit]
Before=libvirtd.service virt-rapld.service
[Service]
Type=oneshot
ExecStart=/bin/sh /opt/rapl
[Install]
WantedBy=multi-user.target
"""
"""What a real machine has from the beginning: its energy counters."""


def domains(machine: Machine) -> dict[str, dict[str, Any]]:
    shown = json.loads(machine.run(["virt-rapl", "status", "--json"]).stdout)
    return {domain["name"]: domain for domain in shown["domains"]}


def test_a_reboot_with_running_guests() -> None:
    with Machine() as machine:
        machine.path("/opt/rapl").write_text(RAPL)
        machine.path("/etc/systemd/system/rapl.service").write_text(RAPL_UNIT)
        machine.run(["virt-rapl", "install", "--force"])
        machine.run(["systemctl", "enable", "rapl", "libvirtd"])
        machine.run(["systemctl", "enable", "--now", "virt-rapld"])
        for name in ("autostarted", "other"):
            files = f"/var/lib/libvirt/images/{name}.rom", f"/var/log/libvirt/qemu/{name}.out"
            machine.path(files[0]).write_bytes(guest.rom(50))
            machine.path("/root/guest.xml").write_text(guest.domain_xml(name, *files))
            machine.run(["virsh", "define", "/root/guest.xml"])
            machine.run(["virt-rapl", "enable", name])
            machine.run(["virsh", "start", name])
        machine.run(["virsh", "autostart", "autostarted"])
        wait_until(lambda: all(d["energy_joules"] > 0 for d in domains(machine).values()), 30, "they are metered")
        before = domains(machine)
        assert {domain["vrapl"] for domain in before.values()} == {"active"}

        machine.reboot()
        wait_until(lambda: is_active(machine), BOOT_SECONDS, "the guest has its meter again")
        after = domains(machine)
        assert (after["other"]["state"], after["other"]["vrapl"]) == ("shut off", "pending")
        for name, domain in before.items():
            assert after[name]["energy_joules"] >= domain["energy_joules"], name
        output = machine.path("/var/log/libvirt/qemu/autostarted.out")
        lines = len(guest.readings(output))
        wait_until(lambda: any(guest.joules(guest.readings(output)[lines:]).values()), 30, "it counts")
        found = machine.run(["find", "/run/virt-rapl", "-maxdepth", "1", "-name", "*.json"]).stdout.split()
        assert found == [f"/run/virt-rapl/{after['autostarted']['uuid']}.json"]
        units = machine.run(["systemctl", "list-units", "--plain", "--no-legend", "virt-rapl-helper@*"]).stdout
        assert [line.split()[0] for line in units.splitlines()] == [
            f"virt-rapl-helper@{after['autostarted']['uuid']}.service"
        ]
        said = machine.run(["journalctl", "--quiet", "--grep=virt-rapl: ", "--output=cat"], check=False).stdout
        assert said == ""


def is_active(machine: Machine) -> bool:
    with contextlib.suppress(AssertionError, KeyError):  # while it comes up
        return bool(domains(machine)["autostarted"]["vrapl"] == "active")
    return False
