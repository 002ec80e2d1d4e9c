"""The native helper: answers one domain's QEMU on a listening socket, whatever other peers do.

QEMU connects once and never again, so its connection must be kept above all. A peer that breaks the protocol loses its
connection and nothing else: by a register outside the list, half a request, no request at all, or replies that it does
not read. A peer that asks too much waits. A newcomer, when all slots are taken, gets the slot of the peer that asked
for the least.

One instance runs for each domain, so this imports as little as possible: no pathlib, typing, socket, selectors, signal.
"""

import errno
import os
import select
import struct
import sys
import time
from _collections_abc import Callable  # collections.abc, without the memory that the rest of collections takes
from _socket import MSG_DONTWAIT, SO_PEERCRED, SOL_SOCKET, socket

from libvirt_rapl.helper.vmsr.pace import Bucket
from libvirt_rapl.helper.vmsr.protocol import ENERGY, REGISTERS, REPLY, REQUEST, ReaderFor, ReadRegister

SLOTS = 8
"""Connections at a time. QEMU needs one, and a health check another."""
SLOTS_OF_ONE = 2
"""Of these, for one process."""
PATIENCE_SECONDS = 5.0
"""For the first request of a connection, and for the rest of a request that has begun."""
LONELY_SECONDS = 300.0
"""If no peer was connected for this long, QEMU did not come, or it has gone unnoticed."""
TICK_SECONDS = 2.0
"""Between two regular checks; `tick` is called as often."""
BURST_REQUESTS, REQUESTS_PER_SECOND = 32, 16
"""How often a process may ask. QEMU asks 3 times when it starts, then 2 a second for each of up to 8 packages."""

_CREDENTIALS = struct.Struct("3i")


class Peer:
    """A process at the other end of one or more connections."""

    __slots__ = ("bucket", "complained", "connections", "of_domain", "pid", "proc", "read", "tasks", "uid")

    def __init__(self, pid: int, uid: int, read: ReadRegister, proc: str, *, of_domain: bool) -> None:
        """Take its identity, the function that reads registers for it, and whether it is known to be of our domain."""
        self.pid = pid
        self.uid = uid
        self.of_domain = of_domain
        self.proc = proc
        self.tasks = f"{proc}/{pid}/task"
        self.read = read
        self.bucket = Bucket(BURST_REQUESTS, REQUESTS_PER_SECOND, time.monotonic())
        self.connections = 0
        self.complained = False

    def value(self, register: int, cpu: int, thread: int) -> int:
        """Return the register for one of the process's own threads; 0 for another's, or if it cannot be read.

        QEMU may name a thread that has just ended, and would take 0 for the start of its window.
        """
        own = os.access(f"{self.tasks}/{thread}", os.F_OK) or not os.access(f"{self.proc}/{thread}", os.F_OK)
        try:
            return self.read(register, cpu) if own else 0
        except OSError:
            return 0
        except Exception as error:  # it costs one interval, but must not stop the guest's counter for good
            if not self.complained:
                self.complained = True
                _say(f"virt-rapl: error: register {register:#x} of CPU {cpu}: {error!r}")
                if os.environ.get("VIRT_RAPL_DEBUG"):  # as libvirt_rapl.errors.explain, which would take memory
                    sys.excepthook(type(error), error, error.__traceback__)
            return 0


def _say(line: str) -> None:
    try:  # noqa: SIM105 (contextlib takes memory)
        print(line, file=sys.stderr, flush=True)
    except OSError:  # the log has reached its size limit
        pass


class Connection:
    """One connection, and the part of a request that has arrived."""

    __slots__ = ("asked", "asked_energy", "buffer", "paused_until", "peer", "since", "socket")

    def __init__(self, accepted: socket, peer: Peer, now: float) -> None:
        """Take an accepted socket."""
        self.socket = accepted
        self.peer = peer
        self.buffer = b""
        self.asked = False
        """Whether a whole request ever came."""
        self.asked_energy = False
        self.since = now
        """When the last whole request came, the first part of the next one, or the connection itself."""
        self.paused_until: float | None = None
        """When it is read again."""

    def serve(self, now: float) -> bool:
        """Read what has arrived and answer a whole request. False: close the connection. Raises OSError."""
        arrived = self.socket.recv(REQUEST.size - len(self.buffer), MSG_DONTWAIT)
        if not self.buffer:
            self.since = now
        self.buffer += arrived
        if len(self.buffer) < REQUEST.size:
            return bool(arrived)
        register, cpu, thread = REQUEST.unpack(self.buffer)
        if register not in REGISTERS:
            return False
        self.buffer, self.asked, self.since = b"", True, now
        self.asked_energy |= register == ENERGY
        return self.socket.send(REPLY.pack(self.peer.value(register, cpu, thread)), MSG_DONTWAIT) == REPLY.size

    def overdue(self, now: float) -> bool:
        """Return whether the slot is wasted. Silence is fine once it has asked."""
        return bool(self.buffer or not self.asked) and now - self.since > PATIENCE_SECONDS


