"""A host of files in, `status --json` and `/metrics` out, byte for byte as in data/status.json and data/metrics.txt.

Where a change of the document is wanted: .venv/bin/python -m pytest tests/test_golden.py --renew, and look at the diff.
"""

import dataclasses
import functools
import json
import os
import time
from pathlib import Path
from typing import Literal

import pytest
from fakes.host import Host, Thread
from prometheus_client import CollectorRegistry, generate_latest

from libvirt_rapl import __version__
from libvirt_rapl.config import Config
from libvirt_rapl.daemon import host_meter
from libvirt_rapl.daemon.channel_report import Report
from libvirt_rapl.daemon.document import Document, read, render
from libvirt_rapl.daemon.exposition import Exposition
from libvirt_rapl.daemon.host_meter import HostMeter
from libvirt_rapl.domains import inventory
from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.inventory import Entry, Inventory
from libvirt_rapl.energy.meter import Meter, Running
from libvirt_rapl.energy.snapshot import take
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.host import processes
from libvirt_rapl.lifecycle.channel_state import Delivery, DeliveryState

STATUS, METRICS = (Path(__file__).parent / "data" / name for name in ("status.json", "metrics.txt"))
SECOND = 1_000_000_000
NOON = 1_767_355_200  # 2026-01-02T12:00:00+00:00
HELPER_START = 4711
"""When every process of a Host has started, by its stat file."""


def uuid(number: int) -> str:
    return f"0000000{number}-0000-4000-8000-000000000000"


ACTIVE, ENDED, FAILED, UNCONNECTED, PENDING, REFUSED, PLAIN, DEAD, GONE = map(uuid, range(1, 10))
PIDS = {ACTIVE: 100, ENDED: 200, FAILED: 300, UNCONNECTED: 400, PLAIN: 500, DEAD: 600, GONE: 700}
CHANNELS: dict[str, DeliveryState] = {ENDED: "stalled", UNCONNECTED: "connected", PLAIN: "connected", DEAD: "connected"}
"""What virt-rapl-channel reports of the domains that have a channel."""
HELPERS = {ACTIVE: 1100, ENDED: 1200, UNCONNECTED: 1400}


def entries(host: Host) -> dict[str, Entry]:
    """Return what libvirt would say of the domains."""

    def running(uuid: str, name: str, mark: Literal["live", "next"] | None, title: str = "", **labels: str) -> Entry:
        pid = PIDS[uuid]
        path = f"/run/libvirt/qemu/channel/{pid // 100}-{name}/org.virt-rapl.energy.0"
        return Entry(
            name=name,
            uuid=uuid,
            id=pid // 100,
            state="running",
            pid=pid,
            vcpu_tids=host.vcpu_tids[pid],
            mark=mark,
            title=title,
            labels=labels,
            channel=Channel(path, open=uuid != UNCONNECTED) if uuid in CHANNELS else None,
        )

    def shut_off(uuid: str, name: str, mark: Literal["live", "next"] | None) -> Entry:
        channel = Channel(None, open=False) if uuid == PENDING else None
        return Entry(name=name, uuid=uuid, id=None, state="shut off", pid=None, mark=mark, channel=channel)

    found = [
        running(ACTIVE, "web", "live", "The shop's \N{GLOBE WITH MERIDIANS}", project="shop", flavor="c2.large"),
        running(ENDED, "database", "live"),
        running(FAILED, "batch", "live"),
        running(UNCONNECTED, "cache", "live"),
        shut_off(PENDING, "next", "next"),
        shut_off(REFUSED, "refused", None),
        running(PLAIN, "plain", None),
        running(DEAD, "dead", "live"),
        running(GONE, "transient", None, "Gone by now"),
    ]
    return {entry.uuid: entry for entry in found}


def write_records(registry: Registry) -> None:
    """Write what the hook would have, and how the helpers show that they live."""
    common = {"backend": "native", "owner_uid": 64055, "owner_gid": 64055, "since": NOON}
    for uuid_, name, version in ((ACTIVE, "web", "10.0.2"), (ENDED, "database", "99.0.0"), (UNCONNECTED, "cache", "")):
        record = Record(uuid=uuid_, name=name, state="ready", pid=PIDS[uuid_], qemu_version=version, **common)  # type: ignore[arg-type]
        record.helper_pid, record.helper_start = HELPERS[uuid_], HELPER_START
        registry.write(record)
        alive = registry.path(uuid_, "alive")
        alive.touch()
        os.utime(alive, (uuid_ != UNCONNECTED, NOON + 60))
    reason = "the helper cannot be started: no space"
    registry.write(Record(uuid=FAILED, name="batch", state="degraded", reason=reason, pid=PIDS[FAILED], **common))  # type: ignore[arg-type]


