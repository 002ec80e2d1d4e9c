"""The command `virt-rapl top` without its screen: frames as text, where its figures are from, and what fails."""

import contextlib
import csv
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.documents import Daemon, document, domain, uuid
from fakes.host import Host, Thread
from walking import NewGuest, StartDaemon, start_enabled, status, wait_until

from libvirt_rapl import paths
from libvirt_rapl.cli import documents, history, main, top
from libvirt_rapl.config import load
from libvirt_rapl.daemon import history_socket, host_meter
from libvirt_rapl.daemon.document import render
from libvirt_rapl.domains import inventory
from libvirt_rapl.domains.run_files import RunState
from libvirt_rapl.energy.history import QUARTER, Identity, Moment
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.snapshot import HOST, WHOLE, Kept, Part
from libvirt_rapl.simulator.world import World
from libvirt_rapl.top import screen
from libvirt_rapl.top.figures import Today

KWH = 3_600_000_000_000
TWO = document([domain(1, "web", 12.5, 70, vrapl="active"), domain(2, "db\x1b[31m", 30, 90)])
TEST_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
"""Of the domain `test` that libvirt's test driver always has."""

Run = Callable[..., int]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, TWO, "tariff: {currency: EUR, price: 0.5}\npue: 2\n")
    yield daemon
    daemon.stop()


