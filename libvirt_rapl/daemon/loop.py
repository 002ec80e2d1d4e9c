"""virt-rapld: meters all domains for as long as it runs, keeps their totals, and tells them to `virt-rapl status`.

One thread samples; libvirt, the ledger's disk, the status socket and their waits are in threads of their own and never
hold it up.
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from libvirt_rapl import paths, systemd
from libvirt_rapl.config import Config
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.daemon.document import View
from libvirt_rapl.directories import NotOursError
from libvirt_rapl.domains.inventory import Inventory
from libvirt_rapl.energy import snapshot
from libvirt_rapl.energy.ledger import DIRECTORY_MODE, Ledger
from libvirt_rapl.energy.meter import Running
from libvirt_rapl.errors import VirtRaplError, explain, printable
from libvirt_rapl.helper.confinement import keep_capabilities_from_programs
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.process_clock import allow_many_descriptors
from libvirt_rapl.lifecycle.policy import Policy

FLUSH_SECONDS = 10.0
LOCK = f"{paths.LEDGER}.lock"
"""Beside it: held while a daemon keeps totals there."""
END = (signal.SIGTERM, signal.SIGINT)

FIRST_INTERVAL_SECONDS = 1.0
"""The first interval is short, however long the others are: until its end no power is known."""
LISTING_SECONDS = 5.0
"""How long to wait for libvirt's first list of domains before sampling begins without it."""
KEPT_SECONDS = 1.0
"""How long an answer waits for the disk, so that what it tells cannot be lost."""
TOLD_AGAIN = 10.0
"""Until the next sample a document is told again for so many times as long as it took to make: asking costs little."""


