"""A native helper's process: what it may still do, what ends it, and what does not."""

import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import Instance, Rapl, answer, ask

import libvirt_rapl
from libvirt_rapl import systemd
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_UNIT, REGISTERS, REQUEST
from libvirt_rapl.helper.vmsr.server import TICK_SECONDS
from libvirt_rapl.host.processes import start_time

pytestmark = pytest.mark.e2e

PACKAGE = Path(libvirt_rapl.__file__).parent
SYS_RAWIO = f"{1 << 17:016x}"
NONE = f"{0:016x}"


@pytest.fixture(scope="module")
def rapl() -> Iterator[Rapl]:
    with Rapl() as rapl:
        yield rapl


@pytest.fixture
def directory() -> Iterator[Path]:
    """A run directory with a path short enough for a socket address."""
    with tempfile.TemporaryDirectory(prefix="virt-rapl-") as directory:
        yield Path(directory)


@pytest.mark.parametrize(
    ("backend", "source", "permitted"),
    [("native", "auto", NONE), ("native", "powercap", NONE), ("qemu", "auto", SYS_RAWIO)],
)
def test_capabilities_are_given_up_for_good(
    rapl: Rapl, directory: Path, backend: str, source: str, permitted: str
) -> None:
    with Instance(rapl, directory, backend=backend, source=source) as instance:
        held = {name: instance.status(f"Cap{name}") for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
        assert held == {"Inh": NONE, "Prm": permitted, "Eff": permitted, "Bnd": SYS_RAWIO, "Amb": NONE}
        assert instance.status("NoNewPrivs") == "1"
        assert instance.status("Seccomp") == "2"
        limits = Path(f"/proc/{instance.pid}/limits").read_text()
        assert "Max core file size        0                    0" in limits


def test_it_needs_nothing_of_the_package_once_it_serves(rapl: Rapl, directory: Path, tmp_path: Path) -> None:
    """As when the package is upgraded, or removed, under a domain that runs."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("shipped"))
    runner = tmp_path / "virt-rapl"
    runner.write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from libvirt_rapl.cli import main; sys.exit(main())"
    )
    with Instance(rapl, directory, program=[sys.executable, str(runner)]) as instance:
        assert str(tmp_path) in Path(f"/proc/{instance.pid}/cmdline").read_text()
        shutil.rmtree(tmp_path)
        with instance.connect() as peer:
            assert ask(peer, ENERGY)
            assert ask(peer, ENERGY, cpu=4000) == 0
            assert ask(peer, ENERGY, tid=1) == 0
            assert ask(peer, 0x10) is None
        for data in (b"", b"half", os.urandom(4096)):
            with instance.connect() as peer:
                peer.sendall(data)
        (directory / f"{instance.uuid}.state").write_text(f"ready\n{os.getpid()}\n")
        time.sleep(TICK_SECONDS * 1.5)
        with instance.connect() as peer:
            assert all(ask(peer, register) for register in REGISTERS)
            instance.process.terminate()
            assert ask(peer, ENERGY)
        assert instance.process.wait(10) == 0
        assert instance.log() == ""


def test_it_stays_when_its_session_ends(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance, instance.connect() as peer:
        instance.process.send_signal(signal.SIGHUP)
        assert ask(peer, ENERGY)


def test_on_sigterm_it_serves_until_qemu_has_gone(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        with instance.connect() as qemu:
            assert ask(qemu, ENERGY)
            instance.process.terminate()
            time.sleep(0.5)
            assert ask(qemu, ENERGY)
            with pytest.raises(ConnectionRefusedError):
                instance.connect()
        assert instance.process.wait(10) == 0


def test_on_sigterm_without_qemu_it_ends_at_once(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance, instance.connect():
        instance.process.terminate()
        assert instance.process.wait(10) == 0


def test_without_free_descriptors_it_serves_who_is_there_and_the_others_later(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance, instance.connect() as peer, socket.socket(socket.AF_UNIX) as late:
        units = ask(peer, POWER_UNIT)
        soft, hard = resource.prlimit(instance.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(instance.pid, resource.RLIMIT_NOFILE, (0, hard))
        late.settimeout(10)
        late.connect(str(instance.path))
        late.sendall(REQUEST.pack(POWER_UNIT, 0, os.getpid()))
        time.sleep(0.2)
        assert ask(peer, POWER_UNIT) == units
        late.setblocking(False)
        with pytest.raises(BlockingIOError):
            late.recv(1)
        late.settimeout(10)
        resource.prlimit(instance.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert answer(late) == units


def test_energy_comes_at_a_rhythm_of_a_second(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance, instance.connect() as peer:
        values: list[int | None] = []
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            values.append(ask(peer, ENERGY))
        assert len(values) > 50
        assert 0 not in values
        assert 1 <= len(set(values)) <= 5


def test_status_says_since_when_a_helper_is_dead(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        registry = Registry(directory)
        record = registry.read(instance.uuid)
        assert record
        before = instances.ended_at(record, registry)
        time.sleep(TICK_SECONDS * 1.5)
        after = instances.ended_at(record, registry)
        assert before
        assert after
        assert before < after <= time.time()
        instance.process.kill()
        instance.process.wait(10)
        last = instances.ended_at(record, registry)
        time.sleep(TICK_SECONDS * 1.5)
        assert instances.ended_at(record, registry) == last


def known(instance: Instance, directory: Path) -> tuple[Registry, Record]:
    """Return the registry, and the instance's record once its process is in it."""
    registry = Registry(directory)
    record = registry.read(instance.uuid)
    assert record
    record.helper_pid, record.helper_start = instance.pid, start_time(instance.pid)
    return registry, record


def test_a_stopped_helper_is_in_trouble_until_it_goes_on(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        registry, record = known(instance, directory)
        assert instances.trouble(record, registry) == ""
        os.kill(instance.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, instance.process.pid, os.WSTOPPED)
        assert instances.alive(record)
        assert (
            instances.trouble(record, registry)
            == f"its helper is stopped; `kill -CONT {instance.pid}` lets it continue"
        )
        os.kill(instance.pid, signal.SIGCONT)
        os.waitid(os.P_PID, instance.process.pid, os.WCONTINUED)
        assert instances.trouble(record, registry) == ""
        instance.process.kill()
        instance.process.wait()
        assert instances.trouble(record, registry) == instances.HELPER_ENDED


def test_a_helper_without_its_qemu_is_in_trouble_once_qemu_is_known(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        registry, record = known(instance, directory)
        with instance.connect() as qemu:
            assert ask(qemu, ENERGY)
            registry.path(instance.uuid, "state").write_text(f"ready\n{os.getpid()}\n")
            time.sleep(TICK_SECONDS * 2.5)
            assert instances.trouble(record, registry) == ""
        left = time.time()
        time.sleep(TICK_SECONDS * 1.5)
        assert instances.trouble(record, registry) == instances.HELPER_ALONE
        since = instances.ended_at(record, registry)
        time.sleep(TICK_SECONDS * 1.5)
        assert since
        assert since <= left
        assert instances.ended_at(record, registry) == since
        assert instances.trouble(record, registry) == instances.HELPER_ALONE


def test_a_helper_whose_qemu_is_yet_to_come_is_in_no_trouble(rapl: Rapl, directory: Path) -> None:
    with Instance(rapl, directory) as instance:
        registry, record = known(instance, directory)
        time.sleep(TICK_SECONDS * 1.5)
        assert instances.trouble(record, registry) == ""


@pytest.mark.parametrize("backend", ["native", "qemu"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_helper_is_ended_be_it_recorded_or_not(
    rapl: Rapl, directory: Path, monkeypatch: pytest.MonkeyPatch, backend: str, *, recorded: bool
) -> None:
    monkeypatch.setattr(systemd, "runs", lambda: False)
    with Instance(rapl, directory, backend=backend) as instance:
        registry, record = known(instance, directory)
        record.helper_pid = record.helper_pid if recorded else None
        assert instances.stop(record, registry)
        instance.process.wait(10)
        assert not instance.path.exists()
        assert not instances.stop(record, registry)
