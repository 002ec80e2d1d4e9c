"""Domains that get registers although their definition stays as it is: what the hook does, and the policy leaves."""

import io
import re
import time
from pathlib import Path

import pytest

from libvirt_rapl import paths
from libvirt_rapl.choices import EnergySource, Via
from libvirt_rapl.config import Config
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.glance import Threads
from libvirt_rapl.domains.inventory import Entry
from libvirt_rapl.errors import NoRegistersError, VirtRaplError
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.lifecycle import as_it_is, chosen, events, hook, meter_state, policy, restoring
from libvirt_rapl.selection import Selection, Selector

UUID = "2b3c4d5e-6f70-4a81-92b3-c4d5e6f70819"
XML = """<domain type='kvm' id='3'>
  <name>instance-1</name>
  <uuid>{uuid}</uuid>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"/>
  </metadata>
  <memory unit='KiB'>65536</memory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
  </os>
  <devices>
    <emulator>{emulator}</emulator>
  </devices>
</domain>
"""
REAL = "/usr/bin/qemu-system-x86_64"
ALL = Selection((Selector("name", "*"),))


class Host:
    """A run directory, a default emulator, and what became of the helper."""

    def __init__(self, root: Path) -> None:
        self.run, self.config, self.default = root / "run", root / "virt-rapl.yaml", root / "qemu-system-x86_64"
        self.registry = Registry(self.run)
        self.helpers = 0
        self.trouble: Exception | None = None
        self.default.symlink_to(f"{REAL}-rapl")
        self.configure(domains="['instance-*']")

    def configure(self, **settings: str) -> None:
        lines = [f"{key}: {value}" for key, value in {"run_directory": str(self.run), **settings}.items()]
        self.config.write_text("\n".join(lines))

    def xml(self, path: str | None = None) -> str:
        return XML.format(uuid=UUID, emulator=path or self.default)

    def call(self, operation: str, xml: str | None = None) -> tuple[int, str, str]:
        output, said = io.StringIO(), io.StringIO()
        xml = self.xml() if xml is None else xml
        status = hook.main("instance-1", operation, io.StringIO(xml), output, said, self.config)
        return status, output.getvalue(), said.getvalue()

    def start(self, record: Record, registry: Registry, source: EnergySource, deadline: float) -> None:
        if self.trouble:
            raise self.trouble
        self.helpers += 1

    def stop(self, record: Record, registry: Registry) -> bool:
        found, self.helpers = bool(self.helpers), 0
        return found

    @property
    def record(self) -> Record | None:
        return self.registry.read(UUID)

    @property
    def last(self) -> tuple[str, str]:
        event = list(events.read(self.run))[-1]
        return event.result, event.reason


@pytest.fixture
def host(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(short_path)
    monkeypatch.setattr(emulator, "DEFAULT_WRAPPER", host.default)
    monkeypatch.setattr(emulator, "version", lambda _: "10.0.2")
    monkeypatch.setattr(instances, "start", host.start)
    monkeypatch.setattr(instances, "stop", host.stop)
    monkeypatch.setattr(instances, "alive", lambda _: True)
    monkeypatch.setattr(hook, "check_host", lambda: None)
    monkeypatch.setattr(hook, "WORDS", host.run)
    monkeypatch.setattr(restoring, "DEFINITIONS", short_path / "definitions")
    monkeypatch.setattr(hook, "running", lambda _: Threads(100, {0: 101}))
    monkeypatch.setattr(events, "JOURNAL", str(short_path / "none"))
    return host


def test_a_life(host: Host) -> None:
    assert host.call("start") == (0, "", "")
    word = host.registry.path(UUID, "state")
    assert word.read_text() == f"ready\n\n{host.registry.socket(UUID)}\n"
    assert host.call("started") == (0, "", "")
    assert word.read_text() == f"ready\n100\n{host.registry.socket(UUID)}\n"
    assert host.record
    assert (host.record.by_policy, host.record.pid) == (True, 100)
    assert host.call("reconnect") == (0, "", "")
    assert host.call("stopped") == (0, "", "")
    assert host.call("release") == (0, "", "")
    assert (host.helpers, {path.name for path in host.run.iterdir()} - {paths.REMEMBERED}) == (0, {paths.EVENTS})


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"domains": "[other]"}, None),
        ({"domains": "{include: ['*'], exclude: ['instance-1']}"}, None),
        ({"domains": "['*']", "via": "channel"}, None),
        ({"domains": "['*']"}, REAL),
        ({"domains": "["}, None),
        ({}, None),
    ],
    ids=["not chosen", "excluded", "channel", "another emulator", "broken configuration", "no domains"],
)
@pytest.mark.parametrize("on_failure", ["degrade", "refuse"])
def test_all_others_start_as_they_are(host: Host, settings: dict[str, str], path: str | None, on_failure: str) -> None:
    host.configure(**settings, on_failure=on_failure)
    assert host.call("start", host.xml(path)) == (0, "", "")
    assert (host.helpers, host.record) == (0, None)
    assert not host.registry.path(UUID, "state").exists()


def test_where_the_default_emulator_is_not_ours_nobody_gets_a_helper(host: Host) -> None:
    host.default.unlink()
    host.default.symlink_to(REAL)
    assert host.call("start") == (0, "", "")
    assert (host.run / paths.CHOSEN).exists(), "other domains need not wake Python"
    (host.run / paths.CHOSEN).unlink()
    host.default.unlink()
    host.default.touch()
    assert host.call("start") == (0, "", "")
    assert (host.helpers, list(host.run.iterdir())) == (0, [])


def growable(xml: str) -> str:
    return xml.replace("<vcpu placement='static'>2<", "<vcpu placement='static' current='1'>2<")


