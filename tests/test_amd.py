"""A host with an AMD processor, as its user meets it: domains are metered, and no guest has registers."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from machine import Machine
from walking import CONFIGURATION, CONSTANT_100_WATTS, wait_until

from libvirt_rapl import paths
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

REASON = "QEMU gives guests RAPL on Intel hosts only"
SOCKET = f"/run/virt-rapl/{paths.STATUS_SOCKET}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o777)  # QEMU's user writes its log there
    return shared


def installed(world: World) -> World:
    world.run(["virt-rapl", "install", "--force"])
    world.start_libvirtd()
    return world


@pytest.fixture(scope="module")
def amd(shared: Path) -> Iterator[World]:
    with World(["--cpu=amd", *CONSTANT_100_WATTS], shared=shared, hostname="amd") as world:
        yield installed(world)


@pytest.fixture(scope="module")
def intel(shared: Path) -> Iterator[World]:
    with World(CONSTANT_100_WATTS, shared=shared, hostname="intel") as world:
        yield installed(world)


@pytest.fixture
def name(amd: World) -> Iterator[str]:
    """A guest that is defined there; it and what is left of it go with the test, and so does what was configured."""
    name = f"guest-{uuid4()}"
    amd.define_guest(name, 60)
    before = amd.path(CONFIGURATION).read_text()
    yield name
    amd.path(CONFIGURATION).write_text(before)
    amd.run(["virsh", "destroy", name], check=False)
    amd.run(["virsh", "undefine", "--managed-save", name], check=False)


def definition(world: World, name: str) -> str:
    return world.run(["virsh", "dumpxml", "--inactive", name]).stdout


def state(world: World, name: str) -> tuple[str, str | None]:
    """Return how far `status` says the domain is with its meter, and why."""
    (domain,) = json.loads(world.run(["virt-rapl", "status", "--json", name]).stdout)["domains"]
    return domain["vrapl"], domain["reason"]


def test_status_meters_every_domain_and_zone(amd: World, name: str) -> None:
    amd.run(["virsh", "start", name])
    document = json.loads(amd.run(["virt-rapl", "status", "--json", name]).stdout)
    assert {zone["name"] for zone in document["host"]["zones"]} == {"package-0", "core-0"}
    (domain,) = document["domains"]
    assert (domain["vrapl"], domain["reason"], domain["helper"]) == ("off", None, None)
    assert 0 < domain["power_watts"] <= 100
    assert domain["zones"].keys() == {"package", "core"}
    assert sum(vcpu["power_watts"] for vcpu in domain["vcpus"]) == pytest.approx(domain["power_watts"])


def test_doctor_has_one_warning_about_it_and_nothing_failed() -> None:
    """On a machine with systemd, where all of virt-rapl is installed and runs."""
    with Machine("--cpu=amd") as machine:
        machine.run(["virt-rapl", "install"])
        machine.run(["systemctl", "enable", "--now", "virt-rapld"])
        found = machine.run(["virt-rapl", "doctor", "--json"], check=False).stdout
    checks = {check["name"]: check for check in json.loads(found)["checks"] if check["state"] in ("warning", "failed")}
    checks.pop("files", None)  # a checkout may be somebody's own
    assert "SIMULATED" in checks.pop("energy")["message"]
    assert {name: check["state"] for name, check in checks.items()} == {"processor": "warning"}
    assert REASON in checks["processor"]["message"]
    assert "virt-rapl status" in checks["processor"]["hint"]


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--live"]])
def test_registers_are_refused_before_anything_is_changed(amd: World, name: str, options: list[str]) -> None:
    amd.run(["virsh", "start", name])
    before = definition(amd, name)
    done = amd.run(["virt-rapl", "enable", "--via", "registers", *options, name], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"virt-rapl: error: {REASON}\nhint: ")
    assert definition(amd, name) == before
    assert state(amd, name)[0] == "off"


def test_the_configurations_choice_is_reported_once(amd: World, name: str) -> None:
    other = f"{name}-too"
    amd.define_guest(other, 0)
    amd.path(CONFIGURATION).write_text("domains: {include: ['guest-*']}\nvia: registers\n")
    before = definition(amd, name)
    try:
        done = amd.run(["virt-rapl", "enable", "--chosen"])
        assert (done.stdout, done.stderr.count(REASON), done.stderr.count("guest-")) == ("", 1, 0)

        daemon = amd.run(["sh", "-c", "exec virt-rapl daemon >/dev/null 2>/mnt/daemon.log </dev/null & echo $!"])
        wait_until(lambda: status_socket.ask(amd.path(SOCKET)), 30, "virt-rapld answers")
        amd.run(["virsh", "desc", name, "--config", "an edit that the policy would look at"])
        amd.run(["virsh", "start", name])
        wait_until(lambda: (state(amd, name), state(amd, other)) == (("off", None),) * 2, 30, "they are left alone")
        amd.kill(int(daemon.stdout), "TERM")
        assert amd.path("/mnt/daemon.log").read_text().count(REASON) == 1
    finally:
        amd.run(["virsh", "undefine", other])
    assert not Definition.parse(definition(amd, name)).is_marked
    assert "<rapl" not in before


def test_a_domain_gets_the_channel(amd: World, name: str) -> None:
    before = definition(amd, name)
    done = amd.run(["virt-rapl", "enable", name])
    assert done.stdout == f"{name}: enabled, by the channel ({REASON}); takes effect at the next start\n"
    amd.run(["virsh", "start", name])
    assert state(amd, name) == ("off", None), "it has no registers"
    assert amd.run(["virt-rapl", "disable", name]).stdout.endswith(f"{name}: its channel is detached\n")
    assert definition(amd, name) == before


def test_a_domain_that_was_enabled_elsewhere_runs_and_says_why_it_has_no_meter(amd: World, name: str) -> None:
    marked = (
        Definition.parse(definition(amd, name)).with_registers(socket=f"/run/virt-rapl/{domuuid(amd, name)}.sock").xml
    )
    amd.run(["virsh", "define", "/proc/self/fd/0"], input=marked)
    amd.run(["virsh", "start", name])
    wait_until(lambda: state(amd, name) == ("degraded", REASON), 30, "it says why")
    amd.run(["virsh", "destroy", name])
    done = amd.run(["virt-rapl", "doctor"], check=False)
    assert f"{name}: gets no meter at its next start: {REASON}" in done.stdout
    assert f"virt-rapl disable {name}" in done.stdout
    amd.run(["virt-rapl", "disable", name])
    assert not Definition.parse(definition(amd, name)).is_marked


def domuuid(world: World, name: str) -> str:
    return world.run(["virsh", "domuuid", name]).stdout.strip()


@pytest.fixture
def traveller(intel: World, amd: World) -> Iterator[str]:
    """A guest that has its meter on the Intel host."""
    name = f"traveller-{uuid4()}"
    intel.define_guest(name, 60)
    intel.run(["virt-rapl", "enable", name])
    intel.run(["virsh", "start", name])
    assert state(intel, name)[0] == "active"
    yield name
    for world in (intel, amd):
        world.run(["virsh", "destroy", name], check=False)
        world.run(["virsh", "undefine", name], check=False)


@pytest.mark.parametrize("on_failure", ["degrade", "refuse"])
def test_a_running_domain_arrives_without_its_meter(intel: World, amd: World, traveller: str, on_failure: str) -> None:
    before = amd.path(CONFIGURATION).read_text()
    amd.path(CONFIGURATION).write_text(f"on_failure: {on_failure}\n")
    to = "qemu+unix:///system?socket=/mnt/amd/libvirt-sock"
    intel.run(["virsh", "migrate", "--live", traveller, to, "--migrateuri", "unix:///mnt/stream"])
    arrived(amd, traveller)
    amd.path(CONFIGURATION).write_text(before)


def test_the_definition_that_came_along_says_why_it_will_have_no_meter(
    intel: World, amd: World, traveller: str
) -> None:
    to = "qemu+unix:///system?socket=/mnt/amd/libvirt-sock"
    intel.run(["virsh", "migrate", "--live", "--persistent", traveller, to, "--migrateuri", "unix:///mnt/stream"])
    assert "<qemu:arg" not in amd.run(["virsh", "dumpxml", traveller]).stdout
    assert state(amd, traveller) == ("pending", REASON)
    amd.run(["virt-rapl", "disable", traveller])
    assert state(amd, traveller) == ("off", None)


def test_a_saved_domain_is_restored_without_its_meter(intel: World, amd: World, traveller: str) -> None:
    intel.run(["virsh", "save", traveller, "/mnt/saved"])
    amd.run(["virsh", "restore", "/mnt/saved"])
    arrived(amd, traveller)


def arrived(world: World, name: str) -> None:
    assert world.run(["virsh", "domstate", name]).stdout.strip() == "running"
    xml = world.run(["virsh", "dumpxml", name]).stdout
    assert "rapl" not in xml.replace("virt-rapl-", "")
    count = len(world.readings(name))
    wait_until(lambda: len(world.readings(name)) > count + 2, 20, "it runs")
    assert state(world, name) == ("off", None)
    event = json.loads(world.run(["virt-rapl", "events", "--json", name]).stdout)["events"][0]
    assert (event["result"], event["reason"]) == ("stripped", REASON)
