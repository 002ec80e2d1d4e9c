"""On a machine with systemd, helper instances are units: install, enable, start, and what runs then."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, document
from walking import CONSTANT_100_WATTS, wait_until

from libvirt_rapl import paths
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.files import who_else_may_write
from libvirt_rapl.install import installer
from libvirt_rapl.lifecycle import policy
from libvirt_rapl.simulator import guest

pytestmark = pytest.mark.e2e

SYS_RAWIO = 1 << 17
CONFIGURATION = "/etc/virt-rapl/virt-rapl.yaml"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        machine.run(["virt-rapl", "install", "--force"])
        yield machine


@pytest.mark.parametrize(("backend", "capabilities"), [("native", 0), ("qemu", SYS_RAWIO)])
def test_the_helper_is_a_unit_and_the_guest_counts(machine: Machine, backend: str, capabilities: int) -> None:
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
    assert confinement(machine, main_pid) == {
        "CapInh": 0,
        "CapPrm": capabilities,
        "CapEff": capabilities,
        "CapBnd": SYS_RAWIO,
        "CapAmb": 0,
        "NoNewPrivs": 1,
        "Seccomp": 2,
    }
    owner = machine.run(["stat", "-c", "%U %G %a", f"/run/virt-rapl/{uuid}.sock"]).stdout
    assert owner == "root libvirt-qemu 660\n"
    until = time.monotonic() + 6
    while not any(guest.joules(guest.readings(machine.path(f"/var/log/libvirt/qemu/{name}.out"))).values()):
        assert time.monotonic() < until, "the guest's counter does not move"
        time.sleep(0.1)

    machine.run(["systemctl", "restart", "libvirtd"])
    machine.run(["virsh", "domblkerror", name])  # asks QEMU, for which libvirtd must have reconnected to it
    assert machine.run(["virsh", "domstate", name]).stdout.strip() == "running"
    assert machine.run(["systemctl", "is-active", unit]).stdout.strip() == "active"

    # As tools do that look for processes with an old library: the guest's counter would stop for good.
    assert "refused" in machine.run(["systemctl", "restart", unit], check=False).stderr
    assert machine.run(["systemctl", "is-active", unit]).stdout.strip() == "active"

    machine.run(["virsh", "destroy", name])
    until = time.monotonic() + 6
    while machine.run(["systemctl", "is-active", unit], check=False).stdout.strip() != "inactive":
        assert time.monotonic() < until, "the helper has not ended"
        time.sleep(0.1)
    assert machine.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", unit]).stdout == ""
    left = machine.run(["find", "/run/virt-rapl", "-type", "f", "-o", "-type", "s"]).stdout.split()
    assert set(left) <= {f"/run/virt-rapl/{kept}" for kept in (paths.EVENTS, paths.REMEMBERED)}
    machine.run(["virsh", "undefine", name])

    said = machine.run(["journalctl", "--quiet", "--output=json", f"VIRT_RAPL_DOMAIN={name}"]).stdout.splitlines()
    lines = [json.loads(line) for line in said]
    fields = [(line["VIRT_RAPL_OPERATION"], line["VIRT_RAPL_RESULT"], line["VIRT_RAPL_UUID"]) for line in lines]
    assert fields[:3] == [(operation, "ready", uuid) for operation in ("start", "started", "reconnect")]
    assert fields[3:] == [("stopped", "ended", uuid)]
    assert all(int(line["VIRT_RAPL_MILLISECONDS"]) < 20_000 for line in lines)
    assert lines[0]["SYSLOG_IDENTIFIER"] == "virt-rapl"
    shown = json.loads(machine.run(["virt-rapl", "events", "--json", name]).stdout)["events"]
    assert [(event["operation"], event["result"], event["uuid"]) for event in shown] == fields


def confinement(machine: Machine, pid: str) -> dict[str, int]:
    fields = dict(line.split(":\t", 1) for line in machine.run(["cat", f"/proc/{pid}/status"]).stdout.splitlines())
    return {
        name: int(fields[name], 16 if name.startswith("Cap") else 10)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    }


def zone_joules(document: dict[str, Any]) -> float:
    (joules,) = [zone["energy_joules"] for zone in document["host"]["zones"] if zone["name"] == "package-0"]
    return float(joules)


def show(machine: Machine, *properties: str) -> list[str]:
    """Return properties of virt-rapld's unit, in the order of systemd's choice."""
    options = [f"--property={name}" for name in properties]
    return machine.run(["systemctl", "show", "--value", *options, "virt-rapld"]).stdout.split()


def restarted(machine: Machine, times: int) -> bool:
    return sorted(show(machine, "ActiveState", "NRestarts")) == [str(times), "active"]


@pytest.fixture
def daemon(machine: Machine) -> Iterator[Callable[..., None]]:
    """A function that starts virt-rapld with these further settings of [Service]; the test's end stops it."""
    drop_in = machine.path("/etc/systemd/system/virt-rapld.service.d/test.conf")

    def start(*settings: str) -> None:
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text("\n".join(["[Service]", *settings, ""]))
        machine.run(["systemctl", "daemon-reload"])
        machine.run(["systemctl", "restart", "virt-rapld"])

    yield start
    machine.run(["systemctl", "stop", "virt-rapld"])
    drop_in.unlink()
    machine.run(["systemctl", "daemon-reload"])


