"""Gives guests their lines of energy, each over a connection to its own QEMU's Unix socket.

A guest, and the QEMU at the other end, may do what they like. Nothing here waits: who does not read is given nothing
new until it has. Nothing is read: what a guest writes stays in the kernel, at most what one socket holds, and then QEMU
lets the guest wait. A connection is not shut down for reading either: QEMU would take that for a hang-up as soon as its
guest writes.

libvirt says which socket is whose, and QEMU's PID is compared: a path in somebody's XML makes us write to nobody else.
"""

import socket
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from libvirt_rapl.daemon.document import not_understood
from libvirt_rapl.errors import explain
from libvirt_rapl.lifecycle.channel_state import NOT_ALLOWED, Delivery
from libvirt_rapl.log import SparingLog
from libvirt_rapl.sockets import LineSender, peer_of, what_is_closed
from libvirt_rapl.token_bucket import TokenBucket

LEAST_SECONDS = 0.99
"""Samples that follow sooner are left out: no guest gets energy finer than a second, give or take a clock's slewing."""
STALLED_SECONDS = 5.0
"""A guest that has not read a line after this time is stalled."""
STALLED = (
    f"it has not read its last line for more than {STALLED_SECONDS:g} s: its guest does not read, its QEMU hangs or is "
    "paused, or another program has connected to the channel"
)
FOREIGN_SECONDS = 30.0
"""After this time a socket on which somebody else listened is tried again: attempts cost whoever it is, too."""
LINES_AT_ONCE, LINE_SECONDS = 20, 10.0
"""How many lines may be logged at once, and then how often one: a QEMU that its guest has taken over can cause them."""


class ChannelWriter:
    """The connections, and what is known of each."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Take `log`, which takes a line."""
        self._log = SparingLog(log, TokenBucket(LINES_AT_ONCE, LINE_SECONDS))
        self._guests: dict[str, _Guest] = {}
        self._sampled: datetime | None = None
        self._turn = 0

    def write(self, sample: Mapping[str, Any]) -> None:
        """Give each guest of a sample, as channel_line.render() has it, its line, if it reads; hang up on all others.

        Raises VirtRaplError if it is of a version that is not understood.
        """
        try:
            if not self._is_due(sample["sampled_at"]):
                return
            guests = {uuid: (name, pid, path, line) for uuid, name, pid, path, line in sample["guests"]}
            for uuid in self._guests.keys() - guests.keys():
                self._guests.pop(uuid).close()
            for uuid in self._in_turn(list(guests)):
                self._serve(uuid, *guests[uuid])
        except (TypeError, KeyError, ValueError) as error:
            raise not_understood(error) from error

    def deliveries(self) -> dict[str, Delivery]:
        """Return what holds of each guest, by UUID."""
        return {uuid: guest.delivery() for uuid, guest in self._guests.items()}

    def close(self) -> None:
        """Hang up on all."""
        while self._guests:
            self._guests.popitem()[1].close()

    def _is_due(self, sampled_at: str | None) -> bool:
        """Return whether the sample is a new second's, or the last one again, as a sign of life."""
        if sampled_at is None:
            return False
        sampled, before = datetime.fromisoformat(sampled_at), self._sampled
        if before and 0 < (sampled - before).total_seconds() < LEAST_SECONDS:
            return False
        self._sampled = sampled
        return True

    def _in_turn(self, uuids: list[str]) -> list[str]:
        """Return them from another one on each time, so that nobody is always the last."""
        self._turn += 1
        first = self._turn % len(uuids) if uuids else 0
        return uuids[first:] + uuids[:first]

    def _serve(self, uuid: str, name: str, pid: int, path: str, line: str) -> None:
        guest = self._guests.get(uuid)
        if guest is None or (guest.pid, guest.path) != (pid, path):
            if guest:
                guest.close()
            guest = self._guests[uuid] = _Guest(pid, path)
        before = guest.trouble
        guest.give(line)
        if guest.trouble != guest.logged and guest.trouble in (before, ""):  # it lasts; else the domain may be ending
            self._log(f"{name}: {guest.trouble or 'its channel is connected'}")
            guest.logged = guest.trouble


class _Guest:
    """One guest's connection."""

    def __init__(self, pid: int, path: str) -> None:
        self.pid = pid
        self.path = path
        self.trouble = ""
        """Why there is no connection; empty while there is one."""
        self.logged = ""
        """The trouble that was logged last; empty if that it is over was logged, or nothing."""
        self._sender: LineSender | None = None
        self._stalled = False
        self._not_before = 0.0
        """When it may be tried again, in monotonic seconds."""

    def give(self, line: str) -> None:
        """Give it its line, if there is one, when it has read the last one; else what remains of that."""
        now = time.monotonic()
        if now < self._not_before:
            return
        self.trouble = ""
        try:
            if self._sender is None:
                self._sender = self._connected()
            if self._sender.all_is_read():
                self._stalled = False
                if line:
                    self._sender.begin(line.encode())
            else:
                self._stalled = now > self._sender.begun + STALLED_SECONDS
                self._sender.go_on()
        except (OSError, ValueError) as error:  # ValueError: the path is none
            self.close()
            self._not_before = now + FOREIGN_SECONDS if isinstance(error, _ForeignError) else 0.0
            self.trouble = self._explained(error)

    def delivery(self) -> Delivery:
        """Return what holds of it now."""
        if self.trouble:
            return Delivery(self.pid, "waiting", self.trouble)
        return Delivery(self.pid, "stalled", STALLED) if self._stalled else Delivery(self.pid, "connected")

    def close(self) -> None:
        """Hang up."""
        if self._sender:
            self._sender.peer.close()
        self._sender, self._stalled = None, False

    def _connected(self) -> LineSender:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.setblocking(False)
            peer.connect(self.path)
            if (listener := peer_of(peer).pid) != self.pid:
                raise _ForeignError(f"{self.path} is not its QEMU's socket: process {listener} listens there")
        except (OSError, ValueError):
            peer.close()
            raise
        return LineSender(peer)

    def _explained(self, error: OSError | ValueError) -> str:
        if isinstance(error, _ForeignError):
            return str(error)
        if isinstance(error, PermissionError):
            return f"{NOT_ALLOWED}: {what_is_closed(self.path)}"
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            return "QEMU has hung up"
        if isinstance(error, BlockingIOError):
            return "QEMU accepts no connection: it hangs, or another program has connected to the channel"
        return f"cannot connect to {self.path}: {getattr(error, 'strerror', None) or explain(error)}"


class _ForeignError(OSError):
    """Somebody else than the domain's QEMU listens."""
