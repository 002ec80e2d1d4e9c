"""The file for node_exporter: whole at any time, readable for others, gone in the end."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.exporter import textfile
from libvirt_rapl.exporter.textfile import write_until


class Writer:
    """Writes as often as the test has texts, then ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(textfile, "SECONDS", 0.0)
        self.log: list[str] = []
        self.ready = 0

    def write(self, file: Path, *texts: Callable[[], bytes]) -> None:
        ended, left = threading.Event(), list(texts)

        def text() -> bytes:
            made = left.pop(0)()
            if not left:
                ended.set()
            return made

        write_until(ended, file, text, self.log.append, self.count)

    def count(self) -> None:
        self.ready += 1


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    return Writer(monkeypatch)


def test_each_text_replaces_the_one_before_at_once(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "virt-rapl.prom"
    calls: list[str] = []
    seen: list[object] = []

    def record(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            calls.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename"):
        record(name)

    def second() -> bytes:
        seen.append((file.read_bytes(), file.stat().st_mode & 0o7777, file.stat().st_ino, writer.ready))
        return b"second"

    def third() -> bytes:
        seen.append((file.read_bytes(), file.stat().st_mode & 0o7777, writer.ready))
        return b"third"

    writer.write(file, lambda: b"first", second, third)
    assert seen[0][:2] == (b"first", 0o644)  # type: ignore[index]
    assert seen[1] == (b"second", 0o644, 1)
    assert calls == ["fsync", "rename"] * 3


def test_in_the_end_it_is_gone(tmp_path: Path, writer: Writer) -> None:
    writer.write(tmp_path / "virt-rapl.prom", lambda: b"only")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_node_exporter_does_not_read(tmp_path: Path, writer: Writer) -> None:
    with pytest.raises(VirtRaplError, match="node_exporter"):
        writer.write(tmp_path / "virt-rapl.txt", lambda: b"")


def test_a_directory_that_is_not_there(tmp_path: Path, writer: Writer) -> None:
    file = tmp_path / "nowhere/virt-rapl.prom"
    with pytest.raises(VirtRaplError, match=f"^cannot write {file}: No such file or directory$"):
        writer.write(file, lambda: b"")
    assert writer.ready == 0


def test_a_full_disk_later_is_logged_once(tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    file, real = tmp_path / "virt-rapl.prom", os.rename

    def rename(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill() -> bytes:
        monkeypatch.setattr(os, "rename", rename)
        return b"2"

    def empty() -> bytes:
        assert file.read_bytes() == b"1"
        monkeypatch.setattr(os, "rename", real)
        return b"4"

    writer.write(file, lambda: b"1", fill, lambda: b"3", empty)
    assert writer.log == [f"cannot write {file}: No space left on device"]
