"""A helper's process: what it tells the host of itself, whom it takes for its own, and how it ends."""

import _socket
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import libvirt_rapl
from libvirt_rapl.helper.vmsr import serving
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_INFO, POWER_LIMIT, POWER_UNIT, REPLY, REQUEST
from libvirt_rapl.helper.vmsr.registers import Counter, Registers
from libvirt_rapl.helper.vmsr.serving import SignOfLife, qemu_pid

ROOT = str(Path(libvirt_rapl.__file__).parent.parent)
CONSTANTS = ((POWER_UNIT, 0xA0E03), (POWER_LIMIT, 1), (POWER_INFO, 1))
LONG_AGO = (1_000, 2_000)


@pytest.mark.parametrize(
    ("content", "pid"),
    [
        (None, None),
        ("", None),
        ("preparing\n", None),
        ("ready\n", None),
        ("ready\n\n", None),
        ("ready\nsoon\n", None),
        ("ready\n4711\n", 4711),
        ("ready\n4711\nmore\n", 4711),
        ("ready\n4711", 4711),
    ],
)
def test_qemu_is_known_once_the_hook_has_recorded_it(tmp_path: Path, content: str | None, pid: int | None) -> None:
    if content is not None:
        (tmp_path / "state").write_text(content)
    assert qemu_pid(str(tmp_path / "state")) == pid


def test_the_sign_of_life_shows_when_qemu_was_last_served_and_whether_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 10**18
    monkeypatch.setattr(time, "time_ns", lambda: now)
    path = tmp_path / "alive"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    sign = SignOfLife(descriptor)
    seen = []
    for connected in (False, True, True, False, False, True):
        now += 10**9
        sign.give(connected)
        status = path.stat()
        seen.append((status.st_atime_ns, status.st_mtime_ns))
    os.close(descriptor)
    at = [10**18 + second * 10**9 for second in range(7)]
    assert seen == [(0, at[0]), (at[2], at[2]), (at[3], at[3]), (0, at[3]), (0, at[3]), (at[6], at[6])]


class Recorded:
    """In place of the server: what it was made with, and what stopped it."""

    last: "Recorded"

    def __init__(self, listener: object, **rest: Any) -> None:  # noqa: ANN401 (whatever main passes)
        self.listener, self.rest = listener, rest
        self.stops: list[float] = []
        self.served = False
        Recorded.last = self

    def stop(self, patience: float = 0.0) -> None:
        self.stops.append(patience)

    def serve(self) -> None:
        self.served = True


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> dict[int, object]:
    """What main() sets for each signal; nothing is served."""
    handlers: dict[int, object] = {}
    monkeypatch.setattr(serving, "Server", Recorded)
    monkeypatch.setattr(serving, "signal", handlers.__setitem__)
    return handlers


def registers(counter: Path) -> Registers:
    return Registers(CONSTANTS, (Counter(0, str(counter), 0, 1 << 40, 1000),), ((0, 0),), (15625, 256))


def run_main(directory: Path, machine: str = "") -> Recorded:
    (directory / "energy_uj").write_text("5\n")
    with socket.socket(socket.AF_UNIX) as listener, (directory / "alive").open("w") as life:
        own = _socket.socket(fileno=os.dup(listener.fileno()))
        counters = registers(directory / "energy_uj")
        serving.serve(own, life.fileno(), str(directory / "state"), 4242, machine, counters)
        Recorded.last.rest["tick"](True)
    Recorded.last.listener.close()  # type: ignore[attr-defined]
    return Recorded.last


@pytest.mark.usefixtures("handlers")
def test_what_is_served_and_for_whom(tmp_path: Path) -> None:
    server = run_main(tmp_path)
    assert server.served
    assert server.rest["owner_uid"] == 4242
    assert server.rest["qemu_pid"]() is None
    (tmp_path / "state").write_text("ready\n77\n")
    assert server.rest["qemu_pid"]() == 77
    assert dict(CONSTANTS) == {each: server.rest["reader_for"](os.getpid())(each, 0) for each, _ in CONSTANTS}
    status = (tmp_path / "alive").stat()
    assert status.st_atime_ns == status.st_mtime_ns > 0


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("machine", "number", "of_domain"),
    [("5", 5, True), ("5", 6, False), ("5", 55, False), ("5", None, None), ("", 5, None), ("", None, None)],
)
def test_a_process_is_of_the_domain_if_its_cgroup_has_the_domains_number(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    number: int | None,
    of_domain: bool | None,
) -> None:
    monkeypatch.setattr(serving, "machine_number", {77: number}.get)
    assert run_main(tmp_path, machine).rest["is_of_domain"](77) is of_domain


def test_sigterm_and_sigint_leave_a_moment_and_sighup_nothing(tmp_path: Path, handlers: dict[int, object]) -> None:
    server = run_main(tmp_path)
    assert handlers.pop(signal.SIGHUP) == signal.SIG_IGN
    assert handlers.keys() == {signal.SIGTERM, signal.SIGINT}
    for handler in handlers.values():
        assert callable(handler)
        handler(0, None)
    assert len(server.stops) == 2
    assert all(0.5 < patience < 10 for patience in server.stops), "QEMU is about to end, and a shutdown waits for us"


@pytest.mark.parametrize("content", [None, "?\n", f"{1 << 40}\n"], ids=["no file", "no number", "too much"])
def test_it_does_not_serve_when_energy_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "energy_uj").write_text(content)
    with pytest.raises(SystemExit) as ended:
        serving.serve(_socket.socket(), -1, "", 0, "", registers(tmp_path / "energy_uj"))
    assert "cannot read energy" in str(ended.value.code)


@contextmanager
def process(directory: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Callable[[socket.socket], int]]]:
    """Run a helper; gives it, and a function that asks it for energy."""
    (directory / "energy_uj").write_text("5\n")
    path = directory / "socket"
    counters = tuple(map(tuple, registers(directory / "energy_uj").counters))
    with socket.socket(socket.AF_UNIX) as listener, (directory / "alive").open("w") as life:
        listener.bind(str(path))
        listener.listen()
        values = (
            life.fileno(),
            str(directory / "state"),
            os.getuid(),
            "",
            (CONSTANTS, counters, ((0, 0),), (15625, 256)),
        )
        code = (
            f"import sys; sys.path.insert(0, {ROOT!r}); from libvirt_rapl.helper.vmsr.serving import serve\n"
            f"from _socket import socket; serve(socket(fileno={listener.fileno()}), *{values!r})"
        )
        process = subprocess.Popen(
            [sys.executable, "-ISc", code],
            pass_fds=[listener.fileno(), life.fileno()],
        )

    def ask(peer: socket.socket) -> int:
        peer.sendall(REQUEST.pack(ENERGY, 0, os.getpid()))
        return int(REPLY.unpack(peer.recv(REPLY.size))[0])

    with process:
        try:
            yield process, ask
        finally:
            process.kill()


def test_a_running_qemu_is_served_after_sigterm_until_it_hangs_up(tmp_path: Path) -> None:
    with process(tmp_path) as (helper, ask), socket.socket(socket.AF_UNIX) as qemu:
        qemu.settimeout(10)
        qemu.connect(str(tmp_path / "socket"))
        assert ask(qemu)
        for number in (signal.SIGHUP, signal.SIGTERM):
            helper.send_signal(number)
            assert ask(qemu)
        qemu.close()
        assert helper.wait(10) == 0
