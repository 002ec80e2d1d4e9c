"""What was done to which domain, one line each: in a file of the run directory, and in systemd's journal where it runs.

The file holds the last thousands of events since the machine started; the journal keeps them for longer. Recording an
event never fails and never waits: the caller has more important things to do.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import State
from libvirt_rapl.helper.run_directory import RunDirectory

LIMIT = 1 << 20
"""Bytes after which the file is set aside as `events.jsonl.1`, in place of the previous one."""
JOURNAL = f"/{paths.JOURNAL}"
NOTICE, WARNING = 5, 4
Result = Literal["failed", State, "active", "ended", "injected", "stripped", "unchanged"]
"""What came of an operation; README lists them. `active` comes of `live` and `attach`, a State is what the domain's
record says."""
COMMANDS = ("live", "attach", "detach")
"""Operations that are no hook's: whoever gave the command has seen how it ended."""
TROUBLE: tuple[Result, ...] = ("failed", "degraded", "refuse")


class Event(NamedTuple):
    """One thing that was done."""

    time: float
    """When it was done, in seconds since the epoch."""
    domain: str
    uuid: str
    """Empty where the XML has none."""
    operation: str
    """libvirt's word for what the hook was called for (start, restore, ...); `live`, for `enable --live`; `attach` or
    `detach`, for the channel of a running domain.
    """
    milliseconds: int
    result: Result
    reason: str = ""
    """One line."""

    @classmethod
    def since(
        cls, began: float, *, domain: str, uuid: str, operation: str, result: Result, reason: str = ""
    ) -> "Event":
        """Return an event that ends now and began at `began`, a time of time.monotonic()."""
        milliseconds = round(1000 * (time.monotonic() - began))
        return cls(
            time=time.time(),
            domain=domain,
            uuid=uuid,
            operation=operation,
            milliseconds=milliseconds,
            result=result,
            reason=reason,
        )


@contextlib.contextmanager
def recording(run_directory: Path, domain: str, uuid: str, operation: str) -> Iterator[Callable[[Result], None]]:
    """Record how something ends. Yields a function to call with what has come of it, or else it has failed."""
    began = time.monotonic()
    results: list[Result] = ["failed"]
    reason = ""
    try:
        yield results.append
    except VirtRaplError as error:
        reason = error.message
        raise
    finally:
        event = Event.since(began, domain=domain, uuid=uuid, operation=operation, result=results[-1], reason=reason)
        record(run_directory, event)


def record(run_directory: Path, event: Event) -> None:
    """Write the event to the file and to the journal, as far as that is possible now."""
    with contextlib.suppress(OSError):
        _append(run_directory, json.dumps(event._asdict()).encode() + b"\n")
    with contextlib.suppress(OSError):
        _send(event)


def read(run_directory: Path) -> Iterator[Event]:
    """Yield the events of the file, oldest first; nothing if there is no file. Lines that are no event are left out.

    Raises NotOursError, OSError.
    """
    try:
        RunDirectory(run_directory).check_directory()
    except FileNotFoundError:
        return
    yield from read_unchecked(run_directory)


def read_unchecked(run_directory: Path) -> Iterator[Event]:
    """Like read(), but without checking who can write to the directory. Raises OSError."""
    for name in (paths.OLDER_EVENTS, paths.EVENTS):
        with contextlib.suppress(FileNotFoundError), open(run_directory / name, "rb") as lines:
            for line in lines:
                if event := _event(line):
                    yield event


def _event(line: bytes) -> Event | None:
    """Parse a line; None if it is no event, such as one that a full disk has cut."""
    try:
        event = Event(**json.loads(line))
        texts = (event.domain, event.uuid, event.operation, event.result, event.reason)
        "".join(texts).encode()
        time.localtime(event.time)
    except (ValueError, TypeError, OverflowError, OSError, RecursionError):
        return None
    return event if type(event.milliseconds) is int else None


def _append(run_directory: Path, line: bytes) -> None:
    RunDirectory(run_directory).create_directory()
    path = run_directory / paths.EVENTS
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        if os.fstat(descriptor).st_size > LIMIT:
            _set_aside(path, descriptor)
        os.write(descriptor, line)  # one write: lines of several hooks do not mix
    finally:
        os.close(descriptor)


def _set_aside(path: Path, descriptor: int) -> None:
    """Rename the file that is open here, unless another process does so or has done so."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            path.rename(path.with_name(paths.OLDER_EVENTS))


def _send(event: Event) -> None:
    """Send it with a field for each value, in the journal's own protocol: NAME=VALUE lines in one datagram."""
    fields = {
        "MESSAGE": f"{event.operation} of {event.domain}: {event.result} in {event.milliseconds} ms"
        + (f": {event.reason}" if event.reason else ""),
        "PRIORITY": WARNING if event.result in TROUBLE else NOTICE,
        "SYSLOG_IDENTIFIER": "virt-rapl",
        **{f"VIRT_RAPL_{name.upper()}": value for name, value in event._asdict().items() if name != "time"},
    }
    # A line end would begin another field.
    text = "".join(f"{name}={' '.join(str(value).splitlines())}\n" for name, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(text.encode(errors="replace"), JOURNAL)
