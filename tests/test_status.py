"""`virt-rapl status`: the document's shape, the words for a domain's meter, the table, and what fails."""

import contextlib
import errno
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import libvirt
import pytest
from fakes.host import Host, Thread
from walking import wait_until

from libvirt_rapl import paths, sockets
from libvirt_rapl.choices import Backend
from libvirt_rapl.cli import documents, main, status
from libvirt_rapl.config import Config
from libvirt_rapl.daemon import answerers, document, host_meter, status_socket, stream_socket
from libvirt_rapl.daemon.answerers import Answerers
from libvirt_rapl.daemon.document import read
from libvirt_rapl.domains import inventory
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain
from libvirt_rapl.domains.run_files import RunState
from libvirt_rapl.energy.meter import Meter
from libvirt_rapl.energy.snapshot import take
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Record, Registry, State
from libvirt_rapl.host import requirements
from libvirt_rapl.host.processes import start_time
from libvirt_rapl.host.topology import Processor
from libvirt_rapl.lifecycle import meter_state
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
        monkeypatch.setattr(host_meter, name.upper(), getattr(host, name))
    monkeypatch.setattr(documents, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(inventory, "read_run_state", lambda name: RunState(7, {0: 8, 1: 9}) if name == "test" else None)
    run_for(host, 0)
    return host


def run_for(host: Host, seconds: int) -> None:
    host.zone("intel-rapl:0", "package-0", 10_000_000 * seconds)
    ran = seconds * SECOND
    host.process(7, {7: Thread("qemu", 0), 8: Thread("CPU 0/KVM", ran), 9: Thread("CPU 1/KVM", 0)})


def run(tmp_path: Path, *arguments: str, configuration: str = "") -> int:
    config = tmp_path / "virt-rapl.yaml"
    config.write_text(f"run_directory: {tmp_path}/run\n{configuration}")
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
    parts = {f"{whose}_joules": "float" for whose in ("domains", "other", "idle")}
    assert shape(document) == {
        "schema": "int",
        "version": "str",
        "host": {
            "source": "str",
            "model": "str",
            "since": "str",
            "interval_seconds": "float",
            "sampled_at": "str",
            "sample_seconds": "float",
            "overruns": "NoneType",
            "zones": [{"name": "str", **figures, **parts}],
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
                "channel": "str",
                "reason": "NoneType",
                "since": "NoneType",
                "helper": {"backend": "str", "pid": "int", "socket": "str", "healthy": "bool", "note": "NoneType"},
                "cpu_percent": "float",
                **figures,
                "zones": {"dram": figures, "package": figures},
                "vcpus": [{"id": "int", "tid": "int", **figures}],
            }
        ],
    }
    assert document["schema"] == 1
    assert document["host"]["source"] == "powercap"
    assert [zone["energy_joules"] for zone in document["host"]["zones"]] == [0, 10]
    package = document["host"]["zones"][1]
    assert {whose: package[whose] for whose in parts} == {"domains_joules": 10, "other_joules": 0, "idle_joules": 0}
    (domain,) = document["domains"]
    assert (domain["name"], domain["state"], domain["pid"], domain["vrapl"]) == ("test", "running", 7, "off")
    assert domain["helper"] == {
        "backend": "native",
        "pid": 7,
        "socket": f"{tmp_path}/run/{TEST_UUID}.sock",
        "healthy": False,
        "note": None,
    }
    # A second of run time in an interval of milliseconds: the domain is believed first and gets everything.
    assert [(vcpu["id"], vcpu["tid"], vcpu["energy_joules"]) for vcpu in domain["vcpus"]] == [(0, 8, 10), (1, 9, 0)]
    assert {kind: part["energy_joules"] for kind, part in domain["zones"].items()} == {"package": 10, "dram": 0}


