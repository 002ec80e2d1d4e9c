"""The HTTP server: cheroot, with bounds on what a stranger can make it do.

Each listening address has a server with a fixed number of threads. A thread is given to a connection when something can
be read from it; then handshake, request and answer together have a fixed time, after which the connection is closed.
"""

import contextlib
import ipaddress
import itertools
import logging
import math
import queue
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cheroot import wsgi
from cheroot.makefile import MakeFile
from cheroot.server import HTTPConnection

from libvirt_rapl.errors import VirtRaplError, explain
from libvirt_rapl.exporter.options import Address
from libvirt_rapl.exporter.site import Log, Site
from libvirt_rapl.exporter.web import Rules

THREADS = 8
"""For each listening address."""
THREADS_OF_ONE = 4
"""Of them, for one client's address."""
REQUEST_SECONDS = 10.0
"""As long as Prometheus waits for a scrape by default."""
IDLE_SECONDS = 90
"""How long a connection is kept between requests: longer than the usual interval of scrapes, which saves handshakes."""
IDLE_CONNECTIONS = 64
WAITING_CONNECTIONS = 64
"""How many may wait for a thread, and how many for one of their own client's; others are closed."""
HEADER_BYTES = 16 * 1024
LOG_SECONDS = 10.0
"""At most one line in this time is logged of clients that fail: a stranger must not be able to fill the log."""

PLAIN_ON_TLS = b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nThis port is for HTTPS.\n"


class Deadlines:
    """Shuts down connections that have taken too long. A client that sends a byte now and then gets no more time."""

    def __init__(self, seconds: float) -> None:
        """Start the thread that watches, which ends after close()."""
        self._seconds = seconds
        self._numbers = itertools.count()
        self._served: dict[int, tuple[float, Connection]] = {}
        """When each has to be done: the first is the earliest, because all have the same time."""
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._watch, name="deadlines", daemon=True).start()

    @contextlib.contextmanager
    def watch(self, connection: "Connection") -> Iterator[None]:
        """Shut the connection down if it is still being served when the time is up."""
        with self._changed:
            number = next(self._numbers)
            self._served[number] = (time.monotonic() + self._seconds, connection)
            self._changed.notify()
            if self._closed:
                connection.shut_down()
        try:
            yield
        finally:
            with self._changed:
                self._served.pop(number, None)

    def close(self) -> None:
        """Shut down all that is being served."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while self._served or not self._closed:
                number, (due, connection) = next(iter(self._served.items()), (0, (math.inf, None)))
                if connection and (self._closed or due <= time.monotonic()):
                    del self._served[number]
                    connection.shut_down()
                else:
                    self._changed.wait(due - time.monotonic() if connection else None)


class Connection(HTTPConnection):
    """A connection: TLS where the rules ask for it, and nothing that it does ends a thread."""

    def __init__(self, server: "Listener", sock: socket.socket, makefile: Callable[..., Any] = MakeFile) -> None:
        """Take a connection that was accepted."""
        super().__init__(server, sock, makefile)
        self.waited = False
        """Whether it has waited for something to read."""
        self._rules: Rules | None = None
        """Those that were in force when it began."""

    def communicate(self) -> bool:
        """Serve one request; return whether to keep the connection."""
        try:
            with self.server.deadlines.watch(self):
                return bool(self._begun() and super().communicate())  # type: ignore[no-untyped-call]
        except (ConnectionError, TimeoutError, ssl.SSLError):  # the client has gone, or was too slow
            return False
        except Exception as error:
            self.server.log_client(f"{self.remote_addr}: {type(error).__name__}: {explain(error)}")
            return False
        finally:
            self.server.give_back(self)

    def _begun(self) -> bool:
        """Return whether a request may be read: the connection has all that the rules ask for."""
        rules = self.server.wsgi_app.web.rules()
        if self._rules is None:
            self._rules = rules
            return rules.context is None or self._encrypt(rules, rules.context)
        return rules is self._rules  # it was made under others: the client will make a new one

    def _encrypt(self, rules: Rules, context: ssl.SSLContext) -> bool:
        # cheroot would do this where it accepts connections, and one slow client would keep out all others.
        try:
            encrypted = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        except OSError:  # it has gone
            return False
        self.socket = encrypted
        self.rfile, self.wfile = MakeFile(encrypted, "rb", self.rbufsize), MakeFile(encrypted, "wb", self.wbufsize)
        try:
            encrypted.do_handshake()
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                socket.socket.send(encrypted, PLAIN_ON_TLS)
            self.server.log_client(f"{self.remote_addr}: no TLS: {explain(error)}")
            return False
        if _is_allowed(encrypted, rules):
            return encrypted.version() is not None
        self.server.log_client(f"{self.remote_addr}: its certificate has none of client_allowed_sans")
        return False

    def shut_down(self) -> None:
        """End all that is waited for on it, from another thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # that of ssl would take the encryption away

    def close(self) -> None:
        """Close it, whatever state it is in."""
        with contextlib.suppress(OSError, ValueError):
            super().close()
        self.socket.close()