class Server:
    """Serves a listening socket until stop()."""

    def __init__(
        self,
        listener: socket,
        *,
        owner_uid: int,
        reader_for: ReaderFor,
        qemu_pid: Callable[[], int | None] = lambda: None,
        is_of_domain: Callable[[int], bool | None] = lambda _: None,
        tick: Callable[[bool], None] = lambda _: None,
        proc: str = "/proc",
    ) -> None:
        """Take the socket and whom it is for: root, and the processes of `owner_uid`; once QEMU is known, only QEMU.

        `reader_for` is called once for each process that connects. `qemu_pid` is called every TICK_SECONDS, and when a
        slot is needed, until it returns the process that the domain runs in. Until then `is_of_domain` returns for a
        PID whether the process is of the domain or of another one; None: unknown. `tick` is called every TICK_SECONDS
        with whether QEMU is connected; as long as QEMU is not known, it counts as connected.
        """
        self._listener = listener
        self._owner_uid = owner_uid
        self._reader_for = reader_for
        self._ask_qemu_pid = qemu_pid
        self._is_of_domain = is_of_domain
        self._qemu_pid: int | None = None
        self._tick = tick
        self._proc = proc
        self._peers: dict[int, Peer] = {}
        self._connections: dict[int, Connection] = {}
        self._next_tick = 0.0
        self._lonely_since = time.monotonic()
        self._listening = True
        self._end: float | None = None
        self._wake_up = os.eventfd(0, os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wake_up, select.EPOLLIN)
        listener.setblocking(False)
        self._epoll.register(listener, select.EPOLLIN)

    def stop(self, patience: float = 0.0) -> None:
        """Make serve() return once all peers that asked have hung up, and after `patience` seconds in any case.

        May be called from a signal handler or another thread.
        """
        self._end = time.monotonic() + patience
        os.eventfd_write(self._wake_up, 1)

    def serve(self) -> None:
        """Answer until stop(), or until no peer was connected for LONELY_SECONDS."""
        events: list[tuple[int, int]] = []
        while not self._ends(now := time.monotonic()):
            # To wake up costs more than to answer. So what is due soon is done when a request has woken us anyway.
            if now >= self._next_tick - (TICK_SECONDS / 2 if events else 0):
                self._look_around(now)
            events = self._epoll.poll(self._resume_paused(now))
            # The listener last: peers that have hung up make room for newcomers.
            for descriptor, event in sorted(events, key=lambda event: event[0] == self._listener.fileno()):
                if descriptor == self._wake_up:
                    os.eventfd_read(self._wake_up)
                    self._stop_listening()
                    self._listener.close()
                elif descriptor == self._listener.fileno():
                    self._accept()
                elif connection := self._connections.get(descriptor):
                    self._answer(connection, event)

    def close(self) -> None:
        """Close every descriptor, the listening socket's too."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        self._epoll.close()
        os.close(self._wake_up)

    def _ends(self, now: float) -> bool:
        if self._end is None:
            return False
        return now >= self._end or not any(connection.asked for connection in self._connections.values())

    def _look_around(self, now: float) -> None:
        self._next_tick = now + TICK_SECONDS
        self._look_for_qemu()
        for connection in list(self._connections.values()):
            if connection.overdue(now):
                self._drop(connection)
        self._tick(self._qemu_pid is None or self._has(self._qemu_pid))
        if any(connection.asked for connection in self._connections.values()):
            self._lonely_since = now
        elif self._end is None and now - self._lonely_since > LONELY_SECONDS:
            self.stop()
        if not self._listening and self._end is None:
            self._listening = True
            self._epoll.register(self._listener, select.EPOLLIN)

    def _look_for_qemu(self) -> None:
        """Once QEMU is known, hang up on other processes of its user."""
        if self._qemu_pid is not None or (pid := self._ask_qemu_pid()) is None:
            return
        self._qemu_pid = pid
        for connection in list(self._connections.values()):
            if not self._welcomes(connection.peer.pid, connection.peer.uid):
                self._drop(connection)

    def _has(self, pid: int) -> bool:
        peer = self._peers.get(pid)
        return peer is not None and peer.connections > 0

    def _is_qemu(self, peer: Peer) -> bool:
        return peer.of_domain if self._qemu_pid is None else peer.pid == self._qemu_pid

    def _resume_paused(self, now: float) -> float:
        """Read again from peers that have waited long enough; return the seconds until the next thing to do."""
        until = self._next_tick if self._end is None else min(self._next_tick, self._end)
        for connection in self._connections.values():
            if connection.paused_until is None:
                continue
            if connection.paused_until > now:
                until = min(until, connection.paused_until)
            else:
                connection.paused_until = None
                self._epoll.modify(connection.socket, select.EPOLLIN)
        return max(0.0, until - now)

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._epoll.unregister(self._listener)

    def _welcomes(self, pid: int, uid: int) -> bool:
        return uid == 0 or (uid == self._owner_uid and self._qemu_pid in (None, pid))

    def _accept(self) -> None:
        try:
            # The accept() of Python's socket calls this, too.
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._stop_listening()  # until the next tick: epoll would report it again and again
            return  # else the peer has given up already
        accepted = socket(fileno=descriptor)
        if (peer := self._admit(accepted)) is None:
            accepted.close()
            return
        peer.connections += 1
        self._peers[peer.pid] = peer
        self._connections[descriptor] = Connection(accepted, peer, time.monotonic())
        self._epoll.register(descriptor, select.EPOLLIN)

    def _admit(self, accepted: socket) -> Peer | None:
        """Return the peer of a new connection; None if the connection is to be closed at once."""
        pid, uid, _ = _CREDENTIALS.unpack(accepted.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size))
        peer = self._peers.get(pid)
        of_domain = self._is_of_domain(pid) if self._qemu_pid is None else None
        if (
            not self._welcomes(pid, uid)
            or (uid != 0 and of_domain is False)
            # Checked last: a process that has ended cannot be identified, and another may have its connection.
            or not os.access(f"{self._proc}/{pid}", os.F_OK)
            or (peer and peer.connections == SLOTS_OF_ONE)
            or not self._make_room(pid, uid, of_domain=of_domain is True)
        ):
            return None
        try:
            return peer or Peer(pid, uid, self._reader_for(pid), self._proc, of_domain=of_domain is True)
        except OSError:
            return None  # it has ended already

    def _make_room(self, pid: int, uid: int, *, of_domain: bool) -> bool:
        """Free a slot if there is none, and return whether the newcomer may have it.

        A peer that never asked goes first, then the one that was silent longest; never QEMU. As long as QEMU is not
        known, a connection that asked for energy, as QEMU's always does, is dropped only for a process of our domain.
        """
        if len(self._connections) < SLOTS:
            return True
        self._look_for_qemu()
        if len(self._connections) < SLOTS:
            return self._welcomes(pid, uid)
        sure = of_domain or self._qemu_pid is not None
        others = [
            connection
            for connection in self._connections.values()
            if not self._is_qemu(connection.peer) and (sure or not connection.asked_energy)
        ]
        if others:
            self._drop(min(others, key=lambda connection: (connection.asked, connection.since)))
        return bool(others)

    def _answer(self, connection: Connection, event: int) -> None:
        now = time.monotonic()
        if event & select.EPOLLIN and not connection.buffer and (seconds := connection.peer.bucket.take(now)):
            connection.paused_until = now + seconds
            self._epoll.modify(connection.socket, 0)
            return
        try:
            keep = bool(event & select.EPOLLIN) and connection.serve(now)
        except OSError:
            keep = False  # the peer has gone, or does not read its replies
        if not keep:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        peer = connection.peer
        del self._connections[connection.socket.fileno()]
        self._epoll.unregister(connection.socket)
        connection.socket.close()
        peer.connections -= 1
        # QEMU's is kept: by reconnecting it must not get a new bucket, nor choose the start of its window.
        if not peer.connections and peer.pid != self._qemu_pid:
            del self._peers[peer.pid]