def run(config: Config, uri: str) -> None:
    """Meter until SIGTERM. Raises VirtRaplError when there is nothing to meter with, or another daemon does it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, END)  # one thread waits for them; all others inherit this
    keep_capabilities_from_programs()  # the policy asks QEMUs what they can do
    allow_many_descriptors()
    try:
        _make_directory(config.run_directory)
    except NotOursError:
        raise
    except OSError as error:
        raise VirtRaplError(f"cannot use {config.run_directory}: {error}", "run it as root, or as its owner") from error
    with contextlib.ExitStack() as locks:
        locks.enter_context(_alone(config.run_directory))
        with contextlib.suppress(OSError):  # the ledger tells what is wrong with its directory
            config.state_directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            locks.enter_context(_alone(config.state_directory, LOCK))
        daemon = Daemon(config, uri)
        daemon.start()
        try:
            daemon.meter_until_told_to_end()
        finally:
            daemon.end()


def _make_directory(run_directory: Path) -> None:
    directory = run_directory / paths.DAEMON
    with contextlib.suppress(FileNotFoundError):
        Registry(run_directory).check_directory()
    if not directory.is_dir():  # where systemd runs it has made it, for our user
        Registry(run_directory).create_directory()
        directory.mkdir(mode=status_socket.DIRECTORY_MODE)


@contextlib.contextmanager
def _alone(directory: Path, name: str = ".") -> Iterator[None]:
    """Hold a directory's lock, which ends with the process however it ends; or that of a file in it, made for that.

    Whoever can open it can hold it: the run directory, which nobody else can list, or a file of ours. Raises OSError.
    """
    create = os.O_CREAT | os.O_NOFOLLOW if name != "." else os.O_DIRECTORY
    descriptor = os.open(directory / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | create, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VirtRaplError(
                f"another virt-rapl daemon already uses {directory}", "`systemctl status virt-rapld` may tell which"
            ) from error
        yield
    finally:
        os.close(descriptor)


def tell(message: str) -> None:
    """Write one line for the journal."""
    print(f"virt-rapl: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)


class Daemon:
    """The parts, and the loop that drives them."""

    def __init__(self, config: Config, uri: str) -> None:
        """Open the zones. Raises VirtRaplError when there are none."""
        self._interval = config.interval
        self._run_directory = config.run_directory
        self._socket = config.run_directory / paths.STATUS_SOCKET
        self._answerers: status_socket.Answerers | None = None
        self._mute = False
        """Whether it was told that nobody can ask us."""
        self._view = View(config)
        for zone, why in self._view.source.left_out.items():
            tell(f"{zone} is left out: {why}")
        self._ledger = Ledger(
            config.state_directory / paths.LEDGER, simulated=self._view.source.name == "simulated", tell=tell
        )
        self._policy = Policy(config, uri, tell)
        self._inventory = Inventory(uri, tell, self._policy.changed)
        self._lock = threading.Lock()
        """Held while the meter changes, and while a document is made of it."""
        self._making = threading.Lock()
        """Held while a document is made, or looked for."""
        self._made, self._made_at, self._made_until = b"", 0.0, 0.0
        self._sampled = 0.0
        """When the last sample began, in monotonic seconds."""
        self._disk = ThreadPoolExecutor(1, "ledger")
        self._flushing: Future[None] | None = None
        """The flush that was asked for last."""
        self._unkept = True
        """Whether there has been a sample since the ledger was written."""
        self._told_to_end = threading.Event()
        self._metered = threading.Event()
        """Set when there has been an interval, and so powers."""

    def start(self) -> None:
        """Take up the totals, list the domains, begin to answer, and tell systemd that all is ready."""
        threading.Thread(target=self._wait_for_end, name="signals", daemon=True).start()
        self._flush_soon().result()
        self._policy.start()
        self._inventory.start()
        self._inventory.attempted.wait(LISTING_SECONDS)
        self._sample()
        self._answer()
        systemd.notify("READY=1")

    def _answer(self) -> None:
        """Answer `virt-rapl status` from now on."""
        trouble = ""
        try:
            _make_directory(self._run_directory)
            if self._answerers:
                self._answerers.close()
            self._answerers = status_socket.Answerers(self._socket, self._document, tell)
        except OSError as error:
            trouble = explain(error)
        if trouble and not self._mute:
            tell(f"cannot listen on {self._socket}: {trouble}; `virt-rapl status` samples for itself")
        self._mute = bool(trouble)

    def meter_until_told_to_end(self) -> None:
        """Sample once an interval and flush the totals every FLUSH_SECONDS, or each interval where that is longer."""
        due = time.monotonic() + min(self._interval, FIRST_INTERVAL_SECONDS)
        flush_due = time.monotonic() + FLUSH_SECONDS
        while not self._told_to_end.wait(max(0.0, due - time.monotonic())):
            if self._sample():
                self._metered.set()
                systemd.notify("WATCHDOG=1")
            now = time.monotonic()
            # From when it began, however late: none that was missed is made up for, and no interval is shorter.
            due = self._sampled + self._interval
            if due > flush_due:
                self._flush_soon()
                if not self._socket.is_socket():  # somebody has removed the run directory
                    self._answer()
                flush_due = now + FLUSH_SECONDS

    def _wait_for_end(self) -> None:
        # Python's sigtimedwait() takes a SIGCONT that comes after its time for one of these signals.
        signal.sigwait(END)
        self._told_to_end.set()

    def end(self) -> None:
        """Count what has been used until now, keep the totals, and answer no more."""
        systemd.notify("STOPPING=1")
        with contextlib.suppress(OSError):
            self._socket.unlink()
            self._socket.parent.rmdir()
        self._sample()
        self._flush_soon().result()

    def _sample(self) -> bool:
        """Meter every domain once; False when the host does not tell. What does not work is told once."""
        running = [
            Running(entry.uuid, entry.pid, entry.vcpu_tids)
            for entry in self._inventory.entries.values()
            if entry.pid is not None
        ]
        with self._lock:
            self._sampled = time.monotonic()
            try:
                self._view.meter.sample(running)
                sampled, trouble = True, self._view.meter.trouble
                self._unkept = True
            except (OSError, ValueError) as error:
                sampled, trouble = False, explain(error)
            self._view.trouble, before = trouble, self._view.trouble
        if trouble and not before:
            tell(f"cannot meter: {trouble}; trying on")
        return sampled

    def _flush_soon(self) -> Future[None]:
        """Have the totals as they are now kept by the ledger's own thread: a disk may take its time."""
        with self._lock:
            # One that has not begun yet will see them.
            if self._flushing is None or self._flushing.running() or self._flushing.done():
                self._flushing = self._disk.submit(self._flush)
            return self._flushing

    def _flush(self) -> None:
        """Keep the totals; at first, and until that works, also take up those that were kept."""
        if not self._unkept:
            return
        kept = self._ledger.load()
        entries = self._inventory.entries
        running = {uuid for uuid, entry in entries.items() if entry.pid is not None}
        known = entries.keys() if self._inventory.listed else None
        with self._lock:
            snapshot.add(self._view.meter, kept)
            self._view.since = self._ledger.since
            retired = snapshot.retire(self._view.meter, running=running, known=known)
            counted = snapshot.kept(self._view.meter)
            self._unkept = False
        if not self._ledger.write(counted, retired):
            self._unkept = True

    def _document(self) -> bytes:
        """Return the status document; for a moment the one that was made last, however many ask."""
        self._metered.wait(status_socket.ANSWER_SECONDS)
        with self._making:
            began = time.monotonic()
            if began >= self._made_until or self._made_at <= self._sampled:
                with self._lock:
                    self._made_at = time.monotonic()
                    made = self._view.document(self._inventory.seen(), self._policy.refusals(), self._inventory.trouble)
                self._made = json.dumps(made).encode()
                now = time.monotonic()
                self._made_until = now + TOLD_AGAIN * (now - began)
            document = self._made
        with contextlib.suppress(TimeoutError):  # what has been told must not be lost: energies would go back
            self._flush_soon().result(KEPT_SECONDS)
        return document