def _is_allowed(encrypted: ssl.SSLSocket, rules: Rules) -> bool:
    """Return whether the client's certificate, if it has shown one, has a name that the rules allow."""
    allowed = rules.config.tls.client_allowed_sans if rules.config.tls else frozenset()
    certificate = encrypted.getpeercert()
    if not allowed or not certificate:
        return True
    names: Iterable[Any] = certificate.get("subjectAltName", ())
    return any(_plain(kind, name) in allowed for kind, name in names if kind in ("DNS", "email", "URI", "IP Address"))


def _plain(kind: str, name: str) -> str:
    """Return an alternative name as it is written: OpenSSL writes IPv6 in full, with a line end in some versions."""
    return str(ipaddress.ip_address(name.strip())) if kind == "IP Address" else name


class Listener(wsgi.Server):
    """cheroot's server on one address, with our bounds."""

    ConnectionClass = Connection
    max_request_header_size = HEADER_BYTES

    def __init__(self, address: Address, site: Site, log: Log, request_seconds: float) -> None:
        """Listen. Raises OSError."""
        super().__init__(
            tuple(address),
            site,
            numthreads=THREADS,
            max=THREADS,
            server_name="virt-rapl",
            request_queue_size=128,
            timeout=IDLE_SECONDS,
            shutdown_timeout=1,
            accepted_queue_size=WAITING_CONNECTIONS,
            accepted_queue_timeout=0,
        )
        self.keep_alive_conn_limit = IDLE_CONNECTIONS
        self._log = log
        self._quiet_until = 0.0
        self._threads: Counter[str] = Counter()
        """How many each client's address has, or is next in the queue for."""
        self._held: list[Connection] = []
        """Those whose client has all threads that it may have."""
        self._lock = threading.Lock()
        self.prepare()
        self.deadlines = Deadlines(request_seconds)

    def process_conn(self, conn: Connection) -> None:
        """Give a connection to a thread; a new one when something can be read from it, if there is room to wait."""
        if not conn.waited and self.can_add_keepalive_connection:
            conn.waited = True
            self.put_conn(conn)
            return
        with self._lock:
            allowed = self._threads[conn.remote_addr] < THREADS_OF_ONE
            held = not allowed and len(self._held) < WAITING_CONNECTIONS
            if allowed:
                self._threads[conn.remote_addr] += 1
            elif held:
                self._held.append(conn)
        if allowed:
            self._give_thread(conn)
        elif not held:
            conn.close()

    def give_back(self, conn: Connection) -> None:
        """Take back a connection's thread: the next one of the same client has it now, if one is held."""
        with self._lock:
            following = next((held for held in self._held if held.remote_addr == conn.remote_addr), None)
            if following:
                self._held.remove(following)
            else:
                self._threads[conn.remote_addr] -= 1
                if not self._threads[conn.remote_addr]:
                    del self._threads[conn.remote_addr]
        if following:
            self._give_thread(following)

    def _give_thread(self, conn: Connection) -> None:
        try:
            self.requests.put(conn)
        except queue.Full:
            conn.close()
            self.give_back(conn)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:  # noqa: ARG002
        """Take what cheroot logs: of a request that raised something it did not expect."""
        if level >= logging.ERROR:
            self.log_client(str(msg))

    def log_client(self, line: str) -> None:
        """Log what a client can cause, which is not done for each."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_SECONDS
            self._log(f"request failed: {' '.join(line.split())}")

    def stop(self) -> None:
        """Stop listening, and end what is being served."""
        with self._lock:
            held, self._held = self._held, []
        for conn in held:
            conn.close()
        self.deadlines.close()
        super().stop()


class Server:
    """Listens on all addresses from now until close()."""

    def __init__(
        self, addresses: list[Address], site: Site, log: Log, request_seconds: float = REQUEST_SECONDS
    ) -> None:
        """Start. Raises VirtRaplError if an address cannot be listened on."""
        self._listeners: list[Listener] = []
        for address in addresses:
            try:
                self._listeners.append(Listener(address, site, log, request_seconds))
            except OSError as error:
                self.close()
                hint = "is another program listening there, and is the address this machine's own?"
                raise VirtRaplError(f"cannot listen on {address}: {_reason(error)}", hint) from error
        for listener in self._listeners:
            threading.Thread(target=listener.serve, name=f"listener {listener.bind_addr}", daemon=True).start()

    @property
    def addresses(self) -> list[Address]:
        """Return where it listens: with the port that the kernel chose, where 0 was asked for."""
        return [Address(*listener.bind_addr) for listener in self._listeners]

    def close(self) -> None:
        """Stop answering."""
        for listener in self._listeners:
            listener.stop()


def _reason(error: OSError) -> str:
    """Return why in plain words: cheroot makes one text of the errors of all addresses that a host has."""
    reasons = re.findall(r"\[Errno -?\d+\] ([^()]+)", str(error))
    return ", ".join(dict.fromkeys(reasons)) or explain(error)
