"""Which directories root acts in: those that nobody else can change, nor put another one in their place."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_rapl.directories import NotOursError, opened

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="gives directories away")

SOMEBODY = 4321


def give_away(path: Path) -> None:
    os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)


def open_to_the_group(path: Path) -> None:
    path.chmod(0o775)


def open_to_all(path: Path) -> None:
    path.chmod(0o777)


def open_by_acl(path: Path) -> None:
    entries = [(1, 7, -1), (2, 7, SOMEBODY), (4, 5, -1), (16, 7, -1), (32, 5, -1)]  # acl(5): tag, permissions, user
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", packed)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("change", [give_away, open_to_the_group, open_to_all, open_by_acl])
def test_what_others_can_change_is_not_used(tmp_path: Path, change: Callable[[Path], None], depth: int) -> None:
    directory = tmp_path / "a/b/c"
    directory.mkdir(parents=True)
    with opened(directory) as descriptor:
        assert os.fstat(descriptor).st_ino == directory.stat().st_ino
    change([directory, *directory.parents][depth])
    for make in (None, 0o711):
        with pytest.raises(NotOursError, match=f"{directory} is not used") as caught, opened(directory, make=make):
            pass
        assert caught.value.hint


def test_where_everybody_may_make_names_it_must_be_there_and_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with opened(tmp_path / "ours", make=0o700):
        pass
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o700
    (tmp_path / "theirs").mkdir()
    give_away(tmp_path / "theirs")
    with pytest.raises(NotOursError, match="belongs to user 4321"), opened(tmp_path / "theirs", make=0o700):
        pass
    with pytest.raises(NotOursError, match="others can write"), opened(tmp_path):
        pass


def test_links_on_the_way_are_followed_where_they_are_ours(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for name, target in (("there", "a"), ("whole", tmp_path / "a"), ("up", "a/../a"), ("round", "round")):
        (tmp_path / name).symlink_to(target)
    for name in ("there", "whole", "up"):
        with opened(tmp_path / name / "b") as descriptor:
            assert os.fstat(descriptor).st_ino == (tmp_path / "a/b").stat().st_ino
    for path, named in ((tmp_path / "round/b", "round"), (tmp_path / "there", "there")):
        with pytest.raises(OSError, match=str(tmp_path / named)), opened(path):
            pass
    tmp_path.chmod(0o1777)
    give_away(tmp_path / "there")
    with pytest.raises(OSError, match="where it leads to"), opened(tmp_path / "there/b"):
        pass


def test_what_is_no_directory_is_reported_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, kind in ((tmp_path / "none/run", FileNotFoundError), (tmp_path / "file/run", NotADirectoryError)):
        with pytest.raises(kind, match=str(path.parent)), opened(path):
            pass
    with pytest.raises(NotOursError, match="absolute"), opened(Path("run")):
        pass