@pytest.mark.parametrize(
    ("backend", "version", "part"),
    [("native", "10.0.2", None), ("native", "12.0.0", "QEMU 12.0.0 is not known"), ("qemu", "12.0.0", None)],
)
def test_a_qemu_that_nobody_has_looked_at_is_reported(backend: Backend, version: str, part: str | None) -> None:
    record = Record(uuid=TEST_UUID, name="a", backend=backend, owner_uid=0, owner_gid=0, qemu_version=version)
    note = meter_state.unknown_qemu(record)
    assert (note is None) == (part is None)
    helper = {"backend": backend, "pid": 7, "socket": "/s", "healthy": True, "note": note}
    shown = a_document("msr")
    shown["domains"] = [{**shown["domains"][0], "helper": helper}]
    lines = status.table(read(shown))
    assert any(part in line for line in lines) if part else "not known" not in "".join(lines)


def test_the_model_that_is_configured(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    up = itertools.count(1000, 1000)

    def sleep(_: float) -> None:
        run_for(host, 1)
        host.up(next(up))  # both CPUs idled
        host.process(7, {7: Thread("qemu", 0), 8: Thread("CPU 0/KVM", 100), 9: Thread("CPU 1/KVM", 0)})

    monkeypatch.setattr(time, "sleep", sleep)
    joules = {}
    for model in ("capacity", "active", "baseline"):
        run_for(host, 0)
        assert run(tmp_path, "--json", configuration=f"model: {model}\n") == 0
        joules[model] = json.loads(capsys.readouterr().out)["domains"][0]["energy_joules"]
    # It ran for 100 ns, and nobody else ran; baseline has seen no lower power, so all of it may be idle power.
    assert 0 < joules["capacity"] < 1
    assert (joules["active"], joules["baseline"]) == (10, 0)


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
        "off",
        "0.00",
        "0.00",
        "-",
    ]
    assert lines[-1] == "joules are counted since this command started"


def a_document(source: str) -> dict[str, Any]:
    def domain(name: str, state: str, watts: float, vcpus: list[float]) -> dict[str, Any]:
        parts = [
            {"id": number, "tid": None, "power_watts": part, "energy_joules": 0} for number, part in enumerate(vcpus)
        ]
        return {
            "name": name,
            "uuid": "",
            "id": None,
            "state": state,
            "pid": None,
            "vrapl": "degraded" if watts else "off",
            "helper": None,
            "reason": "no helper" if watts else None,
            "since": "2026-01-02T03:04:05+00:00" if watts else None,
            "power_watts": watts,
            "energy_joules": watts,
            "zones": {},
            "vcpus": parts,
        }

    host = {"source": source, "model": "CPU", "domains_watts": 1.0, "other_watts": 2.5, "idle_watts": 3.0}
    zone = dict.fromkeys(("energy_joules", "domains_joules", "other_joules", "idle_joules"), 0.0)
    zones = [{"name": "package-0", "power_watts": 6.5, **zone}, {"name": "psys", "power_watts": 9.0, **zone}]
    return {
        "host": {**host, "since": "2026-01-02T03:04:05+00:00", "interval_seconds": 1.0, "zones": zones},
        "domains": [domain("a", "shut off", 0, []), domain("long-name", "running", 123.456, [100, 23.456])],
    }


def test_the_table() -> None:
    local = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert status.table(read(a_document("simulated"))) == [
        "energy is SIMULATED: it is not this machine's own",
        "CPU (simulated)",
        "zones: package-0 6.50 W, psys 9.00 W",
        "packages: domains 1.00 W, other 2.50 W, idle 3.00 W",
        "",
        "NAME       STATE     VRAPL     CHANNEL   WATTS  JOULES  WATTS OF VCPUS",
        "a          shut off  off       off        0.00    0.00  -",
        "long-name  running   degraded  off      123.46  123.46  0:100.00 1:23.46",
        "",
        f"long-name runs without its meter since {local}: no helper",
    ]
    assert status.table(read(a_document("msr"))) == [
        "CPU (msr)",
        *status.table(read(a_document("simulated")))[2:],
    ]


