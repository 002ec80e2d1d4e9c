"""Every way a domain can live and die on one host: docs/what-happens-when.md is what a user sees of it."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from lifecycle import PATIENCE_SECONDS, SETTLE_SECONDS, Host
from walking import CONSTANT_100_WATTS, domain_log, grows, start_enabled, wait_until

from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.lifecycle import events
from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

LIBVIRT_AWAY = ("without libvirt for now", "libvirt is back")
HELPER = "/usr/bin/qemu-vmsr-helper"


@pytest.fixture(scope="module")
def one_host() -> Iterator[Host]:
    with World(CONSTANT_100_WATTS, hostname="lifecycle") as world:
        yield Host(world)


@pytest.fixture
def host(one_host: Host) -> Iterator[Host]:
    """The host. Domains go with the test, and leave nothing."""
    yield one_host
    one_host.configure()
    for name in one_host.virsh("list", "--all", "--name").stdout.split("\n"):
        if name:
            one_host.virsh("destroy", name, check=False)
            one_host.virsh("undefine", "--managed-save", "--snapshots-metadata", name, check=False)
    one_host.check()


@pytest.fixture
def name(host: Host) -> str:
    """A guest that is enabled and runs, with a balloon and a disk."""
    name = f"guest-{uuid4()}"
    define(host, name)
    host.enable(name)
    host.virsh("start", name)
    return name


def define(host: Host, name: str) -> None:
    """Define a guest with two vCPUs, a balloon and a qcow2 disk."""
    rom, disk, log = (f"/mnt/{name}.{suffix}" for suffix in ("rom", "qcow2", "log"))
    host.world.path(rom).write_bytes(guest.rom(100, 0))
    host.world.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"])
    host.world.run(["chmod", "666", disk])
    xml = guest.domain_xml(name, rom, log, vcpus=2)
    drive = f"<disk type='file'><driver type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>"
    host.define(xml.replace("<memballoon model='none'/>", f"<memballoon model='virtio'/>{drive}"))


def kill_helper(host: Host, uuid: str) -> None:
    host.world.kill(json.loads(host.world.path(f"{host.run_directory}/{uuid}.json").read_text())["helper_pid"])


def test_start_reboot_reset_pause_and_shutdown_from_inside(host: Host, name: str) -> None:
    host.check()
    qemu = host.qemu(name)
    for step in ("reboot", "reset"):
        host.virsh(step, name)
        host.are_alive(name)
        host.check()
    host.virsh("suspend", name)
    host.check()
    assert host.state(name) == "paused"
    host.virsh("resume", name)
    host.check()
    assert host.qemu(name) == qemu
    host.virsh("shutdown", name)
    wait_until(lambda: host.state(name) == "shut off", 20, "it has switched itself off")
    host.check()
    host.virsh("start", name)
    host.check()
    host.virsh("destroy", name)
    host.check()


def test_started_paused(host: Host, name: str) -> None:
    host.virsh("destroy", name)
    host.virsh("start", "--paused", name)
    assert host.state(name) == "paused"
    host.check()
    host.virsh("resume", name)
    host.check()


def test_it_restarts_where_others_power_off(host: Host, name: str) -> None:
    host.virsh("destroy", name)
    xml = host.xml(name)
    restarting = xml.replace("<on_poweroff>destroy", "<on_poweroff>restart")
    assert restarting != xml
    host.define(restarting)
    host.virsh("start", name)
    host.check()
    qemu = host.qemu(name)
    rebooted = host.world.popen(["virsh", "event", name, "--event", "reboot"])

    def restarts() -> bool:
        host.virsh("shutdown", name)
        return rebooted.poll() is not None

    wait_until(restarts, PATIENCE_SECONDS, "it has switched itself off, and goes on")
    assert "event 'reboot'" in rebooted.communicate()[0]
    host.check()
    assert host.qemu(name) == qemu


def test_disabled_while_it_runs(host: Host, name: str) -> None:
    host.world.run(["virt-rapl", "disable", name])
    host.check()
    host.virsh("save", name, "/mnt/saved")
    host.virsh("restore", "/mnt/saved")
    assert Definition.parse(host.xml(name)).is_marked
    host.check()
    host.virsh("destroy", name)
    host.virsh("start", name)
    assert not Definition.parse(host.xml(name)).is_marked
    host.check()


@pytest.mark.parametrize("signal", ["KILL", "SEGV"])
def test_qemu_crashes(host: Host, name: str, signal: str) -> None:
    host.world.kill(host.qemu(name), signal)
    wait_until(lambda: host.state(name) == "shut off", SETTLE_SECONDS, "libvirt has seen it")
    host.check()
    host.virsh("start", name)
    host.check()


def test_qemu_crashes_while_libvirtd_is_away(host: Host, name: str) -> None:
    qemu = host.qemu(name)
    host.world.stop_libvirtd("KILL")
    host.world.kill(qemu)
    host.world.start_libvirtd()
    assert host.state(name) == "shut off"
    host.check(daemon_logs=LIBVIRT_AWAY)
    host.virsh("start", name)
    host.check()


def test_save_and_restore(host: Host, name: str) -> None:
    host.virsh("save", name, "/mnt/saved")
    host.check()
    host.virsh("restore", "/mnt/saved")
    host.check()
    assert "hook-script" not in domain_log(host.world, name)  # nothing had to be changed
    host.virsh("managedsave", name)
    host.check()
    host.virsh("start", name)
    host.check()


def test_saved_in_another_run_directory(host: Host, name: str) -> None:
    """As after a change of the configuration, or with an image that comes from another host."""
    uuid = host.uuid(name)
    host.virsh("save", name, "/mnt/saved")
    xml = host.world.run(["virsh", "save-image-dumpxml", "/mnt/saved"]).stdout
    other = xml.replace(f"/run/virt-rapl/{uuid}.sock", f"/run/other/{uuid}.sock")
    assert other != xml
    host.world.run(["virsh", "restore", "/mnt/saved", "--xml", "/proc/self/fd/0"], input=other)
    host.check()


def test_snapshots(host: Host, name: str) -> None:
    external = ("--memspec", "file=/mnt/memory", "--diskspec", "vda,file=/mnt/overlay")
    host.virsh("snapshot-create-as", name, "internal")
    host.check()
    host.virsh("snapshot-create-as", name, "external", *external)
    host.check()
    for snapshot in ("external", "internal"):
        host.virsh("snapshot-revert", name, snapshot)
        host.check()
    host.virsh("destroy", name)
    host.virsh("snapshot-revert", name, "internal")
    host.check()


def test_revert_to_before_it_was_enabled(host: Host) -> None:
    name = f"guest-{uuid4()}"
    define(host, name)
    host.virsh("start", name)
    host.virsh("snapshot-create-as", name, "before")
    host.virsh("destroy", name)
    host.enable(name)
    host.virsh("start", name)
    host.check()
    host.virsh("snapshot-revert", name, "before")
    host.check()
    host.enable(name)
    host.virsh("destroy", name)
    host.virsh("start", name)
    host.check()


def test_autostart(host: Host, name: str) -> None:
    host.virsh("autostart", name)
    host.virsh("destroy", name)
    host.world.stop_libvirtd()
    host.world.run(["sh", "-c", "rm -f /run/libvirt/qemu/autostarted"])  # as if the machine had been booted
    host.world.start_libvirtd()
    wait_until(lambda: host.state(name) == "running", 20, "it starts by itself")
    host.check(daemon_logs=LIBVIRT_AWAY)


def test_transient(host: Host) -> None:
    name = f"guest-{uuid4()}"
    define(host, name)
    plain = host.xml(name)
    host.virsh("undefine", name)
    injected = host.world.run(["virt-rapl", "inject"], input=plain).stdout
    host.world.run(["virsh", "create", "/proc/self/fd/0"], input=injected)
    host.check()
    host.virsh("destroy", name)
    host.check()
    assert name not in host.virsh("list", "--all", "--name").stdout


def test_the_mark_is_taken_out_while_it_runs(host: Host, name: str) -> None:
    host.virsh("metadata", name, "urn:libvirt-rapl:mark:1", "--remove", "--live")
    host.virsh("destroy", name)
    host.check()


def test_undefined_while_it_runs(host: Host, name: str) -> None:
    host.virsh("undefine", name)
    host.check()
    host.virsh("destroy", name)
    host.check()


def test_renamed(host: Host, name: str) -> None:
    host.virsh("destroy", name)
    new_name = f"{name} (2), näher"
    host.virsh("domrename", name, new_name)
    host.world.path(f"/mnt/{new_name}.log").symlink_to(f"{name}.log")
    host.virsh("start", new_name)
    host.check()


def test_cloned(host: Host, name: str) -> None:
    clone, disk = f"clone-{uuid4()}", "/mnt/clone.qcow2"
    xml = host.xml(name, "--inactive").replace(f"<name>{name}", f"<name>{clone}")
    xml = xml.replace(f"<uuid>{host.uuid(name)}", f"<uuid>{uuid4()}").replace(f"/mnt/{name}.qcow2", disk)
    host.world.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"])
    host.define(xml.replace(f"{name}.log", f"{clone}.log"))
    host.enable(clone)
    host.virsh("start", clone)
    host.check()
    host.virsh("destroy", name)
    host.check()


def test_pinned_and_ballooned(host: Host, name: str) -> None:
    host.check()
    host.virsh("vcpupin", name, "0", "1")
    host.virsh("emulatorpin", name, "0")
    host.check()
    host.virsh("setmem", name, "8M", "--live")
    # QEMU has taken the wish and passes it on. The guest has no driver that would grant it.
    assert host.virsh("qemu-monitor-command", name, "--hmp", "info balloon").stdout.strip() == "balloon: actual=16"
    host.check()


def ended(signal: str) -> Callable[[Host], None]:
    def step(host: Host) -> None:
        host.world.stop_libvirtd(signal)
        host.world.start_libvirtd()

    return step


def reloaded(host: Host) -> None:
    host.signal_libvirtd("HUP")
    host.virsh("list")


@pytest.mark.parametrize("step", [ended("TERM"), ended("KILL"), reloaded], ids=["restarted", "crashed", "reloaded"])
def test_libvirtd(host: Host, name: str, step: Callable[[Host], None]) -> None:
    host.check()
    before = host.qemu(name), host.helpers()
    step(host)
    host.check(daemon_logs=() if step is reloaded else LIBVIRT_AWAY)
    assert (host.qemu(name), host.helpers()) == before
    host.virsh("destroy", name)
    host.check()


def test_libvirts_daemon_has_another_name() -> None:
    """As where libvirt is modular, which Debian's is not: the same program stands in for virtqemud."""
    with World(CONSTANT_100_WATTS, hostname="modular") as world:
        world.run(["cp", "/usr/sbin/libvirtd", "/usr/sbin/virtqemud"])
        world.run(["virtqemud", "--daemon", "--pid-file", "/run/virtqemud.pid"])
        assert "reloaded  virtqemud, which now sees the hook" in world.run(["virt-rapl", "install", "--force"]).stdout
        world.define_guest("guest", 100)
        start_enabled(world, "guest")
        wait_until(lambda: grows(world, "guest"), PATIENCE_SECONDS, "the guest's counter moves")


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
@pytest.mark.usefixtures("name")
def test_virt_rapld_ends_and_comes_back(host: Host, signal: str) -> None:
    host.world.kill(host.daemon, signal)
    host.start_daemon()
    host.check()


