"""Staging an installation: what goes where, twice, and over what was there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from libvirt_rapl import installer, wrappers
from libvirt_rapl.cli import main
from libvirt_rapl.errors import VirtRaplError

HOOK = "etc/libvirt/hooks/qemu.d/virt-rapl"
WRAPPER = "usr/bin/qemu-system-x86_64-rapl"
UNIT = "etc/systemd/system/virt-rapl-helper@.service"
DAEMON_UNIT = "etc/systemd/system/virt-rapld.service"
CONFIGURATION = "etc/virt-rapl/virt-rapl.yaml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    emulator = tmp_path / "usr/bin/qemu-system-x86_64"
    emulator.parent.mkdir(parents=True)
    emulator.touch(0o755)
    return tmp_path


def install(root: Path, *, dry_run: bool = False) -> list[str]:
    return list(installer.install(root, wrappers.emulators(root), dry_run=dry_run))


def contents(root: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): (path.stat().st_mode & 0o777, path.read_text()) for path in files}


def test_everything_is_put_in_place_with_its_mode(root: Path) -> None:
    os.umask(0o077)
    try:
        install(root)
    finally:
        os.umask(0o022)
    files = contents(root)
    modes = {name: mode for name, (mode, _) in files.items() if name != "usr/bin/qemu-system-x86_64"}
    assert {name for name, mode in modes.items() if mode == 0o755} == {HOOK, WRAPPER}
    assert {UNIT, DAEMON_UNIT, CONFIGURATION, "etc/tmpfiles.d/virt-rapl.conf"} <= modes.keys()
    assert set(modes.values()) == {0o755, 0o644}
    assert sys.executable in files[HOOK][1]
    assert sys.executable in files[UNIT][1]
    assert "After=libvirtd.service virtqemud.service\n" in files[DAEMON_UNIT][1]  # one of them, whichever there is
    assert not any("@PYTHON@" in text or "@WATCHED@" in text for _, text in files.values())


def test_a_second_run_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert main(["install", "--prefix-root", str(root)]) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"unchanged"}


def test_the_operators_configuration_stays_and_old_files_of_ours_do_not(root: Path) -> None:
    install(root)
    (root / CONFIGURATION).write_text("helper: qemu\n")
    (root / HOOK).write_text("an older hook\n")
    assert f"updated   {root / HOOK}" in install(root)
    assert (root / CONFIGURATION).read_text() == "helper: qemu\n"
    assert "older" not in (root / HOOK).read_text()


def test_a_wrapper_for_every_emulator_that_is_there(root: Path) -> None:
    (root / "usr/bin/qemu-system-x86_64").unlink()
    install(root)
    assert not (root / WRAPPER).exists()
    (root / "usr/libexec").mkdir()
    (root / "usr/libexec/qemu-kvm").touch(0o755)
    install(root)
    assert (root / "usr/libexec/qemu-kvm-rapl").read_text() == Path("hooks/qemu-system-rapl").read_text()


def test_what_cannot_be_written_is_told(root: Path) -> None:
    (root / "etc").write_text("not a directory")
    with pytest.raises(VirtRaplError, match="cannot change"):
        install(root)


def test_the_wheel_carries_hook_wrapper_unit_and_configuration(tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "libvirt_rapl", "hooks", "etc"):
        source = Path(__file__).parent.parent / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True)
        else:
            shutil.copy(source, copy / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, copy], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    environment = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", environment, wheel], check=True
    )
    staged = tmp_path / "staged"
    (staged / "usr/bin").mkdir(parents=True)
    (staged / "usr/bin/qemu-system-x86_64").touch(0o755)
    subprocess.run(
        [sys.executable, "-m", "libvirt_rapl", "install", "--prefix-root", staged],
        cwd=tmp_path,
        env={"PYTHONPATH": str(environment), "PATH": os.environ["PATH"]},
        check=True,
    )
    assert {HOOK, WRAPPER, UNIT, DAEMON_UNIT, CONFIGURATION} <= contents(staged).keys()
    assert list((environment / "libvirt_rapl/simulator").glob("*.rom"))


@pytest.mark.parametrize("python", ["/opt/it's/bin/python", "/opt/a b/bin/python", "/opt/$x/bin/python", "/o%i/python"])
def test_a_path_that_scripts_would_misread_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(VirtRaplError, match="cannot be named in scripts"):
        install(root)
    assert not (root / "etc").exists()
