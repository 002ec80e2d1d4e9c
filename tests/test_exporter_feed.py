"""The exporter's feed: who asks virt-rapld, how often, and what is logged when it is away."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from libvirt_rapl.daemon.status_socket import serve
from libvirt_rapl.exporter.feed import SHARED_SECONDS, Feed

STATUS = json.loads((Path(__file__).parent / "data/status.json").read_text())


class Daemon:
    """Answers as virt-rapld does, and counts how often."""

    def __init__(self, path: Path) -> None:
        self.asked = 0
        self.answer: object = STATUS
        self.answerers = serve(path, self.text, print)

    def text(self) -> bytes:
        self.asked += 1
        return json.dumps(self.answer).encode()


class Clock:
    """One that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "status.sock")
    yield daemon
    daemon.answerers.close()


def test_scrapes_within_a_second_share_a_document(tmp_path: Path, daemon: Daemon) -> None:
    clock = Clock()
    feed = Feed(tmp_path / "status.sock", print, clock)
    with ThreadPoolExecutor(8) as scrapers:
        documents = list(scrapers.map(lambda _: feed.document(), range(16)))
    assert daemon.asked == 1
    assert documents[0]
    assert documents[0].domains[0].name == STATUS["domains"][0]["name"]
    assert all(document is documents[0] for document in documents)
    clock.now += SHARED_SECONDS
    assert feed.document() is not documents[0]
    assert daemon.asked == 2


def test_a_daemon_that_is_away_is_logged_once_and_so_is_its_return(tmp_path: Path) -> None:
    clock, log = Clock(), list[str]()
    feed = Feed(tmp_path / "status.sock", log.append, clock)
    for _ in range(3):
        assert feed.document() is None
        clock.now += SHARED_SECONDS
    assert len(log) == 1
    assert str(tmp_path / "status.sock") in log[0]
    daemon = Daemon(tmp_path / "status.sock")
    assert feed.document()
    assert len(log) == 2
    daemon.answerers.close()


def test_nothing_of_a_daemon_that_went_away_is_left(tmp_path: Path) -> None:
    clock, log = Clock(), list[str]()
    feed = Feed(tmp_path / "status.sock", log.append, clock)
    daemon = Daemon(tmp_path / "status.sock")
    assert feed.document()
    daemon.answerers.close()
    clock.now += SHARED_SECONDS
    assert feed.document() is None
    assert len(log) == 1


@pytest.mark.parametrize("answer", [{"schema": 99}, [], {"schema": 1, "host": {}, "domains": []}])
def test_what_is_not_understood_is_no_document(tmp_path: Path, daemon: Daemon, answer: object) -> None:
    log: list[str] = []
    daemon.answer = answer
    assert Feed(tmp_path / "status.sock", log.append).document() is None
    assert len(log) == 1


def test_a_daemon_that_hangs_is_away(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "status.sock"))
        listener.listen()
        hanging: list[socket.socket] = []
        threading.Thread(target=lambda: hanging.append(listener.accept()[0])).start()
        log: list[str] = []
        assert Feed(tmp_path / "status.sock", log.append, answer_seconds=0.1).document() is None
        assert len(log) == 1
        for peer in hanging:
            peer.close()
