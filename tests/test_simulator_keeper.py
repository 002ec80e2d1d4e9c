"""The processes of a simulation, without simulated files: what reaches the command, and that nothing stays."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import libvirt_rapl

SCRIPT = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(libvirt_rapl.__file__).parent.parent)!r})
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import keeper

def nothing(ready):
    return

def serves(ready):
    ready()
    print("server", os.getpid(), file=sys.stderr, flush=True)
    signal.pause()

def fails(ready):
    sys.stderr = None
    raise OSError("no FUSE")

what, *command = sys.argv[1:]
try:
    sys.exit(keeper.run(command, lambda: keeper.start_server(globals()[what]) if what else None))
except VirtRaplError as error:
    print(error.message, error.hint, file=sys.stderr)
    sys.exit(1)
"""
SECONDS = 20.0


@contextmanager
def simulated(*command: str, server: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Run a command under a keeper; `server` names the function of SCRIPT that serves files to it."""
    process = subprocess.Popen(
        [sys.executable, "-ISc", SCRIPT, server, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what a mistake of ours has left


def end_of(*command: str, server: str = "") -> tuple[int, str, str]:
    with simulated(*command, server=server) as process:
        output, errors = process.communicate(timeout=SECONDS)
        return process.returncode, output, errors


def line_of(process: "subprocess.Popen[str]") -> list[int]:
    """Return the numbers that the command has printed on a line."""
    assert process.stdout
    return [int(word) for word in process.stdout.readline().split()]


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + SECONDS
    while left := [pid for pid in pids if not gone(pid)]:
        assert time.monotonic() < deadline, f"processes that stay: {left}"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143), ("sleep 0 & exit 3", 3)],
)
def test_the_exit_status_is_the_commands(script: str, status: int) -> None:
    assert end_of("sh", "-c", script) == (status, "", "")


def test_a_command_that_cannot_be_run_is_an_error_of_both_processes() -> None:
    status, output, errors = end_of("/no/such/command")
    assert (status, output) == (1, "")
    assert errors.count("cannot run /no/such/command") == 1


def test_a_command_has_the_signals_and_the_input_of_a_plain_one() -> None:
    script = "read line; echo $line; cat /proc/self/status"
    plain = subprocess.run(["sh", "-c", script], input="in\n", capture_output=True, text=True, check=True).stdout
    with simulated("sh", "-c", script) as process:
        output, _ = process.communicate("in\n", timeout=SECONDS)
    assert output.startswith("in\n")
    assert signals(output) == signals(plain)


def signals(status: str) -> list[int]:
    """Blocked and ignored signals, without those that the C library keeps for itself (from 32 on)."""
    fields = dict(line.split(":\t", 1) for line in status.splitlines()[1:])
    return [int(fields[name], 16) & 0x7FFFFFFF for name in ("SigBlk", "SigIgn")]


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM"])
def test_a_signal_of_a_process_reaches_the_command(name: str) -> None:
    script = f"trap 'exit 42' {name}; echo 0; while :; do sleep 0.01; done"
    with simulated("sh", "-c", script) as process:
        line_of(process)
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.wait(SECONDS) == 42


def test_a_reader_of_the_output_waits_for_the_command_alone() -> None:
    with simulated("sh", "-c", "echo 0; exec >&-; read line", server="serves") as process:
        assert process.stdout
        line_of(process)
        assert select.select([process.stdout], [], [], SECONDS)[0]
        assert process.stdout.read() == ""
        assert process.poll() is None


FAMILY = (
    "sleep 1000 >&- & child=$!; orphan=$(setsid sh -c 'sleep 1000 >&- 2>&- & echo $!'); echo $$ $PPID $child $orphan;"
)
"""Prints the PIDs of the command, the keeper, a child and a process whose parent has ended."""


def test_what_the_command_leaves_running_is_killed() -> None:
    with simulated("sh", "-c", FAMILY + "exit 3", server="serves") as process:
        assert process.stderr
        pids = line_of(process)
        server = int(process.stderr.readline().split()[1])
        assert process.wait(SECONDS) == 3
        assert [pid for pid in (*pids, server) if not gone(pid)] == []


@pytest.mark.parametrize(("victim", "status"), [("simulate", -9), ("keeper", 137)])
def test_nothing_stays_when_one_of_the_two_is_killed(victim: str, status: int) -> None:
    with simulated("sh", "-c", FAMILY + "wait", server="serves") as process:
        assert process.stderr
        pids = line_of(process)
        server = int(process.stderr.readline().split()[1])
        os.kill(process.pid if victim == "simulate" else pids[1], signal.SIGKILL)
        assert process.wait(SECONDS) == status
        wait_until_gone(server, *pids)


def test_the_server_ends_with_the_keeper_even_if_nobody_is_left_to_kill_it() -> None:
    with simulated("sh", "-c", "echo $$ $PPID; read line", server="serves") as process:
        assert process.stderr
        command, keeper = line_of(process)
        server = int(process.stderr.readline().split()[1])
        os.kill(keeper, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(SECONDS)
        os.kill(keeper, signal.SIGKILL)
        wait_until_gone(server)
        os.kill(command, signal.SIGKILL)


@pytest.mark.parametrize("server", ["nothing", "fails"])
def test_no_command_is_run_if_the_server_ends_before_it_is_ready(server: str) -> None:
    status, output, errors = end_of("echo", "never", server=server)
    assert (status, output) == (1, "")
    assert errors.count("server ended") == 1
