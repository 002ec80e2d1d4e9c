"""The daemon's list of domains: libvirt's events, libvirt lost and found again, and life without it."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import libvirt
import pytest
from fakes.host import Host, Thread, stat, write
from walking import wait_until

from libvirt_rapl.domains import connection, inventory, run_files
from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import every_domain
from libvirt_rapl.domains.inventory import Entry, Inventory, Mark
from libvirt_rapl.domains.run_files import RunState
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.labels import Labels

UUID = "aaaaaaaa-0000-0000-0000-00000000000{}"


def plain(number: int) -> str:
    return f"<domain type='kvm'><name>vm{number}</name><uuid>{UUID.format(number)}</uuid></domain>"


def marked(number: int) -> str:
    return Definition.parse(plain(number)).with_registers(socket=f"/run/virt-rapl/{UUID.format(number)}.sock").xml


def failure(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("refused")
    error.err = (code, 0, "refused")
    return error


class FakeDomain:
    """A libvirt domain that runs unless it has no number."""

    def __init__(self, number: int, xml: str, live: str = "", *, running: bool = True) -> None:
        self.number, self.inactive, self.live, self.running = number, xml, live or xml, running

    def ID(self) -> int:  # noqa: N802
        return self.number if self.running else -1

    def name(self) -> str:
        return f"vm{self.number}"

    def UUIDString(self) -> str:  # noqa: N802
        return UUID.format(self.number)

    def state(self) -> list[int]:
        return [libvirt.VIR_DOMAIN_RUNNING if self.running else libvirt.VIR_DOMAIN_SHUTOFF, 0]

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return self.inactive if flags & libvirt.VIR_DOMAIN_XML_INACTIVE else self.live


class FakeLibvirt:
    """A libvirt that a test changes, loses and brings back; it is its own connection."""

    def __init__(self) -> None:
        self.domains: dict[str, FakeDomain] = {}
        self.there = True
        self.opened: list[bool] = []
        self.closed = self.subscribed = self.losses = 0
        self.changed: Callable[..., None] = lambda *_: None
        self.lost: Callable[..., None] = lambda *_: None

    def open(self, uri: str, *, read_only: bool) -> "FakeLibvirt":
        if not self.there:
            raise VirtRaplError(f"no libvirt at {uri}")
        self.opened.append(read_only)
        return self

    def set(self, domain: FakeDomain) -> None:
        self.domains[domain.UUIDString()] = domain
        self.changed(self, domain, 0, 0, None)

    def remove(self, domain: FakeDomain) -> None:
        del self.domains[domain.UUIDString()]
        self.changed(self, domain, 0, 0, None)

    def is_followed(self) -> bool:
        """Whether the thread has come to rest: it has subscribed once more than it lost us."""
        return self.subscribed > self.losses

    def lose(self) -> None:
        self.there = False
        self.losses += 1
        self.lost(self, 0, None)

    def domainEventRegisterAny(self, _: None, event: int, callback: Callable[..., None], __: None) -> int:  # noqa: N802
        assert event in (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE)
        self.changed = callback
        return 5

    def domainEventDeregisterAny(self, number: int) -> None:  # noqa: N802
        assert number == 5

    def registerCloseCallback(self, callback: Callable[..., None], _: None) -> None:  # noqa: N802
        self.lost = callback
        self.subscribed += 1

    def unregisterCloseCallback(self) -> None:  # noqa: N802
        raise failure(libvirt.VIR_ERR_INTERNAL_ERROR)  # as a connection that has gone does

    def setKeepAlive(self, seconds: int, count: int) -> None:  # noqa: N802
        self.alive = seconds, count

    def close(self) -> None:
        self.closed += 1

    def listAllDomains(self) -> list[FakeDomain]:  # noqa: N802
        return list(self.domains.values())

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:  # noqa: N802
        if uuid not in self.domains:
            raise failure(libvirt.VIR_ERR_NO_DOMAIN)
        return self.domains[uuid]


def eventually(condition: Callable[[], object]) -> None:
    wait_until(condition, 30, "it comes about")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibvirt]:
    fake = FakeLibvirt()
    monkeypatch.setattr(inventory, "connect", fake.open)
    monkeypatch.setattr(inventory, "BACKOFF_SECONDS", (0.01,))
    monkeypatch.setattr(inventory, "STARTING_SECONDS", 0.01)
    monkeypatch.setattr(inventory, "running_domains", list)
    monkeypatch.setattr(inventory, "read_run_state", lambda _: RunState(1, {}))  # a process that is there
    yield fake
    fake.there = True
    eventually(fake.is_followed)  # the thread, which has no end, would follow the libvirt of the next test


def entry(number: int, *, running: bool = True, mark: Mark | None = None) -> Entry:
    state, pid = ("running", 1) if running else ("shut off", None)
    return Entry(
        name=f"vm{number}", uuid=UUID.format(number), id=number if running else None, state=state, pid=pid, mark=mark
    )


def started(logged: list[str]) -> Inventory:
    found = Inventory("fake:///", logged.append)
    found.start()
    assert found.attempted.wait(10)
    return found


def shows(found: Inventory, *entries: Entry) -> Callable[[], bool]:
    return lambda: found.entries == {entry.uuid: entry for entry in entries}


def test_domains_come_change_and_go(fake: FakeLibvirt) -> None:
    fake.set(FakeDomain(1, plain(1)))  # it was there before us
    found = started([])
    eventually(shows(found, entry(1)))
    assert fake.opened == [True]  # nothing but reading
    fake.set(FakeDomain(2, marked(2)))
    eventually(shows(found, entry(1), entry(2, mark="live")))
    fake.set(FakeDomain(1, marked(1), plain(1)))
    eventually(shows(found, entry(1, mark="next"), entry(2, mark="live")))
    fake.set(FakeDomain(2, marked(2), running=False))
    eventually(shows(found, entry(1, mark="next"), entry(2, running=False, mark="next")))
    fake.remove(fake.domains[UUID.format(1)])
    eventually(shows(found, entry(2, running=False, mark="next")))


def test_a_domain_that_libvirt_forgets_is_remembered_for_a_while(
    fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.set(FakeDomain(1, marked(1)))
    fake.set(FakeDomain(2, plain(2)))
    found = started([])
    assert found.gone() == []
    fake.remove(fake.domains[UUID.format(1)])
    eventually(shows(found, entry(2)))
    assert found.gone() == [entry(1, running=False)]
    fake.set(FakeDomain(1, plain(1)))  # it is started again
    eventually(shows(found, entry(1), entry(2)))
    assert found.gone() == []
    fake.remove(fake.domains[UUID.format(2)])
    eventually(shows(found, entry(1)))
    monkeypatch.setattr(inventory, "GONE_SECONDS", -1)
    assert found.gone() == []


def test_whose_domains_have_come_changed_or_gone_is_passed_on(fake: FakeLibvirt) -> None:
    passed: list[set[str]] = []
    fake.set(FakeDomain(1, plain(1)))
    fake.set(FakeDomain(2, plain(2)))
    found = Inventory("fake:///", pytest.fail, lambda uuids: passed.append(set(uuids)))
    found.start()
    eventually(lambda: passed == [{UUID.format(1), UUID.format(2)}])
    fake.set(FakeDomain(3, plain(3)))
    fake.remove(fake.domains[UUID.format(1)])
    eventually(lambda: passed[1:] == [{UUID.format(3)}, {UUID.format(1)}])


def test_a_process_that_libvirt_has_not_written_down_yet(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [None, None, RunState(1, {})]
    monkeypatch.setattr(inventory, "read_run_state", lambda _: states.pop(0) if len(states) > 1 else states[0])
    fake.set(FakeDomain(1, plain(1)))
    found = started([])
    eventually(shows(found, entry(1)))


def test_vcpus_that_are_plugged_and_unplugged(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "VCPUS_SECONDS", 0.01)
    file: dict[str, Any] = {"written": (1, 1), "vcpus": {0: 70}, "read": 0}

    def read(_: str) -> RunState:
        file["read"] += 1
        return RunState(1, file["vcpus"])

    monkeypatch.setattr(inventory, "read_run_state", read)
    monkeypatch.setattr(inventory, "written", lambda _: file["written"])
    fake.set(FakeDomain(1, plain(1)))
    found = started([])

    def shown() -> dict[int, int]:
        return found.entries[UUID.format(1)].vcpu_tids

    eventually(lambda: shown() == {0: 70})
    for number, vcpus in enumerate(({0: 70, 1: 71, 2: 72}, {0: 70, 2: 72}), 2):
        file["vcpus"] = vcpus
        file["written"] = (number, 1)
        eventually(lambda: shown() == file["vcpus"])
    file["vcpus"], file["written"] = {}, None  # it is being shut down
    time.sleep(0.1)
    reads = file["read"]
    time.sleep(0.1)
    assert shown() == {0: 70, 2: 72}
    assert file["read"] == reads  # only what was written anew is read


def test_a_channel_that_is_attached_opened_and_detached(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "VCPUS_SECONDS", 0.01)
    file: dict[str, Any] = {"written": (1, 1), "channel": None}
    monkeypatch.setattr(inventory, "read_run_state", lambda _: RunState(1, {0: 70}, file["channel"]))
    monkeypatch.setattr(inventory, "written", lambda _: file["written"])
    fake.set(FakeDomain(1, plain(1)))
    found = started([])

    def shown() -> Channel | None:
        return found.entries[UUID.format(1)].channel

    eventually(lambda: UUID.format(1) in found.entries)
    assert shown() is None
    for number, channel in enumerate((Channel("/a", open=False), Channel("/a", open=True)), 2):
        file.update(written=(number, 1), channel=channel)
        eventually(lambda: shown() == file["channel"])
    file.update(written=(4, 1), channel=None)
    eventually(lambda: shown() == Channel(None, open=False))  # until libvirt's event says that there is none


PATH = "/run/libvirt/qemu/channel/1-vm1/org.virt-rapl.energy.0"


def with_channel(xml: str, *, path: str = "") -> str:
    """Return the XML with the channel, whose socket has a path as it runs, or if its owner has given it one."""
    source = f'<source mode="bind" path="{path}"/>' if path else '<source mode="bind"/>'
    return Definition.parse(xml).with_channel().xml.replace('<source mode="bind"/>', source)


@pytest.mark.parametrize(
    ("xml", "live", "running", "mark", "channel"),
    [
        (plain(1), plain(1), True, None, None),
        (with_channel(plain(1)), plain(1), True, None, Channel(None, open=False)),
        (plain(1), with_channel(plain(1), path=PATH), True, None, Channel(PATH, open=False)),
        (with_channel(plain(1)), with_channel(plain(1), path=PATH), True, None, Channel(PATH, open=False)),
        (with_channel(marked(1)), marked(1), True, "live", Channel(None, open=False)),
        (with_channel(marked(1)), plain(1), True, "next", Channel(None, open=False)),
        (plain(1), with_channel(marked(1), path=PATH), True, "live", Channel(PATH, open=False)),
        (with_channel(marked(1)), "", False, "next", Channel(None, open=False)),
        (with_channel(plain(1), path="/its/owners"), "", False, None, Channel(None, open=False)),
        (with_channel(plain(1), path="/its/owners"), plain(1), True, None, Channel(None, open=False)),
    ],
)
def test_registers_and_channel_of_how_it_runs_and_of_its_next_start(
    monkeypatch: pytest.MonkeyPatch, xml: str, live: str, running: bool, mark: Mark | None, channel: Channel | None
) -> None:
    monkeypatch.setattr(inventory, "read_run_state", lambda _: RunState(1, {}))
    fake = FakeLibvirt()
    fake.set(FakeDomain(1, xml, live, running=running))
    (found,) = inventory.describe_all(every_domain(fake))
    assert found == dataclasses.replace(entry(1, running=running, mark=mark), channel=channel)


def test_a_channel_of_a_domain_that_ends_and_of_one_that_libvirt_forgets(
    fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = {"vm1": 2**22 + 1, "vm2": 1}  # no process has the first one
    monkeypatch.setattr(inventory, "read_run_state", lambda name: RunState(pids[name], {}))
    for number in (1, 2):
        fake.set(FakeDomain(number, plain(number), with_channel(plain(number), path=PATH)))
    found = started([])
    eventually(lambda: len(found.entries) == 2)
    assert [each.channel for each in found.seen()] == [Channel(None, open=False), Channel(PATH, open=False)]
    fake.remove(fake.domains[UUID.format(2)])
    eventually(lambda: len(found.entries) == 1)
    assert [each.channel for each in found.gone()] == [None]


def test_the_channel_is_seen_without_libvirt(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    xml = with_channel(plain(1), path=PATH)
    record = run_files.RunningDomain("vm1", UUID.format(1), 1, "running", 1, {}, xml)
    monkeypatch.setattr(inventory, "running_domains", lambda: [record])
    fake.there = False
    assert started([]).entries[UUID.format(1)].channel == Channel(PATH, open=False)


def test_the_threads_of_another_run_of_a_domain_are_not_its_own(
    fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event is on the way: until then nobody knows which domain that process is."""
    monkeypatch.setattr(inventory, "VCPUS_SECONDS", 0.01)
    states = {"vm1": RunState(1, {0: 70}), "vm2": RunState(1, {0: 80})}
    written = iter(range(1000))
    monkeypatch.setattr(inventory, "read_run_state", lambda name: states[name])
    monkeypatch.setattr(inventory, "written", lambda _: (next(written), 1))
    fake.set(FakeDomain(1, plain(1)))
    fake.set(FakeDomain(2, plain(2)))
    found = started([])
    eventually(lambda: len(found.entries) == 2)
    states.update(vm1=RunState(2, {0: 99}), vm2=RunState(1, {0: 81}))
    eventually(lambda: found.entries[UUID.format(2)].vcpu_tids == {0: 81})
    assert found.entries[UUID.format(1)].vcpu_tids == {0: 70}


