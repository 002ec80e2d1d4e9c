"""Processes: start times, names, and what has vanished."""

import os
import subprocess
from pathlib import Path

import pytest
from fakes.host import stat, write

from libvirt_rapl.host.processes import has_environment, start_time, with_environment


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
    ("users", "found"),
    [("0 0 0 0", True), ("1000 0 0 0", False), ("1000 1000 1000 1000", False), ("0 0 64055 0", False)],
)
def test_whose_environment_counts(tmp_path: Path, users: str, found: bool) -> None:
    """A set-user-ID program is root's, and has the environment of the user who runs it."""
    write(tmp_path / "7/status", f"Name:\tsu\nUid:\t{users.replace(' ', chr(9))}\nGid:\t0\t0\t0\t0\n")
    write(tmp_path / "7/environ", "A=1\0HELPER_OF=x\0")
    assert has_environment(7, "HELPER_OF", "x", tmp_path) == found
    assert with_environment("HELPER_OF", "x", tmp_path) == ([7] if found else [])
    assert not has_environment(7, "HELPER_OF", "y", tmp_path)
    assert not has_environment(8, "HELPER_OF", "x", tmp_path)
