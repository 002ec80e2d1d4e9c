"""virt-rapld: on a host made of files, and in a world with real guests and a libvirt that is killed."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.host import Host
from walking import ALONE, LOG, NewGuest, StartDaemon, asked, start_enabled, wait_until

from libvirt_rapl import paths
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.daemon.stream_socket import follow
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.ledger_content import seal
from libvirt_rapl.energy.snapshot import HOST, WHOLE, Part
from libvirt_rapl.simulator.world import World

DAY = 86400.0

DAEMON = """
import sys
import time
from pathlib import Path
from libvirt_rapl.daemon import host_meter
from libvirt_rapl.cli import main
from libvirt_rapl.energy.ledger import Ledger
root = Path(sys.argv[1])
write, frozen = Ledger.write, root / "frozen"
def slow(*arguments):
    while frozen.exists():
        time.sleep(0.1)
    return write(*arguments)
Ledger.write = slow
clock, step = time.time, root / "clock-step"
make, waits = host_meter.HostMeter.document, root / "waits"
def slow_document(*arguments):
    with open(root / "documents", "a") as made:
        made.write(".")
    time.sleep(float(waits.read_text()) if waits.exists() else 0)
    return make(*arguments)
host_meter.HostMeter.document = slow_document
time.time = lambda: clock() + (float(step.read_text()) if step.exists() else 0)
host_meter.SYS, host_meter.PROC, host_meter.DEV = root / "sys", root / "proc", root / "dev"
sys.exit(main(["--connect", "test:///default", "--config", str(root / "virt-rapl.yaml"), "daemon"]))
"""


class Bench:
    """A host of files, and daemons on it that report to a systemd of ours."""

    def __init__(self, root: Path, notify: socket.socket) -> None:
        self.root = root
        self.host = Host(root)
        self.host.zone("intel-rapl:0", "package-0")
        self.joules(0)
        self.notify = notify
        (root / "virt-rapl.yaml").write_text(
            f"run_directory: {root}/run\nstate_directory: {root}/state\ninterval: 0.1\n"
        )

    def joules(self, joules: int) -> None:
        # In one write and without emptying it first: the daemon reads when it wants.
        with (self.host.powercap / "intel-rapl:0/energy_uj").open("r+") as file:
            file.write(f"{joules * 1_000_000:020}\n")

    def popen(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(self.root)],
            env={**os.environ, "NOTIFY_SOCKET": str(self.notify.getsockname())},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextlib.contextmanager
    def daemon(self) -> Iterator["subprocess.Popen[str]"]:
        with self.popen() as process:
            try:
                assert self.notification(process) == "READY=1"
                yield process
            finally:
                process.kill()

    def notification(self, process: "subprocess.Popen[str]") -> str:
        """Return the next notification that the daemon sends to systemd."""
        try:
            return self.notify.recv(100).decode()
        except TimeoutError:
            process.kill()
            raise AssertionError(process.communicate()[1]) from None

    def forget(self) -> None:
        """Take all that a daemon said before it ended."""
        self.notify.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.notify.recv(100):
                pass
        self.notify.settimeout(30)

    def is_reported_within_a_second(self) -> bool:
        return bool(select.select([self.notify], [], [], 1)[0]) and bool(self.notify.recv(100))

    def document(self) -> dict[str, Any]:
        document = status_socket.ask(self.root / "run" / paths.STATUS_SOCKET)
        assert document
        return document

    @property
    def stream(self) -> Path:
        return self.root / "run" / paths.STREAM_SOCKET

    def package_joules(self) -> float:
        (zone,) = self.document()["host"]["zones"]
        return float(zone["energy_joules"])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(30)
        yield Bench(tmp_path, notify)


def test_a_life(bench: Bench) -> None:
    with bench.daemon() as process:
        assert bench.notification(process) == "WATCHDOG=1"
        bench.joules(10)
        wait_until(lambda: bench.package_joules() == 10, 30, "it meters")
        document = bench.document()
        assert document["host"]["source"] == "powercap"
        assert [domain["name"] for domain in document["domains"]] == ["test"]
        modes = {
            "run": 0o711,
            "run/daemon": 0o750,
            "run/daemon/status.sock": 0o660,
            "run/daemon/stream.sock": 0o660,
            "state": 0o700,
            "state/ledger.db": 0o600,
            "state/ledger.db.lock": 0o600,
        }
        assert {path: (bench.root / path).stat().st_mode & 0o777 for path in modes} == modes

        with bench.popen() as second:
            _, words = second.communicate(timeout=30)
        assert second.returncode == 1
        assert words.startswith(f"virt-rapl: error: another virt-rapl daemon already uses {bench.root}/run\nhint: ")
        assert bench.package_joules() == 10

        process.terminate()
        last = ""
        while last != "STOPPING=1":
            last = bench.notification(process)
        assert process.wait(30) == 0
        assert process.stderr
        assert process.stderr.read() == ""
    assert list((bench.root / "run").iterdir()) == []


def test_totals_outlive_it_however_it_ends(bench: Bench) -> None:
    counted = 0.0
    bench.joules(1000)
    for joules, number in ((1010, signal.SIGTERM), (1030, signal.SIGKILL), (5, signal.SIGKILL), (50, signal.SIGINT)):
        bench.joules(joules - 5)
        with bench.daemon() as process:
            assert bench.notification(process) == "WATCHDOG=1"
            assert bench.package_joules() == counted
            since = bench.document()["host"]["since"]
            bench.joules(joules)
            counted += 5
            wait_until(lambda: bench.package_joules() == counted, 30, "it counts on")  # noqa: B023
            process.send_signal(number)
            process.wait(30)
            bench.forget()
    assert counted == 20
    with bench.daemon():
        assert bench.document()["host"]["since"] == since


@pytest.mark.slow
def test_totals_are_kept_every_10_seconds_without_being_asked_for(bench: Bench) -> None:
    bench.joules(10)
    with bench.daemon() as process:
        assert bench.notification(process) == "WATCHDOG=1"
        bench.joules(15)
        ledger = bench.root / "state/ledger.db"

        def kept() -> int:
            with contextlib.closing(sqlite3.connect(ledger)) as database:
                rows = database.execute("SELECT microjoules FROM total WHERE owner = 'host' AND zone = 'package-0'")
                return sum(microjoules for (microjoules,) in rows)

        wait_until(lambda: kept() == 5_000_000, 30, "it is kept")
        process.kill()


@pytest.mark.slow
def test_what_is_reported_is_kept_as_soon_as_the_disk_allows(bench: Bench) -> None:
    """Not only at the next sample: an energy that was reported must never be reported as less."""
    configuration = bench.root / "virt-rapl.yaml"
    configuration.write_text(configuration.read_text().replace("0.1", "60"))
    state = bench.root / "state"
    with bench.daemon() as process:
        bench.joules(9)
        assert bench.notification(process) == "WATCHDOG=1"  # the next sample is a minute away
        bench.document()  # and this one is written
        away = state.rename(state.with_name("away"))
        state.touch()
        assert bench.package_joules() == 9
        state.unlink()
        away.rename(state)
        assert bench.package_joules() == 9
        process.kill()
    kept = Ledger(state / "ledger.db", simulated=False, log=pytest.fail).load()
    assert kept.totals[Part(HOST, WHOLE, "package-0")] == 9_000_000


@pytest.mark.parametrize("how", ["asked", "streamed"])
def test_what_was_shown_outlives_a_kill(bench: Bench, how: str) -> None:
    """While the counter runs: the ledger has no less than the answer before the kill, which comes at once."""
    counting, joules = threading.Event(), iter(range(1, 1_000_000))

    def count() -> None:
        while not counting.wait(0.001):
            bench.joules(next(joules))

    counter = threading.Thread(target=count)
    counter.start()
    shown = 0.0
    try:
        for _ in range(4):
            with bench.daemon() as process:
                wait_until(lambda: bench.package_joules() > shown, 20, "it counts on")  # noqa: B023
                document = bench.document() if how == "asked" else next(follow(bench.stream))
                process.kill()
                process.wait(30)
                bench.forget()
            shown = document["host"]["zones"][0]["energy_joules"]
            kept = Ledger(bench.root / "state/ledger.db", simulated=False, log=pytest.fail).load()
            assert kept.totals[Part(HOST, WHOLE, "package-0")] >= shown * 1_000_000 > 0
    finally:
        counting.set()
        counter.join()


@pytest.mark.slow
def test_a_stream_is_given_each_sample_and_makes_a_document_of_each(bench: Bench) -> None:
    configuration = bench.root / "virt-rapl.yaml"
    configuration.write_text(configuration.read_text().replace("0.1", "0.2"))
    made = bench.root / "documents"
    with bench.daemon() as process:
        for _ in range(3):
            assert bench.notification(process) == "WATCHDOG=1"
        assert not made.exists(), "nobody has asked"
        documents = follow(bench.stream)
        next(documents)
        began, size = time.monotonic(), made.stat().st_size
        for _ in range(6):
            next(documents)
        assert 0.8 < time.monotonic() - began < 10
        assert made.stat().st_size - size == 6
        documents.close()
        time.sleep(0.5)
        size = made.stat().st_size
        for _ in range(3):
            assert bench.notification(process) == "WATCHDOG=1"
        assert made.stat().st_size == size, "nobody is connected any more"


@pytest.mark.slow
def test_a_stream_of_rare_samples_shows_each_second_what_changes_between(bench: Bench) -> None:
    configuration = bench.root / "virt-rapl.yaml"
    configuration.write_text(configuration.read_text().replace("0.1", "60"))
    with bench.daemon() as process:
        assert bench.notification(process) == "WATCHDOG=1"
        documents = follow(bench.stream)
        began = time.monotonic()
        for _ in range(2):
            next(documents)
        assert time.monotonic() - began < 20
        documents.close()


@pytest.mark.slow
def test_a_disk_that_hangs_holds_nobody_up(bench: Bench) -> None:
    frozen = bench.root / "frozen"
    with bench.daemon() as process:
        frozen.touch()
        bench.joules(7)
        wait_until(lambda: bench.package_joules() == 7, 20, "it meters and answers")
        bench.forget()
        for _ in range(3):
            assert bench.notification(process) == "WATCHDOG=1"
        frozen.unlink()
        bench.joules(9)
        process.terminate()
        assert process.wait(30) == 0
    while "WATCHDOG=1" in (word := bench.notification(process)):
        pass
    assert word == "STOPPING=1"
    with bench.daemon():
        assert bench.package_joules() == 9


def test_another_daemon_may_not_use_the_same_ledger(bench: Bench) -> None:
    configuration = bench.root / "virt-rapl.yaml"
    with bench.daemon():
        configuration.write_text(configuration.read_text().replace("/run", "/elsewhere"))
        with bench.popen() as second:
            text = second.communicate(timeout=30)[1]
        assert second.returncode == 1
        assert f"another virt-rapl daemon already uses {bench.root}/state" in text


def test_who_may_look_into_the_state_directory_holds_no_lock(bench: Bench) -> None:
    state = bench.root / "state"
    state.mkdir(mode=0o750)
    descriptor = os.open(state, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with bench.daemon():
            bench.document()
    finally:
        os.close(descriptor)


@pytest.mark.slow
def test_whoever_asks_makes_no_interval_shorter(bench: Bench) -> None:
    """Figures of a shorter time reveal more of what a guest does."""
    configuration = bench.root / "virt-rapl.yaml"
    configuration.write_text(configuration.read_text().replace("0.1", "0.5"))
    with bench.daemon() as process:
        assert bench.notification(process) == "WATCHDOG=1"
        (bench.root / "waits").write_text("0.4")
        intervals = {bench.document()["host"]["interval_seconds"] for _ in range(12)}
    assert min(intervals) >= 0.5


def test_samples_that_come_late_are_counted(bench: Bench) -> None:
    with bench.daemon() as process:
        assert bench.notification(process) == "WATCHDOG=1"
        before = bench.document()["host"]["overruns"]
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # intervals of 0.1 s pass
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: bench.document()["host"]["overruns"] > before, 30, "it is counted")


@pytest.mark.slow
def test_however_many_ask_documents_are_made_now_and_then(bench: Bench) -> None:
    configuration = bench.root / "virt-rapl.yaml"
    configuration.write_text(configuration.read_text().replace("0.1", "60"))
    with bench.daemon() as process:
        assert bench.notification(process) == "WATCHDOG=1"
        (bench.root / "waits").write_text("1")
        for _ in range(40):
            bench.document()
        assert (bench.root / "documents").stat().st_size <= 20


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory away")
def test_a_run_directory_of_somebody_else_is_refused(bench: Bench) -> None:
    """As one made by a user beforehand, where everybody may make one."""
    run = bench.root / "run"
    (run / "daemon").mkdir(parents=True)
    os.chown(run, 4321, 4321)
    with bench.popen() as process:
        words = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert words.startswith(f"virt-rapl: error: {run} is not used: ")
    assert "user 4321\nhint: " in words


def test_a_domain_gone_for_good_leaves_its_energy(bench: Bench) -> None:
    uuid, recent = "aaaaaaaa-0000-0000-0000-000000000000", "bbbbbbbb-0000-0000-0000-000000000000"
    ledger = bench.root / "state/ledger.db"

    def rows() -> dict[str, int]:
        with contextlib.closing(sqlite3.connect(ledger)) as database:
            return dict(database.execute("SELECT owner, microjoules FROM total WHERE zone = 'package'"))

    def run_daemon() -> None:
        with bench.daemon() as process:
            assert bench.notification(process) == "WATCHDOG=1"
            bench.document()  # what is reported is kept
            process.terminate()
            while bench.notification(process) != "STOPPING=1":
                pass
            process.wait(30)

    run_daemon()
    with contextlib.closing(sqlite3.connect(ledger)) as database:
        for owner, last_ran in ((uuid, 0), (recent, 2 * DAY)):
            database.execute("INSERT INTO total VALUES (?, -1, 'package', 7)", (owner,))
            database.execute("INSERT INTO domain VALUES (?, ?)", (owner, last_ran))
        database.execute("UPDATE ledger SET metered = ?", (31 * DAY,))
        seal(database)
        database.commit()
    run_daemon()
    assert rows() == {"gone": 7, recent: 7, "other": 0, "idle": 0}
    run_daemon()
    assert rows() == {"gone": 7, recent: 7, "other": 0, "idle": 0}


@pytest.mark.slow
@pytest.mark.parametrize("began", ["in 1970", "ahead"])
def test_a_clock_that_was_wrong_makes_no_domain_older(bench: Bench, began: str) -> None:
    """It is wrong when a daemon begins, and is set while it runs; the next begins with the right time."""
    uuid = "aaaaaaaa-0000-0000-0000-000000000000"
    ledger = bench.root / "state/ledger.db"
    step = bench.root / "clock-step"

    def run_daemon(then: Callable[[], object] = lambda: None) -> None:
        with bench.daemon() as process:
            assert bench.notification(process) == "WATCHDOG=1"
            bench.document()
            then()
            wait_until(lambda: bench.notification(process) == "WATCHDOG=1", 30, "a sample is made after that")
            bench.document()
            process.terminate()
            while bench.notification(process) != "STOPPING=1":
                pass
            process.wait(30)

    run_daemon()
    with contextlib.closing(sqlite3.connect(ledger)) as database:
        database.execute("INSERT INTO total VALUES (?, -1, 'package', 7)", (uuid,))
        database.execute("INSERT INTO domain VALUES (?, 0)", (uuid,))
        seal(database)
        database.commit()
    step.write_text(str(-time.time() + 60 if began == "in 1970" else 50 * 365 * DAY))
    run_daemon(lambda: step.write_text("0"))
    run_daemon()
    with contextlib.closing(sqlite3.connect(ledger)) as database:
        assert database.execute("SELECT microjoules FROM total WHERE owner = ?", (uuid,)).fetchall() == [(7,)]
        (metered,) = database.execute("SELECT metered FROM ledger").fetchone()
    assert 0 < metered < 600


def test_a_host_that_cannot_be_read_for_a_while(bench: Bench) -> None:
    with bench.daemon() as process:
        assert bench.notification(process) == "WATCHDOG=1"
        stat = bench.host.proc / "stat"
        stat.rename(stat.with_name("away"))
        time.sleep(0.5)
        stat.with_name("away").rename(stat)
        bench.joules(10)
        wait_until(lambda: bench.package_joules() == 10, 30, "it meters again")
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr
        (line,) = process.stderr.read().splitlines()
        assert line.startswith("virt-rapl: cannot meter: ")


@pytest.mark.slow
def test_a_sign_of_life_comes_with_samples_only(bench: Bench) -> None:
    energy = bench.host.powercap / "intel-rapl:0/energy_uj"
    with bench.daemon() as process:
        # Clients that do not read hold nothing up.
        with contextlib.ExitStack() as clients:
            for _ in range(20):
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(bench.root / "run" / paths.STATUS_SOCKET))
            for _ in range(5):
                assert bench.notification(process) == "WATCHDOG=1"
        # A counter whose reading does not come back does.
        energy.rename(energy.with_name("away"))
        os.mkfifo(energy)
        while bench.is_reported_within_a_second():
            pass
        with energy.open("w") as unblocking:
            energy.with_name("away").rename(energy)
            unblocking.write("0\n")
        assert bench.notification(process) == "WATCHDOG=1"


@pytest.mark.slow
def test_a_daemon_that_was_stopped_counts_what_no_wrap_can_hide(bench: Bench) -> None:
    bench.host.zone("intel-rapl:0:0", "dram", 0, highest=1_999_999_999)  # full after two seconds at 1 kW

    def zones() -> dict[str, tuple[float, int]]:
        shown = bench.document()["host"]["zones"]
        return {zone["name"]: (zone["energy_joules"], zone.get("lost_intervals", 0)) for zone in shown}

    with bench.daemon() as process:
        assert bench.notification(process) == "WATCHDOG=1"
        assert zones() == {"package-0": (0, 0), "dram-0": (0, 0)}
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        bench.joules(500)
        bench.host.zone("intel-rapl:0:0", "dram", 100_000_000, highest=1_999_999_999)
        process.send_signal(signal.SIGCONT)
        # The package counter needs minutes to wrap: all it has counted is known, and is there once.
        wait_until(lambda: zones() == {"package-0": (500, 0), "dram-0": (0, 1)}, 30, "it counts on")
        bench.joules(510)
        bench.host.zone("intel-rapl:0:0", "dram", 103_000_000, highest=1_999_999_999)
        wait_until(lambda: zones() == {"package-0": (510, 0), "dram-0": (3, 1)}, 30, "it counts on")


@pytest.mark.parametrize("ledger", ["link", "fifo", "directory"])
def test_what_cannot_be_read_costs_a_line_each(bench: Bench, ledger: str) -> None:
    place = bench.root / "state/ledger.db"
    place.parent.mkdir(mode=0o750)
    match ledger:
        case "link":
            place.symlink_to(bench.root / "target")
        case "fifo":
            os.mkfifo(place)
        case _:
            place.mkdir()
    bench.host.zone("intel-rapl:0:0", "dram", 0, highest=-1)
    with bench.daemon() as process:
        bench.joules(10)
        wait_until(lambda: bench.package_joules() == 10, 30, "it meters")
        (bench.host.powercap / "intel-rapl:0/energy_uj").write_text("garbage\n")
        wait_until(lambda: "package-0: " in bench.document()["host"].get("trouble", ""), 30, "it is reported")
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr
        lines = [line.removeprefix("virt-rapl: ").split(":")[0] for line in process.stderr.read().splitlines()]
    assert lines == ["dram-0 is left out", f"{place} cannot be used", "cannot meter"]
    assert not (bench.root / "target").exists()


def test_no_energy_and_no_run_directory(bench: Bench) -> None:
    def words() -> list[str]:
        with bench.popen() as process:
            text = process.communicate(timeout=30)[1]
        assert process.returncode == 1
        return [line.split(": ")[0] for line in text.splitlines()]

    (bench.root / "run").write_text("not a directory")
    assert words() == ["virt-rapl", "hint"]
    (bench.root / "run").unlink()
    bench.host.zone("intel-rapl:0", "psys")
    assert words() == ["virt-rapl", "hint"]


def energies(world: World, *names: str) -> list[float]:
    shown = asked(world)
    assert shown
    return [shown[name]["energy_joules"] for name in names]


@pytest.mark.e2e
def test_domains_with_a_hook_and_without(world: World, new_guest: NewGuest, start_daemon: StartDaemon) -> None:
    before, enabled = new_guest(100), new_guest(30)
    world.run(["virsh", "start", before])  # before the daemon, and without a hook
    start_daemon()
    start_enabled(world, enabled)
    wait_until(lambda: min(energies(world, before, enabled)) > 0, 20, "both are metered")
    shown = asked(world)
    assert shown
    assert (shown[before]["vrapl"], shown[enabled]["vrapl"]) == ("off", "active")
    for name in (before, enabled):
        (vcpu,) = shown[name]["vcpus"]
        comm = world.path(f"/proc/{shown[name]['pid']}/task/{vcpu['tid']}/comm")
        assert comm.read_text() == "CPU 0/KVM\n"

    world.run(["virsh", "destroy", before])
    wait_until(lambda: (asked(world) or {})[before]["state"] == "shut off", 30, "its end is seen")
    time.sleep(1.1)
    ended = (asked(world) or {})[before]
    assert (ended["pid"], ended["power_watts"], ended["energy_joules"] > 0) == (None, 0, True)


@pytest.mark.e2e
def test_a_vcpu_that_is_plugged(world: World, new_guest: NewGuest, start_daemon: StartDaemon) -> None:
    name = new_guest(100)
    world.run(["virsh", "setvcpus", name, "3", "--maximum", "--config"])
    world.run(["virsh", "start", name])
    start_daemon()

    def threads() -> dict[int, int]:
        return {vcpu["id"]: vcpu["tid"] for vcpu in (asked(world) or {})[name]["vcpus"]}

    wait_until(lambda: threads().keys() == {0}, 20, "it is metered")
    world.run(["virsh", "setvcpus", name, "3", "--live"])
    wait_until(lambda: threads().keys() == {0, 1, 2}, 20, "libvirt's file is read again")
    pid = (asked(world) or {})[name]["pid"]
    comms = {vcpu: world.path(f"/proc/{pid}/task/{tid}/comm").read_text() for vcpu, tid in threads().items()}
    assert comms == {vcpu: f"CPU {vcpu}/KVM\n" for vcpu in range(3)}


@pytest.mark.e2e
def test_metering_outlives_libvirtd_and_the_daemon(
    world: World, new_guest: NewGuest, start_daemon: StartDaemon
) -> None:
    name, later = new_guest(100), new_guest(50)
    start_enabled(world, name)
    pid = start_daemon()

    def grows(*names: str) -> None:
        first = energies(world, *names)
        wait_until(lambda: all(b > a for a, b in zip(first, energies(world, *names), strict=True)), 20, "it counts on")

    grows(name)
    world.stop_libvirtd("KILL")
    try:
        grows(name)
        before = energies(world, name)[0]
        world.kill(pid, "KILL")
        start_daemon()  # without libvirt: the stale socket is replaced, and the domain found
        assert energies(world, name)[0] >= before
        grows(name)
    finally:
        world.start_libvirtd()
    wait_until(lambda: "libvirt is back" in world.path(LOG).read_text(), 20, "libvirt is found again")
    world.run(["virsh", "start", later])
    wait_until(lambda: energies(world, later)[0] > 0, 20, "a domain started after that is metered")
    grows(name, later)


@pytest.mark.e2e
def test_it_answers_again_where_the_run_directory_was_removed(world: World, start_daemon: StartDaemon) -> None:
    start_daemon()
    shutil.rmtree(world.path("/run/virt-rapl"))
    assert asked(world) is None
    wait_until(lambda: asked(world) is not None, 60, "it answers")
    assert next(follow(world.path(f"/run/virt-rapl/{paths.STREAM_SOCKET}")))["domains"] == []


@pytest.mark.e2e
def test_libvirtd_hangs(world: World, new_guest: NewGuest, start_daemon: StartDaemon) -> None:
    name = new_guest(100)
    start_enabled(world, name)
    address = f"/mnt/notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(world.path(address)))
        notify.settimeout(10)
        pid = start_daemon(NOTIFY_SOCKET=address)
        libvirtd = world.path("/run/libvirtd.pid").read_text()
        world.run(["sh", "-c", f"kill -s STOP {libvirtd}"])
        try:
            # Neither the daemon's samples nor its answers wait for libvirt.
            alone = world.popen(["sh", "-c", f"virt-rapl --config {ALONE} status 2>&1"])
            before = energies(world, name)[0]
            while notify.recv(100) != b"WATCHDOG=1":
                pass
            for _ in range(3):
                assert notify.recv(100) == b"WATCHDOG=1"
            assert energies(world, name)[0] > before
            assert "joules are counted since 2" in world.run(["virt-rapl", "status"]).stdout
            # Where there is no daemon, the command gives up.
            words = alone.communicate(timeout=60)[0]
            print(words)
            assert alone.returncode == 1
            assert [line.split(": ")[0] for line in words.splitlines()] == ["virt-rapl", "hint"]
            assert "does not answer" in words
            # A daemon that starts now finds the domain all the same.
            world.kill(pid, "TERM")
            start_daemon()
            wait_until(lambda: name in (asked(world) or {}), 20, "the domain is found")
            before = energies(world, name)[0]
            wait_until(lambda: energies(world, name)[0] > before, 20, "it is metered")
        finally:
            world.run(["sh", "-c", f"kill -s CONT {libvirtd}"])
    world.path(address).unlink()
    other = new_guest(0)
    wait_until(lambda: other in (asked(world) or {}), 30, "a domain defined after that is known")
    assert other in world.run(["virt-rapl", "--config", ALONE, "status"]).stdout


@pytest.mark.e2e
def test_status_through_the_socket_is_what_it_samples_itself(
    world: World, new_guest: NewGuest, start_daemon: StartDaemon
) -> None:
    names = [new_guest(100), new_guest(40)]
    for name in names:
        world.run(["virsh", "start", name])
    start_daemon()
    wait_until(lambda: min(energies(world, *names)) > 0, 20, "both are metered")

    def documents(*options: str) -> Generator[dict[str, Any], None, None]:
        with world.popen(["virt-rapl", *options, "status", "--json", "--watch"]) as process:
            assert process.stdout
            try:
                yield from map(json.loads, process.stdout)
            finally:
                process.kill()

    def joules(document: dict[str, Any]) -> list[float]:
        return [domain["energy_joules"] for domain in document["domains"] if domain["name"] in names]

    def guests(command: str) -> None:
        world.run(["virsh", "; ".join(f"{command} {name}" for name in names)])

    reported, sampled = documents(), documents("--config", ALONE)

    def at_rest(documents: Generator[dict[str, Any], None, None]) -> list[float]:
        """Return what is printed when nothing is used any more: what was printed before we read it is still to come."""
        shown = [joules(next(documents)) for _ in range(3)]
        while sum(shown[-1]) - sum(shown[-3]) > 0.1:
            shown.append(joules(next(documents)))
        return shown[-1]

    # They sample at different moments: the guests rest at the beginning and at the end.
    guests("suspend")
    first = at_rest(reported), at_rest(sampled)
    guests("resume")
    for _ in range(10):
        next(reported), next(sampled)
    guests("suspend")
    last = at_rest(reported), at_rest(sampled)
    reported.close()
    sampled.close()
    by_daemon, by_itself = ([b - a for a, b in zip(*pair, strict=True)] for pair in zip(first, last, strict=True))
    print(f"by the daemon {by_daemon}, by itself {by_itself}")
    assert min(by_itself) > 10
    assert by_daemon == pytest.approx(by_itself, rel=0.02)

    table = world.run(["virt-rapl", "status"]).stdout
    assert "joules are counted since 2" in table.splitlines()[-1]
    alone = world.run(["virt-rapl", "--config", ALONE, "status"]).stdout
    assert alone.splitlines()[-1] == "joules are counted since this command started"


READ = """
import sqlite3, sys
where = "WHERE owner = ? AND vcpu = -1 AND zone = 'package'"
ledger = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
print(ledger.execute(f"SELECT microjoules FROM total {where}", sys.argv[2:]).fetchone()[0])
"""


@pytest.mark.e2e
@pytest.mark.parametrize("libvirt", ["answers", "refuses"])
def test_an_unprivileged_user_that_may_read(world: World, new_guest: NewGuest, libvirt: str) -> None:
    name = new_guest(100)
    start_enabled(world, name)
    uuid = world.run(["virsh", "domuuid", name]).stdout.strip()
    # As systemd does by the unit's StateDirectory= and RuntimeDirectory=.
    for directory in ("/mnt/unprivileged", f"/run/virt-rapl/{paths.DAEMON}"):
        world.run(["install", "-d", "-o", "65534", "-m", "750", directory])
    world.path("/etc/unprivileged.yaml").write_text("state_directory: /mnt/unprivileged\n")
    libvirt_socket = world.path("/run/libvirt/libvirt-sock-ro")
    mode = libvirt_socket.stat().st_mode
    if libvirt == "refuses":
        libvirt_socket.chmod(0o600)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all,+dac_read_search"]
    capability = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    command = " ".join([*nobody, *capability, "virt-rapl --config /etc/unprivileged.yaml daemon"])
    pid = int(world.run(["sh", "-c", f"{command} >/dev/null 2>{LOG} </dev/null & echo $!"]).stdout)

    def kept() -> bool:
        done = world.run([sys.executable, "-c", READ, "/mnt/unprivileged/ledger.db", uuid], check=False)
        return done.returncode == 0 and int(done.stdout) > 0

    try:
        wait_until(kept, 30, "the domain's energy is kept")
        effective = next(
            line for line in world.path(f"/proc/{pid}/status").read_text().splitlines() if "CapEff" in line
        )
        assert int(effective.split()[1], 16) == 1 << 2  # CAP_DAC_READ_SEARCH and nothing else
        assert world.path(f"/proc/{pid}").stat().st_uid == 65534
        assert (asked(world) or {})[name]["vrapl"] == "active"  # records are root's
        words = [line.partition(" for now: ")[0] for line in world.path(LOG).read_text().splitlines()]
        assert words == {"answers": [], "refuses": ["virt-rapl: without libvirt"]}[libvirt]
        host = json.loads(world.run(["virt-rapl", "status", "--json"]).stdout)["host"]
        assert ("cannot connect to libvirt" in host.get("trouble", "")) == (libvirt == "refuses")
    finally:
        libvirt_socket.chmod(mode)
        world.kill(pid, "TERM")
        world.run(["rm", "-r", "/mnt/unprivileged", "/etc/unprivileged.yaml", "/run/virt-rapl/daemon", LOG])
