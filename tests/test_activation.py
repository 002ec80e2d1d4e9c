"""What is done on the running system after an installation and around its end, with stand-ins for its programs."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from libvirt_rapl import paths
from libvirt_rapl.config import Config
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import activation
from libvirt_rapl.install.manifest import Manifest

UNITS = Path(__file__).parent.parent / "etc/systemd"
NOTE = '#!/bin/sh\necho "${0##*/} $*" | sed "s,/[^ ]*/,,g" >>"$LOG"\n'


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[activation.Step]], list[str]]:
    """A machine with SELinux and the programs of it that there are; carries out steps and returns what they called."""
    (tmp_path / "bin").mkdir()
    for name in ("checkmodule", "semodule_package", "semodule", "restorecon", "modprobe"):
        (tmp_path / "bin" / name).write_text(NOTE + 'case $1 in --list-modules) echo "base virt_rapl zebra" ;; esac\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "enforce").touch()
    (tmp_path / "virt_rapl.te").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setattr(activation, "SELINUX", tmp_path / "enforce")
    monkeypatch.setattr(activation, "MODULE", tmp_path / "virt_rapl.te")
    monkeypatch.setattr(activation, "MSR", tmp_path / "msr")
    monkeypatch.setattr(activation, "RUN_DIRECTORY", tmp_path / "virt-rapl")
    monkeypatch.setattr(activation, "pid_of", lambda _daemon: None)
    manifest = Manifest(files={"usr/bin/qemu-system-x86_64-rapl": ""})
    monkeypatch.setattr(Manifest, "load", lambda _root: manifest)
    monkeypatch.setattr("libvirt_rapl.systemd.runs", lambda: False)

    def called(steps: Iterable[activation.Step]) -> list[str]:
        for _, act in steps:
            act()
        log = tmp_path / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return called


Called = Callable[[Iterable[activation.Step]], list[str]]


def test_selinux_gets_its_module(called: Called) -> None:
    assert called(activation.after_install()) == [
        "modprobe msr",
        "checkmodule -M -m -o virt_rapl.mod virt_rapl.te",
        "semodule_package -o virt_rapl.pp -m virt_rapl.mod -f virt_rapl.fc",
        "semodule --install=virt_rapl.pp",
        "restorecon -R -i virt-rapl qemu-system-x86_64-rapl",
    ]
    assert called(activation.before_uninstall()) == ["semodule --list-modules", "semodule --remove=virt_rapl"]


def test_every_unit_is_stopped_before_its_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [path.name for path in UNITS.iterdir() if "@" not in path.name]
    for name in units:
        (tmp_path / name).touch()
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(paths, "UNITS", str(tmp_path))
    monkeypatch.setattr(activation, "SELINUX", tmp_path / "none")
    monkeypatch.setattr("libvirt_rapl.systemd.runs", lambda: True)
    monkeypatch.setattr("libvirt_rapl.systemd.systemctl", lambda *words, timeout: asked.append(words))  # noqa: ARG005
    for _, act in activation.before_uninstall():
        act()
    assert sorted(asked) == [("disable", "--now", name) for name in sorted(units)]


def test_without_selinux_and_with_msr_nothing_is_called(called: Called, tmp_path: Path) -> None:
    (tmp_path / "enforce").unlink()
    (tmp_path / "msr").touch()
    assert called([*activation.after_install(), *activation.before_uninstall()]) == []


def test_patterns_of_another_version_are_forgotten(called: Called, tmp_path: Path) -> None:
    directory = tmp_path / "virt-rapl"
    directory.mkdir(mode=0o711)
    (directory / paths.CHOSEN).touch()
    called(activation.after_install())
    assert list(directory.iterdir()) == []
    (directory / paths.CHOSEN).touch()
    directory.chmod(0o777)
    called(activation.after_install())
    assert [path.name for path in directory.iterdir()] == [paths.CHOSEN], "it is somebody else's directory"


def test_a_kernel_without_the_module_msr_is_no_failure(called: Called, tmp_path: Path) -> None:
    (tmp_path / "enforce").unlink()
    (tmp_path / "bin/modprobe").write_text("#!/bin/sh\nexit 1\n")
    assert called(activation.after_install()) == []


def test_what_selinux_lacks_is_reported(called: Called, tmp_path: Path) -> None:
    (tmp_path / "bin/checkmodule").write_text("#!/bin/sh\necho 'syntax error' >&2\nexit 1\n")
    with pytest.raises(VirtRaplError, match=r"checkmodule .* failed: syntax error"):
        called(activation.after_install())
    (tmp_path / "bin/checkmodule").unlink()
    with pytest.raises(VirtRaplError, match="checkmodule") as caught:
        called(activation.after_install())
    assert "install checkpolicy" in caught.value.hint


def test_the_run_directory_goes_with_what_is_ours_in_it(called: Called, tmp_path: Path) -> None:
    config = Config(run_directory=tmp_path / "run", state_directory=tmp_path / "state")
    uuid = "11111111-2222-4333-8444-555555555555"
    (config.run_directory / "daemon").mkdir(parents=True)
    for name in ("events.jsonl", "events.jsonl.1", f"{uuid}.lock", f".{uuid}.json.{os.getpid()}.virt-rapl"):
        (config.run_directory / name).touch()
    config.state_directory.mkdir()
    called(activation.after_uninstall(config))
    assert not config.run_directory.exists()
    assert not config.state_directory.exists()

    config.run_directory.mkdir()
    (config.run_directory / f"{uuid}.json").touch()  # a domain that runs on
    config.state_directory.mkdir()
    (config.state_directory / "ledger.db").touch()
    called(activation.after_uninstall(config))
    assert (config.run_directory / f"{uuid}.json").exists()
    assert (config.state_directory / "ledger.db").exists()

    (config.run_directory / f"{uuid}.json").rename(config.run_directory / "somebody-elses")
    called(activation.after_uninstall(config))
    assert [path.name for path in config.run_directory.iterdir()] == ["somebody-elses"]


@pytest.fixture
def with_systemd(called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Called:
    """The same where systemd runs, msr is loaded and there is no SELinux."""
    for name in ("systemctl", "systemd-sysusers", "systemd-tmpfiles"):
        (tmp_path / "bin" / name).write_text(NOTE)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "enforce").unlink()
    (tmp_path / "msr").touch()
    monkeypatch.setattr("libvirt_rapl.systemd.runs", lambda: True)
    return called


def test_systemd_gets_user_and_directory_before_units_that_need_them(with_systemd: Called) -> None:
    assert with_systemd(activation.after_install()) == [
        "systemd-sysusers virt-rapl.conf",
        "systemd-tmpfiles --create virt-rapl.conf",
        "systemctl daemon-reload",
        "systemctl restart virt-rapl-wrappers.path",
    ]


@pytest.mark.parametrize(
    ("place", "command"),
    [("UNITS", "systemctl disable --now"), ("PACKAGED_UNITS", "systemctl stop"), (None, None)],
)
def test_units_end_before_their_files_go(
    with_systemd: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None, command: str | None
) -> None:
    for name in ("UNITS", "PACKAGED_UNITS"):
        monkeypatch.setattr(paths, name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    if place:
        for unit in activation.UNIT_NAMES:
            (tmp_path / place / unit).touch()
    expected = [f"{command} {unit}" for unit in activation.UNIT_NAMES] if command else []
    assert with_systemd(activation.before_uninstall()) == expected


def test_systemd_forgets_the_units_that_are_gone(with_systemd: Called, tmp_path: Path) -> None:
    config = Config(run_directory=tmp_path / "run", state_directory=tmp_path / "state")
    assert with_systemd(activation.after_uninstall(config)) == ["systemctl daemon-reload"]


def test_libvirt_is_made_to_look_again_and_lives_on(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SIGHUP, which ends a process that has no handler for it, as this one has not."""
    daemon = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(activation, "pid_of", {"libvirtd": daemon.pid, "virtqemud": None}.get)
    steps = [line for line, act in activation.after_install() if act() is None and "libvirtd" in line]
    assert len(steps) == 1
    assert daemon.wait(timeout=10) == -signal.SIGHUP
    called(activation.after_install())  # it has ended since: that is no failure


