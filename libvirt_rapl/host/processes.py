"""What /proc says about processes and their threads. What has vanished is None, never an error."""

import contextlib
import os
from pathlib import Path

from libvirt_rapl.paths import PROC

NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""/proc counts CPU time in clock ticks, 10 ms as a rule."""


def start_time(pid: int, proc: Path = PROC) -> int | None:
    """Return when a process started, in clock ticks since boot: with the PID this identifies one process for ever.

    None when there is no such process, or when it has ended and only waits for its parent.
    """
    text = read(f"{proc}/{pid}/stat")
    if text is None:
        return None
    values = fields(text)
    return None if values[0] in "ZX" else int(values[19])


def is_stopped(pid: int, proc: Path = PROC) -> bool:
    """Return whether a process was stopped, by SIGSTOP or a debugger, and has not been continued."""
    text = read(f"{proc}/{pid}/stat")
    return text is not None and fields(text)[0] in "Tt"


def fields(stat: str) -> list[str]:
    """Split the text of a stat file after the name: field n of proc(5) is at index n - 3.

    The name is in parentheses and may itself contain spaces and parentheses, so the last one counts.
    """
    return stat[stat.rindex(")") + 2 :].split()


def with_environment(name: str, value: str, proc: Path = PROC) -> list[int]:
    """Return root's processes that were started with a variable of this value."""
    pids = (int(directory.name) for directory in proc.iterdir() if directory.name.isdigit())
    return [pid for pid in pids if has_environment(pid, name, value, proc)]


def has_environment(pid: int, name: str, value: str, proc: Path = PROC) -> bool:
    """Return whether a process is root's and was started with a variable of this value.

    This excludes set-user-ID programs, which a user has started with an environment of their own.
    """
    with contextlib.suppress(OSError):  # it has ended
        directory = proc / str(pid)
        status = (read(directory / "status") or "").splitlines()
        users = next((line.split()[1:] for line in status if line.startswith("Uid:")), [])
        environment = (read(directory / "environ") or "").split("\0")
        return users == ["0"] * 4 and f"{name}={value}" in environment
    return False


def unit(pid: int, proc: Path = PROC) -> str:
    """Return the systemd unit of a process, by the cgroup that systemd put it into; empty when it has gone."""
    for line in (read(proc / str(pid) / "cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if (number == "0" or controllers == "name=systemd") and path != "/":
            return path.rpartition("/")[2]
    return ""


def read(path: Path | str) -> str | None:
    """Return the text of a file under /proc; None when its process or thread has gone."""
    try:
        with open(path, "rb", buffering=0) as file:  # for hundreds of processes each second: half of read_text()'s time
            return file.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
