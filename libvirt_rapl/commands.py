"""Running a program for what it does or prints: one of the system's, or one that somebody has named.

Each runs in a session of its own, without a terminal, dumps no core, and has limits of time and output. Then it is
ended, with all that it has started. Only this module runs programs: if VIRT_RAPL_DEBUG is set, it logs each one as a
line that can be pasted into a shell.
"""

import contextlib
import fcntl
import functools
import os
import resource
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from libvirt_rapl.errors import VirtRaplError, debug

if TYPE_CHECKING:
    import ctypes

MOST_BYTES = 1 << 20
"""The most that a program can print."""
NOBODY = 65534
POLL_SECONDS = 0.002
MINIMAL = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LC_ALL": "C"}
"""The whole environment of a program that somebody has named."""

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_one_at_a_time = threading.Lock()


class Done(NamedTuple):
    """What a program has printed, and its exit status."""

    status: int
    stdout: str
    stderr: str


def run(*command: str, timeout: float, hint: str = "run this again once that is mended") -> str:
    """Run a program of the system for at most `timeout` seconds and return what it prints.

    Raises VirtRaplError if it fails.
    """
    shown = f"`{shlex.join(command)}`"
    try:
        done = _run(command, "", max(timeout, 0.1))
    except OSError as error:
        raise VirtRaplError(f"{shown}: {error}", hint) from error
    if done.status:
        raise VirtRaplError(f"{shown} failed: {' '.join(done.stderr.split())}", hint)
    return done.stdout


def ask(*command: str, question: str, timeout: float) -> Done:
    """Run a program that somebody has named, with `question` on its standard input; if we are root, it runs as nobody.

    Raises OSError if it cannot be run, TimeoutError after `timeout` seconds.
    """
    if os.geteuid():
        return _run(command, question, timeout, MINIMAL)
    with _one_at_a_time, _adopting():
        return _run(command, question, timeout, MINIMAL, NOBODY)


def start(*command: str, environment: Mapping[str, str], output: BinaryIO) -> int:
    """Start a program of ours that outlives us and prints to `output`. Returns its PID. Raises OSError."""
    debug(f"+ {shlex.join(command)}")
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",
        start_new_session=True,
    )
    return process.pid


def _run(
    command: tuple[str, ...],
    question: str,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    user: int | None = None,
) -> Done:
    debug(f"+ {shlex.join(command)}")
    with _paper(question.encode()) as stdin, _paper() as stdout, _paper() as stderr:
        with _no_core():
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd="/",
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                preexec_fn=None if user is None else _gain_nothing,
            )
        try:
            until = time.monotonic() + timeout
            # Until we have read its status, no other process or group can get its number.
            while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                if time.monotonic() > until:
                    raise TimeoutError(f"it timed out after {timeout:g} s")
                time.sleep(POLL_SECONDS)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Done(process.returncode, _written(stdout), _written(stderr))


@contextlib.contextmanager
def _paper(text: bytes | None = None) -> Iterator[int]:
    """Yield a file in memory: with this text to be read, or to be written to until it is full."""
    descriptor = os.memfd_create("virt-rapl", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if text is None:
            os.truncate(descriptor, MOST_BYTES)
        else:
            os.pwrite(descriptor, text, 0)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield descriptor
    finally:
        os.close(descriptor)


def _written(descriptor: int) -> str:
    return os.pread(descriptor, MOST_BYTES, 0).rstrip(b"\0").decode(errors="replace")


@contextlib.contextmanager
def _no_core() -> Iterator[None]:
    """Let programs that are started meanwhile dump no core."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    if limits[0] == 0:  # as in virt-rapld's unit, which may set no limits
        yield
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)


def _gain_nothing() -> None:
    """Let this process, which is about to run a program, and its children get no rights from set-user-ID programs."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    _libc().prctl(option, value, 0, 0, 0)


@functools.cache
def _libc() -> "ctypes.CDLL":
    """Load the C library once, before a fork: in the child, its loader might wait for a thread that is not there."""
    import ctypes  # here, so that the hook does not wait for it if it asks no program

    return ctypes.CDLL(None)


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """End the processes that a program run as nobody leaves: a process that loses its parent becomes our child."""
    before = _nobodys_children()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        while left := _nobodys_children() - before:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _nobodys_children() -> set[int]:
    """Return our children that run as nobody."""
    found = set()
    for pid in _children():
        with contextlib.suppress(FileNotFoundError):
            if Path("/proc", pid).stat().st_uid == NOBODY:
                found.add(int(pid))
    return found


def _children() -> list[str]:
    """Return the PIDs of our children: Linux lists those of each thread."""
    while True:
        # A thread that ends meanwhile leaves its children to another one, which may have been looked at already.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lists = [path.read_text(encoding="ascii") for path in Path("/proc/self/task").glob("*/children")]
            return " ".join(lists).split()
