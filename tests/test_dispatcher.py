"""The hook of a libvirt that knows no qemu.d runs what is in it, as a newer libvirt does."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = """#!/bin/sh
name=${0##*/}
xml=$(cat)
echo "$name $* $xml" >>"$LOG"
case $name in
*silent*) ;;
*fails) echo "no: $name" >&2; echo lost; exit 3 ;;
*) echo "$xml+$name" ;;
esac
"""
"""Notes its arguments and what it was given, adds its name to it, or fails."""


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    (tmp_path / "hooks/qemu.d/web1").mkdir(parents=True)  # a directory is no program
    shutil.copy("hooks/dispatcher", tmp_path / "hooks/qemu")
    (tmp_path / "hooks/qemu.d/50-unused").write_text(SCRIPT)  # not executable
    (tmp_path / "bin").mkdir()
    version(tmp_path / "hooks", "libvirtd (libvirt) 6.4.0")
    return tmp_path / "hooks"


def version(hooks: Path, said: str, daemon: str = "libvirtd") -> None:
    for name in ("libvirtd", "virtqemud"):
        program = hooks.parent / "bin" / name
        program.write_text(f"#!/bin/sh\necho '{said}'\n" if name == daemon else "#!/bin/sh\nexit 127\n")
        program.chmod(0o755)


def add(hooks: Path, *names: str) -> None:
    for name in names:
        (hooks / "qemu.d" / name).write_text(SCRIPT)
        (hooks / "qemu.d" / name).chmod(0o755)


def call(hooks: Path, operation: str) -> tuple[int, str, list[str]]:
    """Return the status, what libvirt would take for the XML, and what was called with which XML."""
    log = hooks.parent / "log"
    log.write_text("")
    done = subprocess.run(
        [hooks / "qemu", "web 1", operation, "begin", "-"],
        input="<domain/>\n",
        env={"PATH": f"{hooks.parent}/bin:{os.environ['PATH']}", "LOG": str(log), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    called = [line.replace(f" web 1 {operation} begin -", "") for line in log.read_text().splitlines()]
    return done.returncode, done.stdout.strip(), called


@pytest.mark.parametrize("operation", ["restore", "migrate"])
def test_each_is_given_what_the_one_before_has_made(hooks: Path, operation: str) -> None:
    add(hooks, "B", "a", "10-silent", "virt-rapl")
    status, output, called = call(hooks, operation)
    assert called == ["10-silent <domain/>", "B <domain/>", "a <domain/>+B", "virt-rapl <domain/>+B+a"]
    assert (status, output) == (0, "<domain/>+B+a+virt-rapl")


@pytest.mark.parametrize("operation", ["prepare", "start", "started", "stopped", "release", "reconnect"])
def test_elsewhere_all_are_given_the_same(hooks: Path, operation: str) -> None:
    add(hooks, "1", "2")
    status, _, called = call(hooks, operation)
    assert (status, called) == (0, ["1 <domain/>", "2 <domain/>"])


@pytest.mark.parametrize("operation", ["restore", "start"])
def test_one_that_fails_makes_all_of_it_fail_and_stops_nobody(hooks: Path, operation: str) -> None:
    """As libvirt 11.3 was seen to do: whoever comes after a failure is given the XML as it came."""
    add(hooks, "1", "2-fails", "3", "4")
    status, _, called = call(hooks, operation)
    assert status == 1
    after = "<domain/>+1" if operation == "restore" else "<domain/>"
    assert called == ["1 <domain/>", f"2-fails {after}", "3 <domain/>", "4 <domain/>"]


def test_nothing_to_run(hooks: Path) -> None:
    assert call(hooks, "restore") == (0, "", [])


@pytest.mark.parametrize(
    ("said", "daemon", "runs"),
    [
        ("libvirtd (libvirt) 6.4.0", "libvirtd", True),
        ("virtqemud (libvirt) 5.10.0", "virtqemud", True),
        ("libvirtd (libvirt) 6.5.0", "libvirtd", False),
        ("libvirtd (libvirt) 6.10.0", "libvirtd", False),
        ("virtqemud (libvirt) 11.3.0", "virtqemud", False),
        ("", "libvirtd", True),
    ],
)
def test_a_libvirt_that_runs_them_itself_is_left_alone(hooks: Path, said: str, daemon: str, runs: bool) -> None:
    version(hooks, said, daemon)
    add(hooks, "virt-rapl")
    status, output, called = call(hooks, "restore")
    assert (status, bool(output), bool(called)) == (0, runs, runs)


def test_a_libvirt_that_does_not_answer_holds_nobody_up(hooks: Path) -> None:
    """Here the clock of timeout(1) has run out at once."""
    version(hooks, "libvirtd (libvirt) 11.3.0")
    (hooks.parent / "bin/timeout").write_text("#!/bin/sh\nexit 124\n")
    (hooks.parent / "bin/timeout").chmod(0o755)
    add(hooks, "virt-rapl")
    assert call(hooks, "start")[2] == ["virt-rapl <domain/>"]
