"""System calls that change nothing of the machine's: those that fail, and those of a child."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import libvirt_rapl
from libvirt_rapl.simulator import system

SCRIPT = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(libvirt_rapl.__file__).parent.parent)!r})
from libvirt_rapl.simulator import system
"""


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-ISc", SCRIPT + code], capture_output=True, text=True, timeout=20)


def test_a_system_call_that_fails_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none") as mounted:
        system.mount("none", tmp_path / "none", "tmpfs")
    with pytest.raises(OSError, match="none") as detached:
        system.detach(tmp_path / "none")
    for caught in (mounted, detached):
        assert caught.value.errno in (errno.ENOENT, errno.EPERM)
        assert caught.value.filename == str(tmp_path / "none")


def test_a_process_learns_of_a_parent_that_has_died_already() -> None:
    done = run(f"system.signal_at_death_of_parent(signal.SIGKILL, {os.getpid()}); print('lives', flush=True)\n")
    assert (done.returncode, done.stdout) == (0, "lives\n")
    done = run(f"system.signal_at_death_of_parent(signal.SIGKILL, {os.getppid()}); print('lives', flush=True)\n")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_orphans_get_the_parent_that_adopts_them() -> None:
    done = run("""
system.adopt_orphans()
reader, writer = os.pipe()
if not os.fork():
    if not os.fork():
        os.close(writer)
        os.read(reader, 1)  # until its parent has ended
        print(os.getppid(), flush=True)
    os._exit(0)
os.wait()
os.close(writer)
os.wait()
print(os.getpid(), flush=True)
""")
    first, second = done.stdout.split()
    assert first == second


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_what_is_mounted_in_a_namespace_of_its_own_is_not_seen_outside(tmp_path: Path) -> None:
    done = run(f"""
from pathlib import Path
system.unshare_mounts()
system.mount("tmpfs", Path({str(tmp_path)!r}), "tmpfs", options="mode=711")
print(oct(os.stat({str(tmp_path)!r}).st_mode & 0o7777), {str(tmp_path)!r} in open("/proc/self/mountinfo").read())
system.detach(Path({str(tmp_path)!r}))
print({str(tmp_path)!r} in open("/proc/self/mountinfo").read())
""")
    assert done.stdout == "0o711 True\nFalse\n", done.stderr
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
