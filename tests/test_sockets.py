"""A socket is there when it can be used, with the mode that it is to have; a failure leaves nothing."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from libvirt_rapl.sockets import listen


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