@pytest.fixture
def guest_at_rest(machine: Machine) -> Iterator[str]:
    """The name of a guest that runs and does nothing."""
    name = "guest-at-rest"
    files = f"/var/lib/libvirt/images/{name}.rom", f"/var/log/libvirt/qemu/{name}.out"
    machine.path(files[0]).write_bytes(guest.rom(0))
    machine.path("/root/guest.xml").write_text(guest.domain_xml(name, *files))
    machine.run(["virsh", "define", "/root/guest.xml"])
    machine.run(["virsh", "start", name])
    yield name
    machine.run(["virsh", "destroy", name])
    machine.run(["virsh", "undefine", name])


SLOW_SYSTEMCTL = """#!/bin/sh
# What is asked of systemd reaches it seconds later, also when the caller has given up.
[ "$1" = start ] || exec /usr/bin/systemctl "$@"
setsid sh -c 'sleep 4; exec /usr/bin/systemctl "$@"' sh "$@" </dev/null >/dev/null 2>&1 &
wait
"""


def test_a_helper_that_a_slow_systemd_starts_too_late(machine: Machine, guest_at_rest: str) -> None:
    """The hook does not wait for it, and it does not stay."""
    uuid = machine.run(["virsh", "domuuid", guest_at_rest]).stdout.strip()
    unit = f"virt-rapl-helper@{uuid}.service"
    machine.run(["virsh", "destroy", guest_at_rest])
    machine.run(["virt-rapl", "enable", guest_at_rest])
    machine.path("/usr/local/bin/systemctl").write_text(SLOW_SYSTEMCTL)
    machine.path("/usr/local/bin/systemctl").chmod(0o755)
    machine.path(CONFIGURATION).write_text("hook_deadline: 1\n")
    try:
        machine.run(["virsh", "start", guest_at_rest])
        domain = json.loads(machine.run(["virt-rapl", "status", "--json", guest_at_rest]).stdout)["domains"][0]
        assert domain["vrapl"] == "degraded"
        assert "timed out" in domain["reason"]
        words = ["journalctl", "--quiet", "--output=cat", f"--unit={unit}"]
        wait_until(
            lambda: "there is no plan for a helper" in machine.run(words, check=False).stdout, 30, "it comes, too late"
        )
        wait_until(
            lambda: machine.run(["systemctl", "is-active", unit], check=False).stdout.strip() == "inactive",
            10,
            "it ends",
        )
        assert not machine.path(f"/run/virt-rapl/{uuid}.sock").exists()
    finally:
        machine.run(["rm", "/usr/local/bin/systemctl", CONFIGURATION])


def test_the_daemon_is_a_unit(machine: Machine) -> None:
    machine.run(["systemd-analyze", "verify", "--man=no", "/etc/systemd/system/virt-rapld.service"])
    machine.run(["systemctl", "enable", "--now", "virt-rapld"])
    assert machine.run(["systemctl", "is-enabled", "virt-rapld"]).stdout.strip() == "enabled"
    modes = machine.run(["stat", "-c", "%a %U", "/var/lib/virt-rapl", "/var/lib/virt-rapl/ledger.db"]).stdout
    assert modes.splitlines() == ["700 virt-rapl", "600 virt-rapl"]
    socket = "/run/virt-rapl/daemon/status.sock"
    modes = machine.run(["stat", "-c", "%a %U", str(Path(socket).parent), socket]).stdout
    assert modes.splitlines() == ["750 virt-rapl", "660 virt-rapl"]
    first = document(machine)
    assert first["host"]["source"] == "simulated"
    machine.run(["systemctl", "kill", "--signal=KILL", "virt-rapld"])
    wait_until(lambda: restarted(machine, 1), 30, "it is restarted")
    again = document(machine)
    assert again["host"]["since"] == first["host"]["since"]
    assert zone_joules(again) >= zone_joules(first)
    machine.run(["systemctl", "stop", "virt-rapld"])
    assert show(machine, "Result") == ["success"]
    said = machine.run(["journalctl", "--quiet", "--unit=virt-rapld", "_TRANSPORT=stdout", "--output=cat"], check=False)
    assert said.stdout == ""
    assert document(machine)["host"]["since"] > first["host"]["since"]