def test_the_table_says_what_is_wrong_with_a_channel() -> None:
    stalled = a_document("msr")
    stalled["domains"][1] |= {"channel": "stalled", "channel_reason": "nobody reads"}
    lines = status.table(read(stalled))
    assert "long-name  running   degraded  stalled  123.46  123.46  0:100.00 1:23.46" in lines
    assert "long-name: channel stalled: nobody reads" in lines


def test_the_table_says_why_a_chosen_domain_has_no_meter() -> None:
    chosen = a_document("msr")
    chosen["domains"][0]["reason"] = "it can grow"
    assert (
        "a gets no meter at its next start, though the configuration's `domains` choose it: it can grow"
        in status.table(read(chosen))
    )


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


RUNS = {
    "of an earlier run": (6, 3),
    "of an earlier run, never followed": (None, 2),
    "not followed yet": (None, 3),
}
"""PID and number of a record; those of the domain are 7 and 3."""
MARKED = Definition.parse(PLAIN).with_registers(socket=f"/run/virt-rapl/{UUID}.sock").xml


@pytest.mark.parametrize(
    ("live", "inactive", "state", "helper", "expected"),
    [
        (None, PLAIN, None, None, "off"),
        (None, MARKED, None, None, "pending"),
        (PLAIN, PLAIN, None, None, "off"),
        (PLAIN, MARKED, None, None, "pending"),
        (MARKED, MARKED, "ready", "alive", "active"),
        (MARKED, PLAIN, "ready", "alive", "active"),
        (MARKED, MARKED, "ready", "alone", "degraded"),
        (MARKED, MARKED, "ready", "another", "degraded"),
        (MARKED, MARKED, "ready", "of an earlier run", "degraded"),
        (MARKED, MARKED, "ready", "of an earlier run, never followed", "degraded"),
        (MARKED, MARKED, "ready", "not followed yet", "active"),
        (MARKED, MARKED, "ready", None, "degraded"),
        (MARKED, MARKED, "degraded", "alive", "degraded"),
        (MARKED, MARKED, None, None, "degraded"),
    ],
)
def test_how_far_a_domain_is(
    live: str | None,
    inactive: str,
    state: State | None,
    helper: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inventory, "read_run_state", lambda _: RunState(7, {}))
    number, word = (3, "running") if live else (None, "shut off")
    domain = Domain(name="vm", uuid=UUID, id=number, state=word, handle=Handle(live or inactive, inactive))
    registry = Registry(tmp_path)
    record = None
    if state:
        alive = registry.path(UUID, "alive")
        alive.touch()
        os.utime(alive, (helper != "alone", 1))
        record = Record(uuid=UUID, name="vm", backend="native", owner_uid=0, owner_gid=0, state=state)
        if helper:
            started = start_time(os.getpid())
            assert started is not None
            record.helper_pid, record.helper_start = os.getpid(), started + (helper == "another")
        record.pid, record.id = RUNS.get(helper or "", (7, 3))
    assert meter_state.vrapl_state(inventory.describe(domain), record, registry)[0] == expected


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(("mark", "reason"), [(None, "it can grow"), ("next", "it can grow"), ("live", "no helper")])
def test_why_a_chosen_domain_has_no_meter(tmp_path: Path, mark: inventory.Mark | None, reason: str) -> None:
    registry = Registry(tmp_path / "run")
    registry.write(Record(uuid=UUID, name="vm", backend="native", owner_uid=0, owner_gid=0, reason="no helper"))
    entry = inventory.Entry(name="vm", uuid=UUID, id=None, state="shut off", pid=None, mark=mark)
    host = host_meter.HostMeter(Config(run_directory=registry.run_directory))
    (domain,) = host.document(take(host.meter), [entry], {UUID: "it can grow"}).domains
    assert domain.reason == reason


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

    class Failing(Handle):
        def XMLDesc(self, flags: int) -> str:  # noqa: N802
            error = libvirt.libvirtError(f"whatever the flags ({flags})")
            error.err = (code,)
            raise error

    failing = Domain(name="gone", uuid=UUID, id=None, state="shut off", handle=Failing("", ""))
    monkeypatch.setattr("libvirt_rapl.cli.documents.every_domain", lambda _: [failing])
    code = libvirt.VIR_ERR_NO_DOMAIN
    assert run(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["domains"] == []
    code = libvirt.VIR_ERR_INTERNAL_ERROR
    assert run(tmp_path, "--json") == 1


def ask_daemon(tmp_path: Path, *arguments: str) -> int:
    config = tmp_path / "virt-rapl.yaml"
    config.write_text(f"run_directory: {tmp_path}\n")
    return main(["--config", str(config), "status", *arguments])


Serve = Callable[[Path, Callable[[], bytes]], list[str]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function that answers on a socket as virt-rapld does, and returns the lines that are logged."""
    served: list[Answerers] = []

    def serve(path: Path, text: Callable[[], bytes]) -> list[str]:
        logged: list[str] = []
        served.append(status_socket.serve(path, text, logged.append))
        return logged

    yield serve
    for each in served:
        each.close()


def answering() -> int:
    return sum(thread.name.startswith("status ") for thread in threading.enumerate())


CROWD = """
import os, socket, sys
os.setgroups([]), os.setgid(4321), os.setuid(4321)
peers = [socket.socket(socket.AF_UNIX) for _ in range(50)]
for peer in peers:
    peer.connect(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""
"""A member of the group that asks, and asks, and reads nothing."""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_who_asks_and_does_not_read_holds_nobody_up(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerers, "SEND_SECONDS", 600)
    tmp_path.chmod(0o755)
    for directory in tmp_path.parents:
        if len(directory.parts) > 2:  # in /tmp
            directory.chmod(0o755)
    path, document = tmp_path / "status.sock", {"schema": 1, "padding": "x" * 10_000_000}
    text = json.dumps(document).encode()
    before = answering()
    serve(path, lambda: text)
    assert answering() == before + status_socket.ANSWERERS
    path.chmod(0o666)
    command = [sys.executable, "-c", CROWD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd:
        assert crowd.stdout
        assert crowd.stdout.readline() == b"\n"
        assert status_socket.ask(path) == document
        assert answering() == before + status_socket.ANSWERERS, "as many as ever"
        crowd.communicate()


def test_who_never_reads_is_let_go(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are threads, which then answer others."""
    monkeypatch.setattr(answerers, "SEND_SECONDS", 0.1)
    many = status_socket.ANSWERERS if os.getuid() == 0 else status_socket.ANSWERERS_OF_ONE
    texts = [b"x" * 10_000_000] * many
    path = tmp_path / "status.sock"
    serve(path, lambda: texts.pop() if texts else b'{"schema": 1}')
    with contextlib.ExitStack() as clients:
        for _ in range(many):
            clients.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        wait_until(lambda: not texts, 20, "each thread has a client that does not read")
        wait_until(lambda: status_socket.ask(path) == {"schema": 1}, 20, "others are answered")


class FailingListener:
    """A socket that listens, and where the first attempts to accept a client fail."""

    def __init__(self, listener: socket.socket, failures: int) -> None:
        self._listener = listener
        self._failures = itertools.repeat(OSError(errno.EMFILE, "Too many open files"), failures)

    def accept(self) -> tuple[socket.socket, Any]:
        for failure in self._failures:
            raise failure
        return self._listener.accept()

    def shutdown(self, how: int) -> None:
        self._listener.shutdown(how)


def test_too_many_open_files_end_no_answering(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    listen = sockets.listen
    failures = 2 * status_socket.ANSWERERS
    monkeypatch.setattr(answerers, "listen", lambda *where: FailingListener(listen(*where), failures))
    monkeypatch.setattr(answerers, "time", SimpleNamespace(sleep=slept.append))
    path = tmp_path / "status.sock"
    serve(path, lambda: b'{"schema": 1}')
    assert status_socket.ask(path) == {"schema": 1}
    wait_until(lambda: len(slept) == failures, 20, "each failure is waited for")
    assert status_socket.ask(path) == {"schema": 1}


def open_sockets() -> set[str]:
    links: set[str] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(str(descriptor.readlink()))
    return {link for link in links if link.startswith("socket:")}


def test_connections_are_closed_whatever_came_of_them(tmp_path: Path, serve: Serve) -> None:
    path = tmp_path / "status.sock"
    answers = itertools.cycle([b'{"schema": 1}', b"", b"x" * 1_000_000])
    serve(path, lambda: next(answers))
    before = open_sockets()
    for number in range(30):
        if number % 3 == 2:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(path))
                assert peer.recv(1), "and it reads no more"
        else:
            assert status_socket.ask(path) == (None if number % 3 else {"schema": 1})
    wait_until(lambda: not open_sockets() - before, 20, "all are closed")


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


FEW = """
import os, select, socket, sys
os.setgroups([]), os.setgid(4321), os.setuid(4321)
def connect():
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(sys.argv[1])
    return peer
for _ in range(10):
    assert connect().makefile().read() == "{}"
print(flush=True)
sys.stdin.readline()
waiting = {connect() for _ in range(int(sys.argv[2]) + 1)}
refused = select.select(waiting, [], [], 30)[0]
print(*(peer.recv(100) for peer in refused), flush=True)
print(*(peer.recv(100) for peer in waiting.difference(refused)), flush=True)
"""
"""A member of the group that asks ten times, one after the other, and then one time too many at once."""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_as_many_answers_at_once_as_one_user_may_have(public_directory: Path, serve: Serve) -> None:
    path = public_directory / "status.sock"
    begun, go_on = threading.Semaphore(0), threading.Event()
    go_on.set()

    def text() -> bytes:
        begun.release()
        assert go_on.wait(30)
        return b"{}"

    serve(path, text)
    path.chmod(0o666)
    most = status_socket.ANSWERERS_OF_ONE
    command = [sys.executable, "-c", FEW, str(path), str(most)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as few:
        assert few.stdin
        assert few.stdout
        assert few.stdout.readline() == b"\n"
        while begun.acquire(blocking=False):
            pass
        go_on.clear()
        few.stdin.write(b"\n")
        few.stdin.flush()
        for _ in range(most):
            assert begun.acquire(timeout=30)
        assert few.stdout.readline() == b"b''\n", "one is refused"
        own = [socket.socket(socket.AF_UNIX) for _ in range(most + 1)]
        for peer in own:
            peer.connect(str(path))
            assert begun.acquire(timeout=30), "root may ask more often"
        go_on.set()
        assert few.stdout.readline() == b" ".join([b"b'{}'"] * most) + b"\n"
    for peer in own:
        assert peer.recv(10) == b"{}"
        peer.close()


def test_a_daemon_whose_backlog_is_full_is_one_that_listens(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as clients:
        listener.bind(str(path))
        assert not status_socket.listens(path)
        listener.listen(0)
        assert status_socket.listens(path)
        result = 0
        while not result:
            peer = clients.enter_context(socket.socket(socket.AF_UNIX))
            peer.setblocking(False)
            result = peer.connect_ex(str(path))
        assert result == errno.EAGAIN
        assert status_socket.listens(path)
    assert not status_socket.listens(path)
    assert not status_socket.listens(tmp_path / "nothing")


def test_who_asks_does_not_wait_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        asking = threading.Thread(target=status_socket.ask, args=(path, 0.05))
        asking.start()
        asking.join(20)
        gave_up = not asking.is_alive()
    asking.join()  # it has been hung up on now
    assert gave_up


def test_failures_are_logged_again_when_they_were_over() -> None:
    lines: list[str] = []
    outcomes = iter([True, False, False, True, False])

    def make() -> bytes:
        if next(outcomes):
            return b"{}"
        raise OSError("no\nspace")

    text = status_socket.CarefulText(make, lines.append)
    assert [text() for _ in range(5)] == [b"{}", b"", b"", b"{}", b""]
    assert ["no space" in line for line in lines] == [True, True]


def test_an_answer_that_fails_is_logged_once_and_ends_no_answering(tmp_path: Path, serve: Serve) -> None:
    """As where no thread can be started."""
    failures = [RuntimeError("can't start new thread") for _ in range(3 * status_socket.ANSWERERS)]

    def text() -> bytes:
        if failures:
            raise failures.pop()
        return b'{"schema": 1}'

    path = tmp_path / "status.sock"
    logged = serve(path, text)
    while failures:
        assert status_socket.ask(path) is None
    assert status_socket.ask(path) == {"schema": 1}
    (line,) = logged
    assert "can't start new thread" in line


def test_answering_ends_with_all_its_threads(tmp_path: Path) -> None:
    before = answering()
    made = status_socket.serve(tmp_path / "status.sock", lambda: b"", print)
    made.close()
    until = time.monotonic() + 20
    while answering() > before:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not status_socket.listens(tmp_path / "status.sock")


def test_a_daemon_is_asked_where_there_is_one(tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    reported = a_document("msr")
    reported["schema"] = 1
    reported["host"]["since"] = "2026-01-02T03:04:05+00:00"
    for number, domain in enumerate(reported["domains"]):
        domain["uuid"] = f"{number}2345678-1234-1234-1234-123456789abc"
    path = tmp_path / paths.STATUS_SOCKET
    path.parent.mkdir()
    serve(path, lambda: json.dumps(reported).encode())
    assert path.stat().st_mode & 0o777 == 0o660

    assert ask_daemon(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == reported
    assert ask_daemon(tmp_path, "--json", "long-name", reported["domains"][1]["uuid"]) == 0
    assert json.loads(capsys.readouterr().out)["domains"] == [reported["domains"][1]]
    assert ask_daemon(tmp_path) == 0
    since = datetime.fromtimestamp(1767323045).strftime("%Y-%m-%d %H:%M:%S")
    assert capsys.readouterr().out.splitlines() == [*status.table(read(reported)), f"joules are counted since {since}"]
    assert ask_daemon(tmp_path, "nobody") == 1
    assert "there is no domain 'nobody'" in capsys.readouterr().err


def test_virt_rapld_is_not_asked_for_the_domains_of_another_libvirt(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_for(host, 0)
    monkeypatch.setattr(status_socket, "ask", lambda _: a_document("msr"))
    assert run(tmp_path) == 0
    shown = capsys.readouterr()
    assert (shown.out.splitlines()[-1], shown.err) == ("joules are counted since this command started", "")


def test_who_could_have_made_the_run_directory_does_not_answer_for_virt_rapld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status_socket, "ask", lambda _: a_document("msr"))
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    (tmp_path / "virt-rapl.yaml").write_text(f"run_directory: {run_directory}\n")
    for mode, got in ((0o755, 0), (0o777, 1)):
        run_directory.chmod(mode)
        assert main(["--config", str(tmp_path / "virt-rapl.yaml"), "status"]) == got
        shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{run_directory} is not used" in shown.err


@pytest.mark.parametrize(("watch", "terminal"), [(True, True), (True, False), (False, True)])
def test_only_a_terminal_that_watches_is_redrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, watch: bool, terminal: bool
) -> None:
    reported = a_document("msr")
    reported["domains"][1]["reason"] = "no \x1b[31m helper"
    answers = iter([reported])
    monkeypatch.setattr(status_socket, "ask", lambda _: next(answers, None))
    monkeypatch.setattr(stream_socket, "follow", lambda _: iter([]))
    monkeypatch.setattr(documents, "INTERVAL_SECONDS", 0)
    monkeypatch.setattr(documents, "RESTART_SECONDS", 0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    ask_daemon(tmp_path, *(["--watch"] if watch else []))
    out = capsys.readouterr().out
    redrawn = "\033[H\033[J" if watch and terminal else ""
    assert out.startswith(f"{redrawn}CPU (msr)\n")
    assert out.count("\033") == redrawn.count("\033"), "what a domain brings along is written out"


def test_own_samples_come_at_a_rhythm_however_long_each_takes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert host
    slept: list[float] = []
    clock = SimpleNamespace(now=0.0)
    real = documents._sample

    def sample(meter: Meter, connection: Any) -> list[Domain]:  # noqa: ANN401
        clock.now += 0.25
        return real(meter, connection)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds
        if len(slept) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(documents, "_sample", sample)
    monkeypatch.setattr(documents, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    monkeypatch.setattr(documents, "INTERVAL_SECONDS", 1.0)
    assert run(tmp_path, "--watch") == 130
    assert slept == [1.0, 0.75, 0.75, 0.75]


def test_a_watch_outlives_a_restart_of_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reported(energy: float) -> dict[str, Any]:
        return {"schema": 1, "host": {"since": "2026-01-02T03:04:05+00:00"}, "domains": [], "energy": energy}

    answers = [reported(1), reported(2), None, None, reported(3)]
    monkeypatch.setattr(status_socket, "ask", lambda _: answers.pop(0) if answers else None)
    monkeypatch.setattr(documents, "INTERVAL_SECONDS", 0)
    monkeypatch.setattr(documents, "RESTART_SECONDS", 0.1)
    assert ask_daemon(tmp_path, "--json", "--watch") == 1
    shown = capsys.readouterr()
    assert [json.loads(line)["energy"] for line in shown.out.splitlines()] == [1, 2, 3]
    assert shown.err.startswith("virt-rapl: error: virt-rapld has gone\nhint: ")


def test_a_watch_prints_what_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And goes on where the daemon is restarted."""
    host = {"since": "2026-01-02T03:04:05+00:00"}
    shown = [{"schema": 1, "host": host, "domains": [], "energy": number} for number in range(7)]
    asked, streamed = iter([shown[0], shown[4], None]), iter([shown[1:4], shown[5:7]])
    monkeypatch.setattr(status_socket, "ask", lambda _: next(asked, None))
    monkeypatch.setattr(stream_socket, "follow", lambda _: iter(next(streamed, [])))
    monkeypatch.setattr(documents, "INTERVAL_SECONDS", 0)
    monkeypatch.setattr(documents, "RESTART_SECONDS", 0.1)
    assert ask_daemon(tmp_path, "--json", "--watch") == 1
    printed = capsys.readouterr()
    assert [json.loads(line)["energy"] for line in printed.out.splitlines()] == [0, 1, 2, 3, 4, 5, 6]
    assert printed.err.startswith("virt-rapl: error: virt-rapld has gone\nhint: ")


def test_documents_of_other_versions_are_shown() -> None:
    """Of one that lacks what was added later, and one that has what this version does not know."""
    older = a_document("msr")
    newer = a_document("msr")
    for domain in older["domains"]:
        del domain["since"]
    newer["news"] = newer["host"]["news"] = newer["domains"][0]["news"] = newer["host"]["zones"][0]["news"] = {}
    assert status.table(read(newer)) == status.table(read(a_document("msr")))
    assert status.table(read(older))[-1] == "long-name runs without its meter: no helper"
    del older["domains"][0]["name"]
    with pytest.raises(VirtRaplError, match="name"):
        read(older)


def test_a_field_that_is_new_has_a_default() -> None:
    """Or `status` would not show what a daemon says that was started before an upgrade."""
    parts = (kind for kind in vars(document).values() if is_dataclass(kind) and isinstance(kind, type))
    needed = {
        kind.__name__: {each.name for each in fields(kind) if MISSING is each.default is each.default_factory}
        for kind in parts
    }
    figures = {"power_watts", "energy_joules"}
    assert needed == {
        "Document": {"host", "domains"},
        "Host": {"source", "model", "since", "interval_seconds", "zones", "domains_watts", "other_watts", "idle_watts"},
        "Zone": {"name", "domains_joules", "other_joules", "idle_joules", *figures},
        "DomainReading": {
            *("name", "uuid", "id", "state", "pid", "vrapl", "reason", "helper", "zones", "vcpus"),
            *figures,
        },
        "HelperState": {"backend", "pid", "socket", "healthy"},
        "Reading": figures,
        "Vcpu": {"id", "tid", *figures},
    }


@pytest.mark.parametrize(
    "missing",
    [("host",), ("domains",), ("host", "zones"), ("host", "source"), ("host", "zones", 0, "name")]
    + [("domains", 0, name) for name in ("uuid", "helper", "zones", "vcpus", "power_watts")],
)
def test_a_document_that_lacks_what_all_versions_have_is_an_error_with_a_hint(missing: tuple[str | int, ...]) -> None:
    shown: Any = a_document("msr")
    part = shown
    for step in missing[:-1]:
        part = part[step]
    del part[missing[-1]]
    with pytest.raises(VirtRaplError) as caught:
        read(shown)
    assert caught.value.hint


@pytest.mark.usefixtures("host")
def test_instants_are_in_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "run")
    record = Record(uuid=UUID, name="vm", backend="native", owner_uid=0, owner_gid=0, state="degraded", since=86400.0)
    registry.write(record)
    entry = inventory.Entry(name="vm", uuid=UUID, id=3, state="running", pid=7, mark="live")
    host = host_meter.HostMeter(Config(run_directory=registry.run_directory))
    host.meter.since = 3600.25
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-9")
        time.tzset()
        shown = host.document(take(host.meter), [entry])
    time.tzset()
    assert (shown.host.since, shown.domains[0].since) == ("1970-01-01T01:00:00+00:00", "1970-01-02T00:00:00+00:00")


@pytest.mark.usefixtures("host")
def test_on_a_processor_that_is_not_intels_what_is_pending_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "processor", lambda _: Processor("AuthenticAMD", 25, 1))
    host = host_meter.HostMeter(Config(run_directory=tmp_path / "run"))
    names: list[tuple[str, inventory.Mark | None]] = [("a", "next"), ("b", None), ("c", "next")]
    entries = [
        inventory.Entry(
            name=name, uuid=f"{name}2345678-1234-1234-1234-123456789abc", id=None, state="", pid=None, mark=mark
        )
        for name, mark in names
    ]
    first, second, third = host.document(take(host.meter), entries, {entries[2].uuid: "it can grow"}).domains
    assert "Intel" in str(first.reason)
    assert (second.reason, third.reason) == (None, "it can grow")


@pytest.mark.parametrize("silent", [True, False])
def test_a_daemon_that_does_not_answer_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, silent: bool
) -> None:
    monkeypatch.setattr(status_socket, "ask", lambda _: None)
    monkeypatch.setattr(status_socket, "listens", lambda _: silent)
    sampled = a_document("msr")
    sampled["host"]["trouble"] = "[Errno 24] Too many open files"
    monkeypatch.setattr(documents, "_sampled", lambda *_: iter([sampled]))
    assert ask_daemon(tmp_path) == 0
    shown = capsys.readouterr()
    assert re.fullmatch("virt-rapl: virt-rapld does not answer; .*sample.*\n" if silent else "", shown.err)
    assert "not everything could be read: [Errno 24] Too many open files" in shown.out


@pytest.mark.parametrize("words", [b"", b"{", b"[]", b'{"schema": 2}'])
def test_who_is_no_daemon(tmp_path: Path, words: bytes) -> None:
    path = tmp_path / "status.sock"
    assert status_socket.ask(path) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert status_socket.ask(path) is None  # stale: nobody listens
        assert not status_socket.listens(path)
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(words)

        thread = threading.Thread(target=answer)
        thread.start()
        assert status_socket.ask(path) is None
        thread.join()


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
    assert shown[busy]["zones"].keys() == {"package", "core", "dram"}
    assert shown[busy]["zones"]["package"]["power_watts"] == shown[busy]["power_watts"]
    assert shown[busy]["zones"]["dram"]["power_watts"] == pytest.approx(shown[busy]["power_watts"] / 10, rel=0.01)
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
    assert done.stderr.splitlines()[-1].startswith("hint: run as root")
