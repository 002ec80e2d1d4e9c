"""A socket is there when it can be used, with the mode that it is to have; a failure leaves nothing."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from libvirt_rapl.sockets import LineSender, Peer, listen, peer_of


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path short enough for a socket address."""
    with TemporaryDirectory() as name:
        yield Path(name)


def connects(path: Path) -> bool:
    """Return whether somebody listens, also on a long path."""
    place = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{place}/{path.name}")
        return True
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    finally:
        os.close(place)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize("wanted", [None, 0o600, 0o660, 0o666])
def test_it_has_its_mode_and_somebody_listens_when_it_appears(
    directory: Path, monkeypatch: pytest.MonkeyPatch, umask: int, wanted: int | None
) -> None:
    path = directory / "status.sock"
    real_chmod, real_replace = os.chmod, os.replace
    path.touch()  # an old one
    seen: list[tuple[int, bool]] = []
    most: list[int] = []

    def chmod(name: str, wanted: int, *, dir_fd: int) -> None:
        most.append(mode(directory / name))
        real_chmod(name, wanted, dir_fd=dir_fd)

    def replace(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        seen.append((mode(directory / old), connects(directory / old)))
        real_replace(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "chmod", chmod)
    monkeypatch.setattr(os, "replace", replace)
    before = os.umask(umask)
    opened = descriptors()
    try:
        listener = listen(path) if wanted is None else listen(path, wanted)
    finally:
        os.umask(before)
    expected = wanted or 0o600
    assert seen == [(expected, True)]
    assert not most[0] & ~expected, "it was open to no more users before"
    assert (mode(path), connects(path)) == (expected, True)
    assert [each.name for each in directory.iterdir()] == [path.name]
    assert descriptors() == opened + 1
    listener.close()


def test_a_failure_leaves_nothing(directory: Path) -> None:
    (directory / "a.sock").mkdir()
    before = descriptors()
    with pytest.raises(IsADirectoryError) as caught:
        listen(directory / "a.sock")
    with pytest.raises(FileNotFoundError):
        listen(directory / "none/a.sock")
    assert [each.name for each in directory.iterdir()] == ["a.sock"]
    assert descriptors() == before, "also while somebody keeps the error, and all that its traceback refers to"
    assert caught.value.filename


def test_what_a_killed_process_of_our_number_has_left_does_not_hinder(directory: Path) -> None:
    path = directory / "status.sock"
    (directory / f".{path.name[:8]}.{os.getpid()}").touch()
    with listen(path):
        assert connects(path)
    assert [each.name for each in directory.iterdir()] == [path.name]


def test_a_long_path(directory: Path) -> None:
    path = directory / ("d" * 120) / ("s" * 60)
    path.parent.mkdir()
    with listen(path):
        assert connects(path)


def test_who_is_at_the_other_end(directory: Path) -> None:
    ours = Peer(os.getpid(), os.geteuid(), os.getegid())
    with listen(directory / "a.sock") as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(directory / "a.sock"))
        accepted, _ = listener.accept()
        with accepted:
            assert (peer_of(client), peer_of(accepted)) == (ours, ours)


def test_a_line_that_fits_is_sent_at_once_and_none_waits_behind_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        sender = LineSender(ours)
        assert sender.all_is_read()
        assert not sender.begin(b"first\n"), "nothing remains"
        assert not sender.all_is_read()
        assert theirs.recv(3) == b"fir"
        assert not sender.all_is_read(), "half is not all"
        assert not sender.go_on()
        assert theirs.recv(100) == b"st\n", "and nothing was added"
        assert sender.all_is_read()


def test_a_line_that_does_not_fit_is_finished_as_there_is_room() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        sender, line, read = LineSender(ours), os.urandom(5_000_000), b""
        remains = sender.begin(line)
        assert remains
        while remains:
            assert not sender.all_is_read(), "a rest counts, also while all that was sent is read"
            read += theirs.recv(1_000_000)
            remains = sender.go_on()
        while len(read) < len(line):
            read += theirs.recv(1_000_000)
        assert read == line
        assert sender.all_is_read()


def test_a_peer_that_has_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        sender = LineSender(ours)
        sender.begin(b"unread\n")
        theirs.close()
        assert sender.all_is_read(), "there is nobody any more who has not read it"
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            sender.begin(b"next\n")
