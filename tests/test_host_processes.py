"""Processes: start times, names, and what has vanished."""

import os
import subprocess
from pathlib import Path

from fixtures import stat, write

from libvirt_rapl.host.processes import start_time


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