def test_a_helper_dies(host: Host, name: str) -> None:
    host.check()
    kill_helper(host, host.uuid(name))
    host.check(degraded={name: "its helper ended"})
    host.virsh("reboot", name)  # QEMU stays, and connects only once
    host.check(degraded={name: "its helper ended"})
    host.virsh("managedsave", name)
    host.check()
    host.virsh("start", name)  # as good as a restart, and the guest need not know
    host.check()


def test_a_helper_dies_while_libvirtd_is_away(host: Host, name: str) -> None:
    uuid = host.uuid(name)
    host.world.stop_libvirtd("KILL")
    kill_helper(host, uuid)
    host.world.start_libvirtd()
    host.check(degraded={name: "its helper ended"}, daemon_logs=LIBVIRT_AWAY)
    last = list(events.read_unchecked(host.world.path(host.run_directory)))[-1]
    assert (last.domain, last.operation, last.result) == (name, "reconnect", "degraded")


def test_a_hook_is_killed_while_it_waits(host: Host, name: str) -> None:
    """As by a host that is out of memory. What it has begun ends with the domain all the same."""
    host.virsh("destroy", name)
    host.configure(helper="qemu", hook_deadline=10)
    hangs = (b"libvirt_rapl.helper.process", f"{host.run_directory}/{host.uuid(name)}.plan".encode())
    helper = host.world.path(HELPER)
    aside = helper.rename(f"{helper}.aside")
    try:
        os.mkfifo(helper, 0o755)  # it hangs as it opens this
        starting = host.world.popen(["virsh", "start", name])
        wait_until(lambda: pids(host, *hangs), PATIENCE_SECONDS, "the hook waits for a helper that hangs")
        (hung,) = pids(host, *hangs)
        (hook,) = pids(host, b"libvirt_rapl.lifecycle.hook", name.encode(), b"start")
        host.world.kill(hook)
        starting.communicate(timeout=PATIENCE_SECONDS)
        assert starting.returncode == 0  # degraded
        assert pids(host, *hangs) == [hung]
        host.virsh("destroy", name)
        assert pids(host, *hangs) == []
    finally:
        aside.rename(helper)
    host.configure()
    host.check(degraded={name: "its log and events report it"})
    host.virsh("start", name)
    host.check()


def pids(host: Host, *arguments: bytes) -> list[int]:
    """Return the PIDs of Python and other programs that run with just these arguments in a row."""
    wanted = b"\0".join(arguments) + b"\0"
    found = []
    for path in host.world.path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            words = path.read_bytes()
            if wanted in words and not words.startswith((b"timeout", b"/bin/sh")):
                found.append(int(path.parent.name))
    return found