def test_a_daemon_that_cannot_start_is_tried_again_for_ever_and_not_at_once(machine: Machine) -> None:
    """As systemd counts: more often than it would by itself, and each time it waits in its ExecStopPost=."""
    machine.path(CONFIGURATION).write_text("interval: never\n")
    try:
        machine.run(["systemctl", "start", "--no-block", "virt-rapld"])
        for attempt in range(3):
            for state in ("stop-post", "auto-restart"):
                wait_until(lambda: show(machine, "SubState") == [state], 30, f"{state}, attempt {attempt}")  # noqa: B023
        said = machine.run(["journalctl", "--quiet", "--unit=virt-rapld", "--output=cat"]).stdout
        assert said.count("virt-rapl: error: ") >= 3
    finally:
        machine.run(["rm", CONFIGURATION])
    wait_until(lambda: show(machine, "ActiveState") == ["active"], 30, "it runs when its configuration is mended")
    machine.run(["systemctl", "stop", "virt-rapld"])


def test_a_hung_daemon_is_killed_and_restarted(machine: Machine, daemon: Callable[..., None]) -> None:
    daemon("WatchdogSec=5", "RestartSec=0")
    time.sleep(7)
    assert restarted(machine, 0)  # its signs of life are enough
    before = document(machine)
    machine.run(["systemctl", "kill", "--kill-whom=main", "--signal=STOP", "virt-rapld"])
    wait_until(lambda: restarted(machine, 1), 30, "it is restarted")
    again = document(machine)
    assert again["host"]["since"] == before["host"]["since"]
    assert zone_joules(again) >= zone_joules(before)
    said = machine.run(["journalctl", "--quiet", "--unit=virt-rapld", "--output=cat"]).stdout
    assert "Watchdog timeout" in said


DAC_READ_SEARCH = 1 << 2
MSR_DROP_IN = (
    "AmbientCapabilities=CAP_SYS_RAWIO",
    "CapabilityBoundingSet=CAP_SYS_RAWIO",
    "PrivateDevices=no",
    "DeviceAllow=char-cpu/msr r",
)
"""As README.md has it."""


def test_the_daemon_has_a_user_of_its_own(machine: Machine, daemon: Callable[..., None], guest_at_rest: str) -> None:
    def ask(user: str) -> tuple[int, str]:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "virt-rapl", "status", "--json"]
        done = machine.run(command, check=False)
        return done.returncode, done.stdout or done.stderr

    def owners() -> set[str]:
        paths = ["/run/virt-rapl/daemon", "/run/virt-rapl/daemon/status.sock", "/var/lib/virt-rapl/ledger.db"]
        return set(machine.run(["stat", "-c", "%U:%G", *paths]).stdout.split())

    for user in ("colleague", "stranger"):
        machine.run(["useradd", "--system", user])
    machine.run(["usermod", "--append", "--groups", "virt-rapl", "colleague"])
    daemon("User=root")  # as it was before there was this user
    first = document(machine)
    assert owners() == {"root:root"}

    daemon()
    kept = {"NoNewPrivs": 1, "Seccomp": 2, "CapInh": DAC_READ_SEARCH, "CapPrm": DAC_READ_SEARCH}
    kept |= {"CapEff": DAC_READ_SEARCH, "CapBnd": DAC_READ_SEARCH, "CapAmb": 0}  # ambient is what programs would get
    assert confinement(machine, show(machine, "MainPID")[0]) == kept
    assert owners() == {"virt-rapl:virt-rapl"}
    assert machine.run(["stat", "-c", "%U", "/run/virt-rapl"]).stdout == "root\n"
    for user in ("colleague", "root"):
        status, printed = ask(user)
        assert status == 0, printed
        shown = json.loads(printed)
        assert shown["host"]["since"] == first["host"]["since"]
        assert zone_joules(shown) > zone_joules(first)
        (domain,) = shown["domains"]
        assert (domain["name"], domain["state"]) == (guest_at_rest, "running")
    status, printed = ask("stranger")
    assert status == 1
    assert printed.splitlines()[-1].startswith("hint: run as root")
    wait_until(lambda: zone_joules(document(machine)) > zone_joules(shown), 20, "it counts on")

    daemon(*MSR_DROP_IN)
    both = DAC_READ_SEARCH | SYS_RAWIO
    found = confinement(machine, show(machine, "MainPID")[0])
    assert (found["CapEff"], found["CapBnd"], found["CapAmb"]) == (both, both, 0)
    assert zone_joules(document(machine)) > zone_joules(shown)


