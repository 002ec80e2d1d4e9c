"""RUN_DIRECTORY/daemon/stream.sock: a client gets each new document from when it connects, as one line of JSON.

channel.sock beside it is the same for virt-rapl-channel, with the lines of guests in place of documents
(libvirt_rapl.daemon.channel_line); nothing is made for it while no domain has a channel.

The daemon reads nothing there: a client that writes, or hangs up, is disconnected. While any client is connected there
is a document for each sample, and one each second if samples are rarer; without clients, none is made.

One thread serves all. There is no queue: a client gets nothing new until it has read its last document, and then the
newest; one that does not read it within STUCK_SECONDS is disconnected. So a slow client costs no memory and delays no
other.
"""

import contextlib
import errno
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from libvirt_rapl.daemon.answerers import MODE
from libvirt_rapl.daemon.document import SCHEMA
from libvirt_rapl.daemon.status_socket import CarefulText, understood
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.sockets import LineSender, listen, peer_of

CLIENTS, CLIENTS_OF_ONE = 32, 8
"""How many are served at once, in all and for one user who is not root; more are refused."""
STUCK_SECONDS = 30.0
BETWEEN_SECONDS = 1.0
"""How often to look for a new document if samples are rarer."""
BUFFER_BYTES = 1 << 18
"""How much a client reads at once: about what a socket holds. A document of hundreds of domains is longer."""
SILENCE_SECONDS = 20.0
"""After this long without a line, a client assumes that the daemon has gone."""


class Streams:
    """Serves on the socket from now until close()."""

    def __init__(self, path: Path, text: Callable[[], bytes], log: Callable[[str], None]) -> None:
        """Make the socket; `text` returns the newest document, or nothing if clients need none; `log` takes a line.

        Raises OSError.
        """
        self._text = CarefulText(text, log)
        self._line, self._line_of = b"", b""
        """The newest document as a line, and the text that the line was made from."""
        self._clients: list[_Client] = []
        self._closed = False
        self._listener = listen(path, MODE)
        self._listener.setblocking(False)
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        threading.Thread(target=self._serve, name="streams", daemon=True).start()

    def wake(self) -> None:
        """Note that there has been a sample. Never waits."""
        if self._clients:
            self._wake()

    def close(self) -> None:
        """Disconnect all clients and stop serving; the socket's name stays."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it has been woken often enough, or is gone
            self._waker.send(b"!")

    def _serve(self) -> None:
        with self._selector, self._listener, self._woken, self._waker:
            while not self._closed:
                for key, _ in self._selector.select(BETWEEN_SECONDS if self._clients else None):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is self._woken:
                        self._woken.recv(4096)
                    elif isinstance(key.data, _Client) and key.data.has_left():
                        self._disconnect(key.data)
                if self._clients:
                    self._send()
            for client in self._clients:
                client.peer.close()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError as error:
            if error.errno != errno.EAGAIN:
                time.sleep(1)  # too many open files: that may pass
            return
        peer.setblocking(False)
        user = peer_of(peer).user
        of_one = sum(client.user == user for client in self._clients)
        if len(self._clients) >= CLIENTS:
            _refuse(peer, f"virt-rapld serves {CLIENTS} clients already, as many as it will")
        elif user and of_one >= CLIENTS_OF_ONE:
            _refuse(peer, f"virt-rapld serves {of_one} clients of this user already, as many as it will")
        else:
            self._renew()  # the client gets only documents that are newer than this
            client = _Client(peer, user, self._line)
            self._clients.append(client)
            self._selector.register(peer, selectors.EVENT_READ, client)

    def _renew(self) -> None:
        if (text := self._text()) and text is not self._line_of:
            self._line, self._line_of = text + b"\n", text

    def _send(self) -> None:
        self._renew()
        for client in self._clients.copy():
            try:
                waits = client.send(self._line)
            except OSError:
                self._disconnect(client)
            else:
                self._selector.modify(client.peer, selectors.EVENT_READ | (selectors.EVENT_WRITE * waits), client)

    def _disconnect(self, client: "_Client") -> None:
        self._clients.remove(client)
        self._selector.unregister(client.peer)
        client.peer.close()


class _Client:
    """A connected client."""

    def __init__(self, peer: socket.socket, user: int, line: bytes) -> None:
        self.peer = peer
        self.user = user
        self._line = line
        """The last one that was sent, or begun."""
        self._sender = LineSender(peer)

    def has_left(self) -> bool:
        """Return whether the client has hung up, or written something; does not wait."""
        try:
            self.peer.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def send(self, line: bytes) -> bool:
        """Continue the line that was begun, or begin this one; return whether the rest can be sent only later.

        Raises OSError when the client has gone or is stuck.
        """
        if self._sender.all_is_read():
            if line is self._line:
                return False
            self._line = line
            return self._sender.begin(line)
        if time.monotonic() > self._sender.begun + STUCK_SECONDS:
            raise TimeoutError
        return self._sender.go_on()


def _refuse(peer: socket.socket, why: str) -> None:
    with peer, contextlib.suppress(OSError):
        peer.send(json.dumps({"schema": SCHEMA, "error": why}).encode() + b"\n")


def follow(path: Path) -> Generator[dict[str, Any], None, None]:
    """Yield each document that the daemon makes from now on, until it goes or is silent for SILENCE_SECONDS.

    Yields none if no daemon serves there. Raises VirtRaplError if the daemon refuses.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer, contextlib.suppress(OSError, ValueError):
        peer.settimeout(SILENCE_SECONDS)
        peer.connect(str(path))
        with peer.makefile("rb", BUFFER_BYTES) as lines:
            for line in lines:
                document = understood(json.loads(line))
                if document is None:
                    return
                if "error" in document:
                    raise VirtRaplError(document["error"], "end another `virt-rapl top` or `virt-rapl status --watch`")
                yield document
