"""RUN_DIRECTORY/daemon/history.sock: the history of the ledger for those who may not open its file.

A user who can open the file can hold its locks, and so keep virt-rapld from writing. A client sends one line of JSON,
{"edges": [seconds since the epoch, ...], "packages_only": true}, and gets lines: what is known of that time
(libvirt_rapl.energy.extract.Known), a line [since, until, [[owner, zone, microjoules], ...]] for each slot, and
"end" or {"error": TEXT}.
"""

import json
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from libvirt_rapl.daemon.answerers import Answerers
from libvirt_rapl.energy.extract import Known, Slot, open_ledger
from libvirt_rapl.energy.ledger_content import DamagedError

ANSWERERS, ANSWERERS_OF_ONE = 2, 1
"""Threads in all, and for one user: a report is the work of a second."""
ANSWER_SECONDS = 60.0
"""How long an answer may take: while it does, the file that SQLite writes to grows."""
MOST_EDGES = 40_000
"""A year of quarters of an hour."""
MOST_BYTES = 16 * MOST_EDGES
"""Of a question."""


def serve(path: Path, ledger: Path) -> Answerers:
    """Answer from now on. Raises OSError if there can be no socket."""
    return Answerers(path, lambda peer: _answer(peer, ledger), "history", ANSWERERS, ANSWERERS_OF_ONE)


def _answer(peer: socket.socket, ledger: Path) -> None:
    until = time.monotonic() + ANSWER_SECONDS
    try:
        edges, packages_only = _question(peer)
        with open_ledger(ledger) as history:
            peer.sendall(_line(history.known(edges[0], edges[-1]).to_json()))
            for slot in history.slots(edges, packages_only=packages_only):
                energy = [[owner, zone, microjoules] for (owner, zone), microjoules in slot.energy.items()]
                peer.sendall(_line(json.dumps([slot.since, slot.until, energy])))
                if time.monotonic() > until:
                    raise DamagedError("it takes too long")
        peer.sendall(_line('"end"'))
    except (DamagedError, FileNotFoundError, PermissionError) as error:
        peer.sendall(_line(json.dumps({"error": str(error)})))


def _line(text: str) -> bytes:
    return f"{text}\n".encode()


def _question(peer: socket.socket) -> tuple[list[int], bool]:
    """Read a question. Raises DamagedError if it is none, OSError if none comes."""
    with peer.makefile("rb") as stream:
        line = stream.readline(MOST_BYTES)
    try:
        question = json.loads(line)
        edges, packages_only = question["edges"], question["packages_only"]
        good = all(type(edge) is int and abs(edge) < 2**62 for edge in edges)
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good or not 2 <= len(edges) <= MOST_EDGES or sorted(edges) != edges or type(packages_only) is not bool:
        raise DamagedError("the question is not understood")
    return edges, packages_only


class RemoteHistory:
    """The history as virt-rapld reads it."""

    def __init__(self, path: Path) -> None:
        """Take the socket."""
        self._path = path

    def known(self, since: int, until: int) -> Known:
        """Return what is known of this time. Raises OSError, or DamagedError."""
        return self._known(self._ask([since, until], packages_only=True))

    def slots(self, edges: Sequence[int], *, packages_only: bool) -> Iterator[Slot]:
        """Yield the energy between each two edges. Raises OSError, or DamagedError."""
        lines = self._ask(list(edges), packages_only=packages_only)
        self._known(lines)
        for _ in pairwise(edges):
            try:
                since, until, energy = next(lines)
                yield Slot(since, until, {(owner, zone): microjoules for owner, zone, microjoules in energy})
            except (ValueError, TypeError, StopIteration) as error:
                raise DamagedError(f"virt-rapld's answer is not understood: {error}") from error

    def _known(self, lines: Iterator[Any]) -> Known:
        try:
            return Known.from_json(next(lines))
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
            raise DamagedError(f"virt-rapld's answer is not understood: {error}") from error

    def _ask(self, edges: list[int], *, packages_only: bool) -> Iterator[Any]:
        """Yield the lines of an answer. Raises OSError, ValueError, or DamagedError if virt-rapld could not answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(ANSWER_SECONDS)
            peer.connect(str(self._path))
            peer.sendall(_line(json.dumps({"edges": edges, "packages_only": packages_only})))
            with peer.makefile("rb") as stream:
                for line in stream:
                    values = json.loads(line)
                    if isinstance(values, dict) and "error" in values:
                        raise DamagedError(values["error"])
                    yield values