def test_doctor_where_systemd_runs(machine: Machine, daemon: Callable[..., None]) -> None:
    def examine(*user: str) -> dict[str, str]:
        """Return the state of each check; of domains that of the last."""
        done = machine.run([*user, "virt-rapl", "doctor", "--json"], check=False)
        checks = json.loads(done.stdout)["checks"]
        program = Path(installer.__file__)
        if any(map(who_else_may_write, [program, *program.parents])):  # a checkout may be somebody's own
            checks = [check for check in checks if check["name"] != "files"]
        assert "failed" not in {check["state"] for check in checks}, done.stdout
        return {check["name"]: check["state"] for check in checks}

    daemon()
    machine.run(["systemctl", "disable", "virt-rapld"])  # another test may have enabled it
    machine.run(["touch", "/etc/libvirt/hooks/qemu.d/virt-rapl"])
    machine.path("/run/virt-rapl/events.jsonl").unlink(missing_ok=True)
    assert examine()["hook-seen"] == "warning"
    machine.run(["systemctl", "reload", "libvirtd"])
    found = examine()
    assert found["hook-seen"] == "ok"
    assert found["virt-rapld"] == "warning"  # it is not enabled

    nobody = examine("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert (nobody["energy"], nobody["virt-rapld"]) == ("skipped", "skipped")
    assert nobody["hook"] == nobody["cpus"] == "ok"


SERVANT = """
import sys, time
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text("0")
time.sleep(3)  # until it is found
while time.process_time() < 3: pass
time.sleep(3)  # until it has been read once more
"""
SERVANT_SECONDS = 3


@pytest.mark.usefixtures("guest_at_rest")
def test_what_libvirt_has_in_the_domains_cgroup_is_the_domains(machine: Machine, daemon: Callable[..., None]) -> None:
    daemon()
    (domain,) = document(machine)["domains"]
    cgroup = machine.run(["cat", f"/proc/{domain['pid']}/cgroup"]).stdout.splitlines()[-1].removeprefix("0::")
    if "/machine.slice/machine-qemu" not in cgroup:
        pytest.skip("this machine's kernel has no cgroup controller to give to systemd-nspawn")
    print(cgroup)
    before = time.monotonic()
    machine.run([sys.executable, "-c", SERVANT, f"/sys/fs/cgroup{cgroup}"])
    watts = 100 / (os.cpu_count() or 1)
    assert CONSTANT_100_WATTS == ("--idle-watts=100", "--cpu-watts=0")
    (after,) = document(machine)["domains"]
    joules = after["energy_joules"] - domain["energy_joules"]
    print(f"{joules:.1f} J in {time.monotonic() - before:.1f} s; the servant's {SERVANT_SECONDS * watts:.1f} J")
    assert joules >= 0.95 * SERVANT_SECONDS * watts


def test_the_unit_may_enable_the_domains_of_the_configuration(machine: Machine) -> None:
    def define(name: str) -> None:
        files = f"/var/lib/libvirt/images/{name}.rom", f"/var/log/libvirt/qemu/{name}.out"
        machine.path(files[0]).write_bytes(guest.rom(50))
        machine.path("/root/guest.xml").write_text(guest.domain_xml(name, *files))
        machine.run(["virsh", "define", "/root/guest.xml"])

    def said() -> str:
        return machine.run(["journalctl", "--unit=virt-rapld", "--output=cat"]).stdout

    def is_metered(name: str) -> bool:
        (domain,) = [domain for domain in document(machine)["domains"] if domain["name"] == name]
        return bool(domain["vrapl"] == "active" and domain["energy_joules"] > 1)

    right = policy.GRANT.removeprefix("sed -i ").split("'")[1]
    machine.run(["sed", "-i", right, policy.RULE])
    machine.path(CONFIGURATION).write_text("domains: [chosen, unlucky]\n")
    machine.run(["systemctl", "start", "virt-rapld"])
    try:
        define("chosen")
        wait_until(
            lambda: Definition.parse(machine.run(["virsh", "dumpxml", "chosen"]).stdout).is_marked, 30, "it is enabled"
        )
        machine.run(["virsh", "start", "chosen"])
        wait_until(lambda: is_metered("chosen"), 30, "its energy is counted")

        machine.path(policy.RULE).unlink()
        machine.run(["virt-rapl", "install"])  # as it comes: without that right
        machine.run(["systemctl", "restart", "polkit"])
        define("unlucky")
        wait_until(lambda: "cannot enable the configuration's `domains`" in said(), 30, "it may not, and says so")
        assert not Definition.parse(machine.run(["virsh", "dumpxml", "unlucky"]).stdout).is_marked
        joules = zone_joules(document(machine))
        wait_until(lambda: zone_joules(document(machine)) > joules, 30, "it meters on")
    finally:
        machine.run(["systemctl", "stop", "virt-rapld"])
        print(said())
        machine.run(["virsh", "destroy", "chosen"], check=False)
        for name in ("chosen", "unlucky"):
            machine.run(["virsh", "undefine", name], check=False)


def guest_uuid(backend: str) -> str:
    return {"native": "11111111-2222-4333-8444-555555555555", "qemu": "11111111-2222-4333-8444-666666666666"}[backend]


# The last two: they change what the others need.

QEMU = "/usr/bin/qemu-system-x86_64"
WRAPPER = f"{QEMU}-rapl"


def test_libvirt_asks_an_upgraded_qemu_anew(machine: Machine) -> None:
    def asked() -> str:
        """What libvirt remembers of the time at which the wrapper had changed, in seconds."""
        machine.run(["virsh", "domcapabilities", "--emulatorbin", WRAPPER])
        answers = [path.read_text() for path in machine.path("/var/cache/libvirt/qemu/capabilities").glob("*.xml")]
        (answer,) = [text for text in answers if f"<emulator>{WRAPPER}</emulator>" in text]
        return answer.partition("<qemuctime>")[2].partition("<")[0]

    def changed() -> str:
        return machine.run(["stat", "--format=%Z", WRAPPER]).stdout.strip()

    before = changed()
    assert asked() == before
    # As dpkg and rpm do it: another file with the time of its making, under the same name.
    machine.run(["cp", "--preserve", QEMU, f"{QEMU}.new"])
    machine.run(["mv", f"{QEMU}.new", QEMU])
    wait_until(lambda: changed() != before, 60, "the wrapper is touched")
    assert asked() == changed()


def test_uninstall_takes_everything_out_but_the_ledger(machine: Machine) -> None:
    changed = [CONFIGURATION, "/etc/polkit-1/rules.d/60-virt-rapl.rules", "/etc/systemd/system/virt-rapld.service.d"]
    machine.run(["rm", "-rf", *changed])  # by other tests
    machine.run(["virt-rapl", "install", "--force"])
    assert machine.run(["systemctl", "is-enabled", "virt-rapl-exporter"], check=False).stdout == "disabled\n"
    machine.run(["systemctl", "enable", "--now", "virt-rapld", "virt-rapl-exporter"])
    links = machine.path("/etc/systemd/system/multi-user.target.wants")
    assert {path.name for path in links.glob("virt-rapl*")} == {
        "virt-rapl-exporter.service",
        "virt-rapld.service",
        "virt-rapl-wrappers.path",
        "virt-rapl-wrappers.service",
    }
    printed = machine.run(["virt-rapl", "uninstall"]).stdout
    stopped = re.findall("^stopped   (.*)$", printed, re.MULTILINE)
    assert stopped[:4] == [
        "virt-rapl-exporter.service",
        "virt-rapld.service",
        "virt-rapl-channel.service",
        "virt-rapl-wrappers.path",
    ]
    assert printed.endswith("kept      /var/lib/virt-rapl, the energy that was counted\n")
    assert not list(links.glob("virt-rapl*"))
    assert "virt-rapl" not in machine.run(["systemctl", "list-units", "--all", "virt-rapl*", "--plain"]).stdout
    find = ["find", "/etc", "/run", "/usr/bin", "/usr/local", "/usr/share/selinux", "/var/lib", "-name", "*rapl*"]
    left = machine.run(find, check=False).stdout.splitlines()
    assert [path for path in left if not path.startswith(sys.prefix)] == ["/var/lib/virt-rapl"]
    assert machine.path("/var/lib/virt-rapl/ledger.db").exists()
