"""When a domain's meter cannot be set up, the domain starts without it, or is refused with one clear line."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from walking import NewGuest, configure, domain_log, grows, run_files, start_enabled, status, wait_until

from libvirt_rapl import paths
from libvirt_rapl.domains.names import MARK
from libvirt_rapl.helper import instances
from libvirt_rapl.lifecycle import events
from libvirt_rapl.simulator.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("default_configuration")]

HELPER = "/usr/bin/qemu-vmsr-helper"


@contextmanager
def no_helper_binary(world: World, policy: str) -> Iterator[str]:
    configure(world, helper="qemu", on_failure=policy)
    aside = world.path(HELPER).rename(world.path(f"{HELPER}.aside"))
    try:
        yield "qemu-vmsr-helper is not installed"
    finally:
        aside.rename(world.path(HELPER))


@contextmanager
def helper_that_hangs(world: World, policy: str) -> Iterator[str]:
    with no_helper_binary(world, policy):
        configure(world, helper="qemu", on_failure=policy, hook_deadline=1)
        os.mkfifo(world.path(HELPER), 0o755)  # it is never opened
        yield "does not answer"


@contextmanager
def full_run_directory(world: World, policy: str) -> Iterator[str]:
    configure(world, on_failure=policy)
    world.run(["mkdir", "-p", "/run/virt-rapl"])
    with mounted(world, "size=4k,mode=711", "/run/virt-rapl"):
        world.run(["sh", "-c", "cat /dev/zero > /run/virt-rapl/filler"], check=False)
        yield "No space left on device"


@contextmanager
def no_rapl_on_the_host(world: World, policy: str) -> Iterator[str]:
    configure(world, on_failure=policy)
    with mounted(world, "mode=755", "/sys/class/powercap"):
        yield "RAPL is not enabled"


@contextmanager
def cpu_off_line(world: World, policy: str) -> Iterator[str]:
    configure(world, on_failure=policy)
    last = os.sysconf("SC_NPROCESSORS_CONF") - 1
    with mounted(world, "mode=755", f"/sys/devices/system/cpu/cpu{last}"):
        yield f"all CPUs are online, and CPU {last} is not"


@contextmanager
def mounted(world: World, options: str, directory: str) -> Iterator[None]:
    """Hide a directory behind an empty file system."""
    world.run(["mount", "-t", "tmpfs", "-o", options, "fault", directory])
    try:
        yield
    finally:
        world.run(["umount", "--lazy", directory])


FAULTS = [no_helper_binary, helper_that_hangs, full_run_directory, no_rapl_on_the_host, cpu_off_line]
Fault = Callable[[World, str], AbstractContextManager[str]]


@pytest.mark.parametrize("fault", FAULTS)
def test_degrade_starts_the_domain_and_says_why(world: World, new_guest: NewGuest, fault: Fault) -> None:
    name = new_guest(100)
    with fault(world, "degrade") as reason:
        start_enabled(world, name)
        wait_until(lambda: world.readings(name), 30, "the guest runs")
        assert "starts without RAPL" in domain_log(world, name)
        if fault is not full_run_directory:  # which has no room for a reason
            assert reason in domain_log(world, name)
        if fault not in (no_rapl_on_the_host, cpu_off_line):  # `status` needs them, too
            assert status(world, name)["vrapl"] == "degraded"
        assert {reading.energy for reading in world.readings(name)} == {0}
        world.run(["virsh", "destroy", name])
        assert run_files(world) <= {"filler"}


@pytest.mark.parametrize("fault", FAULTS)
def test_refuse_says_why_in_one_line(world: World, new_guest: NewGuest, fault: Fault) -> None:
    name = new_guest(100)
    world.run(["virt-rapl", "enable", name])
    with fault(world, "refuse") as reason:
        refused = world.run(["virsh", "start", name], check=False)
        assert refused.returncode != 0
        (line,) = [line for line in refused.stderr.splitlines() if "virt-rapl: " in line]
        assert f"virt-rapl: {name} is not started without RAPL: " in line
        assert reason in line
        assert world.run(["virsh", "domstate", name]).stdout.strip() == "shut off"
        assert run_files(world) <= {"filler"}


NOISE = """<n:n xmlns:n='urn:n'><![CDATA[
  <memory unit='KiB'>1</memory>
  </metadata>
  <uuid>00000000-0000-4000-8000-000000000000</uuid>
]]><metadata xmlns=''>
  </metadata>
  </n:n>"""


def test_no_metadata_hides_the_mark_and_none_fakes_it(world: World, new_guest: NewGuest) -> None:
    """Spelt as no client of libvirt's would, and as libvirt then gives it to its hooks."""
    name, other = new_guest(100), new_guest(100)
    world.run(["virt-rapl", "enable", name])
    marked = world.run(["virsh", "dumpxml", "--inactive", name]).stdout
    spelt = re.sub(r"rapl:rapl xmlns:rapl=(.)urn:", r"m:rapl xmlns:m=\1&#x75;r&#110;:", marked)
    assert spelt != marked
    world.run(["virsh", "define", "/dev/stdin"], input=spelt.replace("<metadata>", f"<metadata>{NOISE}"))
    plain = world.run(["virsh", "dumpxml", other]).stdout
    fake = plain.replace("<memory", f"<title>{MARK}</title><metadata>{NOISE}</metadata><memory", 1)
    world.run(["virsh", "define", "/dev/stdin"], input=fake)
    with no_rapl_on_the_host(world, "refuse") as reason:
        refused = world.run(["virsh", "start", name], check=False)
        assert reason in refused.stderr
        world.run(["virsh", "start", other])
        world.run(["virsh", "destroy", other])
    world.run(["virsh", "start", name])
    assert status(world, name)["vrapl"] == "active"
    recorded = list(events.read_unchecked(world.path("/run/virt-rapl")))
    assert [event.result for event in recorded if (event.domain, event.operation) == (name, "start")] == [
        "refuse",
        "ready",
    ]
    assert not [event for event in recorded if event.domain == other]


