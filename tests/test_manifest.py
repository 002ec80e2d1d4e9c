"""The record of what is installed: which directories it makes, and what is left of it where that fails."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install.manifest import Manifest, sweep
from libvirt_rapl.tree import Tree

TARGETS = ["usr/bin/q-rapl", "usr/local/share/deep/page.1", "etc/systemd/system/x.service"]
NO_PROCESS = 2**22 + 1


def there(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def fails_at(call: int) -> Callable[..., Callable[..., Any]]:
    """Let one call of a function fail, counted from 0, and none after it."""
    calls = iter(range(100))

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*arguments: object, **named: object) -> object:
            if next(calls) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        return maybe

    return failing


def test_it_is_recorded_what_was_not_there_before(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    manifest = Manifest(files=dict.fromkeys(TARGETS, ""))
    manifest.begin(Tree(tmp_path), TARGETS)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest
    assert loaded.directories[:2] == ["etc", "etc/virt-rapl"]
    assert set(loaded.directories[2:]) == {
        *("usr/local", "usr/local/share", "usr/local/share/deep", "etc/systemd", "etc/systemd/system")
    }
    assert all((tmp_path / name).is_dir() for name in loaded.directories)
    assert (tmp_path / paths.MANIFEST).stat().st_mode & 0o777 == 0o644
    before = there(tmp_path)
    manifest.begin(Tree(tmp_path), [*TARGETS, "opt/own/q-rapl"])  # more, by a later version
    assert there(tmp_path) - before == {"opt", "opt/own"}
    assert Manifest.load(tmp_path).directories == [*loaded.directories, "opt", "opt/own"]


@pytest.mark.parametrize(("name", "call"), [("mkdir", 1), ("mkdir", 2), ("rename", 0), ("rename", 1), ("fsync", 0)])
def test_where_it_cannot_begin_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails_at(call)(getattr(os, name)))
        with pytest.raises(OSError, match="No space left"):
            Manifest(files=dict.fromkeys(TARGETS, "")).begin(Tree(tmp_path), TARGETS)
    assert there(tmp_path) == set()


def test_directories_go_with_it_as_far_as_they_are_empty(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    manifest = Manifest(files=dict.fromkeys(TARGETS, ""))
    manifest.begin(Tree(tmp_path), TARGETS)
    (tmp_path / "usr/local/share/somebody-elses").touch()
    manifest.end(Tree(tmp_path))
    assert there(tmp_path) == {"usr", "usr/local", "usr/local/share", "usr/local/share/somebody-elses"}


def test_two_that_end_it_at_once_do_not_stumble(tmp_path: Path) -> None:
    manifest = Manifest()
    manifest.begin(Tree(tmp_path), TARGETS)
    for _ in range(2):
        manifest.end(Tree(tmp_path))
    assert there(tmp_path) == set()


@pytest.mark.parametrize("above", ["etc", "etc/virt-rapl"])
def test_directories_that_were_there_stay(tmp_path: Path, above: str) -> None:
    (tmp_path / above).mkdir(parents=True)
    before = there(tmp_path)
    manifest = Manifest()
    manifest.begin(Tree(tmp_path), [])
    manifest.end(Tree(tmp_path))
    assert there(tmp_path) == before


def test_a_directory_that_cannot_be_removed_is_reported_and_still_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest()
    manifest.begin(Tree(tmp_path), TARGETS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fails_at(0)(os.rmdir))
        with pytest.raises(OSError, match="No space left"):
            manifest.end(Tree(tmp_path))
    Manifest.load(tmp_path).end(Tree(tmp_path))
    assert there(tmp_path) == set()


def test_what_killed_processes_have_left_is_swept_and_no_more(tmp_path: Path) -> None:
    manifest = Manifest(files={"usr/bin/q-rapl": ""})
    manifest.begin(Tree(tmp_path), ["usr/bin/q-rapl"])
    dead = [f"etc/virt-rapl/.installed.json.{NO_PROCESS}.virt-rapl", f"usr/bin/.q-rapl.{NO_PROCESS}.virt-rapl"]
    kept = [f"usr/bin/.q-rapl.{os.getppid()}.virt-rapl", "usr/bin/.q-rapl.1x.virt-rapl", "usr/.q.2.virt-rapl.swp"]
    before = there(tmp_path)
    for name in (*dead, *kept):
        (tmp_path / name).touch()
    sweep(Tree(tmp_path))
    assert there(tmp_path) == before | set(kept)


def test_a_manifest_left_aside_takes_the_directories_that_it_names_with_it(tmp_path: Path) -> None:
    aside = tmp_path / f"etc/.installed.json.{NO_PROCESS}.virt-rapl"
    aside.parent.mkdir()
    aside.write_text(json.dumps({"files": {}, "directories": ["etc/virt-rapl"], "updates": {}}))
    (tmp_path / "etc/virt-rapl").mkdir()
    sweep(Tree(tmp_path))
    assert there(tmp_path) == {"etc"}


@pytest.mark.parametrize("key", ["files", "updates", "directories"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "etc/../../x"])
def test_it_names_nothing_outside_of_the_root(tmp_path: Path, key: str, name: str) -> None:
    (tmp_path / "etc/virt-rapl").mkdir(parents=True)
    (tmp_path / paths.MANIFEST).write_text(json.dumps({key: [name] if key == "directories" else {name: ""}}))
    with pytest.raises(VirtRaplError, match="outside"):
        Manifest.load(tmp_path)


def test_one_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert Manifest.load(tmp_path) == Manifest()
    (tmp_path / "etc").touch()
    assert Manifest.load(tmp_path) == Manifest()


def test_what_it_has_written_before_and_what_it_is_about_to_write_are_both_ours() -> None:
    manifest = Manifest(files={"a": "old", "b": "b"}, updates={"a": "new"})
    assert [manifest.has_written("a", digest) for digest in ("old", "new", "b", None)] == [True, True, False, False]
    assert not manifest.has_written("c", None)
