"""virt-rapld's life: what happens in which order and how often. Its parts are replaced, and time passes at once."""

import contextlib
import dataclasses
import fcntl
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from libvirt_rapl import files, paths, systemd
from libvirt_rapl.config import Config
from libvirt_rapl.daemon import loop
from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.inventory import Entry
from libvirt_rapl.errors import VirtRaplError

WAIT_FOR_END = loop.Daemon._wait_for_end


class Life:
    """What a daemon does, and how its parts behave."""

    def __init__(self, root: Path) -> None:
        self.config = Config(run_directory=root / "run", state_directory=root / "state")
        names = (paths.STATUS_SOCKET, paths.STREAM_SOCKET, paths.CHANNEL_STREAM_SOCKET, paths.HISTORY_SOCKET)
        self.sockets = [self.config.run_directory / name for name in names]
        self.did: list[str] = []
        self.now = 1000.0
        self.began = 0.0
        self.samples_take = 0.0
        self.wakes_late = 0.0
        self.waits: list[float] = []
        """How long it waited for the next sample each time."""
        self.samples: list[bool] = []
        """What comes of each of the next samples; at the end of these, the daemon is asked to end."""
        self.listening_fails = ""
        self.has_power = threading.Event()

    def note(self, what: str, result: Any = None) -> Callable[..., Any]:  # noqa: ANN401
        def noting(*_: object) -> Any:  # noqa: ANN401
            self.did.append(what)
            return result

        return noting

    def sample(self) -> bool:
        self.did.append("sample")
        self.began = self.now
        self.now += self.samples_take
        return self.samples.pop(0) if self.samples else True

    def wait(self, seconds: float) -> bool:
        self.waits.append(round(seconds, 6))
        self.now += seconds + self.wakes_late
        return not self.samples

    def listen(self, path: Path, *_: object) -> Any:  # noqa: ANN401
        self.did.append(path.name)
        if self.listening_fails:
            raise OSError(self.listening_fails)
        path.unlink(missing_ok=True)
        os.mknod(path, 0o600 | 0o140000)  # a socket
        return SimpleNamespace(close=self.note(f"close {path.name}"), wake=self.note(f"wake {path.name}"))

    def daemon(self, interval: float = 1.0) -> loop.Daemon:
        """Return a daemon that has started."""
        daemon = loop.Daemon(dataclasses.replace(self.config, interval=interval), "test:///default")
        daemon.start()
        daemon._asked_to_end = SimpleNamespace(wait=self.wait)  # type: ignore[assignment]
        return daemon


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    life = Life(tmp_path)

    class Kept:
        began = property(lambda _: life.began)
        sample = staticmethod(life.sample)
        has_power = life.has_power
        keep_soon = staticmethod(life.note("keep", SimpleNamespace(result=life.note("kept"))))

    def part(**members: object) -> Callable[..., SimpleNamespace]:
        return lambda *_, **__: SimpleNamespace(**members)

    source = SimpleNamespace(left_out={"dram-0": "it is odd"}, name="powercap")
    for name, made in {
        "HostMeter": part(source=source, meter=None),
        "Ledger": part(),
        "Policy": part(start=life.note("policy"), changed=None),
        "Inventory": part(start=life.note("domains"), attempted=SimpleNamespace(wait=life.note("listed"))),
        "KeptMeter": lambda *_: Kept(),
        "Publisher": part(text=None, document=None),
        "Streams": life.listen,
        "status_socket": SimpleNamespace(serve=life.listen),
        "history_socket": SimpleNamespace(serve=life.listen),
    }.items():
        monkeypatch.setattr(loop, name, made)
    monkeypatch.setattr(systemd, "notify", lambda state: life.did.append(state))
    monkeypatch.setattr(loop.Daemon, "_wait_for_end", lambda _: None)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: life.now))
    return life