@pytest.mark.parametrize("fault", [no_helper_binary, no_rapl_on_the_host])
def test_where_qemu_fails_for_another_reason_libvirt_quotes_that(
    world: World, new_guest: NewGuest, fault: Fault
) -> None:
    name = new_guest(100)
    world.run(["virt-rapl", "enable", name])
    xml = world.run(["virsh", "dumpxml", "--inactive", name]).stdout
    broken = xml.replace("</qemu:commandline>", "<qemu:arg value='-no-such-option'/></qemu:commandline>")
    assert broken != xml
    world.run(["virsh", "define", "/dev/stdin"], input=broken)
    with fault(world, "degrade"):
        failed = world.run(["virsh", "start", name], check=False)
    assert failed.returncode != 0
    assert "-no-such-option" in failed.stderr
    assert "virt-rapl: " not in failed.stderr
    assert "starts without RAPL" in domain_log(world, name)


OLDER_LIBVIRT = """#!/usr/bin/python3
import os, sys
emulator, arguments = "/usr/bin/qemu-system-x86_64", sys.argv[1:]
if sys.argv[0].endswith("-rapl"):
    emulator += "-rapl"
    if "-accel" in arguments:
        place = arguments.index("-accel")
        assert arguments[place + 1] == "kvm"
        del arguments[place:place + 2]
        machine, comma, rest = arguments[arguments.index("-machine") + 1].partition(",")
        arguments[arguments.index("-machine") + 1] = f"{machine},accel=kvm{comma}{rest}"
os.execv(emulator, [emulator, *arguments])
"""


def test_an_older_libvirt_asks_for_kvm_in_another_way(world: World, new_guest: NewGuest) -> None:
    """Real QEMU gets the arguments as libvirt 7.0 writes them."""
    name = new_guest(100)
    for program in ("/usr/bin/older", "/usr/bin/older-rapl"):
        world.path(program).write_text(OLDER_LIBVIRT)
        world.path(program).chmod(0o755)
    try:
        xml = world.run(["virsh", "dumpxml", name]).stdout
        world.run(
            ["virsh", "define", "/dev/stdin"], input=xml.replace("/usr/bin/qemu-system-x86_64<", "/usr/bin/older<")
        )
        start_enabled(world, name)
        wait_until(lambda: grows(world, name), 30, "the guest's counter moves")
        pid = status(world, name)["pid"]
        arguments = world.path(f"/proc/{pid}/cmdline").read_text().split("\0")
        assert not [argument for argument in arguments if "accel=kvm" in argument]
        assert arguments.count("-accel") == 1
        world.run(["virsh", "destroy", name])
        with no_rapl_on_the_host(world, "degrade"):
            world.run(["virsh", "start", name])
            goes_on(world, name)
    finally:
        for program in ("/usr/bin/older", "/usr/bin/older-rapl"):
            world.path(program).unlink()


def test_libvirt_is_killed_and_reads_no_more_what_the_hook_says(world: World) -> None:
    hook = f"{sys.executable} -I -m libvirt_rapl.lifecycle.hook nobody started begin - </dev/null"
    world.run(["sh", "-c", f"{{ sleep 0.5; {hook}; echo $? >/mnt/status; }} 2>&1 | true"])
    assert world.path("/mnt/status").read_text() == "0\n"
    event = list(events.read_unchecked(world.path("/run/virt-rapl")))[-1]
    assert (event.domain, event.result) == ("nobody", "failed")
    assert event.reason, "what went wrong is not lost"