@pytest.fixture
def run(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *options: main(["--config", str(daemon.config), "top", *options])


def frames(out: str) -> list[list[str]]:
    """Return the frames, each as its lines."""
    return [frame.split("\n") for frame in out.rstrip("\n").split("\n\n")]


def test_a_frame(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--batch", "-n", "1") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "\x1b" not in shown.out
    (lines,) = frames(shown.out)
    assert lines[1].startswith("packages 62.50 W  ███")
    assert len(lines[1]) == 100
    assert lines[-2].split() == ["db\\x1b[31m", "running", "off", "2", "60.0", "30.00", "█", "-", "0.0300", "90"]
    assert lines[-1].split() == ["web", "running", "active", "2", "25.0", "12.50", "█", "-", "0.0125", "70"]


def test_frames_follow_the_daemon(run: Run, daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    enough = threading.Event()

    def show() -> None:
        for watts in itertools.count(31):
            daemon.show(document([domain(1, "web", watts)]))
            if enough.wait(0.02):
                return

    thread = threading.Thread(target=show)
    thread.start()
    try:
        assert run("-b", "-n", "4") == 0
    finally:
        enough.set()
        thread.join()
    shown = [float(lines[-1].split()[5]) for lines in frames(capsys.readouterr().out)]
    assert len(shown) == len(set(shown)) == 4
    assert sorted(shown) == shown


def test_one_frame_in_so_many_seconds(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = SimpleNamespace(now=0.0)

    def each() -> Iterator[dict[str, object]]:
        for number in range(8):
            yield json.loads(render(document([domain(1, f"vm-{number}", number)])))
            clock.now += 1

    monkeypatch.setattr(documents, "find", lambda *_: documents.Documents("virt-rapld", each()))
    monkeypatch.setattr(top, "time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
    assert run("--batch", "-n", "3", "-d", "3", "--csv", str(tmp_path / "energy.csv")) == 0
    shown = frames(capsys.readouterr().out)
    assert [lines[-1].split()[0] for lines in shown] == ["vm-0", "vm-3", "vm-6"]
    assert all("every 3 s" in lines[0] for lines in shown)
    with (tmp_path / "energy.csv").open(newline="") as file:
        assert [(row["domain"], row["power_watts"]) for row in csv.DictReader(file)] == [
            ("vm-0", "0"),
            ("vm-3", "3"),
            ("vm-6", "6"),
        ]


def test_a_pipe_gets_frames_too(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-n", "1") == 0
    shown = capsys.readouterr()
    assert shown.err == "virt-rapl: this is no terminal: frames are plain text, as with --batch\n"
    assert len(frames(shown.out)) == 1


def test_a_file_without_block_elements(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    stdout = SimpleNamespace(encoding="ascii", write=lines.append, flush=lambda: None, isatty=lambda: False)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run("--batch", "-n", "1") == 0
    assert "".join(lines).isascii()
    assert "####" in "".join(lines)


@pytest.mark.parametrize(
    "options", [["-n", "0"], ["-n", "x"], ["-d", "0"], ["-d", "4000"], ["-d", "x"], ["web"], ["--csv"]]
)
def test_wrong_usage(run: Run, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--batch", *options)
    assert caught.value.code == 2
    assert "usage: virt-rapl top" in capsys.readouterr().err


def test_a_daemon_that_goes_ends_the_frames(
    run: Run, daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(documents, "RESTART_SECONDS", 0.1)
    shown = screen.frame

    def frame(*arguments: object) -> list[str]:
        daemon.stop()
        return shown(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(top, "frame", frame)
    assert run("--batch") == 1
    assert capsys.readouterr().err.startswith("virt-rapl: error: virt-rapld has gone\nhint: ")


def test_own_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    host = Host(tmp_path)
    seconds = iter(range(1, 100))

    def count(number: int) -> None:
        host.zone("intel-rapl:0", "package-0", 10_000_000 * number)
        host.process(7, {7: Thread("qemu", 0), 8: Thread("CPU 0/KVM", number * 10**9)})

    for name in ("sys", "proc", "dev"):
        monkeypatch.setattr(host_meter, name.upper(), getattr(host, name))
    monkeypatch.setattr(documents, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(inventory, "read_run_state", lambda name: RunState(7, {0: 8}) if name == "test" else None)
    monkeypatch.setattr(time, "sleep", lambda _: count(next(seconds)))
    count(0)
    config = tmp_path / "virt-rapl.yaml"
    config.write_text(f"run_directory: {tmp_path}/run\ntariff: {{currency: EUR, price: 0.5}}\n")
    asked: list[object] = []
    monkeypatch.setattr(top, "_today", asked.append)
    options = ["--connect", "test:///default", "--config", str(config), "top", "--batch", "-n", "2"]
    assert main([*options, "--csv", str(tmp_path / "energy.csv")]) == 0
    first, second = frames(capsys.readouterr().out)
    for lines in (first, second):
        assert sum("WITHOUT virt-rapld: top's own samples" in line for line in lines) == 1
        assert lines[-1].startswith("test ")
    assert asked == [], "the history is that of the machine's own libvirt"
    with (tmp_path / "energy.csv").open(newline="") as file:
        energies = [(row["uuid"], float(row["energy_joules"])) for row in csv.DictReader(file)]
    assert energies == [(TEST_UUID, 10), (TEST_UUID, 20)]


@pytest.fixture
def ledger(daemon: Daemon) -> Path:
    """A ledger with what domain 1 has used before today, and today."""
    path = daemon.state_directory / paths.LEDGER
    written = Ledger(path, simulated=True, log=pytest.fail)
    written.load()
    midnight = time.mktime((*time.localtime()[:3], 0, 0, 0, 0, 0, -1))
    for number, now in enumerate((midnight - 2 * QUARTER, midnight - QUARTER, midnight, midnight + 2 * QUARTER)):
        totals = {Part(owner, WHOLE, "package-0"): number * KWH // 4 for owner in (HOST, uuid(1))}
        written.write(Kept(totals, metered=number * QUARTER), (), Moment(now=now, domains={uuid(1): Identity("web")}))
    return path


def of_today(daemon: Daemon) -> Today:
    return top._today(load(daemon.config))


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is later than when the ledger was written."""
    real = time.time()
    midnight = time.mktime((*time.localtime(real)[:3], 0, 0, 0, 0, 0, -1))
    monkeypatch.setattr(top, "time", SimpleNamespace(time=lambda: midnight + 12 * 3600, monotonic=time.monotonic))


@pytest.mark.usefixtures("ledger", "noon")
def test_what_today_has_used_is_of_the_ledger(daemon: Daemon) -> None:
    today = of_today(daemon)
    assert today.trouble == ""
    assert today.kwh_of(uuid(1)) == pytest.approx(0.25, abs=0.001), "and nothing of yesterday"
    assert (today.kwh_of(uuid(2)), today.currency) == (0.0, "EUR")
    assert today.cost_of(500) == 0.5, "an hour at 500 W, at 0.5 EUR and PUE 2"


@pytest.mark.usefixtures("noon")
def test_who_may_not_read_the_ledger_asks_virt_rapld(
    daemon: Daemon, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = of_today(daemon)

    @contextlib.contextmanager
    def forbidden(path: Path) -> Iterator[None]:
        raise PermissionError(13, "Permission denied", str(path))
        yield

    monkeypatch.setattr(history, "open_ledger", forbidden)
    assert "there is no ledger" in of_today(daemon).trouble
    server = history_socket.serve(daemon.run_directory / paths.HISTORY_SOCKET, ledger)
    try:
        assert of_today(daemon) == expected != Today()
    finally:
        server.close()


@pytest.mark.usefixtures("noon")
def test_what_is_not_known_of_today(daemon: Daemon, ledger: Path) -> None:
    text = daemon.config.read_text().replace("tariff:", "history: off\ntariff:")
    daemon.config.write_text(text)
    assert of_today(daemon) == replace(
        Today(), price=of_today(daemon).price, currency="EUR", trouble="history is off in the configuration"
    )
    daemon.config.write_text(text.replace("history: off\n", "").replace("price: 0.5", f"csv: {daemon.config}.csv"))
    today = of_today(daemon)
    assert "cannot read" in today.trouble
    assert today.kwh is not None
    assert today.cost_of(1) is None
    ledger.unlink()
    assert of_today(daemon).trouble.count("; ") == 1
    daemon.config.write_text(f"state_directory: {daemon.state_directory}\n")
    assert of_today(daemon).currency == ""


def test_the_history_is_asked_once_a_minute(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    asked: list[float] = []

    def each() -> Iterator[dict[str, object]]:
        for _ in range(10):
            yield json.loads(render(TWO))
            clock.now += 20

    def today(_: object) -> Today:
        asked.append(clock.now)
        return Today(kwh={uuid(1): float(len(asked))})

    monkeypatch.setattr(top, "_today", today)
    monkeypatch.setattr(documents, "find", lambda *_: documents.Documents("virt-rapld", each()))
    monkeypatch.setattr(top, "time", SimpleNamespace(monotonic=lambda: clock.now))
    assert run("--batch") == 0
    assert asked == [0, 60, 120, 180]
    assert frames(capsys.readouterr().out)[-1][-1].split()[-2] == "4.0000"


@pytest.mark.e2e
def test_a_member_of_the_group_sees_real_guests(world: World, new_guest: NewGuest, start_daemon: StartDaemon) -> None:
    name = new_guest(60)
    start_enabled(world, name)
    start_daemon()
    group = "setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all"
    command = ["sh", "-c", f"COLUMNS=200 LC_ALL=C.UTF-8 {group} virt-rapl top --batch -n 1"]
    refused = world.run(command, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "group virt-rapl" in refused.stderr
    world.run(["chgrp", "-R", "65534", f"/run/virt-rapl/{paths.DAEMON}"])
    try:
        seen: list[str] = []

        def is_known() -> bool:
            seen[:] = world.run(command).stdout.splitlines()
            return not any("not all of today is known" in line for line in seen) and not seen[-1].endswith(" -")

        wait_until(is_known, 60, "the ledger has something of today")
        assert any("energy is SIMULATED" in line for line in seen)
        assert not any("WITHOUT" in line for line in seen)
        cells = next(line for line in seen if line.startswith(name)).split()
        assert cells[1:4] == ["running", "active", "1"]
        shown = status(world, name)
        assert float(cells[4]) == pytest.approx(shown["cpu_percent"], rel=0.3)
        assert float(cells[5]) == pytest.approx(shown["power_watts"], rel=0.3)
        assert 0 < float(cells[-1]) <= shown["energy_joules"] + 1
    finally:
        world.run(["chgrp", "-R", "0", f"/run/virt-rapl/{paths.DAEMON}"])