def test_a_daemon_is_the_process_of_its_pid_file_if_it_has_its_name(tmp_path: Path) -> None:
    assert activation.pid_of("libvirtd", tmp_path) is None
    (tmp_path / "run").mkdir()
    (tmp_path / "proc/70").mkdir(parents=True)
    (tmp_path / "run/libvirtd.pid").write_text("70\n")
    for comm, pid in (("libvirtd\n", 70), ("another\n", None)):
        (tmp_path / "proc/70/comm").write_text(comm)
        assert activation.pid_of("libvirtd", tmp_path) == pid
    (tmp_path / "run/libvirtd.pid").write_text("\n")
    assert activation.pid_of("libvirtd", tmp_path) is None


def test_a_state_directory_that_is_a_mount_stays(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(run_directory=tmp_path / "run", state_directory=tmp_path / "state")
    config.state_directory.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == config.state_directory)
    called(activation.after_uninstall(config))
    assert config.state_directory.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory away")
def test_of_a_run_directory_of_somebody_else_nothing_is_removed(called: Called, tmp_path: Path) -> None:
    config = Config(run_directory=tmp_path / "run", state_directory=tmp_path / "state")
    config.run_directory.mkdir()
    (config.run_directory / "events.jsonl").touch()
    os.chown(config.run_directory, 4321, 4321)
    called(activation.after_uninstall(config))
    assert (config.run_directory / "events.jsonl").exists()