@pytest.mark.parametrize("text", ["helper: [", "helper: \udcff", "helpers: native"])
def test_a_configuration_that_cannot_be_read(world: World, new_guest: NewGuest, text: str) -> None:
    name = new_guest(100)
    world.run(["virt-rapl", "enable", name])
    world.path("/etc/virt-rapl/virt-rapl.yaml").write_bytes(text.encode(errors="surrogateescape"))
    world.run(["virsh", "start", name])
    wait_until(lambda: world.readings(name), 30, "the guest runs")
    assert "starts without RAPL" in domain_log(world, name)
    assert "/etc/virt-rapl/virt-rapl.yaml" in domain_log(world, name)
    world.run(["virsh", "destroy", name])
    assert run_files(world) == set()


def test_a_configuration_broken_meanwhile_does_not_keep_a_helper(world: World, new_guest: NewGuest) -> None:
    name = new_guest(100)
    start_enabled(world, name)
    helper = status(world, name)["helper"]["pid"]
    world.path("/etc/virt-rapl/virt-rapl.yaml").write_text("helper: [")
    world.run(["virsh", "destroy", name])
    assert run_files(world) == set()
    assert not world.path(f"/proc/{helper}").exists()


@pytest.mark.parametrize("fault", ["mv {hook} /mnt", "chmod a-x {hook}", "sed -i s@^python=.*@python=/nowhere@ {hook}"])
def test_without_its_hook_a_domain_starts_without_its_meter(world: World, new_guest: NewGuest, fault: str) -> None:
    """Its helper of before is still there, and says that it is ready."""
    hook = f"/{paths.HOOK}"
    name = new_guest(100)
    start_enabled(world, name)
    whole = world.path(hook).read_bytes()
    try:
        world.run(fault.format(hook=hook).split())
        world.run(["virsh", "destroy", name])
        world.run(["virsh", "start", name])
        goes_on(world, name)
        assert "the domain starts without RAPL" in domain_log(world, name)
        assert status(world, name)["vrapl"] == "degraded"
    finally:
        world.path(hook).write_bytes(whole)
        world.path(hook).chmod(0o755)
    world.run(["virsh", "destroy", name])
    world.run(["virsh", "start", name])
    assert status(world, name)["vrapl"] == "active"


def test_a_dead_socket_and_a_stale_word_from_a_crash_are_replaced(world: World, new_guest: NewGuest) -> None:
    name = new_guest(100)
    world.run(["virt-rapl", "enable", name])
    stem = f"/run/virt-rapl/{uuid_of(world, name)}"
    world.run(["mkdir", "-p", "-m", "711", "/run/virt-rapl"])
    world.run(["python3", "-c", "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])", f"{stem}.sock"])
    world.path(f"{stem}.state").write_text("ready\n")
    world.path(f"{stem}.json").write_text("{")
    world.run(["virsh", "start", name])
    wait_until(lambda: grows(world, name), 30, "the guest's counter moves")


def test_a_helper_that_dies_costs_the_meter_and_not_the_domain(world: World, new_guest: NewGuest) -> None:
    name = new_guest(100)
    start_enabled(world, name)
    wait_until(lambda: grows(world, name), 30, "the guest's counter moves")
    helper = status(world, name)["helper"]["pid"]
    world.kill(helper)
    before = datetime.now(UTC)
    wait_until(lambda: status(world, name)["vrapl"] == "degraded", 30, "status shows it")
    domain = status(world, name)
    assert "its helper ended" in domain["reason"]
    assert before - timedelta(seconds=5) <= datetime.fromisoformat(domain["since"]) <= before
    said = world.run(["virt-rapl", "status", name]).stdout
    assert f"{name} runs without its meter since " in said
    goes_on(world, name)


@pytest.mark.parametrize("backend", ["native", "qemu"])
def test_a_helper_whose_record_is_lost_ends_with_its_domain(world: World, new_guest: NewGuest, backend: str) -> None:
    configure(world, helper=backend)
    name = new_guest(100)
    start_enabled(world, name)
    pid = status(world, name)["helper"]["pid"]
    shutil.rmtree(world.path("/run/virt-rapl"))
    assert (status(world, name)["vrapl"], status(world, name)["reason"]) == ("degraded", instances.UNRECORDED)
    world.run(["virsh", "destroy", name])
    assert not world.path(f"/proc/{pid}").exists()
    assert run_files(world) == set()
    world.run(["virsh", "start", name])
    assert status(world, name)["vrapl"] == "active"