def test_all_is_ready_when_systemd_is_told(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    life.daemon()
    assert life.did == [
        *("keep", "kept", "policy", "domains", "listed", "sample"),
        *("stream.sock", "channel.sock", "status.sock", "history.sock", "READY=1"),
    ]
    assert "dram-0" in capsys.readouterr().err
    assert life.sockets[0].parent.stat().st_mode & 0o777 == 0o750


def test_at_the_end_all_is_counted_and_kept(life: Life) -> None:
    daemon = life.daemon()
    life.did.clear()
    daemon.end()
    assert life.did == ["STOPPING=1", "sample", "keep", "kept"]
    assert not life.sockets[0].parent.exists()
    daemon.end()  # whoever has removed the directory


@pytest.mark.parametrize(
    ("interval", "takes", "late", "waits"),
    [
        pytest.param(0.5, 0, 0, [0.5, 0.5, 0.5, 0.5], id="short"),
        pytest.param(60, 0, 0, [1, 60, 60, 60], id="the first interval is a second"),
        pytest.param(2, 0.5, 0, [1, 1.5, 1.5, 1.5], id="from its beginning on"),
        pytest.param(2, 0, 0.25, [1, 2, 2, 2], id="no interval is shorter after a late one"),
        pytest.param(2, 5, 0, [1, 0, 0, 0], id="missed samples are not made up for"),
    ],
)
def test_when_samples_are_made(life: Life, interval: float, takes: float, late: float, waits: list[float]) -> None:
    daemon = life.daemon(interval)
    life.samples, life.samples_take, life.wakes_late = [True] * 3, takes, late
    daemon.meter_until_asked_to_end()
    assert life.waits == waits


def test_a_sample_that_fails_is_no_sign_of_life(life: Life) -> None:
    daemon = life.daemon()
    life.did.clear()
    life.samples = [True, False, True]
    daemon.meter_until_asked_to_end()
    woken = ["wake stream.sock", "wake channel.sock"]
    assert life.did == ["sample", "WATCHDOG=1", *woken, "sample", *woken, "sample", "WATCHDOG=1", *woken]


@pytest.mark.parametrize(
    ("interval", "samples"),
    [(1, [10, 10, 10]), (3, [4, 3, 3]), (10, [1, 1, 1]), (60, [1, 1, 1])],
)
def test_totals_are_kept_every_10_seconds_or_at_each_sample(life: Life, interval: float, samples: list[int]) -> None:
    daemon = life.daemon(interval)
    life.did.clear()
    life.samples = [True] * sum(samples)
    daemon.meter_until_asked_to_end()
    kept = "".join(each[0] for each in life.did if each in ("sample", "keep"))
    assert [len(each) for each in kept.split("k") if each] == samples


@pytest.mark.parametrize("gone", [[0], [1], [2], [3], [0, 1, 2, 3]])
def test_sockets_that_were_removed_are_made_again(life: Life, gone: list[int]) -> None:
    daemon = life.daemon(60)
    for number in gone:
        life.sockets[number].unlink()
    if len(gone) == 4:
        life.sockets[0].parent.rmdir()
    life.did.clear()
    life.samples = [True] * 2
    daemon.meter_until_asked_to_end()
    made = [each for each in life.did if "sock" in each and "wake" not in each]
    names = [path.name for path in life.sockets]
    assert sorted(made[:4]) == sorted(f"close {name}" for name in names)
    assert sorted(made[4:]) == sorted(names)
    assert all(path.is_socket() for path in life.sockets)


@pytest.mark.parametrize(
    ("channel", "pid", "expected"),
    [
        (None, 7, b""),
        (Channel("/run/1.sock", open=False), 7, b"lines"),
        (Channel("/run/1.sock", open=False), None, b""),
        (Channel(None, open=False), 7, b""),
    ],
)
def test_no_document_is_made_for_channels_that_are_not_there(
    life: Life, monkeypatch: pytest.MonkeyPatch, channel: Channel | None, pid: int | None, expected: bytes
) -> None:
    texts: dict[str, Callable[[], bytes]] = {}

    def streams(path: Path, text: Callable[[], bytes], *_: object) -> Any:  # noqa: ANN401
        texts[path.name] = text
        return life.listen(path)

    monkeypatch.setattr(loop, "Streams", streams)
    monkeypatch.setattr(loop, "Publisher", lambda *_: SimpleNamespace(text=lambda: b"text", document=None))
    monkeypatch.setattr(loop, "Rendered", lambda *_: life.note("lines", b"lines"))
    daemon = life.daemon()
    daemon._inventory.entries = {
        str(number): Entry(name="vm", uuid=str(number), id=1, state="running", pid=pid, mark=None, channel=each)
        for number, each in enumerate((None, channel, None))
    }
    assert texts["channel.sock"]() == b"", "a client would not get it, and wait for the next one"
    life.has_power.set()
    assert texts["channel.sock"]() == expected
    assert life.did.count("lines") == bool(expected)
    assert texts["stream.sock"]() == b"text"


def test_that_nobody_can_connect_is_logged_once_each_time(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    life.listening_fails = "no\nspace"
    daemon = life.daemon(60)
    for number, trouble in enumerate(("no\nspace", "", "again"), 1):
        life.listening_fails = trouble
        life.samples = [True] * 3
        for path in life.sockets:
            path.unlink(missing_ok=True)
        daemon.meter_until_asked_to_end()
        lines = [line for line in capsys.readouterr().err.splitlines() if "listen" in line]
        assert len(lines) == bool(trouble), number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(life: Life, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    waited: list[set[signal.Signals]] = []
    monkeypatch.setattr(signal, "sigwait", lambda signals: waited.append(set(signals)))
    daemon = loop.Daemon(life.config, "")
    WAIT_FOR_END(daemon)
    assert daemon._asked_to_end.is_set()
    assert number in waited[0]


class Order(list[str]):
    """What run() does, and whether another could run meanwhile."""

    locked: bool | None = None


@pytest.fixture
def order(life: Life, monkeypatch: pytest.MonkeyPatch) -> Order:
    order = Order()

    def is_free(path: Path) -> bool:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    class Daemon:
        def __init__(self, *_: object) -> None:
            order.append("made")
            state = life.config.state_directory / loop.LOCK
            order.locked = not is_free(life.config.run_directory) and not (state.exists() and is_free(state))

        def __getattr__(self, name: str) -> Callable[[], None]:
            return lambda: order.append(name)

    monkeypatch.setattr(loop, "Daemon", Daemon)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, which: order.append(f"{how.name} {sorted(which)}"))
    for name in ("keep_capabilities_from_programs", "allow_many_descriptors"):
        monkeypatch.setattr(loop, name, lambda name=name: order.append(name))
    return order


@pytest.fixture(autouse=True)
def _nobody_waits_for_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    def lock(descriptor: int, how: int) -> None:
        assert how & fcntl.LOCK_NB
        fcntl.flock(descriptor, how)

    kinds = {name: getattr(fcntl, name) for name in ("LOCK_SH", "LOCK_EX", "LOCK_NB")}
    monkeypatch.setattr(files, "fcntl", SimpleNamespace(flock=lock, **kinds))


BEFORE = [f"SIG_BLOCK {sorted(loop.END)}", "keep_capabilities_from_programs", "allow_many_descriptors"]


def test_what_comes_before_all_threads_and_files(life: Life, order: Order) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    loop.run(life.config, "")
    assert order == [*BEFORE, "made", "start", "meter_until_asked_to_end", "end"]
    assert order.locked
    assert set(Path("/proc/self/fd").iterdir()) == before
    lock = life.config.state_directory / loop.LOCK
    modes = {lock: 0o600, lock.parent: 0o700, life.config.run_directory: 0o711, life.sockets[0].parent: 0o750}
    assert {path: path.stat().st_mode & 0o777 for path in modes} == modes


def test_it_ends_in_order_whatever_fails(life: Life, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(loop.Daemon, "meter_until_asked_to_end", fail, raising=False)
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(ZeroDivisionError):
        loop.run(life.config, "")
    assert order[-1] == "end"
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("held", ["run", "state"])
def test_another_daemon_that_runs_is_reported_at_once(life: Life, order: Order, held: str) -> None:
    loop.run(life.config, "")
    order.clear()
    directory = life.config.run_directory if held == "run" else life.config.state_directory
    descriptor = os.open(directory if held == "run" else directory / loop.LOCK, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(VirtRaplError, match=str(directory)):
            loop.run(life.config, "")
    finally:
        os.close(descriptor)
    assert order == BEFORE


def make_link(lock: Path) -> None:
    lock.symlink_to(lock.with_name("target"))


@pytest.mark.parametrize("make", [make_link, os.mkfifo, Path.mkdir])
def test_what_stands_where_the_lock_should_be_is_not_followed(
    life: Life, order: Order, make: Callable[[Path], None]
) -> None:
    """Nor waited for. The ledger reports what is wrong there, and the host is metered all the same."""
    life.config.state_directory.mkdir()
    make(life.config.state_directory / loop.LOCK)
    loop.run(life.config, "")
    assert order[-1] == "end"
    assert [each.name for each in life.config.state_directory.iterdir()] == [loop.LOCK]


def test_a_run_directory_that_cannot_be_used_ends_it(life: Life, order: Order) -> None:
    life.config.run_directory.write_text("not a directory")
    with pytest.raises(VirtRaplError, match=str(life.config.run_directory)) as caught:
        loop.run(life.config, "")
    assert caught.value.hint
    assert order == BEFORE


def test_a_lock_is_held_until_it_is_let_go(tmp_path: Path) -> None:
    for name in ("lock", "."):
        with contextlib.ExitStack() as locks:
            loop._hold(locks, tmp_path, name)
            for _ in range(2):
                with pytest.raises(VirtRaplError):
                    loop._hold(locks, tmp_path, name)
