"""Replacing a file in one step, what a killed process leaves of that, locks, who else may write, and free space."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libvirt_rapl.files import free_bytes, is_left_over, lock, replace, temporary, who_else_may_write


@pytest.fixture
def no_umask() -> Any:  # noqa: ANN401
    before = os.umask(0)
    yield
    os.umask(before)


def content(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").read_text()


def mode(descriptor: int) -> int:
    return stat.S_IMODE(os.fstat(descriptor).st_mode)


@pytest.mark.usefixtures("no_umask")
def test_a_file_has_its_name_once_its_text_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    steps: list[tuple[object, ...]] = []
    real: dict[str, Callable[..., None]] = {"fchmod": os.fchmod, "rename": os.rename}

    def fchmod(descriptor: int, wanted: int) -> None:
        steps.append(("mode", mode(descriptor)))
        real["fchmod"](descriptor, wanted)

    def fsync(descriptor: int) -> None:
        steps.append(("fsync", mode(descriptor), content(descriptor), path.read_text()))

    def rename(*names: str, **directories: int) -> None:
        steps.append(("rename", path.read_text()))
        real["rename"](*names, **directories)

    for name, step in (("fchmod", fchmod), ("fsync", fsync), ("rename", rename)):
        monkeypatch.setattr(os, name, step)
    before = len(list(Path("/proc/self/fd").iterdir()))
    replace(path, "néw\n", 0o644)
    assert steps == [("mode", 0o600), ("fsync", 0o644, "néw\n", "old"), ("rename", "old")]
    assert path.read_text() == "néw\n"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("step", ["fchmod", "fsync", "rename"])
def test_a_file_that_cannot_be_replaced_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        replace(path, "new", 0o644)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("name", "left"),
    [
        pytest.param(temporary("file"), True, id="of this process"),
        (".file.4194305.virt-rapl", True),  # more than any PID
        (".file.1.virt-rapl", False),  # a process that runs
        (".file.0.virt-rapl", False),
        (".file.01.virt-rapl", False),
        (".file..virt-rapl", False),
        (".file.x.virt-rapl", False),
        ("..4194305.virt-rapl", False),
        ("file.4194305.virt-rapl", False),
        (".file.4194305.virt-rapl.bak", False),
        ("file", False),
    ],
)
def test_what_a_process_that_has_ended_was_writing(name: str, *, left: bool) -> None:
    assert is_left_over(name) == left


@pytest.mark.parametrize(
    ("kind", "mode", "who"),
    [
        (stat.S_IFREG, 0o644, ""),
        (stat.S_IFREG, 0o664, "group 7"),
        (stat.S_IFREG, 0o646, "everybody"),
        (stat.S_IFREG, 0o1666, "everybody"),
        (stat.S_IFDIR, 0o755, ""),
        (stat.S_IFDIR, 0o775, "group 7"),
        (stat.S_IFDIR, 0o777, "everybody"),
        (stat.S_IFDIR, 0o1777, ""),
    ],
)
@pytest.mark.parametrize(("owner", "us", "theirs"), [(0, 0, False), (0, 5, False), (5, 5, False), (6, 5, True)])
def test_who_else_may_write(
    monkeypatch: pytest.MonkeyPatch, kind: int, mode: int, who: str, owner: int, us: int, *, theirs: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: us)
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((kind | mode, 1, 1, 1, owner, 7, 0, 0, 0, 0)))
    found = who_else_may_write(3)
    assert found.startswith("it belongs to user 6" if theirs else who)
    assert bool(found) == bool(theirs or who)


def test_free_is_what_anybody_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks as the file system counts them; a part is kept for root, and its preferred size is another."""
    bsize, frsize, blocks, bfree, bavail = 65536, 512, 1000, 100, 10
    monkeypatch.setattr(
        os, "statvfs", lambda _: os.statvfs_result((bsize, frsize, blocks, bfree, bavail, 0, 0, 0, 0, 255))
    )
    assert free_bytes(Path("/somewhere")) == 10 * 512


@pytest.mark.usefixtures("no_umask")
@pytest.mark.parametrize("name", ["", "lock"])
def test_a_lock_is_one_process_at_a_times(tmp_path: Path, name: str) -> None:
    held = lock(tmp_path / name)
    try:
        with pytest.raises(BlockingIOError):
            lock(tmp_path / name)
    finally:
        os.close(held)
    os.close(lock(tmp_path / name))
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600] * bool(name)


def test_a_lock_is_not_made_where_a_link_points(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        lock(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()