def test_a_run_directory_and_a_mistake_in_the_configuration_cost_the_meter_and_not_the_domain(
    world: World, new_guest: NewGuest
) -> None:
    """The domain's own argument names the directory of before, where all was ready."""
    configure(world, run_directory="/run/elsewhere")
    name = new_guest(100)
    start_enabled(world, name)
    for text in ("run_directory: /run/virt-rapl", "run_directory: /run/elsewhere\nhelper: ["):
        world.path("/etc/virt-rapl/virt-rapl.yaml").write_text(text)
        world.run(["virsh", "destroy", name])
        assert [path.name for path in world.path("/run/elsewhere").iterdir()] == ["events.jsonl"]
        world.run(["virsh", "start", name])
        goes_on(world, name)
    configure(world, run_directory="/run/elsewhere")
    world.run(["virsh", "destroy", name])
    world.run(["virsh", "start", name])
    assert status(world, name)["vrapl"] == "active"
    world.run(["virsh", "destroy", name])
    assert run_files(world) == set()
    shutil.rmtree(world.path("/run/elsewhere"))


GREEDY = """
import os, socket, struct, sys, time
request, connections = struct.Struct("=3I"), []
print(os.getpid(), flush=True)
while True:
    if len(connections) < 2:
        connections.append(socket.socket(socket.AF_UNIX))
        connections[-1].settimeout(1)
    for connection in list(connections):
        try:
            try:
                connection.getpeername()
            except OSError:
                connection.connect(sys.argv[1])
            connection.sendall(request.pack(0x606, 0, os.getpid()))
            if not connection.recv(8):
                raise OSError
        except OSError:
            connections.remove(connection)
    time.sleep(0.05)
"""
"""Takes two slots of a helper and asks, as soon and as often as it can."""


def test_other_processes_of_qemus_user_do_not_take_its_slot_before_it_is_known(
    world: World, new_guest: NewGuest
) -> None:
    """As an escaped guest might where all domains run as one user."""
    name = new_guest(100)
    world.run(["virt-rapl", "enable", name])
    socket = f"/run/virt-rapl/{uuid_of(world, name)}.sock"
    user = ["setpriv", "--reuid=libvirt-qemu", "--regid=kvm", "--clear-groups"]
    crowd = [world.popen([*user, "/usr/bin/python3", "-c", GREEDY, socket]) for _ in range(5)]
    pids = [int(process.stdout.readline()) for process in crowd if process.stdout]
    try:
        world.run(["virsh", "start", name])
        wait_until(lambda: grows(world, name), 20, "the guest's counter moves")
        assert status(world, name)["vrapl"] == "active"
    finally:
        for pid in pids:
            world.kill(pid)
        for process in crowd:
            process.communicate(timeout=10)


MALICIOUS = """
import contextlib, os, sys
path = sys.argv[1]
print(os.getpid(), flush=True)
while True:
    for attempt in (lambda: os.chmod(path, 0), lambda: os.unlink(path), lambda: os.rename(path, path + "x")):
        with contextlib.suppress(OSError):
            attempt()
"""
"""Tries without end to take a domain's socket away."""


def test_a_neighbour_takes_no_socket_away(world: World, new_guest: NewGuest) -> None:
    """As an escaped guest might where all domains run as one user."""
    name = new_guest(100)
    world.run(["virt-rapl", "enable", name])
    socket = f"/run/virt-rapl/{uuid_of(world, name)}.sock"
    user = ["setpriv", "--reuid=libvirt-qemu", "--regid=kvm", "--clear-groups"]
    neighbour = world.popen([*user, "/usr/bin/python3", "-c", MALICIOUS, socket])
    assert neighbour.stdout
    pid = int(neighbour.stdout.readline())
    try:
        for _ in range(3):
            world.run(["virsh", "start", name])
            assert status(world, name)["vrapl"] == "active"
            world.run(["virsh", "destroy", name])
    finally:
        world.kill(pid)
        neighbour.communicate(timeout=10)


def test_a_copy_of_a_domain_has_its_own_meter(world: World, new_guest: NewGuest) -> None:
    name = new_guest(100)
    original, copy = uuid_of(world, name), str(uuid4())
    world.run(["virt-rapl", "enable", name])
    xml = world.run(["virsh", "dumpxml", "--inactive", name]).stdout
    world.run(["virsh", "undefine", name])
    world.run(["virsh", "define", "/dev/stdin"], input=xml.replace(f"<uuid>{original}", f"<uuid>{copy}"))
    world.run(["virsh", "start", name])
    wait_until(lambda: grows(world, name), 30, "the guest reads its energy")
    domain = status(world, name)
    assert (domain["vrapl"], domain["reason"]) == ("active", None)
    assert domain["helper"]["socket"] == f"/run/virt-rapl/{copy}.sock"


def goes_on(world: World, name: str) -> None:
    lines = len(world.readings(name))
    wait_until(lambda: len(world.readings(name)) > lines, 20, "the guest goes on")


def uuid_of(world: World, name: str) -> str:
    return world.run(["virsh", "domuuid", name]).stdout.strip()
