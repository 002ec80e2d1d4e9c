"""Whether guests run under KVM, asked of emulators that do what a test wants."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakes.qemu import script

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import guest, kvm
from libvirt_rapl.simulator.kvm import check_kvm


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kvm, "KVM", Path("/dev/null"))
    monkeypatch.setattr(guest, "EMULATOR", str(tmp_path / "qemu"))
    return tmp_path / "qemu"


def test_a_guest_that_prints_is_enough_and_is_killed(
    emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401 (as they are)
            super().__init__(*arguments, **keywords)
            started.append(self)

    script(emulator, f'echo "$@" > {tmp_path}/arguments; echo line; exec sleep 5')
    monkeypatch.setattr(subprocess, "Popen", Popen)
    check_kvm()
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[arguments.index("-accel") + 1] == "kvm"
    assert not Path(arguments[arguments.index("-bios") + 1]).exists()


def test_the_guest_has_the_rom(emulator: Path, tmp_path: Path) -> None:
    script(emulator, f'for last; do :; done; cp "$last" {tmp_path}/rom; echo line')
    check_kvm()
    assert (tmp_path / "rom").read_bytes() == guest.rom(0)


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("echo starting >&2; echo no such CPU >&2; echo >&2; exit 1", "no such CPU"),
        ("exit 1", "it printed nothing"),
        ("kill -9 $$", "it printed nothing"),
        (r"printf '\377oops\n' >&2; exit 1", "oops"),
    ],
)
def test_what_an_emulator_writes_last_is_why_it_runs_no_guests(emulator: Path, does: str, why: str) -> None:
    script(emulator, does)
    with pytest.raises(VirtRaplError, match=f"{why}$") as caught:
        check_kvm()
    assert "/dev/kvm" in caught.value.hint


def test_a_guest_that_prints_nothing_is_ended(emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "SECONDS", 0.1)
    script(emulator, f"echo $$ > {tmp_path}/pid; echo starting >&2; exec sleep 5")
    with pytest.raises(VirtRaplError, match=r"nothing within 0\.1 s"):
        check_kvm()
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


@pytest.mark.parametrize("there", [True, False])
def test_without_a_device_no_emulator_is_tried(
    emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    script(emulator, "echo line")
    monkeypatch.setattr(kvm, "KVM", tmp_path / "kvm")
    if there:
        (tmp_path / "kvm").touch()
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(VirtRaplError, match="has no KVM"):
        check_kvm()
    assert set(Path("/proc/self/fd").iterdir()) == before
