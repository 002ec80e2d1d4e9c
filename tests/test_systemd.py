"""On a machine with systemd, helper instances are units: install, enable, start, and what runs then."""

import json
import time
from collections.abc import Iterator

import pytest
from machine import Machine

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


def guest_uuid(backend: str) -> str:
    return {"native": "11111111-2222-4333-8444-555555555555", "qemu": "11111111-2222-4333-8444-666666666666"}[backend]
