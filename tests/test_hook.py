"""What each operation of libvirt does, with the helper's process replaced by a stand-in."""

import fcntl
import io
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from lxml import etree

from libvirt_rapl import paths, start_settings
from libvirt_rapl.choices import EnergySource
from libvirt_rapl.cli import helper
from libvirt_rapl.domains import emulator, names, xml_parser
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.glance import Threads
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.lifecycle import events, hook, restoring

UUID = "12345678-1234-1234-1234-123456789abc"
PLAIN = f"""<domain type='kvm' id='3'>
  <name>web1</name>
  <uuid>{UUID}</uuid>
  <memory unit='KiB'>65536</memory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
  </devices>
  <seclabel type='dynamic' model='dac' relabel='yes'>
    <label>+64055:+993</label>
    <imagelabel>+64055:+993</imagelabel>
  </seclabel>
</domain>
"""


class Host:
    """A run directory and a configuration of the test's, and what became of the helper."""

    def __init__(self, root: Path) -> None:
        self.config = root / "virt-rapl.yaml"
        self.run = root / "run"
        self.definitions = root / "definitions"
        self.registry = Registry(self.run)
        self.socket = self.registry.socket(UUID)
        self.marked = Definition.parse(PLAIN).with_registers(socket=self.socket).xml
        self.trouble: Exception | None = None
        self.helpers = 0
        self.slow_seconds = 0.0
        self.alive = True
        self.deadlines: list[float] = []
        self.locked: list[bool] = []
        """Whether another process would have to wait for the domain, at each thing that was done to its helper."""
        self.configure()

    def configure(self, **settings: str) -> None:
        lines = [f"{key}: {value}" for key, value in {"run_directory": str(self.run), **settings}.items()]
        self.config.write_text("\n".join(lines))

    def start(self, record: Record, registry: Registry, source: EnergySource, deadline: float) -> None:
        time.sleep(self.slow_seconds)
        assert registry.read(record.uuid), "the record must be there before the helper reads it"
        self.deadlines.append(deadline)
        self.locked.append(self.is_locked())
        if self.trouble:
            raise self.trouble
        self.helpers += 1
        record.helper_pid, record.helper_start = 77, 7

    def stop(self, record: Record, registry: Registry) -> bool:
        self.locked.append(self.is_locked())
        found, self.helpers = bool(self.helpers), 0
        return found

    def is_alive(self, record: Record) -> bool:
        self.locked.append(self.is_locked())
        return self.alive

    def is_locked(self) -> bool:
        with self.registry.path(UUID, "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def call(self, operation: str, xml: str) -> tuple[int, str, str]:
        """Return exit status, output and what was said on stderr."""
        output, said = io.StringIO(), io.StringIO()
        status = hook.main("web1", operation, io.StringIO(xml), output, said, self.config)
        return status, output.getvalue(), said.getvalue()

    def events(self) -> list[events.Event]:
        return list(events.read(self.run))

    @property
    def record(self) -> Record:
        record = self.registry.read(UUID)
        assert record
        return record

    @property
    def line(self) -> str:
        """The word, without the socket."""
        *line, socket, end = self.registry.path(UUID, "state").read_text().split("\n")
        assert (socket, end) == (self.socket, "")
        return "\n".join(line).strip()


@pytest.fixture
def host(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(short_path)
    monkeypatch.setattr(instances, "start", host.start)
    monkeypatch.setattr(instances, "stop", host.stop)
    monkeypatch.setattr(instances, "alive", host.is_alive)
    monkeypatch.setattr(hook, "check_host", lambda: None)
    monkeypatch.setattr(hook, "WORDS", short_path / "words")
    monkeypatch.setattr(hook, "running", lambda _: Threads(100, {0: 101, 1: 102}))
    monkeypatch.setattr(emulator, "check", lambda _: None)
    monkeypatch.setattr(emulator, "version", lambda _: "10.0.2")
    monkeypatch.setattr(restoring, "DEFINITIONS", host.definitions)
    monkeypatch.setattr(events, "JOURNAL", str(short_path / "none"))
    return host


def test_a_life(host: Host) -> None:
    assert host.call("start", host.marked) == (0, "", "")
    assert host.line == "ready"
    assert (host.record.owner_uid, host.record.owner_gid, host.record.backend) == (64055, 993, "native")
    assert host.call("started", host.marked) == (0, "", "")
    assert (host.record.pid, host.record.vcpu_tids) == (100, {0: 101, 1: 102})
    assert host.record.qemu_version == "10.0.2"
    assert host.line == "ready\n100"
    assert host.call("reconnect", host.marked) == (0, "", "")
    assert host.line == "ready\n100"
    assert host.call("stopped", host.marked) == (0, "", "")
    assert host.helpers == 0
    assert host.call("release", host.marked) == (0, "", "")
    assert [path.name for path in host.run.iterdir()] == [paths.EVENTS]
    recorded = [(event.domain, event.uuid, event.operation, event.result) for event in host.events()]
    results = {"start": "ready", "started": "ready", "reconnect": "ready", "stopped": "ended", "release": "unchanged"}
    assert recorded == [("web1", UUID, operation, result) for operation, result in results.items()]


def test_a_started_that_comes_late_makes_no_record_of_a_domain_that_has_ended(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt does not wait for it: `stopped` may have been quicker."""
    host.call("start", host.marked)
    host.call("stopped", host.marked)
    monkeypatch.setattr(hook, "running", lambda _: None)
    assert host.call("started", host.marked) == (0, "", "")
    assert [path.name for path in host.run.iterdir()] == [paths.EVENTS]
    assert host.events()[-1].result == "unchanged"


def test_a_started_that_comes_late_says_nothing_of_the_run_that_has_begun_since(host: Host) -> None:
    host.call("start", host.marked)
    assert host.call("started", host.marked.replace('id="3"', 'id="2"')) == (0, "", "")
    assert (host.record.id, host.record.pid, host.line) == (3, None, "ready")
    assert host.events()[-1].result == "unchanged"


def test_two_processes_do_not_change_a_domain_at_once(host: Host) -> None:
    """As when libvirt is killed during a hook, and started again."""
    for operation in ("start", "started", "reconnect", "stopped"):
        host.locked.clear()
        host.call(operation, host.marked)
        assert set(host.locked) == {True}, operation
    host.registry.create_directory()
    assert not host.is_locked()


@pytest.mark.parametrize("operation", ["start", "started", "reconnect", "stopped", "release", "restore", "migrate"])
def test_no_alarm_is_left_after_an_operation(host: Host, operation: str) -> None:
    for trouble in (None, RuntimeError("a bug")):
        host.trouble = trouble
        before = signal.getsignal(signal.SIGALRM)
        host.call(operation, host.marked)
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        assert signal.getsignal(signal.SIGALRM) is before


def test_a_helper_must_answer_while_there_is_time_left_to_record_that_it_did_not(host: Host) -> None:
    host.configure(hook_deadline="4")
    host.call("start", host.marked)
    assert host.deadlines == [pytest.approx(3.6)]


def test_nothing_of_an_earlier_run_is_believed_at_a_start(host: Host) -> None:
    """A crash of the host or of libvirt leaves what the hook recorded of it."""
    before = host.marked.replace("id='3'", "id='2'").replace('id="3"', 'id="2"')
    host.call("start", before)
    host.call("started", before)
    assert (host.record.id, host.line) == (2, "ready\n100")
    host.call("start", host.marked)
    assert (host.record.id, host.record.pid, host.record.vcpu_tids, host.line) == (3, None, {}, "ready")


@pytest.mark.parametrize("left", ["ready", "refuse"])
def test_a_full_disk_leaves_the_wrapper_no_word_of_an_earlier_run(
    host: Host, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    host.call("start", host.marked)
    host.registry.path(UUID, "state").write_text(f"{left}\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Registry, "write", full)
    status, _, said = host.call("start", host.marked)
    assert (status, host.helpers) == (0, 0)
    assert "No space left" in said
    assert not host.registry.path(UUID, "state").exists()


def test_a_host_on_which_qemu_would_not_start_with_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise VirtRaplError("RAPL is not enabled")

    monkeypatch.setattr(hook, "check_host", refuse)
    assert host.call("start", host.marked)[0] == 0
    assert (host.line, host.helpers) == ("degraded: RAPL is not enabled", 0)


@pytest.mark.parametrize("operation", ["started", "reconnect", "stopped", "release"])
def test_a_refused_start_kills_no_domain_that_runs_all_the_same(host: Host, operation: str) -> None:
    """The wrapper may have been a person's, or the configuration another one, when it was started."""
    host.configure(on_failure="refuse")
    host.trouble = VirtRaplError("no helper binary")
    assert host.call("start", host.marked)[0] == 1
    assert host.call(operation, host.marked)[0] == 0


MARK_IN_TEXT = [
    f"<title>{names.MARK}</title>",
    f"<metadata><a:b xmlns:a='urn:a' xmlns:rapl='{names.MARK}'>rapl:rapl</a:b></metadata>",
    f"<metadata><a:b xmlns:a='urn:a'><rapl:rapl xmlns:rapl='{names.MARK}'/></a:b></metadata>",
    f"<metadata><a:b xmlns:a='urn:a'><![CDATA[<rapl:rapl xmlns:rapl='{names.MARK}'/>]]></a:b></metadata>",
]


@pytest.mark.parametrize("text", MARK_IN_TEXT)
def test_what_only_looks_like_the_mark_is_none(host: Host, text: str) -> None:
    """The guard wakes us for it, to be on the safe side."""
    host.configure(on_failure="refuse")
    fake = PLAIN.replace("  <memory", f"  {text}\n  <memory")
    for operation in ("start", "started", "reconnect", "stopped", "release"):
        assert host.call(operation, fake) == (0, "", "")
    assert not host.run.exists() or not list(host.run.glob("*.json"))
    assert host.events() == []


@pytest.mark.parametrize("operation", ["started", "reconnect", "stopped"])
def test_a_mark_taken_out_while_the_domain_runs_changes_nothing(host: Host, operation: str) -> None:
    host.call("start", host.marked)
    assert host.call(operation, PLAIN) == (0, "", "")
    assert host.events()[-1].result == ("ended" if operation == "stopped" else "ready")


@pytest.mark.parametrize(("policy", "status"), [("degrade", 0), ("refuse", 1)])
def test_a_definition_that_cannot_be_read(host: Host, policy: str, status: int) -> None:
    """Whether the mark is in it is unknown: with `on_failure: refuse` the domain does not start."""
    host.configure(on_failure=policy)
    deep = host.marked.replace("<metadata>", "<metadata>" + "<a>" * 300 + "</a>" * 300)
    got, output, said = host.call("start", deep)
    assert (got, output, said.count("\n")) == (status, "", 1)


class Unread(io.StringIO):
    """What libvirt, which has been killed, does not read any more."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize(("policy", "status"), [("degrade", 0), ("refuse", 1)])
def test_who_reads_the_message_does_not_matter(host: Host, policy: str, status: int) -> None:
    host.configure(on_failure=policy)
    host.trouble = VirtRaplError("no helper binary")
    arguments = (io.StringIO(host.marked), io.StringIO(), Unread(), host.config)
    assert hook.main("web1", "start", *arguments) == status
    assert host.record.reason == "no helper binary"


def test_the_exit_status_does_not_depend_on_who_reads_the_message(host: Host) -> None:
    """Python itself would end with 120, which is taken for a failure of ours: the domain would start."""
    host.configure(on_failure="refuse")
    program = (
        "import runpy, sys; from pathlib import Path; from libvirt_rapl import paths\n"
        "from libvirt_rapl.lifecycle import events\n"
        "paths.CONFIGURATION, events.JOURNAL = sys.argv.pop(1), '/nowhere'\n"
        "runpy.run_module('libvirt_rapl.lifecycle.hook', run_name='__main__')"
    )
    deep = host.marked.replace("<metadata>", "<metadata>" + "<a>" * 300 + "</a>" * 300)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-I", "-c", program, str(host.config), "web1", "start"]
    try:
        done = subprocess.run(command, input=deep, text=True, stdout=subprocess.PIPE, stderr=writer, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stdout) == (1, "")
    assert host.events()[-1].result == "refuse"


def test_a_message_is_one_line_whatever_the_domain_is_called(host: Host) -> None:
    said = io.StringIO()
    hook.main("we\x1b[1mb\n1", "start", io.StringIO(""), io.StringIO(), said, host.config)
    assert said.getvalue()[:-1].isprintable()


@pytest.mark.parametrize(
    "trouble", [VirtRaplError("no helper binary"), OSError(28, "No space left on device"), RuntimeError("a bug")]
)
@pytest.mark.parametrize(("policy", "status", "line"), [("degrade", 0, "degraded: "), ("refuse", 1, "refuse")])
def test_trouble_at_start(host: Host, trouble: Exception, policy: str, status: int, line: str) -> None:
    host.configure(on_failure=policy)
    host.trouble = trouble
    got, output, said = host.call("start", host.marked)
    assert (got, output) == (status, "")
    assert said.count("\n") == 1
    assert str(trouble) in said
    assert host.line.startswith(line)
    assert host.record.reason == str(trouble)
    (event,) = host.events()
    assert (event.operation, event.result, event.reason) == ("start", line.rstrip(": "), str(trouble))


def test_a_mistake_of_ours_leaves_a_traceback_for_who_debugs(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "")  # nothing goes to the system's log
    for trouble, setting, logged in (
        (RuntimeError("a bug"), "", False),
        (RuntimeError("a bug"), "1", True),
        (VirtRaplError("no helper binary"), "1", False),
    ):
        monkeypatch.setenv("VIRT_RAPL_DEBUG", setting)
        host.trouble = trouble
        _, _, said = host.call("start", host.marked)
        assert said == f"virt-rapl: web1 starts without RAPL: {trouble}\n"
        assert ("Traceback" in capsys.readouterr().err) == logged


@pytest.mark.parametrize(("policy", "status", "line"), [("degrade", 0, "degraded: "), ("refuse", 1, "refuse")])
def test_whatever_hangs_at_start_is_ended_by_the_deadline(host: Host, policy: str, status: int, line: str) -> None:
    host.configure(on_failure=policy, hook_deadline="1")
    host.slow_seconds = 60
    assert host.call("start", host.marked)[0] == status
    assert host.line.startswith(line)
    assert host.record.reason == "not done within 1 s"


@pytest.mark.parametrize("operation", ["restore", "migrate", "started", "reconnect", "stopped"])
def test_whatever_hangs_later_is_ended_by_the_deadline(
    host: Host, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: object) -> None:
        time.sleep(60)

    host.call("start", host.marked)
    host.configure(hook_deadline="1")
    monkeypatch.setattr(emulator, "check", hangs)
    monkeypatch.setattr(hook, "running", hangs)
    monkeypatch.setattr(instances, "stop", hangs)
    status, output, said = host.call(operation, socket_of_another(host.marked))
    assert (status, output) == (0, "")
    assert said == f"virt-rapl: {operation} of web1: not done within 1 s\n"
    assert (host.events()[-1].result, host.events()[-1].reason) == ("failed", "not done within 1 s")


def test_a_qemu_that_hangs_as_it_is_asked_for_its_version_costs_only_that(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.call("start", host.marked)
    host.configure(hook_deadline="1")
    monkeypatch.setattr(emulator, "version", lambda _: time.sleep(60))
    assert host.call("started", host.marked)[0] == 0
    assert (host.record.state, host.record.pid, host.record.qemu_version) == ("ready", 100, "")
    assert host.line == "ready\n100"


def test_a_helper_that_comes_late_sees_that_nobody_waits(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd's job, when systemd itself is slow: the hook has given up, and the domain runs without."""
    reasons = []
    monkeypatch.setattr(instances, "stop", lambda *_: reasons.append(host.record.reason))
    host.trouble = VirtRaplError("timed out")
    host.call("start", host.marked)
    assert reasons == ["timed out"]
    with pytest.raises(VirtRaplError, match="web1 was started without its helper: timed out"):
        helper.run(Namespace(config=host.config, uuid=UUID))
    host.trouble = None
    at_start = []
    monkeypatch.setattr(instances, "start", lambda *_: at_start.append(host.record.reason))
    host.call("start", host.marked)
    assert at_start == [""]


def with_defaults_here(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the default run directory be that of the test."""
    defaults = start_settings.defaults
    monkeypatch.setattr(start_settings, "defaults", lambda path: defaults(path)._replace(run_directory=host.run))


def test_a_configuration_that_cannot_be_read_degrades(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with_defaults_here(host, monkeypatch)
    host.config.write_text("helper: [")
    status, _, said = host.call("start", host.marked)
    assert status == 0
    assert "not valid YAML" in said


def test_a_configuration_that_everybody_can_write_keeps_no_domain_from_starting(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_defaults_here(host, monkeypatch)
    host.configure(on_failure="refuse")
    host.config.chmod(0o666)
    status, _, said = host.call("start", host.marked)
    assert status == 0
    assert "is not used: everybody may write it" in said
    assert host.line.startswith("degraded: ")
    assert host.helpers == 0


def test_a_domain_that_has_become_growable_starts_without(host: Host) -> None:
    growable = host.marked.replace("<vcpu placement='static'>2", "<vcpu placement='static' current='1'>2").replace(
        '<vcpu placement="static">2', '<vcpu placement="static" current="1">2'
    )
    assert growable != host.marked
    assert host.call("start", growable)[0] == 0
    assert host.line.startswith("degraded: the domain's number of vCPUs can grow")
    assert host.helpers == 0


def edited_emulator(xml: str) -> str:
    return xml.replace("qemu-system-x86_64-rapl<", "qemu-system-x86_64<")


def socket_of_another(xml: str) -> str:
    return xml.replace(f"{UUID}.sock", "87654321-1234-1234-1234-123456789abc.sock")


@pytest.mark.parametrize(("policy", "status", "line"), [("degrade", 0, "degraded: its "), ("refuse", 1, "refuse")])
def test_a_meter_that_would_not_take_effect(host: Host, policy: str, status: int, line: str) -> None:
    host.configure(on_failure=policy)
    assert edited_emulator(host.marked) != host.marked
    assert host.call("start", edited_emulator(host.marked))[0] == status
    assert host.line.startswith(line)
    assert host.helpers == 0


def without_argument(xml: str) -> str:
    return re.sub("<qemu:commandline.*</qemu:commandline>", "", xml, flags=re.DOTALL)


@pytest.mark.parametrize("edit", [socket_of_another, without_argument])
def test_the_argument_does_not_matter_where_there_is_the_word(host: Host, edit: Callable[[str], str]) -> None:
    """A clone has that of another domain, an image of a host that of another run directory."""
    assert edit(host.marked) != host.marked
    assert host.call("start", edit(host.marked)) == (0, "", "")
    assert (host.line, host.helpers) == ("ready", 1)


def test_the_word_is_where_the_wrapper_looks(host: Host) -> None:
    """Whatever the run directory is; and only while the domain is there."""
    word = hook.WORDS / f"{UUID}.state"
    host.call("start", host.marked)
    assert word.read_text() == f"ready\n\n{host.socket}\n"
    assert word.stat().st_mode & 0o777 == 0o644
    host.call("started", host.marked)
    assert word.read_text() == f"ready\n100\n{host.socket}\n"
    host.call("stopped", host.marked)
    assert not word.exists()
    host.trouble = VirtRaplError("no helper binary")
    host.call("start", host.marked)
    assert word.read_text() == f"degraded: no helper binary\n\n{host.socket}\n"


@pytest.mark.parametrize(("policy", "status"), [("degrade", 0), ("refuse", 1)])
def test_a_run_directory_that_is_none(host: Host, policy: str, status: int) -> None:
    host.configure(on_failure=policy)
    host.run.touch()
    got, _, said = host.call("start", host.marked)
    assert got == status
    assert str(host.run) in said


def test_refuse_holds_where_another_key_is_wrong(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with_defaults_here(host, monkeypatch)
    host.configure(on_failure="refuse", source="nope")
    status, _, said = host.call("start", host.marked)
    assert status == 1
    assert "source: expected one of" in said


@pytest.mark.parametrize("operation", ["started", "stopped", "release", "reconnect", "restore", "migrate"])
def test_no_failure_of_ours_reaches_libvirt(host: Host, operation: str) -> None:
    for xml in ("", "<domain>", "\x00"):
        status, output, said = host.call(operation, xml)
        assert (status, output) == (0, "")
        assert said.count("\n") == 1
        assert "Traceback" not in said


def test_reconnect_reports_a_helper_that_died(host: Host) -> None:
    host.call("start", host.marked)
    host.alive = False
    sign_of_life = host.run / f"{host.record.uuid}.alive"
    sign_of_life.touch()
    os.utime(sign_of_life, (1_700_000_000, 1_700_000_000))
    assert host.call("reconnect", host.marked)[0] == 0
    assert host.record.state == "degraded"
    assert "its helper ended" in host.record.reason
    assert host.record.since == 1_700_000_000


def test_reconnect_makes_a_lost_record_anew(host: Host) -> None:
    host.call("reconnect", host.marked)
    assert (host.record.state, host.record.reason, host.record.pid) == ("degraded", instances.UNRECORDED, 100)


def test_a_helper_outlives_its_record_but_not_its_domain(host: Host) -> None:
    host.call("start", host.marked)
    host.registry.path(UUID, "json").unlink()
    host.call("stopped", host.marked)
    assert host.helpers == 0
    assert host.events()[-1].result == "ended"


def test_a_run_directory_changed_while_the_domain_runs(host: Host) -> None:
    """What was started beside the old one is followed and ended there; the next start finds no word that was left."""
    host.call("start", host.marked)
    host.configure(run_directory=f"{host.run}-elsewhere")
    host.call("reconnect", host.marked)
    assert (host.record.state, host.record.pid) == ("ready", 100)
    host.call("stopped", host.marked)
    assert [path.name for path in host.run.iterdir()] == [paths.EVENTS]
    assert host.helpers == 0
    host.registry.path(UUID, "state").write_text("ready\n")  # a crash may leave it
    assert host.call("start", host.marked)[0] == 0
    assert not host.registry.path(UUID, "state").exists()
    record = Registry(Path(f"{host.run}-elsewhere")).read(UUID)
    assert record
    assert (record.state, host.helpers) == ("ready", 1)


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory away")
@pytest.mark.parametrize("policy", ["degrade", "refuse"])
def test_a_run_directory_of_somebody_else_has_no_say(host: Host, policy: str) -> None:
    """Not as the configured one, and not as that beside the socket which the XML names."""
    host.call("start", host.marked)
    os.chown(host.run, 4321, 4321)
    before = {path.name: path.read_text() for path in host.run.iterdir()}
    host.configure(on_failure=policy)
    status, _, said = host.call("start", host.marked)
    assert (status, said.count("\n")) == (int(policy == "refuse"), 1)
    assert f"{host.run}: it belongs to user 4321" in said
    host.configure(run_directory=f"{host.run}-elsewhere", on_failure=policy)
    for operation in ("reconnect", "stopped", "release"):
        assert host.call(operation, host.marked)[0] == 0
    assert {path.name: path.read_text() for path in host.run.iterdir()} == before
    assert not list(Path(f"{host.run}-elsewhere").glob("*.json"))


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory away")
def test_where_the_run_directory_is_not_ours_the_wrapper_finds_a_word_elsewhere(host: Host) -> None:
    """The user who made the directory may have put a record into it."""
    host.run.mkdir()
    os.chown(host.run, 4321, 4321)
    host.call("start", host.marked)
    word = hook.WORDS / f"{UUID}.state"
    assert word.read_text().startswith("degraded: ")
    assert word.stat().st_mode & 0o777 == 0o644
    os.chown(host.run, 0, 0)
    host.run.chmod(0o711)
    host.call("start", host.marked)
    assert (host.line, word.read_text().split("\n")[0]) == ("ready", "ready")


@pytest.mark.parametrize("name", ["http://café.example/ns", "urn:a b", "http://ex.com/{id}"])
def test_a_foreign_namespace_that_is_no_uri_harms_nobody(host: Host, name: str) -> None:
    """libvirt takes it."""
    xml = host.marked.replace("<metadata>", f"<metadata><x:y xmlns:x='{name}'/>")
    assert xml != host.marked
    for operation, result in (("start", "ready"), ("started", "ready"), ("stopped", "ended")):
        assert host.call(operation, xml) == (0, "", "")
        assert host.events()[-1].result == result
    assert host.helpers == 0


def test_a_domain_whose_xml_was_made_unreadable_while_it_ran_leaves_no_helper(host: Host) -> None:
    """As metadata with a namespace of `a<b` does."""
    host.call("start", host.marked)
    xml = host.marked.replace("<metadata>", "<metadata><x:y xmlns:x='a<b'/>")
    assert host.call("started", xml)[0] == 0
    assert host.record.pid == 100
    assert host.call("stopped", xml)[0] == 0
    assert host.helpers == 0
    assert [path.name for path in host.run.iterdir()] == [paths.EVENTS]


@pytest.mark.parametrize("mode", [0o711, 0o755])
def test_xml_may_name_a_directory_that_is_none_of_ours(host: Host, mode: int) -> None:
    host.call("start", host.marked)
    (host.run / "something").touch()
    host.run.chmod(mode)
    host.configure(run_directory=f"{host.run}-elsewhere")
    for operation in ("reconnect", "stopped", "release", "start"):
        assert host.call(operation, host.marked)[0] == 0
    assert (host.record.state, host.line) == ("ready", "ready")
    assert host.run.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("operation", ["restore", "migrate"])
def test_of_a_domain_that_nobody_has_asked_for_nothing_is_kept(host: Host, operation: str) -> None:
    host.call(operation, PLAIN)
    assert [path.name for path in host.run.iterdir()] == [paths.EVENTS]


@pytest.mark.parametrize("operation", ["restore", "migrate"])
def test_filters(host: Host, operation: str) -> None:
    assert host.call(operation, PLAIN) == (0, "", ""), "nobody has asked for this domain"
    elsewhere = Definition.parse(PLAIN).with_registers(socket=f"/run/elsewhere/{UUID}.sock").xml
    assert host.call(operation, elsewhere)[1] == host.marked
    assert host.call(operation, host.marked) == (0, "", ""), "already as it shall be"
    host.configure(domains="[web*]")
    assert host.call(operation, PLAIN)[1] == host.marked
    assert [event.result for event in host.events()] == ["unchanged", "injected", "unchanged", "injected"]


@pytest.mark.parametrize("operation", ["restore", "migrate"])
def test_filters_choose_by_what_nova_writes(host: Host, operation: str) -> None:
    instance = (Path(__file__).parent / "data/nova.xml").read_text(encoding="utf-8")
    for flavor, result in (("c2.small", "unchanged"), ("c2.large", "injected")):
        host.configure(domains=f"[nova.flavor: {flavor}]")
        status, printed, _ = host.call(operation, instance)
        assert (status, "rapl=true" in printed, host.events()[-1].result) == (0, result == "injected", result)


def own_emulator(xml: str) -> str:
    return xml.replace("qemu-system-x86_64<", "qemu-system-x86_64-rapl<")


def own_argument(xml: str) -> str:
    values = ("-accel", names.ACCELERATOR + f"/run/mine/{UUID}.sock")
    arguments = "".join(f"<q:arg value='{value}'/>" for value in values)
    return xml.replace("</domain>", f"<q:commandline xmlns:q='{names.QEMU}'>{arguments}</q:commandline></domain>")


@pytest.mark.parametrize("own", [own_emulator, own_argument])
@pytest.mark.parametrize("domains", ["[]", "[web*]"])
def test_what_carries_no_mark_arrives_as_it_was_sent(host: Host, own: Callable[[str], str], domains: str) -> None:
    host.configure(domains=domains)
    assert own(PLAIN) != PLAIN
    assert host.call("migrate", own(PLAIN)) == (0, "", "")


def test_a_domain_enabled_while_it_ran_has_it_after_a_restore(host: Host) -> None:
    host.definitions.mkdir()
    (host.definitions / "web1.xml").write_text(host.marked)
    assert host.call("restore", PLAIN)[1] == host.marked


@pytest.mark.parametrize("operation", ["prepare", "start", "started", "stopped", "release", "reconnect"])
def test_a_domain_with_the_channel_alone_has_no_helper(host: Host, operation: str) -> None:
    assert host.call(operation, Definition.parse(PLAIN).with_channel().xml) == (0, "", "")
    assert (host.helpers, host.events()) == (0, [])


def test_the_channel_stays_as_it_is_when_a_domain_arrives(host: Host) -> None:
    channel = Definition.parse(PLAIN).with_channel()
    assert host.call("migrate", channel.xml) == (0, "", "")
    host.configure(domains="[web*]", via="channel")
    assert host.call("migrate", PLAIN) == (0, "", ""), "a device cannot come on the way"
    host.configure(domains="[web*]")
    assert host.call("migrate", channel.xml) == (0, "", ""), "its owner has chosen the channel"
    with_both = channel.with_registers(socket=host.socket)
    elsewhere = channel.with_registers(socket=f"/run/elsewhere/{UUID}.sock")
    assert host.call("restore", elsewhere.xml)[1] == with_both.xml
    with host.registry.switching_on(UUID) as instruct:
        instruct("without")
        without = Definition.parse(host.call("restore", with_both.xml)[1])
    assert (without.has_registers, without.channel_is_ours) == (False, True)


def test_enable_live_says_how_a_domain_is_restored(host: Host) -> None:
    with host.registry.switching_on(UUID) as instruct:
        assert host.call("restore", PLAIN)[1] == "", "it only looks yet"
        instruct("with")
        assert host.call("restore", PLAIN)[1] == host.marked
        host.configure(domains="[web*]")
        instruct("without")
        assert host.call("restore", PLAIN)[1] == ""
        assert not Definition.parse(host.call("restore", host.marked)[1]).is_marked
        instruct("with")
        host.configure(domains="[]")
        assert host.call("restore", PLAIN)[1] == host.marked
    assert host.call("restore", PLAIN)[1] == ""
    assert not host.registry.path(UUID, "live").exists()


def test_the_end_of_a_domain_takes_away_what_a_killed_enable_live_left_and_no_more(host: Host) -> None:
    left = host.registry.path(UUID, "live")
    host.call("start", host.marked)
    with host.registry.switching_on(UUID):
        host.call("stopped", host.marked)
        assert left.exists()
    left.write_text("without")
    host.call("release", host.marked)
    assert not left.exists()


@pytest.mark.parametrize("how", ["with", "without"])
def test_what_a_killed_enable_live_said_rules_nothing(host: Host, how: str) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from libvirt_rapl.helper.records import Registry\n"
        f"with Registry(Path({str(host.run)!r})).switching_on({UUID!r}) as instruct:\n"
        f"    instruct({how!r}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert host.registry.path(UUID, "live").read_text().strip() == how
    wanted = PLAIN if how == "with" else socket_of_another(host.marked)
    output = "" if how == "with" else host.marked
    assert host.call("restore", wanted)[1] == output
    assert not host.registry.path(UUID, "live").exists(), "it is gone with the first who looks"
    with host.registry.switching_on(UUID):
        pass


def test_a_host_that_cannot_takes_the_meter_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old(_: str) -> None:
        raise VirtRaplError("QEMU 8.2 is too old")

    monkeypatch.setattr(emulator, "check", too_old)
    assert Definition.parse(host.marked).is_marked
    assert (
        host.call("migrate", host.marked)[1] == PLAIN.strip()
        or not Definition.parse(host.call("migrate", host.marked)[1]).is_marked
    )
    assert {(event.result, event.reason) for event in host.events()} == {("stripped", "QEMU 8.2 is too old")}


@pytest.mark.parametrize(
    ("label", "owner"),
    [
        ("+64055:+993", (64055, 993)),
        ("64055:993", (64055, 993)),
        ("root:daemon", (0, 1)),
        ("root", (0, 0)),
        ("sync", (4, 65534)),
        ("+4", (4, 65534)),
    ],
)
def test_labels(label: str, owner: tuple[int, int]) -> None:
    assert hook._owner(label) == owner


def test_no_label_is_libvirts_own_user() -> None:
    assert hook._owner(None) == (os.getuid(), os.getgid())


@pytest.mark.parametrize("operation", ["restore", "migrate", "start", "started", "reconnect", "stopped", "release"])
def test_the_xml_of_a_domain_is_parsed_once_and_by_lxml_only_to_be_changed(
    host: Host, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.call("start", host.marked)
    parsed = []

    def counting(text: bytes) -> etree._Element:
        parsed.append(text.decode())
        return xml_parser.parse(text)

    monkeypatch.setattr("libvirt_rapl.domains.definition.parse", counting)
    assert host.call(operation, host.marked)[0] == 0
    assert parsed == ([host.marked] if operation in ("restore", "migrate") else [])


def test_what_libvirt_spells_in_its_own_way_needs_no_change(host: Host) -> None:
    """A domain whose XML a hook has changed is tainted."""
    spelt = host.marked.replace('"', "'")
    assert spelt != host.marked
    assert host.call("restore", spelt) == (0, "", "")
