"""What the hook finds out by itself of a domain and its emulator; of XML at a glance, see test_glance and test_hook."""

from pathlib import Path

import pytest

from libvirt_rapl.domains import emulator
from libvirt_rapl.lifecycle import seeing
from libvirt_rapl.remembered import SETTLED_SECONDS, Memory


@pytest.mark.parametrize("changed", ["qemu", "qemu-rapl", None])
def test_the_version_is_asked_again_when_what_is_behind_a_link_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str | None
) -> None:
    """The default emulator is a link to a wrapper, and an upgrade replaces the emulator that it wraps."""
    asked: list[str] = []

    def version(path: str) -> str:
        asked.append(path)
        return str(len(asked))

    monkeypatch.setattr(emulator, "version", version)
    settle(monkeypatch)
    link, memory = tmp_path / "default", Memory(tmp_path / "run/remembered")
    memory.path.parent.mkdir(mode=0o711)
    for name in ("qemu", "qemu-rapl"):
        (tmp_path / name).write_text("")
    link.symlink_to("qemu-rapl")
    assert [seeing.version(str(link), memory) for _ in range(2)] == ["1", "1"]
    if changed:
        (tmp_path / changed).write_text("another")
    assert seeing.version(str(link), memory) == ("2" if changed else "1")
    assert set(asked) == {str(link)}


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that were just written be old enough to be remembered."""
    monkeypatch.setattr("libvirt_rapl.remembered.SETTLED_SECONDS", -SETTLED_SECONDS)
