"""The stream of documents: what a client gets, and that slow, many or vanished clients cost others nothing."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from walking import wait_until

from libvirt_rapl import sockets
from libvirt_rapl.daemon import stream_socket
from libvirt_rapl.daemon.stream_socket import Streams, follow
from libvirt_rapl.errors import VirtRaplError


class Daemon:
    """Makes documents when a test says so, and streams them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        self.padding = ""
        self.made = 0
        self.lines: list[str] = []
        self._text, self._of = b"", -1
        self._clients = contextlib.ExitStack()
        self.streams = Streams(path, self.text, self.lines.append)

    def text(self) -> bytes:
        if self._of != self.number:
            self.made += 1
            self._text = json.dumps({"schema": 1, "number": self.number, "padding": self.padding}).encode()
            self._of = self.number
        return self._text

    def sample(self) -> None:
        self.number += 1
        self.streams.wake()

    def connect(self, timeout: float = 20) -> "Client":
        peer = self._clients.enter_context(socket.socket(socket.AF_UNIX))
        peer.settimeout(timeout)
        peer.connect(str(self.path))
        return Client(peer)

    def admit(self, many: int = 1) -> list["Client"]:
        """Connect clients, and wait until they are served."""
        wanted = len(self.streams._clients) + many
        clients = [self.connect() for _ in range(many)]
        wait_until(lambda: len(self.streams._clients) == wanted, 30, "they are served")
        return clients

    def close(self) -> None:
        self.streams.close()
        self._clients.close()


class Client:
    """One end of a connection."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.lines = peer.makefile("rb")

    def document(self) -> dict[str, Any] | None:
        """Return the next; None at the end."""
        line = self.lines.readline()
        return json.loads(line) if line else None

    def number(self) -> int:
        document = self.document()
        assert document
        return int(document["number"])


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "stream.sock")
    yield daemon
    daemon.close()
    wait_until(lambda: not any(thread.name == "streams" for thread in threading.enumerate()), 20, "its thread ends")


def test_everybody_is_given_each_document_from_then_on(daemon: Daemon) -> None:
    assert daemon.path.stat().st_mode & 0o777 == 0o660
    (first,) = daemon.admit()
    daemon.sample()
    assert first.number() == 1
    (second,) = daemon.admit()
    for number in (2, 3, 4):
        daemon.sample()
        assert (first.number(), second.number()) == (number, number)
    assert daemon.made == 5


def test_a_client_that_has_gone_is_dropped_and_without_clients_nothing_is_made(daemon: Daemon) -> None:
    (client,) = daemon.admit()
    client.lines.close()
    client.peer.close()
    wait_until(lambda: not daemon.streams._clients, 30, "it is let go")
    made = daemon.made
    for _ in range(5):
        daemon.sample()
    assert daemon.made == made


def test_who_does_not_read_is_given_the_newest_when_he_does(daemon: Daemon) -> None:
    slow, quick = daemon.admit(2)
    for number in range(1, 31):
        daemon.sample()
        assert quick.number() == number
    assert slow.number() == 1  # which it was sent before it was slow
    assert slow.number() == 30
    daemon.sample()
    assert (slow.number(), quick.number()) == (31, 31)


def test_a_document_larger_than_what_a_socket_holds(daemon: Daemon) -> None:
    daemon.padding = "x" * 5_000_000
    slow, quick = daemon.admit(2)
    for number in (1, 2, 3):
        daemon.sample()
        assert quick.number() == number
    assert slow.number() == 1, "it is whole, whatever was made meanwhile"
    assert slow.number() == 3


def test_a_stuck_client_is_disconnected(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_socket, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(stream_socket, "BETWEEN_SECONDS", 0.05)
    (small,) = daemon.admit()
    daemon.sample()
    wait_until(lambda: not daemon.streams._clients, 30, "it is let go")
    assert (small.number(), small.document()) == (1, None)
    daemon.padding = "x" * 5_000_000
    daemon.admit()
    daemon.sample()
    wait_until(lambda: not daemon.streams._clients, 30, "it is let go, too")


def open_sockets() -> set[str]:
    links: set[str] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(str(descriptor.readlink()))
    return {link for link in links if link.startswith("socket:")}


def test_a_client_that_goes_without_reading_harms_nobody(daemon: Daemon) -> None:
    """Linux then tells us that it has reset the connection."""
    (other,) = daemon.admit()
    before = open_sockets()
    (client,) = daemon.admit()
    daemon.sample()
    assert other.number() == 1
    assert client.peer.recv(1)
    client.lines.close()
    client.peer.close()
    wait_until(lambda: len(daemon.streams._clients) == 1, 30, "it is let go")
    daemon.sample()
    assert other.number() == 2
    assert open_sockets() == before


def test_nothing_stays_open_when_it_is_closed(tmp_path: Path) -> None:
    before = open_sockets()
    daemon = Daemon(tmp_path / "stream.sock")
    clients = daemon.admit(3)
    daemon.streams.close()
    assert [client.document() for client in clients] == [None] * 3
    for client in clients:
        client.lines.close()
    daemon.close()
    wait_until(lambda: not open_sockets() - before, 30, "all are closed")


def test_who_wakes_it_never_waits(daemon: Daemon) -> None:
    """However often, while a document takes long."""
    (client,) = daemon.admit()
    make, making, go_on = daemon.streams._text._make, threading.Event(), threading.Event()

    def take_long() -> bytes:
        making.set()
        assert go_on.wait(30)
        return make()

    daemon.streams._text._make = take_long
    daemon.sample()
    assert making.wait(30)

    def wake_often() -> None:
        for _ in range(5000):
            daemon.sample()

    waking = threading.Thread(target=wake_often, daemon=True)
    waking.start()
    waking.join(20)
    assert not waking.is_alive()
    go_on.set()
    assert client.number() == 5001


class FailingListener:
    """A socket that listens, and where some attempts to accept a client fail."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.failures = [OSError(errno.EMFILE, "Too many open files"), BlockingIOError(errno.EAGAIN, "it has gone")] * 2

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            raise self.failures.pop()
        return self._listener.accept()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever a socket has
        return getattr(self._listener, name)

    def __enter__(self) -> None:
        self._listener.__enter__()

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def test_too_many_open_files_do_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(sleep=slept.append, monotonic=time.monotonic)
    monkeypatch.setattr(stream_socket, "time", clock)
    monkeypatch.setattr(stream_socket, "listen", lambda *where: FailingListener(sockets.listen(*where)))
    daemon = Daemon(tmp_path / "stream.sock")
    (client,) = daemon.admit()
    daemon.sample()
    assert client.number() == 1
    assert len(slept) == 2, "a client that has gone meanwhile is no reason to wait"
    daemon.close()


