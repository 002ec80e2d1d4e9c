"""RUN_DIRECTORY/daemon/history.sock: the history of the ledger for those who may not open its file.

A user who can open the file can hold its locks, and so keep virt-rapld from writing. A client that has got "ready" asks
questions, a line of JSON each, of the ledger as it is at one moment. {"since": ..., "until": ...} (seconds since the
epoch) is answered by a line with what is known of that time (libvirt_rapl.energy.extract.Known); {"edges": [...],
"width": ..., "packages_only": ...} by a line [since, until, [[owner, zone, microjoules], ...]] for each slot. The last
line of an answer that fails is {"error": TEXT}.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

from libvirt_rapl.daemon.answerers import Answerers
from libvirt_rapl.energy.extract import History, Known, Slot, open_ledger
from libvirt_rapl.energy.history import DAY, HOUR, QUARTER
from libvirt_rapl.energy.ledger_content import DamagedError

ANSWERERS, ANSWERERS_OF_ONE = 2, 1
"""Threads in all, and for one user: a report is the work of a second."""
ANSWER_SECONDS = 60.0
"""How long a client may ask: while it does, the file that SQLite writes to grows."""
MOST_EDGES = 40_000
"""A year of quarters of an hour."""
MOST_BYTES = 16 * MOST_EDGES
"""Of a question."""


READY = '"ready"'
"""Sent to a client when it may ask."""
BUSY_SECONDS = 10.0
"""How long to wait for one's turn: another report may be made for the same user."""


class BusyError(DamagedError):
    """virt-rapld has closed the connection."""

    def __init__(self) -> None:
        """Say so."""
        super().__init__("virt-rapld is busy with other reports, or has been stopped; try again")


class Times(NamedTuple):
    """A question for what is known of a time."""

    since: int
    until: int


class Slots(NamedTuple):
    """A question for slots."""

    edges: list[int]
    width: int
    packages_only: bool


def serve(path: Path, ledger: Path) -> Answerers:
    """Answer from now on. Raises OSError if there can be no socket."""
    return Answerers(path, lambda peer: _answer(peer, ledger), "history", ANSWERERS, ANSWERERS_OF_ONE)


def _answer(peer: socket.socket, ledger: Path) -> None:
    until = time.monotonic() + ANSWER_SECONDS
    try:
        with peer.makefile("rb") as questions, open_ledger(ledger) as history:
            peer.sendall(_line(READY))
            while line := questions.readline(MOST_BYTES):
                for answer in _answers(_question(line), history):
                    peer.sendall(_line(answer))
                    if time.monotonic() > until:
                        raise DamagedError("it takes too long")
    except (DamagedError, FileNotFoundError, PermissionError) as error:
        peer.sendall(_line(json.dumps({"error": str(error)})))


def _answers(question: Times | Slots, history: History) -> Iterator[str]:
    match question:
        case Times(since, until):
            yield history.known(since, until).to_json()
        case Slots(edges, width, packages_only):
            for slot in history.slots(edges, width, packages_only=packages_only):
                energy = [[owner, zone, microjoules] for (owner, zone), microjoules in slot.energy.items()]
                yield json.dumps([slot.since, slot.until, energy])


def _line(text: str) -> bytes:
    return f"{text}\n".encode()


def _question(line: bytes) -> Times | Slots:
    """Parse a question. Raises DamagedError if it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(line):
            case {"since": int(since), "until": int(until)} if _are_times([since, until]):
                return Times(since, until)
            case {"edges": list(edges), "width": int(width), "packages_only": bool(packages_only)} if (
                2 <= len(edges) <= MOST_EDGES and _are_times(edges) and width in (QUARTER, HOUR, DAY)
            ):
                return Slots(edges, width, packages_only)
    raise DamagedError("the question is not understood")


def _are_times(edges: list[Any]) -> bool:
    return all(type(edge) is int and abs(edge) < 2**62 for edge in edges) and sorted(edges) == edges


@contextlib.contextmanager
def open_remote(path: Path) -> Iterator["RemoteHistory"]:
    """Connect to virt-rapld. Raises OSError; so does what is asked, or DamagedError."""
    with contextlib.ExitStack() as stack:
        until = time.monotonic() + BUSY_SECONDS
        while True:
            peer = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            peer.settimeout(ANSWER_SECONDS)
            peer.connect(str(path))
            history = RemoteHistory(peer, stack.enter_context(peer.makefile("rb")))
            with contextlib.suppress(BusyError):
                history.check()
                break
            if time.monotonic() > until:
                raise BusyError
            time.sleep(BUSY_SECONDS / 100)
        yield history


class RemoteHistory:
    """The history as virt-rapld reads it."""

    def __init__(self, peer: socket.socket, lines: IO[bytes]) -> None:
        """Take the connection, and what comes from there."""
        self._peer = peer
        self._lines = lines

    def check(self) -> None:
        """Wait until questions may be asked. Raises BusyError if virt-rapld hangs up instead."""
        if self._next() != json.loads(READY):
            raise DamagedError("virt-rapld's answer is not understood")

    def known(self, since: int, until: int) -> Known:
        """Return what is known of this time."""
        self._ask({"since": since, "until": until})
        try:
            return Known.from_json(self._next())
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"virt-rapld's answer is not understood: {error}") from error

    def slots(self, edges: Sequence[int], width: int, *, packages_only: bool) -> Iterator[Slot]:
        """Yield the energy of buckets of this width between each two edges."""
        for first in range(0, len(edges) - 1, MOST_EDGES - 1):
            some = list(edges[first : first + MOST_EDGES])
            self._ask({"edges": some, "width": width, "packages_only": packages_only})
            for _ in pairwise(some):
                try:
                    since, until, energy = self._next()
                    yield Slot(since, until, {(owner, zone): microjoules for owner, zone, microjoules in energy})
                except (ValueError, TypeError) as error:
                    raise DamagedError(f"virt-rapld's answer is not understood: {error}") from error

    def _ask(self, question: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it may have said why it hung up
            self._peer.sendall(_line(json.dumps(question)))

    def _next(self) -> Any:  # noqa: ANN401  any JSON
        """Return the next line of an answer."""
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            line = b""
        if not line:
            raise BusyError
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DamagedError(f"virt-rapld's answer is not understood: {error}") from error
        if isinstance(values, dict) and "error" in values:
            raise DamagedError(values["error"])
        return values