def test_libvirt_is_lost_and_comes_back(fake: FakeLibvirt) -> None:
    logged: list[str] = []
    fake.set(FakeDomain(1, plain(1)))
    found = started(logged)
    fake.lose()
    eventually(lambda: len(logged) == 1)
    assert found.entries == {UUID.format(1): entry(1)}  # metered on
    fake.domains.clear()
    fake.set(FakeDomain(2, plain(2)))
    fake.there = True
    eventually(shows(found, entry(2)))
    fake.set(FakeDomain(3, plain(3)))
    eventually(shows(found, entry(2), entry(3)))
    assert logged == [
        "without libvirt for now: libvirt at fake:/// closed the connection; running domains are still metered",
        "libvirt is back",
    ]
    assert fake.closed == 1


def test_waits_become_longer_while_it_is_away_and_short_again(
    fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        time.sleep(0.001)

    monkeypatch.setattr(inventory, "BACKOFF_SECONDS", (1.0, 2.0, 3.0))
    monkeypatch.setattr(inventory, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    fake.there = False
    started([])
    for _ in range(2):
        eventually(lambda: len(waited) > 4)
        fake.there = True
        eventually(fake.is_followed)
        assert waited[:4] == [1.0, 2.0, 3.0, 3.0]
        waited.clear()
        fake.lose()


def test_without_libvirt_its_run_time_files_are_read(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_files.RunningDomain("vm1", UUID.format(1), 1, "running", 1, {}, marked(1))
    monkeypatch.setattr(inventory, "running_domains", lambda: [record])
    fake.there = False
    found = started([])
    eventually(shows(found, entry(1, mark="live")))
    fake.set(FakeDomain(2, plain(2)))
    monkeypatch.setattr(inventory, "read_run_state", lambda _: RunState(2**22 + 1, {}))  # no process has this PID
    fake.there = True
    eventually(lambda: UUID.format(2) in found.entries)
    monkeypatch.setattr(inventory, "running_domains", list)
    fake.lose()
    eventually(shows(found, entry(2, running=False)))


def test_a_process_that_ended_is_seen_before_libvirt_reports_it(
    fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "read_run_state", lambda _: RunState(2**22 + 1, {}))  # no process has this PID
    fake.set(FakeDomain(1, marked(1)))
    fake.set(FakeDomain(2, plain(2)))
    found = started([])
    eventually(lambda: len(found.entries) == 2)
    assert found.entries[UUID.format(1)].state == "running"
    assert found.seen() == [entry(1, running=False, mark="next"), entry(2, running=False)]


def test_a_libvirt_that_hangs_has_one_thread_of_ours_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    opened: list[str] = []

    def hang(uri: str) -> FakeLibvirt:
        opened.append(uri)
        goes_on.wait()
        return FakeLibvirt()

    monkeypatch.setattr(libvirt, "open", hang)
    monkeypatch.setattr(connection, "OPEN_SECONDS", 0.05)
    for _ in range(3):
        with pytest.raises(VirtRaplError, match="libvirt at fake:/// does not answer") as caught:
            connection.connect("fake:///")
        assert caught.value.hint
    assert opened == ["fake:///"]
    goes_on.set()
    monkeypatch.setattr(connection, "OPEN_SECONDS", 10)
    opened_at_last = connection.connect("fake:///")
    assert opened_at_last.alive == (
        connection.KEEP_ALIVE_SECONDS,
        connection.KEEP_ALIVE_COUNT,
    )  # nor can a call hang for ever


def test_a_domain_that_nobody_can_read_hides_no_other(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """As metadata with a namespace of `a<b`, which libvirt takes and writes as it is, makes its XML."""
    unreadable = plain(1).replace("</domain>", "<metadata><y xmlns='a<b'/></metadata></domain>")
    record = run_files.RunningDomain("vm1", UUID.format(1), 1, "running", 1, {}, unreadable)
    monkeypatch.setattr(inventory, "running_domains", lambda: [record])
    fake.set(FakeDomain(1, unreadable))
    fake.set(FakeDomain(2, marked(2)))
    found = started([])
    eventually(shows(found, entry(1), entry(2, mark="live")))


def test_domains_that_run_are_known_before_libvirt_answers(fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_files.RunningDomain("vm1", UUID.format(1), 1, "running", 1, {}, plain(1))
    monkeypatch.setattr(inventory, "running_domains", lambda: [record])
    goes_on = threading.Event()

    def hang(uri: str, *, read_only: bool) -> FakeLibvirt:
        goes_on.wait()
        return fake.open(uri, read_only=read_only)

    monkeypatch.setattr(inventory, "connect", hang)
    found = Inventory("fake:///", pytest.fail)
    found.start()
    assert shows(found, entry(1))()
    assert not found.listed
    fake.set(FakeDomain(2, plain(2)))
    goes_on.set()
    eventually(shows(found, entry(2)))
    assert found.listed


def test_running_domains(tmp_path: Path) -> None:
    root, proc = tmp_path / "libvirt", tmp_path / "proc"
    for number in (1, 2, 3):
        text = plain(number).replace("<domain ", f"<domain id='{number}' ")
        write(
            root / f"vm{number}.xml",
            f"<domstatus state='paused' pid='{number}'><vcpus><vcpu id='0' pid='9'/></vcpus>{text}</domstatus>",
        )
        write(proc / str(number) / "stat", stat(number, "qemu", 0))
    write(proc / "1/cmdline", f"qemu-system-x86_64\0-uuid\0{UUID.format(1)}\0")
    write(proc / "2/cmdline", "another\0process\0by\0now\0")
    write(root / "half.xml", "<domstatus")
    write(root / "other.xml", "<domstatus/>")
    (found,) = run_files.running_domains(root, proc)
    assert found.vcpu_tids == {0: 9}
    assert (found.name, found.uuid, found.id, found.state, found.pid) == ("vm1", UUID.format(1), 1, "paused", 1)
    assert Definition.parse(found.xml).is_marked is False
    assert run_files.running_domains(tmp_path / "none", proc) == []


@pytest.mark.parametrize(("number", "found"), [(1, True), (2, False)])
def test_whose_process_it_is_its_cgroup_says_and_not_its_command_line(tmp_path: Path, number: int, found: bool) -> None:
    root, host = tmp_path / "libvirt", Host(tmp_path)
    text = plain(1).replace("<domain ", "<domain id='1' ")
    write(root / "vm1.xml", f"<domstatus state='running' pid='7'><vcpus/>{text}</domstatus>")
    host.process(7, {7: Thread("qemu", 0)})
    write(host.proc / "7/cmdline", "\0" if found else f"a\0{UUID.format(1)}\0")
    group = f"machine.slice/machine-qemu\\x2d{number}\\x2dvm.scope"
    host.cgroup(7, f"0::/{group}/libvirt/emulator\n", group)
    assert bool(run_files.running_domains(root, host.proc, host.sys)) == found
    write(host.proc / "7/stat", stat(7, "qemu", 0, state="Z"))
    assert run_files.running_domains(root, host.proc, host.sys) == []


@pytest.mark.parametrize("there", [True, False])
def test_title_and_labels_with_libvirt_and_without(
    fake: FakeLibvirt, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    xml = (
        plain(1)
        .replace("</name>", "</name><title>One</title>")
        .replace("</domain>", "<metadata><t:tenant xmlns:t='urn:t'>A</t:tenant></metadata></domain>")
    )
    record = run_files.RunningDomain("vm1", UUID.format(1), 1, "running", 1, {}, xml)
    monkeypatch.setattr(inventory, "running_domains", lambda: [] if there else [record])
    fake.there = there
    fake.set(FakeDomain(1, plain(1), xml))
    fake.set(FakeDomain(2, xml, running=False))
    labels = Labels.parse({"tenant": "urn:t tenant", "tier": "urn:t tenant@tier"})
    assert labels
    found = Inventory("fake:///", lambda _: None, labels=labels)
    found.start()
    assert found.attempted.wait(10)
    shown = {uuid: (each.title, each.labels) for uuid, each in found.entries.items()}
    expected = ("One", {"tenant": "A"})
    assert shown == {UUID.format(number): expected for number in ((1, 2) if there else (1,))}


def test_events_of_a_real_libvirt_driver() -> None:
    found = Inventory("test:///default", pytest.fail)
    found.start()
    assert found.attempted.wait(10)
    connection = libvirt.open("test:///default")
    try:
        xml = (
            plain(1).replace("kvm", "test").replace("</domain>", "<memory>1</memory><os><type>hvm</type></os></domain>")
        )
        domain = connection.createXML(xml)
        eventually(lambda: UUID.format(1) in found.entries)
        domain.destroy()
        eventually(lambda: UUID.format(1) not in found.entries)
    finally:
        connection.close()


def test_a_title_and_metadata_that_change_are_reported() -> None:
    """On libvirt's test driver, which reports it as QEMU's does."""
    test, changes = connection.connect("test:///default"), SimpleQueue[str]()
    domain = test.lookupByName("test")
    with connection.subscribed(test, changed=changes.put, lost=lambda: None):
        for change in (
            (libvirt.VIR_DOMAIN_METADATA_TITLE, "Shop", None, None),
            (libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<a/>", "a", "urn:a"),
        ):
            domain.setMetadata(*change, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
            assert changes.get(timeout=10) == domain.UUIDString()
