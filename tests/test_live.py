"""`enable --live`: a running domain gets its meter without a reboot, and whatever fails, it runs on as it was."""

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import libvirt
import pytest
from fakes.libvirt import failure
from walking import NewGuest, configure, domain_log, grows, run_files, start_enabled, status, wait_until

from libvirt_rapl import paths
from libvirt_rapl.cli import main
from libvirt_rapl.domains import emulator, inventory
from libvirt_rapl.domains.domain import Domain
from libvirt_rapl.domains.run_files import RunState
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.lifecycle import events, live, live_plan
from libvirt_rapl.simulator.world import World

UUID = "2b3c4d5e-6f70-4a81-92b3-c4d5e6f70819"
SAVES = "/var/lib/libvirt/qemu/save"
HELPER = "/usr/bin/qemu-vmsr-helper"
WRAPPER = "/usr/bin/qemu-system-x86_64-rapl"
ADDRESS, SECRET = 0x9000, "5ec2e7ed"
"""Memory that the guest does not use, and what stands there if it is the guest that was started first."""


# Steps of the save and the restore, with libvirt replaced.


class Handle:
    """As much of libvirt.virDomain and virConnect as is used; each restore ends as `restores` says, one by one."""

    def __init__(self, registry: Registry, *, save: str = "", restores: tuple[str, ...] = ("",)) -> None:
        self.registry, self.trouble, self.restores = registry, save, list(restores)
        self.active, self.enabled, self.aborted, self.hows = True, False, threading.Event(), list[str]()
        self.others_restore = False
        """Whether somebody else has restored the domain when we fail to."""
        self.job, self.operation = libvirt.VIR_DOMAIN_JOB_NONE, libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE
        self.image = live_plan.SAVES / "web.save"
        self.signal = signal.SIGINT
        """What arrives during a slow or late save."""

    def managedSave(self) -> int:  # noqa: N802
        if self.trouble == "slow":
            os.kill(os.getpid(), self.signal)
            assert self.aborted.wait(10), "nobody cancelled it"
            raise failure("canceled by client")
        if self.trouble == "late":
            os.kill(os.getpid(), self.signal)
        elif self.trouble:
            raise failure(self.trouble)
        self.active = False
        self.image.touch()
        return 0

    def save(self, path: str) -> int:
        self.image = Path(path)
        return self.managedSave()

    def restore(self, path: str) -> int:
        """Leave the image, as virConnectRestore does."""
        assert path == str(self.image)
        self._resume()
        return 0

    def jobInfo(self) -> list[int]:  # noqa: N802
        return [self.job]

    def jobStats(self) -> dict[str, int]:  # noqa: N802
        return {"operation": self.operation}

    def abortJob(self) -> int:  # noqa: N802
        if self.trouble == "late":
            raise failure("no job is active")
        self.aborted.set()
        return 0

    def create(self) -> int:
        self._resume()
        self.image.unlink()
        return 0

    def _resume(self) -> None:
        self.hows.append(self.registry.how_to_restore(UUID))
        if trouble := self.restores.pop(0):
            self.active = self.others_restore
            raise failure(trouble)
        self.active = True

    def isActive(self) -> int:  # noqa: N802
        return int(self.active)

    def connect(self) -> "Handle":
        return self

    def enable(self) -> None:
        assert self.active
        self.enabled = True


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """In a directory whose path leaves room for a socket's; pytest's own may not."""
    monkeypatch.setattr(live, "_check", lambda *_: None)
    monkeypatch.setattr(live, "is_active", lambda *_: False)
    monkeypatch.setattr(live, "lookup_uuid", lambda handle, _: domain(handle))
    monkeypatch.setattr(live_plan, "SAVES", tmp_path)
    monkeypatch.setattr(events, "JOURNAL", str(tmp_path / "none"))
    with TemporaryDirectory() as directory:
        yield Registry(Path(directory) / "run")


def domain(handle: Handle) -> Domain:
    return Domain(name="web", uuid=UUID, id=1 if handle.active else None, state="running", handle=handle)


def plan(handle: Handle, *, persistent: bool = True) -> live_plan.Plan:
    return live_plan.Plan(
        domain=domain(handle),
        enable=handle.enable,
        persistent=persistent,
        used_bytes=1 << 30,
        bytes_per_second=1e9,
    )


def recorded(registry: Registry) -> list[tuple[str, str]]:
    return [(event.operation, event.result) for event in events.read(registry.run_directory)]


def test_the_hook_is_instructed_while_the_domain_is_restored_and_no_longer(registry: Registry) -> None:
    handle = Handle(registry)
    live.switch_on(plan(handle), registry, print)
    assert handle.enabled
    assert handle.hows == ["with"]
    assert registry.how_to_restore(UUID) == ""
    assert recorded(registry) == [("live", "active")]