def test_a_client_is_given_only_what_is_newer_than_its_connection(daemon: Daemon) -> None:
    """Though nobody was connected when the last document was made, and none of it is kept for him."""
    daemon.sample()
    (client,) = daemon.admit()
    daemon.streams.wake()
    daemon.sample()
    assert client.number() == 2


def test_a_client_that_writes_is_disconnected(daemon: Daemon) -> None:
    (client,) = daemon.admit()
    client.peer.sendall(b"GET / HTTP/1.1\r\n")
    with contextlib.suppress(ConnectionResetError):
        assert client.document() is None


def test_one_too_many_is_refused_in_a_line(daemon: Daemon) -> None:
    clients = daemon.admit(stream_socket.CLIENTS if os.getuid() == 0 else stream_socket.CLIENTS_OF_ONE)
    refused = daemon.connect()
    document = refused.document()
    assert document
    assert "clients" in document["error"]
    assert refused.document() is None
    with pytest.raises(VirtRaplError, match="clients"):
        next(follow(daemon.path))
    clients[0].peer.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: len(daemon.streams._clients) < len(clients), 30, "there is room")
    daemon.admit()


CROWD = """
import os, socket, sys
os.setgroups([]), os.setgid(4321), os.setuid(4321)
peers = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
for peer in peers:
    peer.connect(sys.argv[1])
peers[-1].settimeout(20)
print(peers[-1].recv(1000).decode(), end="", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_one_user_does_not_take_all(daemon: Daemon) -> None:
    for directory in daemon.path.parents:
        if len(directory.parts) > 2:  # in /tmp
            directory.chmod(0o755)
    daemon.path.chmod(0o666)
    many = stream_socket.CLIENTS_OF_ONE
    command = [sys.executable, "-c", CROWD, str(daemon.path), str(many + 1)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd:
        assert crowd.stdout
        assert f"{many} clients of this user" in json.loads(crowd.stdout.readline())["error"]
        (client,) = daemon.admit()
        daemon.sample()
        assert client.number() == 1
        crowd.communicate()


def test_a_document_that_cannot_be_made_is_logged_once(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_socket, "BETWEEN_SECONDS", 0.02)
    (client,) = daemon.admit()
    make = daemon.streams._text._make
    failed = threading.Semaphore(0)

    def fail() -> bytes:
        failed.release()
        raise RuntimeError("not now")

    daemon.streams._text._make = fail
    daemon.sample()
    for _ in range(5):
        assert failed.acquire(timeout=10)
    daemon.streams._text._make = make
    assert client.number() == 1
    (line,) = daemon.lines
    assert "not now" in line


def test_a_daemon_that_is_silent_is_not_followed_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_socket, "SILENCE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "stream.sock"))
        listener.listen()
        following = threading.Thread(target=lambda: list(follow(tmp_path / "stream.sock")))
        following.start()
        following.join(20)
        gave_up = not following.is_alive()
    following.join()  # it has been hung up on now
    assert gave_up


def test_following(daemon: Daemon) -> None:
    numbers: list[int] = []

    def listen() -> None:
        numbers.extend(document["number"] for document in follow(daemon.path))

    thread = threading.Thread(target=listen)
    thread.start()
    wait_until(lambda: daemon.streams._clients, 30, "it is served")
    for number in (1, 2):
        daemon.sample()
        wait_until(lambda: len(numbers) == number, 30, "it is given")  # noqa: B023
    daemon.streams.close()
    thread.join(20)
    assert numbers == [1, 2]
    assert list(follow(daemon.path)) == []  # nobody listens any more


@pytest.mark.parametrize("words", [b"", b"{\n", b"[]\n", b'{"schema": 2}\n', b'{"schema": 1'])
def test_who_is_no_daemon(tmp_path: Path, words: bytes) -> None:
    path = tmp_path / "stream.sock"
    assert list(follow(path)) == []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(words)

        thread = threading.Thread(target=answer)
        thread.start()
        assert list(follow(path)) == []
        thread.join()
