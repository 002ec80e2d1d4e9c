"""history.sock: those who may not open the ledger get what it holds, and hinder nobody."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_rapl.daemon import answerers, history_socket
from libvirt_rapl.daemon.history_socket import open_remote
from libvirt_rapl.energy.extract import open_ledger
from libvirt_rapl.energy.history import DAY, QUARTER, Identity, Moment
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.ledger_content import DamagedError
from libvirt_rapl.energy.snapshot import HOST, WHOLE, Kept, Part

A = "aaaaaaaa-0000-0000-0000-000000000000"
NOON = 1_793_620_800
EDGES = [NOON - DAY, NOON, NOON + 3 * QUARTER, NOON + DAY]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "state/ledger.db"
    ledger = Ledger(path, simulated=True, log=pytest.fail)
    ledger.load()
    for number in range(8):
        totals = {Part(owner, WHOLE, zone): number * 10**15 for owner in (HOST, A) for zone in ("package-0", "dram-0")}
        moment = Moment(now=NOON + number * QUARTER, domains={A: Identity(f"web {number}", "", {"project": "ü"})})
        ledger.write(Kept(totals, metered=number * QUARTER - 60 * (number > 3)), (), moment)
    return path


@pytest.fixture
def served(tmp_path: Path, ledger: Path) -> Iterator[Path]:
    path = tmp_path / "history.sock"
    server = history_socket.serve(path, ledger)
    yield path
    server.close()


def test_virt_rapld_answers_as_the_file(served: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_ledger(ledger) as local, open_remote(served) as remote:
        assert remote.known(NOON, NOON + DAY) == local.known(NOON, NOON + DAY)
        for packages_only in (True, False):
            slots = list(remote.slots(EDGES, QUARTER, packages_only=packages_only))
            assert slots == list(local.slots(EDGES, QUARTER, packages_only=packages_only))
            assert len(slots) == len(EDGES) - 1
        monkeypatch.setattr(history_socket, "MOST_EDGES", 3)
        assert list(remote.slots(EDGES, QUARTER, packages_only=False)) == slots
    assert served.stat().st_mode & 0o777 == answerers.MODE


CROWD = """
import os, sys
os.setgroups([]), os.setgid(4321), os.setuid(4321)
from pathlib import Path
from libvirt_rapl.daemon import history_socket
from libvirt_rapl.daemon.history_socket import open_remote
for _ in range(6):
    with open_remote(Path(sys.argv[1])) as remote:
        remote.known(0, 2**40)
        list(remote.slots([0, 2**40], 900, packages_only=True))
history_socket.BUSY_SECONDS = 0.2
with open_remote(Path(sys.argv[1])) as first:
    first.known(0, 1)
    try:
        with open_remote(Path(sys.argv[1])):
            pass
    except Exception as error:
        print(error)
"""
"""A member of the group who makes reports, one after another, and then two at once."""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_one_report_of_a_user_at_a_time(ledger: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        server = history_socket.serve(path := Path(directory, "history.sock"), ledger)
        path.chmod(0o666)
        try:
            done = subprocess.run([sys.executable, "-c", CROWD, str(path)], capture_output=True, text=True, timeout=60)
        finally:
            server.close()
    assert "busy" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "question",
    [
        b"\n",
        b'{"since": 2, "until": 1}\n',
        b'{"since": 1, "until": true}\n',
        b'{"edges": [1, 2], "width": 901, "packages_only": true}\n',
        b"hello\n",
        b"[]\n",
        b"{}\n",
        b'{"edges": [1], "width": 900, "packages_only": true}\n',
        b'{"edges": [2, 1], "width": 900, "packages_only": true}\n',
        b'{"edges": [1, "2"], "width": 900, "packages_only": true}\n',
        b'{"edges": [1, 1e99], "width": 900, "packages_only": true}\n',
        b'{"edges": [1, 2], "width": 900, "packages_only": 1}\n',
        b'{"edges": 7, "width": 900, "packages_only": true}\n',
        json.dumps({"edges": list(range(history_socket.MOST_EDGES + 1)), "width": 900, "packages_only": True}).encode()
        + b"\n",
        b'{"edges": ['.ljust(history_socket.MOST_BYTES, b"1"),
        b'{"edges": [1, 2], "width": 900, "packages_only": true}'.rjust(history_socket.MOST_BYTES + 10) + b"\n",
        b"[" * 100_000 + b"\n",
        b"\xff\n",
    ],
)
def test_what_is_no_question(served: Path, question: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(20)
        peer.connect(str(served))
        peer.sendall(question)
        peer.shutdown(socket.SHUT_WR)
        assert "not understood" in json.loads(peer.makefile().readlines()[-1])["error"]


def ask(path: Path) -> object:
    with open_remote(path) as remote:
        remote.known(NOON, NOON + DAY)
        return list(remote.slots(EDGES, QUARTER, packages_only=True))


def test_a_ledger_that_cannot_be_read(served: Path, ledger: Path) -> None:
    ledger.write_bytes(b"no" * 50)
    with pytest.raises(DamagedError, match="SQLite"):
        ask(served)
    ledger.unlink()
    with pytest.raises(DamagedError, match="ledger"):
        ask(served)


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask(tmp_path / "history.sock")


@pytest.mark.parametrize("answer", [b"", b"{}\n", b"7\n", b"no\n", b'{"begin": 1}\n', b'{"error": "out of luck"}\n'])
def test_an_answer_that_is_none(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "history.sock"

    def respond(peer: socket.socket) -> None:
        peer.sendall(b'"ready"\n')
        peer.recv(4096)
        peer.sendall(answer)

    server = answerers.Answerers(path, respond, "test", 1, 1)
    try:
        with pytest.raises(DamagedError):
            ask(path)
    finally:
        server.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may ask twice at a time")
def test_a_client_that_says_nothing_holds_nobody_up(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answerers, "SEND_SECONDS", 600)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(served))
        assert ask(served)


def test_an_answer_that_takes_too_long_ends(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_socket, "ANSWER_SECONDS", -1.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(20)
        peer.connect(str(served))
        peer.sendall(json.dumps({"edges": EDGES, "width": 900, "packages_only": True}).encode() + b"\n")
        last = peer.makefile().readlines()[-1]
    assert "too long" in json.loads(last)["error"]