def test_what_the_guest_will_see_is_reported() -> None:
    line = str(plan(Handle(Registry(Path("/none")))))
    assert line.startswith("web: pauses for about 4 s: it is saved to /var/lib/libvirt/qemu/save and restored")
    assert "1024 MiB of memory" in line


def test_not_saved_is_not_touched(registry: Registry) -> None:
    handle = Handle(registry, save="no space left")
    with pytest.raises(VirtRaplError, match="web: runs on as before, as libvirt did not save it: no space left"):
        live.switch_on(plan(handle), registry, print)
    assert handle.hows == []
    assert recorded(registry) == [("live", "failed")]


def test_a_libvirt_that_is_lost_meanwhile(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle(registry, save="connection reset")
    handle.active = False
    monkeypatch.setattr(live, "lookup_uuid", lambda handle, _: dataclasses.replace(domain(handle), id=1))
    with pytest.raises(VirtRaplError, match="libvirt was lost") as caught:
        live.switch_on(plan(handle), registry, print)
    assert "virsh start web" in caught.value.hint


def test_not_restored_with_it_is_restored_without(registry: Registry) -> None:
    handle = Handle(registry, restores=("process exited while connecting to monitor: QEMU exited", ""))
    with pytest.raises(
        VirtRaplError, match=r"web: runs on as before, as it could not be .* with its meter: .*: QEMU exited"
    ):
        live.switch_on(plan(handle), registry, print)
    assert not handle.enabled
    assert handle.hows == ["with", "without"]
    assert registry.how_to_restore(UUID) == ""


def test_not_restored_at_all_stays_saved(registry: Registry) -> None:
    handle = Handle(registry, restores=("first", "second"))
    with pytest.raises(VirtRaplError, match=r"second; nothing is lost, it is saved in .*/web.save") as caught:
        live.switch_on(plan(handle), registry, print)
    assert "`virsh start web`" in caught.value.hint


def test_a_domain_that_somebody_else_has_restored_has_its_meter_all_the_same(registry: Registry) -> None:
    handle = Handle(registry, restores=("it is already active",))
    handle.others_restore = True
    live.switch_on(plan(handle), registry, print)
    assert handle.enabled
    assert handle.hows == ["with"]
    assert recorded(registry) == [("live", "active")]


@pytest.mark.parametrize(
    ("restores", "left"), [(("",), False), (("first", ""), False), (("first", "second"), True)], ids=str
)
def test_the_image_of_a_transient_domain_is_there_for_as_long_as_it_holds_the_domain(
    registry: Registry, restores: tuple[str, ...], left: bool
) -> None:
    """libvirt removes only those that it manages itself."""
    handle = Handle(registry, restores=restores)
    with contextlib.suppress(VirtRaplError):
        live.switch_on(plan(handle, persistent=False), registry, print)
    assert handle.hows == ["with", "without"][: len(restores)]
    assert (handle.image.exists(), handle.active) == (left, not left)


def test_an_image_that_is_gone_is_not_promised(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "touch", lambda _: None)
    handle = Handle(registry, restores=("first", "second"))
    with pytest.raises(VirtRaplError, match=r"cannot be restored: first; .*/web.save is gone"):
        live.switch_on(plan(handle), registry, print)


@pytest.mark.parametrize(
    "trouble",
    [
        "internal error: process exited while connecting to monitor",
        "internal error: QEMU unexpectedly closed the monitor (vm='web'): qemu: terminating on signal 15 from pid 1",
        "internal error: QEMU unexpectedly closed the monitor (vm='web')",
        "Unable to write to monitor: Broken pipe",
    ],
)
def test_a_domain_that_its_owner_destroys_stays_so(registry: Registry, trouble: str) -> None:
    handle = Handle(registry, restores=(trouble, ""))
    with pytest.raises(VirtRaplError, match=r"web: was killed as it was restored.*; it is saved in"):
        live.switch_on(plan(handle), registry, print)
    assert handle.hows == ["with"]
    assert not handle.active


def test_what_goes_on_and_ends_at_once_does_not_run_on(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_is_active", lambda _: False)
    with pytest.raises(VirtRaplError, match="web: has ended since, as it could not be restored with its meter: first"):
        live.switch_on(plan(Handle(registry, restores=("first", ""))), registry, print)


def test_a_restored_domain_that_has_ended_does_not_run_on(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    handle = Handle(registry)
    handle.active = False
    monkeypatch.setattr(live, "lookup_uuid", lambda handle, _: domain(handle))
    with pytest.raises(VirtRaplError, match="web: was restored and has ended since"):
        live._check(domain(handle), registry)


def test_a_definition_that_is_gone_is_reported(registry: Registry) -> None:
    def enable() -> None:
        raise VirtRaplError("it was undefined meanwhile")

    with pytest.raises(
        VirtRaplError, match=r"web: has its meter until it ends, but not .*: it was undefined meanwhile"
    ):
        live.switch_on(dataclasses.replace(plan(Handle(registry)), enable=enable), registry, print)
    assert recorded(registry) == [("live", "active")]


def test_a_full_run_directory_is_seen_before_the_domain_is_touched(registry: Registry) -> None:
    registry.run_directory.touch()  # no directory: nothing can be written there
    handle = Handle(registry, save="not to be saved")
    with pytest.raises(VirtRaplError, match="web: cannot write "):
        live.switch_on(plan(handle), registry, print)


def test_one_at_a_time(registry: Registry) -> None:
    with (
        registry.switching_on(UUID),
        pytest.raises(VirtRaplError, match="web: another `enable --live` works on it"),
    ):
        live.switch_on(plan(Handle(registry, save="not to be saved")), registry, print)
    live.switch_on(plan(Handle(registry)), registry, print)
    assert not registry.path(UUID, "live").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the run directory is root's")
def test_what_another_does_to_a_domain_is_not_taken_for_its_trouble(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved by another it does not run, and has an image that a hint would say to remove."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    handle = Handle(registry)
    handle.active = False
    with registry.switching_on(UUID), pytest.raises(VirtRaplError, match="another `enable --live` works on it"):
        live_plan.plan(domain(handle), handle.enable, registry)
    with pytest.raises(VirtRaplError, match="does not run"):
        live_plan.plan(domain(handle), handle.enable, registry)


def test_what_another_has_done_meanwhile_is_not_done_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "is_active", lambda *_: True)
    live.switch_on(plan(Handle(registry, save="not to be saved")), registry, print)
    assert capsys.readouterr().out == "web: its meter is already active\n"


def test_an_image_that_was_left_is_not_written_over(registry: Registry, tmp_path: Path) -> None:
    left = tmp_path / f"{UUID}.virt-rapl"
    left.write_text("a domain")
    with pytest.raises(VirtRaplError, match=f"web: {left} was left by an `enable --live`"):
        live.switch_on(plan(Handle(registry), persistent=False), registry, print)
    assert left.read_text() == "a domain"


def test_somebody_elses_job_is_waited_for_and_not_ended(registry: Registry) -> None:
    handle = Handle(registry, save="not to be saved")
    handle.job = libvirt.VIR_DOMAIN_JOB_UNBOUNDED
    with pytest.raises(VirtRaplError, match="web: libvirt is busy with it"):
        live.switch_on(plan(handle), registry, print)
    handle = Handle(registry, save="slow")  # and one that begins between the look and the save
    handle.operation = libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP
    asked = []

    def stats() -> dict[str, int]:
        asked.append(handle.aborted.is_set())
        if len(asked) == 5:
            handle.operation = libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE
        return {"operation": handle.operation}

    handle.jobStats = stats  # type: ignore[method-assign]
    with pytest.raises(VirtRaplError, match="web: cancelled"):
        live.switch_on(plan(handle), registry, print)
    assert asked[:5] == [False] * 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_would_end_us_cancels_the_save(registry: Registry, number: signal.Signals) -> None:
    def ends_us(*_: object) -> None:
        pytest.fail("it was not held back")

    handle, before = Handle(registry, save="slow"), signal.signal(number, ends_us)
    handle.signal = number
    try:
        with pytest.raises(VirtRaplError, match="web: cancelled; it runs on as before"):
            live.switch_on(plan(handle), registry, print)
        assert signal.getsignal(number) is ends_us
    finally:
        signal.signal(number, before)
    assert recorded(registry) == [("live", "failed")]


def test_a_ctrl_c_that_comes_too_late_takes_effect_after_the_report(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = Handle(registry, save="late")
    with pytest.raises(KeyboardInterrupt):
        live.switch_on(plan(handle), registry, print)
    assert handle.enabled
    assert recorded(registry) == [("live", "active")]
    assert "web: has its meter; it paused for" in capsys.readouterr().out


def test_ctrl_z_waits_until_the_domain_runs_again(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []
    handle = Handle(registry)
    save = handle.managedSave

    def managed_save() -> int:
        os.kill(os.getpid(), signal.SIGTSTP)
        time.sleep(0.2)  # long enough for the code that cancels to see it
        return save()

    monkeypatch.setattr(handle, "managedSave", managed_save)
    before = signal.signal(signal.SIGTSTP, lambda *_: stopped.append(handle.active))
    try:
        live.switch_on(plan(handle), registry, print)
    finally:
        signal.signal(signal.SIGTSTP, before)
    assert stopped == [True]
    assert not handle.aborted.is_set()


DEFINITION = (
    f"<domain type='kvm'><name>web</name><uuid>{UUID}</uuid><vcpu>1</vcpu>"
    "<devices><emulator>/usr/bin/q</emulator></devices></domain>"
)


class Planned(Handle):
    """A domain that is only looked at, and libvirt's answers about it."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.xml = DEFINITION
        self.probed: list[str] = []
        self.probe_trouble = ""

    def XMLDesc(self, _: int) -> str:  # noqa: N802
        return self.xml

    def isPersistent(self) -> int:  # noqa: N802
        return 1

    def getDomainCapabilities(self, path: str, *_: object) -> str:  # noqa: N802
        self.probed.append(path)
        if self.probe_trouble:
            raise failure(self.probe_trouble)
        return ""


@pytest.fixture
def planned(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """One on a host where all is in order, which is root's."""
    hook = tmp_path / "hook"
    hook.touch(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(paths, "HOOK", str(hook))
    monkeypatch.setattr(live_plan, "check_host", lambda: None)
    monkeypatch.setattr(emulator, "check", lambda _: None)
    monkeypatch.setattr(inventory, "read_run_state", lambda _: RunState(7, {}))
    monkeypatch.setattr(live_plan, "_used_bytes", lambda _: 3 << 20)
    return Planned(registry)


def test_a_plan(planned: Planned, registry: Registry) -> None:
    made = live_plan.plan(domain(planned), planned.enable, registry)
    assert (made.persistent, made.used_bytes) == (True, 3 << 20)
    assert made.bytes_per_second > 1 << 20
    assert planned.probed == ["/usr/bin/q-rapl"], "so that libvirt knows the wrapper before the guest waits"
    assert {path.name for path in live_plan.SAVES.iterdir()} == {"hook"}, "nothing is left of the trial"
    assert not registry.path(UUID, "live").exists()


def refuses(name: str) -> Callable[[Planned, pytest.MonkeyPatch], None]:
    """Let a check of the host or the emulator refuse."""

    def refuse(*_: object) -> None:
        raise VirtRaplError("not here")

    return lambda _, patch: patch.setattr(f"libvirt_rapl.lifecycle.live_plan.{name}", refuse)


def no_hook(mode: int) -> Callable[[Planned, pytest.MonkeyPatch], None]:
    return lambda *_: Path(paths.HOOK).chmod(mode)


def growable(planned: Planned, _: pytest.MonkeyPatch) -> None:
    planned.xml = planned.xml.replace("<vcpu>1", "<vcpu current='1'>2")


def not_probed(planned: Planned, _: pytest.MonkeyPatch) -> None:
    planned.probe_trouble = "no such binary"


def busy(planned: Planned, _: pytest.MonkeyPatch) -> None:
    planned.job = libvirt.VIR_DOMAIN_JOB_BOUNDED


def ordinary_user(_: Planned, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "geteuid", lambda: 1000)


def little_space(_: Planned, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(live_plan, "free_bytes", lambda _: (3 << 20) - 1)


def no_space(_: Planned, patch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(os, "fsync", full)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (ordinary_user, "takes root"),
        (refuses("check_host"), "not here"),
        (refuses("emulator.check"), "not here"),
        (growable, "can grow"),
        (no_hook(0o644), "no hook"),
        (not_probed, "no such binary"),
        (busy, "busy with it"),
        (little_space, "3 MiB of memory"),
        (no_space, "cannot write to"),
    ],
)
def test_what_would_go_wrong_is_seen_before_the_domain_is_touched(
    planned: Planned,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Planned, pytest.MonkeyPatch], None],
    message: str,
) -> None:
    trouble(planned, monkeypatch)
    with pytest.raises(VirtRaplError, match=message) as caught:
        live_plan.plan(domain(planned), planned.enable, registry)
    assert caught.value.hint or caught.value.message == "not here"
    assert not registry.path(UUID, "live").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (("active", ""), None),
        (("degraded", "no helper"), "without its meter: no helper"),
        (("off", ""), "not put in"),
        (("pending", ""), "not put in"),
    ],
)
def test_whether_it_has_its_meter_is_checked_when_it_runs_again(
    planned: Planned, registry: Registry, monkeypatch: pytest.MonkeyPatch, state: tuple[str, str], message: str | None
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(live, "lookup_uuid", lambda handle, _: domain(handle))
    monkeypatch.setattr(inventory, "read_run_state", lambda _: None)
    monkeypatch.setattr(live, "vrapl_state", lambda *_: state)
    expected = pytest.raises(VirtRaplError, match=message) if message else contextlib.nullcontext()
    with expected:
        live._check(domain(planned), registry)
    assert live.is_active(domain(planned), registry) == (message is None)


@pytest.mark.parametrize("swap", [0, 100])
def test_memory_that_is_swapped_out_counts(swap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"Name:\tqemu\nVmRSS:\t  1000 kB\nRssAnon:\t 900 kB\nVmSwap:\t {swap} kB\nHugetlbPages:\t 2048 kB\n"
    monkeypatch.setattr("libvirt_rapl.host.processes.read", lambda _: text)
    assert live_plan._used_bytes(1) == (3048 + swap) * 1024


def test_only_this_machines_libvirt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--connect", "test:///default", "enable", "--live", "test"]) == 1
    assert "this machine's own libvirt" in capsys.readouterr().err


# On real libvirt and KVM.


@pytest.fixture
def running(world: World, new_guest: NewGuest) -> str:
    """A guest without a meter, with something in its memory that no boot would put there."""
    name = new_guest(100)
    world.run(["virsh", "start", name])
    wait_until(lambda: world.readings(name), 30, "the guest runs")
    plant(world, name)
    return name


def plant(world: World, name: str) -> None:
    """Write the secret into the guest's memory, as a debugger would."""
    monitor(world, name, f"gdbserver unix:/mnt/{name}.gdb,server=on,wait=off")
    body = f"M{ADDRESS:x},4:{SECRET}"
    with socket.socket(socket.AF_UNIX) as debugger:
        debugger.connect(str(world.path(f"/mnt/{name}.gdb")))
        debugger.settimeout(10)
        for command, answer in ((body, b"$OK#9a"), ("D", b"$OK#9a")):
            debugger.sendall(f"+${command}#{sum(command.encode()) % 256:02x}".encode())
            received = b""
            while answer not in received:
                received += debugger.recv(100)
    monitor(world, name, "gdbserver none")
    assert remembers(world, name)


def remembers(world: World, name: str) -> bool:
    """Return whether the guest is the one that was started first."""
    line = monitor(world, name, f"xp /4xb {ADDRESS:#x}")
    return [word.removeprefix("0x") for word in line.partition(":")[2].split()] == [
        SECRET[place : place + 2] for place in range(0, 8, 2)
    ]


def monitor(world: World, name: str, command: str) -> str:
    return world.run(["virsh", "qemu-monitor-command", name, "--hmp", command]).stdout


def definition(world: World, name: str) -> str:
    return world.run(["virsh", "dumpxml", "--inactive", name]).stdout


def enable_live(world: World, name: str) -> tuple[int, str, str]:
    done = world.run(["virt-rapl", "enable", "--live", name], check=False)
    return done.returncode, done.stdout, done.stderr


def runs_on(world: World, name: str, lines: int) -> None:
    """See that the guest is the one that was started first, and prints."""
    wait_until(lambda: len(world.readings(name)) > lines, 30, "the guest goes on")
    assert world.run(["virsh", "domstate", name]).stdout.strip() == "running"
    assert remembers(world, name)
    assert list(world.path(SAVES).iterdir()) == []


@contextlib.contextmanager
def replaced(world: World, path: str, script: str) -> Iterator[None]:
    """Put a script in the place of a program."""
    original = world.path(path).rename(world.path(f"{path}.aside"))
    original.chmod(0o644)  # libvirt runs whatever it can in a directory of hooks
    try:
        world.path(path).write_text(f"#!/bin/sh\n{script}\n")
        world.path(path).chmod(0o755)
        yield
    finally:
        original.rename(world.path(path)).chmod(0o755)


@contextlib.contextmanager
def transient(world: World, name: str) -> Iterator[None]:
    """Take a domain's definition away for a while."""
    xml = definition(world, name)
    world.run(["virsh", "undefine", name])
    try:
        yield
    finally:
        world.run(["virsh", "define", "/dev/stdin"], input=xml)


e2e = pytest.mark.e2e


@e2e
def test_a_running_domain_gets_its_meter(world: World, running: str) -> None:
    world.run(["virsh", "autostart", running])
    snapshot = "<domainsnapshot><name>before</name><state>shutoff</state></domainsnapshot>"
    uuid = world.run(["virsh", "domuuid", running]).stdout
    world.path("/mnt/snapshot.xml").write_text(
        snapshot.replace("</state>", f"</state>{definition(world, running)}<creationTime>1</creationTime>")
    )
    world.run(["virsh", "snapshot-create", "--redefine", running, "/mnt/snapshot.xml"])
    before = definition(world, running)
    done = world.run(["virt-rapl", "enable", "--live", "--dry-run", running])
    assert "pauses for about" in done.stdout
    assert "+    <emulator>/usr/bin/qemu-system-x86_64-rapl</emulator>" in done.stdout
    assert definition(world, running) == before
    assert status(world, running)["vrapl"] == "off"

    code, said, trouble = enable_live(world, running)
    assert (code, trouble) == (0, "")
    assert f"{running}: pauses for about" in said
    assert f"{running}: has its meter; it paused for" in said
    wait_until(lambda: grows(world, running), 30, "the guest's counter moves")
    assert status(world, running)["vrapl"] == "active"
    runs_on(world, running, len(world.readings(running)))
    assert "urn:libvirt-rapl:mark:1" in definition(world, running)
    assert "Autostart:      enable" in world.run(["virsh", "dominfo", running]).stdout
    assert world.run(["virsh", "domuuid", running]).stdout == uuid
    assert world.run(["virsh", "snapshot-list", "--name", running]).stdout.split() == ["before"]
    world.run(["virsh", "snapshot-delete", "--metadata", running, "before"])
    assert enable_live(world, running) == (0, f"{running}: its meter is already active\n", "")
    world.run(["virt-rapl", "disable", running])
    assert definition(world, running) == before
    world.run(["virsh", "autostart", "--disable", running])
    world.run(["virsh", "destroy", running])
    assert run_files(world) == set()


@e2e
def test_a_paused_domain_stays_paused(world: World, running: str) -> None:
    world.run(["virsh", "suspend", running])
    assert enable_live(world, running)[0] == 0
    assert world.run(["virsh", "domstate", running]).stdout.strip() == "paused"
    world.run(["virsh", "resume", running])
    wait_until(lambda: grows(world, running), 30, "the guest's counter moves")
    runs_on(world, running, len(world.readings(running)))


@e2e
def test_a_transient_domain_gets_its_meter(world: World, running: str) -> None:
    with transient(world, running):
        assert enable_live(world, running)[0] == 0
        wait_until(lambda: grows(world, running), 30, "the guest's counter moves")
        runs_on(world, running, len(world.readings(running)))
        assert "Persistent:     no" in world.run(["virsh", "dominfo", running]).stdout


@e2e
def test_a_dead_helper_is_mended(world: World, new_guest: NewGuest) -> None:
    name = new_guest(100)
    start_enabled(world, name)
    wait_until(lambda: grows(world, name), 30, "the guest's counter moves")
    plant(world, name)
    world.kill(status(world, name)["helper"]["pid"])
    assert status(world, name)["vrapl"] == "degraded"
    lines = len(world.readings(name))
    assert enable_live(world, name)[0] == 0
    assert status(world, name)["vrapl"] == "active"
    wait_until(lambda: len({reading.energy for reading in world.readings(name)[lines:]}) > 2, 30, "it moves again")
    assert remembers(world, name)


@e2e
def test_a_domain_that_does_not_run(world: World, new_guest: NewGuest) -> None:
    code, said, trouble = enable_live(world, new_guest(0))
    assert (code, said) == (1, "")
    assert "the domain does not run" in trouble


@e2e
def test_a_domain_that_libvirt_cannot_save_runs_on(world: World, new_guest: NewGuest) -> None:
    name = new_guest(100)
    xml = definition(world, name)
    shared = "<shmem name='virt-rapl-test'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>"
    world.run(["virsh", "define", "/dev/stdin"], input=xml.replace("</devices>", f"{shared}</devices>"))
    before = definition(world, name)
    world.run(["virsh", "start", name])
    wait_until(lambda: world.readings(name), 30, "the guest runs")
    plant(world, name)
    lines = len(world.readings(name))
    code, _, trouble = enable_live(world, name)
    assert code == 1
    assert f"{name}: runs on as before, as libvirt did not save it" in trouble
    assert "shmem" in trouble
    runs_on(world, name, lines)
    assert definition(world, name) == before


@e2e
def test_too_little_space_is_seen_beforehand_and_survived(world: World, running: str) -> None:
    world.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=777", "small", SAVES])
    try:
        before, lines = definition(world, running), len(world.readings(running))
        code, said, trouble = enable_live(world, running)
        assert (code, said) == (1, "")
        assert f"{SAVES} has 8 MiB free" in trouble
        # And where the guest has more memory than seen beforehand: here it is not looked at.
        world.run(["sh", "-c", f"cat /dev/zero >{SAVES}/filler; truncate --size=-8K {SAVES}/filler"], check=False)
        blind = "live_plan._used_bytes = lambda _: 0; live_plan._bytes_per_second = lambda _: 1e9"
        imports = "from libvirt_rapl.lifecycle import live_plan; from libvirt_rapl.cli import main"
        command = f"{imports}; {blind}; raise SystemExit(main())"
        python = [sys.executable, "-I", "-c", command, "enable", "--live", running]
        done = world.run(python, check=False)
        assert done.returncode == 1
        assert f"{running}: runs on as before, as libvirt did not save it" in done.stderr
        world.path(f"{SAVES}/filler").unlink()
        runs_on(world, running, lines)
        assert definition(world, running) == before
    finally:
        world.run(["umount", "--lazy", SAVES])


@e2e
def test_without_the_hook_nothing_is_done(world: World, running: str) -> None:
    hook = world.path("/etc/libvirt/hooks/qemu.d/virt-rapl")
    hook.chmod(0o644)
    try:
        code, said, trouble = enable_live(world, running)
    finally:
        hook.chmod(0o755)
    assert (code, said) == (1, "")
    assert "there is no hook" in trouble
    assert status(world, running)["vrapl"] == "off"


@e2e
def test_a_hook_that_does_nothing(world: World, running: str) -> None:
    before = definition(world, running)
    with replaced(world, "/etc/libvirt/hooks/qemu.d/virt-rapl", "exit 0"):
        code, _, trouble = enable_live(world, running)
    assert code == 1
    assert f"{running}: runs on as before: its meter was not put in" in trouble
    runs_on(world, running, len(world.readings(running)))
    assert definition(world, running) == before


@e2e
@pytest.mark.usefixtures("default_configuration")
def test_a_broken_helper_costs_the_meter_and_not_the_domain(world: World, running: str) -> None:
    configure(world, helper="qemu")
    before = definition(world, running)
    with replaced(world, HELPER, "exit 1"):
        code, _, trouble = enable_live(world, running)
    assert code == 1
    assert f"{running}: runs on, without its meter: the helper ended" in trouble
    runs_on(world, running, len(world.readings(running)))
    assert status(world, running)["vrapl"] == "degraded"
    assert definition(world, running) == before
    assert enable_live(world, running)[0] == 0, "it works once the helper does"
    wait_until(lambda: grows(world, running), 30, "the guest's counter moves")
    assert remembers(world, running)


@e2e
@pytest.mark.usefixtures("default_configuration")
def test_where_no_domain_starts_without_its_meter_a_broken_helper_still_gives_it_back(
    world: World, running: str
) -> None:
    configure(world, helper="qemu", on_failure="refuse", domains=f"[{running}]")
    before = definition(world, running)
    with replaced(world, HELPER, "exit 1"):
        code, _, trouble = enable_live(world, running)
    assert code == 1
    assert f"{running}: runs on as before, as it could not be restored with its meter" in trouble
    assert "is not started without RAPL" in trouble
    runs_on(world, running, len(world.readings(running)))
    assert status(world, running)["vrapl"] == "off"
    assert definition(world, running) == before


@e2e
def test_a_qemu_that_does_not_start_with_it_starts_without(world: World, running: str) -> None:
    before = definition(world, running)
    broken = 'case " $* " in *" -incoming "*) echo no such luck >&2; exit 1 ;; esac; exec "${0%-rapl}" "$@"'
    with replaced(world, WRAPPER, broken):
        code, _, trouble = enable_live(world, running)
    assert code == 1
    assert f"{running}: runs on as before, as it could not be restored with its meter" in trouble
    assert "no such luck" in domain_log(world, running)
    runs_on(world, running, len(world.readings(running)))
    assert definition(world, running) == before
    assert run_files(world) == set()


@e2e
def test_a_domain_that_cannot_be_restored_is_kept(world: World, running: str) -> None:
    rom = world.path(f"/mnt/{running}.rom")
    aside = rom.rename(world.path(f"/mnt/{running}.aside"))
    try:
        code, _, trouble = enable_live(world, running)
    finally:
        aside.rename(rom)
    assert code == 1
    assert f"nothing is lost, it is saved in {SAVES}/{running}.save" in trouble
    assert f"`virsh start {running}`" in trouble
    assert world.run(["virsh", "domstate", running]).stdout.strip() == "shut off"
    world.run(["virsh", "start", running])
    runs_on(world, running, len(world.readings(running)))


def begin_to_save(world: World, running: str) -> tuple[int, "subprocess.Popen[str]", str]:
    """Start `enable --live` up to where libvirt saves the domain; return QEMU's PID, the command and its PID inside.

    QEMU stands still as the save begins, so that there is time for what may happen.
    """
    pid = status(world, running)["pid"]
    world.run(["sh", "-c", f"kill -STOP {pid}"])
    command = world.popen(["sh", "-c", 'echo $$; exec virt-rapl enable --live "$1" 2>&1', "sh", running])
    assert command.stdout is not None
    ours = command.stdout.readline().strip()
    assert "pauses for about" in command.stdout.readline()
    time.sleep(1)  # libvirt has begun to save, and waits for QEMU
    return pid, command, ours


@e2e
def test_ctrl_c_while_it_is_saved(world: World, running: str) -> None:
    pid, command, ours = begin_to_save(world, running)
    world.run(["sh", "-c", f"kill -INT {ours}"])
    world.run(["sh", "-c", f"kill -CONT {pid}"])
    said, _ = command.communicate(timeout=60)
    assert "cancelled" in said or command.returncode == 130, "cancelled, or too early or too late for that"
    runs_on(world, running, len(world.readings(running)))
    state = status(world, running)["vrapl"]
    assert state == ("active" if "urn:libvirt-rapl:mark:1" in definition(world, running) else "off")


@e2e
@pytest.mark.parametrize(("whom", "state"), [("us", "shut off"), ("libvirtd", "running")])
def test_killed_while_it_is_saved(world: World, running: str, whom: str, state: str) -> None:
    """Without us libvirt saves it to the end; a libvirt that comes back lets it go on."""
    pid, command, ours = begin_to_save(world, running)
    if whom == "us":
        world.run(["sh", "-c", f"kill -KILL {ours}"])
        world.run(["sh", "-c", f"kill -CONT {pid}"])
        command.communicate(timeout=60)
    else:
        world.stop_libvirtd("KILL")
        world.run(["sh", "-c", f"kill -CONT {pid}"])
        assert "libvirt was lost" in command.communicate(timeout=60)[0]
        world.start_libvirtd()
    wait_until(lambda: world.run(["virsh", "domstate", running]).stdout.strip() == state, 20, f"it is {state}")
    if state == "shut off":
        world.run(["virsh", "start", running])
    runs_on(world, running, len(world.readings(running)))


@e2e
def test_an_edit_made_meanwhile_is_kept(world: World, running: str) -> None:
    edited = definition(world, running).replace("</uuid>", "</uuid><title>edited</title>")
    pid = status(world, running)["pid"]
    world.run(["sh", "-c", f"kill -STOP {pid}"])
    command = world.popen(["virt-rapl", "enable", "--live", running])
    assert command.stdout is not None
    assert "pauses for about" in command.stdout.readline()
    world.run(["virsh", "define", "/dev/stdin"], input=edited)
    world.run(["sh", "-c", f"kill -CONT {pid}"])
    assert "has its meter" in command.communicate(timeout=60)[0]
    assert "<title>edited</title>" in definition(world, running)
    assert "urn:libvirt-rapl:mark:1" in definition(world, running)
    runs_on(world, running, len(world.readings(running)))


@e2e
def test_two_at_once_on_a_transient_domain(world: World, running: str) -> None:
    with transient(world, running):
        lines = len(world.readings(running))
        commands = [world.popen(["sh", "-c", 'virt-rapl enable --live "$1" 2>&1', "sh", running]) for _ in range(2)]
        said = sorted(command.communicate(timeout=60)[0] for command in commands)
        assert sum(f"{running}: has its meter" in words for words in said) == 1
        (other,) = [words for words in said if f"{running}: has its meter" not in words]
        assert "already active" in other or re.search(r"^virt-rapl: error: .+\nhint: .+$", other, re.MULTILINE), said
        assert "remove it" not in other, "that is what the first one restores it from"
        runs_on(world, running, lines)


@e2e
def test_a_domain_destroyed_while_it_is_restored_stays_off_and_saved(world: World, running: str) -> None:
    """The wrapper stands still, so that there is time for it."""
    with replaced(world, WRAPPER, 'case " $* " in *" -incoming "*) exec sleep 30 ;; esac; exec "${0%-rapl}" "$@"'):
        command = world.popen(["sh", "-c", 'exec virt-rapl enable --live "$1" 2>&1', "sh", running])
        assert command.stdout is not None
        assert "pauses for about" in command.stdout.readline()
        wait_until(lambda: "-incoming" in domain_log(world, running), 20, "it is restored")
        world.run(["virsh", "destroy", running], check=False)  # which may say that it is gone already
        assert f"{running}: was killed as it was restored" in command.communicate(timeout=60)[0]
    assert world.run(["virsh", "domstate", running]).stdout.strip() == "shut off"
    lines = len(world.readings(running))
    world.run(["virsh", "start", running])
    runs_on(world, running, lines)