def own_argument(xml: str) -> str:
    arguments = "<q:arg value='-accel'/><q:arg value='kvm,rapl=true,rapl-helper-socket=/run/x.sock'/>"
    namespace = "xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'"
    return xml.replace("</domain>", f"<q:commandline {namespace}>{arguments}</q:commandline></domain>")


@pytest.mark.parametrize("edit", [growable, own_argument])
@pytest.mark.parametrize("on_failure", ["degrade", "refuse"])
def test_what_cannot_have_registers_is_left_alone(host: Host, edit: object, on_failure: str) -> None:
    host.configure(domains="['*']", on_failure=on_failure)
    host.call("start")  # a run before, of which libvirt's crash has left the word
    assert callable(edit)
    assert host.call("start", edit(host.xml())) == (0, "", "")
    assert (host.helpers, host.record, host.registry.path(UUID, "state").exists()) == (0, None, False)
    result, reason = host.last
    assert result == "unchanged"
    assert re.search("can grow|-accel argument of its own", reason)


@pytest.mark.parametrize("settings", [{"domains": "[other]"}, {"domains": "['*']", "via": "channel"}])
def test_the_word_of_an_earlier_run_is_gone_when_the_domain_is_not_chosen_any_more(
    host: Host, settings: dict[str, str]
) -> None:
    """As when libvirt was killed between the hook and QEMU."""
    host.call("start")
    host.configure(**settings)
    assert host.call("start") == (0, "", "")
    assert (host.helpers, host.record, host.registry.path(UUID, "state").exists()) == (0, None, False)


@pytest.mark.parametrize(
    ("on_failure", "status", "line"), [("degrade", 0, "degraded: no helper"), ("refuse", 1, "refuse")]
)
def test_a_helper_that_fails(host: Host, on_failure: str, status: int, line: str) -> None:
    host.configure(domains="['*']", on_failure=on_failure)
    host.trouble = VirtRaplError("no helper")
    assert host.call("start")[0] == status
    assert host.registry.path(UUID, "state").read_text().startswith(f"{line}\n")


@pytest.mark.parametrize("operation", ["restore", "migrate"])
def test_a_domain_that_comes_stays_as_it_is(host: Host, operation: str) -> None:
    assert host.call(operation) == (0, "", "")
    status, output, said = host.call(operation, host.xml(REAL))
    assert (status, said, Definition.parse(output).emulator()) == (0, "", str(host.default))
    assert output.replace('"', "'") == host.xml().replace('"', "'"), "nothing but the emulator of this host"
    host.configure(domains="[other]")
    assert host.call(operation, host.xml(REAL)) == (0, "", "")


def test_the_shell_part_learns_what_is_chosen(host: Host) -> None:
    noted = host.run / paths.CHOSEN
    host.call("start")
    assert not noted.exists(), "a domain that is chosen wakes Python anyway"
    host.configure(domains="[other]")
    before = time.time()
    host.call("start")
    assert noted.read_text() == "name other\n"
    assert before - chosen.MARGIN_SECONDS <= noted.stat().st_mtime <= time.time() - chosen.MARGIN_SECONDS
    assert noted.stat().st_mode & 0o777 == 0o600
    host.config.write_text("domains: [")
    noted.unlink()
    host.call("start")
    assert not noted.exists(), "nobody knows what is chosen"


@pytest.mark.parametrize("via", ["auto", "registers", "both"])
def test_the_policy_leaves_the_definition(host: Host, via: Via) -> None:
    definition = Definition.parse(host.xml())
    assert policy.wanted(definition, ALL, via, host.registry, lambda _: None) is None
    with pytest.raises(NoRegistersError, match="can grow"):
        policy.wanted(Definition.parse(growable(host.xml())), ALL, via, host.registry, lambda _: None)
    other = policy.wanted(Definition.parse(host.xml(REAL)), ALL, via, host.registry, lambda _: None)
    assert other
    assert other.has_registers


def test_who_has_chosen_the_channel_keeps_to_it(host: Host) -> None:
    definition = Definition.parse(host.xml()).with_channel()
    assert not as_it_is.is_chosen(definition, ALL, "auto")
    assert as_it_is.is_chosen(definition, ALL, "both")
    assert not as_it_is.is_chosen(Definition.parse(host.xml()), ALL, Config(via="channel").via)


@pytest.mark.parametrize(
    ("record_pid", "record_id", "pid", "number", "by_policy", "state"),
    [
        (100, None, 100, 3, True, "active"),
        (99, 3, 100, 3, True, "off"),
        (None, 3, 100, 3, True, "active"),
        (None, 2, 100, 3, True, "off"),
        (None, None, 100, None, True, "off"),
        (None, 3, None, 3, True, "off"),
        (100, 3, 100, 3, False, "off"),
        (None, 3, 100, 3, False, "off"),
    ],
)
def test_its_state(
    record_pid: int | None, record_id: int | None, pid: int | None, number: int | None, by_policy: bool, state: str
) -> None:
    """Its PID is recorded after its start, behind libvirt's back; until then its number shows whose record it is."""
    entry = Entry(name="a", uuid=UUID, id=number, state="running", pid=pid, mark=None)
    record = Record(
        uuid=UUID,
        name="a",
        backend="native",
        owner_uid=0,
        owner_gid=0,
        state="ready",
        pid=record_pid,
        id=record_id,
        by_policy=by_policy,
    )
    assert meter_state.state_with(entry, record, "") == (state, "")
    assert meter_state.by_policy(entry, record) == (state == "active")
    assert not meter_state.by_policy(entry, None)
    trouble = "its helper ended"
    assert meter_state.state_with(entry, record, trouble)[0] == ("degraded" if state == "active" else state)
