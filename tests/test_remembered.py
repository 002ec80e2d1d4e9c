"""What is remembered from one start to the next: only as long as nothing that it depends on has changed."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from libvirt_rapl import config, start_settings
from libvirt_rapl.config import Config
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.remembered import MOST, Memory, stamps


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the test were written a while ago."""
    now = time.time
    monkeypatch.setattr("libvirt_rapl.remembered.time.time", lambda: now() + 10)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    (tmp_path / "run").mkdir(mode=0o711)
    return Memory(tmp_path / "run/remembered")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


def grow(file: Path) -> None:
    file.write_text("three")


def rewrite_as_if_nothing_were(file: Path) -> None:
    before = file.stat()
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_another_there(file: Path) -> None:
    aside = file.with_suffix(".new")
    aside.write_text("two")
    aside.rename(file)


def let_all_write(file: Path) -> None:
    file.chmod(0o666)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [grow, rewrite_as_if_nothing_were, put_another_there, let_all_write, Path.unlink])
def test_it_lasts_until_a_file_changes(memory: Memory, file: Path, change: Callable[[Path], None]) -> None:
    missing = file.with_name("missing")
    memory.keep("a", stamps([file, missing]), {"value": [1, "x"]})
    assert memory.recall("a", stamps([file, missing])) == {"value": [1, "x"]}
    assert memory.recall("b", stamps([file, missing])) is None
    assert memory.recall("a", stamps([file])) is None
    change(file)
    assert memory.recall("a", stamps([file, missing])) is None


@pytest.mark.usefixtures("later")
def test_it_is_for_root_alone_and_holds_no_more_than_it_may(memory: Memory, file: Path) -> None:
    for number in range(MOST + 2):
        memory.keep(str(number), stamps([file]), number)
    assert memory.path.stat().st_mode & 0o7777 == 0o600
    assert list(json.loads(memory.path.read_text())) == [str(number) for number in range(2, MOST + 2)]


def test_what_may_change_again_unnoticed_is_not_kept(memory: Memory, file: Path) -> None:
    memory.keep("a", stamps([file]), 1)
    assert memory.recall("a", stamps([file])) is None


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": [1, 2, 3]}', "\x00", "[" * 100_000])
def test_what_is_damaged_is_forgotten(memory: Memory, file: Path, text: str) -> None:
    memory.path.write_text(text)
    assert memory.recall("a", stamps([file])) is None
    memory.keep("a", stamps([file]), 1)
    assert memory.recall("a", stamps([file])) == 1


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("mode", [0o733, 0o731])
def test_where_others_can_write_nothing_is_believed(memory: Memory, file: Path, mode: int) -> None:
    memory.keep("a", stamps([file]), 1)
    memory.path.parent.chmod(mode)
    assert memory.recall("a", stamps([file])) is None
    memory.keep("b", stamps([file]), 1)
    assert "b" not in memory.path.read_text()


@pytest.mark.usefixtures("later")
def test_a_pipe_in_its_place_is_waited_for_by_nobody(memory: Memory, file: Path) -> None:
    os.mkfifo(memory.path)
    assert memory.recall("a", stamps([file])) is None


@pytest.mark.usefixtures("later")
def test_settings_are_read_once_until_they_change(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    path, reads = tmp_path / "etc/virt-rapl.yaml", []

    def load(path: Path) -> Config:
        reads.append(path)
        return real(path)

    real = config.load
    monkeypatch.setattr(config, "load", load)
    path.write_text("helper: qemu\nrun_directory: /run/elsewhere\n")
    for _ in range(2):
        settings = start_settings.load(path, memory)
        assert settings == (Path("/run/elsewhere"), "qemu", "degrade", "auto", 5.0)
    assert reads == [path]
    (path.parent / "conf.d").mkdir()
    assert start_settings.load(path, memory).source == "auto"
    (path.parent / "conf.d/10.yaml").write_text("source: msr\n")
    assert [start_settings.load(path, memory).source for _ in range(2)] == ["msr", "msr"]
    assert len(reads) == 3


@pytest.mark.usefixtures("later")
def test_what_a_version_with_other_settings_remembers_is_not_taken(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout may change while its version number stays."""

    class Fewer(NamedTuple):
        run_directory: Path
        helper: str

    path = tmp_path / "virt-rapl.yaml"
    path.write_text("helper: qemu\n")
    with monkeypatch.context() as older:
        older.setattr(start_settings, "StartSettings", Fewer)
        assert len(start_settings.load(path, memory)) == 2
    assert start_settings.load(path, memory).source == Config.source


@pytest.mark.usefixtures("later")
def test_a_mistake_is_found_each_time(tmp_path: Path, memory: Memory) -> None:
    path = tmp_path / "virt-rapl.yaml"
    path.write_text("helper: none\non_failure: refuse\n")
    for _ in range(2):
        with pytest.raises(VirtRaplError, match="helper: expected one of"):
            start_settings.load(path, memory)
    assert start_settings.defaults(path).on_failure == "refuse"
    assert start_settings.defaults(path).helper == Config.helper
