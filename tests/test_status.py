"""`virt-rapl status`: the document's shape, the words for a domain's meter, the table, and what fails."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest
from fixtures import Host, Thread

from libvirt_rapl import domains, domxml
from libvirt_rapl.cli import main, status
from libvirt_rapl.host.processes import start_time
from libvirt_rapl.registry import Record, Registry
from libvirt_rapl.runstate import RunState
from libvirt_rapl.simulator.world import World

PLAIN = "<domain type='kvm'><name>vm</name><uuid>12345678-1234-1234-1234-123456789abc</uuid></domain>"
UUID = "12345678-1234-1234-1234-123456789abc"
TEST_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
"""Of the domain `test` that libvirt's test driver always has."""
SECOND = 1_000_000_000


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host of files in place of this one, on which the test driver's domain has a process."""
    host = Host(tmp_path)
    host.zone("intel-rapl:0", "package-0")
    host.zone("intel-rapl:0:0", "dram")
    for name in ("sys", "proc", "dev"):
        monkeypatch.setattr(status, name.upper(), getattr(host, name))
    monkeypatch.setattr(status, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(
        status, "read_run_state", lambda name, proc: RunState(7, {0: 8, 1: 9}) if name == "test" and proc else None
    )
    run_for(host, 0)
    return host


def run_for(host: Host, seconds: int) -> None:
    host.zone("intel-rapl:0", "package-0", 10_000_000 * seconds)
    ran = seconds * SECOND
    host.process(7, {7: Thread("qemu", 0), 8: Thread("CPU 0/KVM", ran), 9: Thread("CPU 1/KVM", 0)})


def run(tmp_path: Path, *arguments: str) -> int:
    config = tmp_path / "virt-rapl.yaml"
    config.write_text(f"run_directory: {tmp_path}/run\n")
    return main(["--connect", "test:///default", "--config", str(config), "status", *arguments])


def shape(value: Any) -> Any:  # noqa: ANN401  any JSON
    """Return the keys and types of a JSON value; of a list, those of its first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def test_the_document(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sleep(_: float) -> None:
        run_for(host, 1)

    monkeypatch.setattr(time, "sleep", sleep)
    Registry(tmp_path / "run").write(
        Record(uuid=TEST_UUID, name="test", backend="native", owner_uid=0, owner_gid=0, helper_pid=7)
    )
    assert run(tmp_path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    figures = {"power_watts": "float", "energy_joules": "float"}
    assert shape(document) == {
        "schema": "int",
        "host": {
            "source": "str",
            "model": "str",
            "interval_seconds": "float",
            "zones": [{"name": "str", **figures}],
            "domains_watts": "float",
            "other_watts": "float",
            "idle_watts": "float",
        },
        "domains": [
            {
                "name": "str",
                "uuid": "str",
                "id": "int",
                "state": "str",
                "pid": "int",
                "vrapl": "str",
                "reason": "NoneType",
                "helper": {"backend": "str", "pid": "int", "socket": "str", "healthy": "bool"},
                **figures,
                "zones": {"package": figures},
                "vcpus": [{"id": "int", "tid": "int", **figures}],
            }
        ],
    }
    assert document["schema"] == 1
    assert document["host"]["source"] == "powercap"
    assert [zone["energy_joules"] for zone in document["host"]["zones"]] == [0, 10]
    (domain,) = document["domains"]
    assert (domain["name"], domain["state"], domain["pid"], domain["vrapl"]) == ("test", "running", 7, "off")
    assert domain["helper"] == {
        "backend": "native",
        "pid": 7,
        "socket": f"{tmp_path}/run/{TEST_UUID}.sock",
        "healthy": False,
    }
    # A second of run time in an interval of milliseconds: the domain is believed first and gets everything.
    assert [(vcpu["id"], vcpu["tid"], vcpu["energy_joules"]) for vcpu in domain["vcpus"]] == [(0, 8, 10), (1, 9, 0)]


def test_watching_prints_a_document_a_line(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept = []

    def sleep(_: float) -> None:
        slept.append(1)
        run_for(host, len(slept))
        if len(slept) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert run(tmp_path, "--json", "--watch", "test") == 130
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["domains"][0]["energy_joules"] for document in documents] == [10, 20, 30]


def test_domains_without_a_process_and_domains_not_asked_for(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.end(7)
    assert run(tmp_path, TEST_UUID) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("test ")).split() == [
        "test",
        "running",
        "off",
        "0.00",
        "0.00",
        "0:0.00",
        "1:0.00",
    ]


def document(source: str) -> dict[str, Any]:
    def domain(name: str, state: str, watts: float, vcpus: list[float]) -> dict[str, Any]:
        parts = [{"id": number, "power_watts": part} for number, part in enumerate(vcpus)]
        return {
            "name": name,
            "state": state,
            "vrapl": "degraded" if watts else "off",
            "reason": "no helper" if watts else None,
            "power_watts": watts,
            "energy_joules": watts,
            "vcpus": parts,
        }

    host = {"source": source, "model": "CPU", "domains_watts": 1.0, "other_watts": 2.5, "idle_watts": 3.0}
    return {
        "host": {**host, "zones": [{"name": "package-0", "power_watts": 6.5}, {"name": "psys", "power_watts": 9.0}]},
        "domains": [domain("a", "shut off", 0, []), domain("long-name", "running", 123.456, [100, 23.456])],
    }


def test_the_table() -> None:
    assert status.table(document("simulated")) == [
        "energy is SIMULATED: it is not this machine's own",
        "CPU (simulated)",
        "zones: package-0 6.50 W, psys 9.00 W",
        "packages: domains 1.00 W, other 2.50 W, idle 3.00 W",
        "",
        "NAME       STATE     VRAPL      WATTS  JOULES  WATTS OF VCPUS",
        "a          shut off  off         0.00    0.00  -",
        "long-name  running   degraded  123.46  123.46  0:100.00 1:23.46",
        "",
        "long-name runs without its meter: no helper",
        "joules are counted since this command started",
    ]
    assert status.table(document("msr")) == [
        "CPU (msr)",
        *status.table(document("simulated"))[2:],
    ]


def test_a_zone_whose_count_was_broken(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    energy = host.powercap / "intel-rapl:0/energy_uj"
    monkeypatch.setattr(time, "sleep", lambda _: energy.unlink(missing_ok=True))
    assert run(tmp_path) == 0
    assert "package-0: lost the count 1 times" in capsys.readouterr().out
    run_for(host, 0)
    assert run(tmp_path, "--json") == 0
    zones = {zone["name"]: zone for zone in json.loads(capsys.readouterr().out)["host"]["zones"]}
    assert zones["package-0"]["lost_intervals"] == 1
    assert "lost_intervals" not in zones["dram-0"]


class Handle:
    """A libvirt domain with two definitions."""

    def __init__(self, live: str, inactive: str) -> None:
        self.live, self.inactive = live, inactive

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return self.inactive if flags & libvirt.VIR_DOMAIN_XML_INACTIVE else self.live


MARKED = domxml.inject(PLAIN, socket=f"/run/virt-rapl/{UUID}.sock")


@pytest.mark.parametrize(
    ("live", "inactive", "state", "helper", "expected"),
    [
        (None, PLAIN, None, None, "off"),
        (None, MARKED, None, None, "pending"),
        (PLAIN, PLAIN, None, None, "off"),
        (PLAIN, MARKED, None, None, "pending"),
        (MARKED, MARKED, "ready", "alive", "active"),
        (MARKED, PLAIN, "ready", "alive", "active"),
        (MARKED, MARKED, "ready", "another", "degraded"),
        (MARKED, MARKED, "ready", None, "degraded"),
        (MARKED, MARKED, "degraded", "alive", "degraded"),
        (MARKED, MARKED, None, None, "degraded"),
    ],
)
def test_how_far_a_domain_is(
    live: str | None, inactive: str, state: str | None, helper: str | None, expected: str
) -> None:
    number, word = (3, "running") if live else (None, "shut off")
    domain = domains.Domain(name="vm", uuid=UUID, id=number, state=word, handle=Handle(live or inactive, inactive))
    record = None
    if state:
        record = Record(uuid=UUID, name="vm", backend="native", owner_uid=0, owner_gid=0, state=state)
        if helper:
            started = start_time(os.getpid())
            assert started is not None
            record.helper_pid, record.helper_start = os.getpid(), started + (helper == "another")
    assert status.vrapl_state(domain, record) == expected


def test_nothing_is_printed_before_a_failure(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--json", "test", "nobody") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0] == "virt-rapl: error: there is no domain 'nobody'"
    host.zone("intel-rapl:0", "psys")
    assert run(tmp_path) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split(":")[0] for line in shown.err.splitlines()] == ["virt-rapl", "hint"]


def test_a_domain_that_goes_while_it_is_looked_at(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host.end(7)

    class Gone(Handle):
        def XMLDesc(self, flags: int) -> str:  # noqa: N802
            raise libvirt.libvirtError(f"Domain not found, whatever the flags ({flags})")

    gone = domains.Domain(name="gone", uuid=UUID, id=None, state="shut off", handle=Gone("", ""))
    lists = [[gone], [gone], []]
    monkeypatch.setattr(domains, "every_domain", lambda _: lists.pop(0))
    assert run(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["domains"] == []
    lists = [[gone], [gone], [gone]]
    assert run(tmp_path, "--json") == 1


@pytest.mark.e2e
def test_real_guests(world: World, new_guest: Callable[..., str]) -> None:
    busy, calm, off = new_guest(100, 0, vcpus=2), new_guest(20), new_guest(0)
    for name in (busy, calm):
        world.run(["virsh", "start", name])
    document = json.loads(world.run(["virt-rapl", "status", "--json"]).stdout)
    shown = {domain["name"]: domain for domain in document["domains"]}
    host = document["host"]
    assert host["source"] == "simulated"
    assert shown[off]["pid"] is None
    assert {shown[name]["vrapl"] for name in (busy, calm, off)} == {"off"}
    assert shown[busy]["power_watts"] > shown[calm]["power_watts"] > shown[off]["power_watts"] == 0
    first, second = shown[busy]["vcpus"]
    assert first["power_watts"] > second["power_watts"] > 0
    assert first["energy_joules"] + second["energy_joules"] == pytest.approx(shown[busy]["energy_joules"])
    package = next(zone for zone in host["zones"] if zone["name"] == "package-0")
    given_out = host["domains_watts"] + host["other_watts"] + host["idle_watts"]
    assert given_out == pytest.approx(package["power_watts"])
    for domain in (shown[busy], shown[calm]):
        for vcpu in domain["vcpus"]:
            comm = world.path(f"/proc/{domain['pid']}/task/{vcpu['tid']}/comm")
            assert comm.read_text() == f"CPU {vcpu['id']}/KVM\n"


@pytest.mark.e2e
def test_not_root(world: World) -> None:
    # The checkout may be where only root can reach it: it is imported first.
    script = (
        "import os; from libvirt_rapl.cli import main, status; os.setgid(65534); os.setuid(65534);"
        "raise SystemExit(main(['status']))"
    )
    done = world.run([sys.executable, "-c", script], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "hint: run as root"
