"""Processes: start times, names, and what has vanished."""

import os
import subprocess
from pathlib import Path

import pytest
from fixtures import Host, Thread, stat, write

from libvirt_rapl.host.processes import start_time, thread_names, vcpu_number


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


def test_thread_names(tmp_path: Path) -> None:
    Host(tmp_path).process(7, {7: Thread("qemu-system-x86", 0), 9: Thread("CPU 0/KVM", 0)})
    assert thread_names(7, tmp_path / "proc") == {7: "qemu-system-x86", 9: "CPU 0/KVM"}
    assert thread_names(8, tmp_path / "proc") == {}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("CPU 0/KVM", 0),
        ("CPU 127/KVM", 127),
        ("CPU 0/TCG", 0),
        ("CPU 0/HAX", None),
        ("kvm-msr", None),
        ("CPU x/KVM", None),
        ("", None),
    ],
)
def test_vcpu_number(name: str, number: int | None) -> None:
    assert vcpu_number(name) == number