def count(host: Host, seconds: int) -> None:
    """Set all counters and clocks to what they are after so many seconds."""
    host.up(100 * seconds)
    host.busy({cpu: (20 + 10 * cpu) * seconds for cpu in range(4)})
    for package in (0, 1):
        host.zone(f"intel-rapl:{package}", f"package-{package}", (50 + package) * 1_000_000 * seconds)
        host.zone(f"intel-rapl:{package}:0", "core", (30 + package) * 1_000_000 * seconds)
        host.zone(f"intel-rapl:{package}:1", "dram", 5_000_000 * seconds)
    host.zone("intel-rapl:2", "psys", 120_000_001 * seconds)
    for number, pid in enumerate(PIDS.values(), 1):
        ran = SECOND * seconds // (10 * number)
        vcpus = {pid + 1 + n: Thread(f"CPU {n}/KVM", ran // (n + 1), cpu=n % 4) for n in range(1 + number % 3)}
        host.process(pid, {pid: Thread("qemu-system-x86", ran // 7), **vcpus})


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host of two packages whose clock moves a second at each sample."""
    host = Host(tmp_path, {0: [0, 1], 1: [2, 3]})
    now = 0

    def clock(which: int) -> int:
        nonlocal now
        now += which == time.CLOCK_BOOTTIME  # the first that a sample asks for
        return now * SECOND

    for name in ("sys", "proc", "dev"):
        monkeypatch.setattr(host_meter, name.upper(), getattr(host, name))
    monkeypatch.setattr(host_meter, "Meter", functools.partial(Meter, clock=clock))
    started = functools.partial(processes.start_time, proc=host.proc)
    monkeypatch.setattr(inventory, "start_time", started)
    monkeypatch.setattr(instances, "start_time", started)
    monkeypatch.setattr(instances, "is_stopped", functools.partial(processes.is_stopped, proc=host.proc))
    for helper in (HELPERS[ACTIVE], HELPERS[UNCONNECTED]):
        host.process(helper, {helper: Thread("virt-rapl", 0)})
    count(host, 0)
    return host


def write_report(run_directory: Path) -> None:
    """Write what virt-rapl-channel would have."""
    report = {uuid: Delivery(PIDS[uuid], state, "slow" * (state == "stalled")) for uuid, state in CHANNELS.items()}
    Report(run_directory, pytest.fail).write(report)


@pytest.fixture
def document(host: Host, tmp_path: Path) -> Document:
    """What is known of the host after four samples."""
    registry = Registry(tmp_path / "run")
    write_records(registry)
    write_report(registry.run_directory)
    metered = HostMeter(Config(run_directory=registry.run_directory))
    metered.meter.since = NOON - 86400
    domains = Inventory("", pytest.fail)
    domains.entries = entries(host)
    dram = host.powercap / "intel-rapl:1:1/energy_uj"
    for seconds in range(4):
        count(host, seconds)
        if seconds == 3:
            host.end(PIDS[DEAD])
        if seconds in (1, 3):
            dram.write_text("nonsense\n")  # and so it is lost twice
        metered.meter.sample(
            Running(entry.uuid, entry.pid, entry.vcpu_tids) for entry in domains.seen() if entry.pid is not None
        )
    gone = dataclasses.replace(domains.entries.pop(GONE), id=None, state="shut off", pid=None, vcpu_tids={})
    refusals = {REFUSED: "its number of vCPUs can grow"}
    return metered.document(take(metered.meter), domains.seen(), refusals, "libvirt cannot be reached", gone=[gone])


def compare(text: str, golden: Path, pytestconfig: pytest.Config) -> None:
    """Assert that the text is the expected one, apart from our version, or renew that."""
    text = text.replace(f'"{__version__}"', '"VERSION"')
    if pytestconfig.getoption("renew"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_the_document_byte_for_byte(document: Document, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    compare(render(document, indent=2).replace(str(tmp_path), "/host") + "\n", STATUS, pytestconfig)
    assert render(read(json.loads(render(document)))) == render(document), "what is read back is the same"
    assert {domain.vrapl for domain in document.domains} == {"active", "degraded", "pending", "off"}
    assert {domain.channel for domain in document.domains} == {"off", "waiting", "connected", "stalled"}


def test_the_metrics_byte_for_byte(document: Document, pytestconfig: pytest.Config) -> None:
    registry = CollectorRegistry()
    registry.register(Exposition(lambda: document, vcpus=True))
    compare(generate_latest(registry).decode(), METRICS, pytestconfig)
