"""Processes: start times, names, and what has vanished."""

import builtins
import os
import subprocess
from pathlib import Path

import pytest
from fakes.host import stat, write

from libvirt_rapl.host.processes import has_environment, is_stopped, read, start_time, unit, with_environment


def test_start_time_names_a_process(tmp_path: Path) -> None:
    write(tmp_path / "7/stat", stat(7, "qemu) S 1 (2", 0, start=123456))
    assert start_time(7, tmp_path) == 123456
    assert start_time(8, tmp_path) is None


def test_a_process_that_has_ended_has_no_start_time() -> None:
    child = subprocess.Popen(["sleep", "60"])
    started = start_time(child.pid)
    assert started is not None
    assert started >= (start_time(os.getpid()) or 0)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None  # it waits to be collected
    child.wait()
    assert start_time(child.pid) is None


@pytest.mark.parametrize(
    ("state", "stopped", "ended"),
    [
        *((state, False, False) for state in "RSDI"),
        *((state, True, False) for state in "Tt"),  # by a signal, by a debugger
        *((state, False, True) for state in "ZX"),
    ],
)
def test_the_state_of_a_process(tmp_path: Path, state: str, *, stopped: bool, ended: bool) -> None:
    write(tmp_path / "7/stat", stat(7, "qemu", 0, state=state, start=5))
    assert is_stopped(7, tmp_path) == stopped
    assert start_time(7, tmp_path) == (None if ended else 5)
    assert not is_stopped(8, tmp_path)


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError, PermissionError])
def test_a_file_of_a_process_that_ends_meanwhile(monkeypatch: pytest.MonkeyPatch, error: type[OSError]) -> None:
    """Linux answers ENOENT when it is opened after that, and ESRCH when it is read."""

    def fail(*_: object, **__: object) -> str:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", fail)
        if error is PermissionError:
            with pytest.raises(PermissionError):
                read(Path("/proc/7/stat"))
        else:
            assert read(Path("/proc/7/stat")) is None


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ("0::/system.slice/virt-rapl-a.service\n", "virt-rapl-a.service"),
        ("5:memory:/machine/a\n1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
        ("1:name=systemd:/\n0::/system.slice/a.service\n", "a.service"),
        ("5:memory:/system.slice/a.service\n0::/\n", ""),
        ("0::/user.slice/with:colon.scope\n", "with:colon.scope"),
        ("", ""),
    ],
)
def test_the_unit_of_a_process(tmp_path: Path, cgroup: str, expected: str) -> None:
    write(tmp_path / "7/cgroup", cgroup)
    assert unit(7, tmp_path) == expected
    assert unit(8, tmp_path) == ""


@pytest.mark.parametrize(
    ("users", "found"),
    [("0 0 0 0", True), ("1000 0 0 0", False), ("1000 1000 1000 1000", False), ("0 0 64055 0", False)],
)
def test_whose_environment_counts(tmp_path: Path, users: str, found: bool) -> None:
    """A set-user-ID program is root's, and has the environment of the user who runs it."""
    write(tmp_path / "7/status", f"Name:\tsu\nUid:\t{users.replace(' ', chr(9))}\nGid:\t0\t0\t0\t0\n")
    write(tmp_path / "7/environ", "A=1\0HELPER_OF=x\0")
    assert has_environment(7, "HELPER_OF", "x", tmp_path) == found
    assert with_environment("HELPER_OF", "x", tmp_path) == ([7] if found else [])
    for value in ("y", "", "xx"):
        assert not has_environment(7, "HELPER_OF", value, tmp_path)
    assert not has_environment(7, "OF", "x", tmp_path)
    assert not has_environment(8, "HELPER_OF", "x", tmp_path)
