"""On a machine with systemd, helper instances are units: install, enable, start, and what runs then."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from machine import Machine

from libvirt_rapl import domxml
from libvirt_rapl.simulator import guest

pytestmark = pytest.mark.e2e

CONFIGURATION = "/etc/virt-rapl/virt-rapl.yaml"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        machine.run(["virt-rapl", "install"])
        yield machine


@pytest.mark.parametrize("backend", ["native", "qemu"])
def test_the_helper_is_a_unit_and_the_guest_counts(machine: Machine, backend: str) -> None:
    name, uuid = f"guest-{backend}", guest_uuid(backend)
    unit = f"virt-rapl-helper@{uuid}.service"
    machine.path(CONFIGURATION).write_text(f"helper: {backend}\n")
    machine.path(f"/var/lib/libvirt/images/{name}.rom").write_bytes(guest.rom(100))
    xml = guest.domain_xml(name, f"/var/lib/libvirt/images/{name}.rom", f"/var/log/libvirt/qemu/{name}.out", uuid=uuid)
    machine.path("/root/guest.xml").write_text(xml)
    machine.run(["virsh", "define", "/root/guest.xml"])
    machine.run(["virt-rapl", "enable", name])
    machine.run(["virsh", "start", name])

    assert machine.run(["systemctl", "is-active", unit]).stdout.strip() == "active"
    main_pid = machine.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.strip()
    domain = json.loads(machine.run(["virt-rapl", "status", "--json", name]).stdout)["domains"][0]
    assert (domain["vrapl"], str(domain["helper"]["pid"])) == ("active", main_pid)
    until = time.monotonic() + 6
    while not any(guest.joules(guest.readings(machine.path(f"/var/log/libvirt/qemu/{name}.out"))).values()):
        assert time.monotonic() < until, "the guest's counter does not move"
        time.sleep(0.1)

    machine.run(["systemctl", "restart", "libvirtd"])
    machine.run(["virsh", "domblkerror", name])  # asks QEMU, for which libvirtd must have reconnected to it
    assert machine.run(["virsh", "domstate", name]).stdout.strip() == "running"
    assert machine.run(["systemctl", "is-active", unit]).stdout.strip() == "active"

    machine.run(["virsh", "destroy", name])
    assert machine.run(["systemctl", "is-active", unit], check=False).stdout.strip() == "inactive"
    assert machine.run(["find", "/run/virt-rapl", "-type", "f", "-o", "-type", "s"]).stdout == ""
    machine.run(["virsh", "undefine", name])


def test_the_daemon_is_a_unit(machine: Machine) -> None:
    def document() -> dict[str, Any]:
        found = json.loads(machine.run(["virt-rapl", "status", "--json"]).stdout)
        assert isinstance(found, dict)
        return found

    def show(*properties: str) -> list[str]:
        return machine.run(["systemctl", "show", "--value", *properties, "virt-rapld"]).stdout.split()

    machine.run(["systemd-analyze", "verify", "--man=no", "/etc/systemd/system/virt-rapld.service"])
    machine.run(["systemctl", "enable", "--now", "virt-rapld"])
    assert machine.run(["systemctl", "is-enabled", "virt-rapld"]).stdout.strip() == "enabled"
    modes = machine.run(["stat", "-c", "%a %U", "/var/lib/virt-rapl", "/var/lib/virt-rapl/ledger.db"]).stdout
    assert modes.splitlines() == ["750 root", "640 root"]
    assert machine.run(["stat", "-c", "%a %U", "/run/virt-rapl/status.sock"]).stdout == "660 root\n"
    first = document()
    assert first["host"]["source"] == "simulated"
    machine.run(["systemctl", "kill", "--signal=KILL", "virt-rapld"])
    until = time.monotonic() + 30
    while set(show("--property=ActiveState", "--property=NRestarts")) != {"active", "1"}:
        assert time.monotonic() < until, "it is not restarted"
        time.sleep(0.2)
    again = document()
    assert again["host"]["since"] == first["host"]["since"]
    assert again["host"]["zones"][0]["energy_joules"] >= first["host"]["zones"][0]["energy_joules"]
    machine.run(["systemctl", "stop", "virt-rapld"])
    assert show("--property=Result") == ["success"]
    said = machine.run(["journalctl", "--quiet", "--unit=virt-rapld", "_TRANSPORT=stdout", "--output=cat"], check=False)
    assert said.stdout == ""
    assert document()["host"]["since"] > first["host"]["since"]


def test_the_unit_may_enable_the_domains_of_the_configuration(machine: Machine) -> None:
    machine.path(CONFIGURATION).write_text("domains: [chosen]\n")
    xml = guest.domain_xml("chosen", "/var/lib/libvirt/images/chosen.rom", "/var/log/libvirt/qemu/chosen.out")
    machine.path("/root/guest.xml").write_text(xml)
    machine.run(["systemctl", "start", "virt-rapld"])
    try:
        machine.run(["virsh", "define", "/root/guest.xml"])
        until = time.monotonic() + 10
        while not domxml.is_marked(machine.run(["virsh", "dumpxml", "chosen"]).stdout):
            assert time.monotonic() < until, machine.run(["journalctl", "--unit=virt-rapld", "--output=cat"]).stdout
            time.sleep(0.2)
    finally:
        machine.run(["systemctl", "stop", "virt-rapld"])
        machine.run(["virsh", "undefine", "chosen"])


def guest_uuid(backend: str) -> str:
    return {"native": "11111111-2222-4333-8444-555555555555", "qemu": "11111111-2222-4333-8444-666666666666"}[backend]
