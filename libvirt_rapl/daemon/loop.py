"""virt-rapld: meters all domains for as long as it runs, keeps their totals, and serves them to `virt-rapl status`.

One thread samples; libvirt, the ledger's disk and the sockets have threads of their own, which never delay it.
"""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

from libvirt_rapl import paths, systemd
from libvirt_rapl.config import Config
from libvirt_rapl.daemon import channel_line, history_socket, status_socket
from libvirt_rapl.daemon.answerers import DIRECTORY_MODE as SOCKETS_MODE
from libvirt_rapl.daemon.document import Document
from libvirt_rapl.daemon.host_meter import HostMeter
from libvirt_rapl.daemon.kept_meter import KeptMeter
from libvirt_rapl.daemon.publisher import Publisher, Rendered
from libvirt_rapl.daemon.stream_socket import Streams
from libvirt_rapl.directories import NotOursError
from libvirt_rapl.domains.inventory import Inventory
from libvirt_rapl.energy.ledger import DIRECTORY_MODE, Ledger
from libvirt_rapl.energy.snapshot import Snapshot
from libvirt_rapl.errors import VirtRaplError, explain
from libvirt_rapl.files import lock
from libvirt_rapl.helper.confinement import keep_capabilities_from_programs
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.identity import opaque_id
from libvirt_rapl.host.process_clock import allow_many_descriptors
from libvirt_rapl.lifecycle.policy import Policy
from libvirt_rapl.log import log

FLUSH_SECONDS = 10.0
LOCK = f"{paths.LEDGER}.lock"
"""A lock beside the ledger, held while a daemon keeps totals there."""
END = (signal.SIGTERM, signal.SIGINT)

FIRST_INTERVAL_SECONDS = 1.0
"""The first interval is short, however long the others are: before its end no power is known."""
LISTING_SECONDS = 5.0
"""How long to wait for libvirt's first list of domains before sampling begins without it."""


def run(config: Config, uri: str) -> None:
    """Meter until SIGTERM. Raises VirtRaplError when there is no energy to read, or another daemon meters already."""
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
        _hold(locks, config.run_directory)
        with contextlib.suppress(OSError):  # the ledger logs what is wrong with its directory
            config.state_directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            _hold(locks, config.state_directory, LOCK)
        daemon = Daemon(config, uri)
        daemon.start()
        try:
            daemon.meter_until_asked_to_end()
        finally:
            daemon.end()


def _make_directory(run_directory: Path) -> None:
    directory = run_directory / paths.DAEMON
    with contextlib.suppress(FileNotFoundError):
        Registry(run_directory).check_directory()
    if not directory.is_dir():  # systemd has made it for our user, if it started us
        Registry(run_directory).create_directory()
        directory.mkdir(mode=SOCKETS_MODE)


def _hold(locks: contextlib.ExitStack, directory: Path, name: str = ".") -> None:
    """Lock a directory, or a file in it that is made for that, until `locks` are closed.

    Any user who can open it can hold it: so it is the run directory, which only root can list, or a file of ours.
    Raises VirtRaplError if another daemon holds it; OSError.
    """
    try:
        locks.callback(os.close, lock(directory / name))
    except BlockingIOError as error:
        raise VirtRaplError(
            f"another virt-rapl daemon already uses {directory}", "`systemctl status virt-rapld` may show which"
        ) from error


class Daemon:
    """The parts, and the loop that drives them."""

    def __init__(self, config: Config, uri: str) -> None:
        """Open the zones. Raises VirtRaplError when there are none."""
        self._interval = config.interval
        self._run_directory = config.run_directory
        names = (paths.STATUS_SOCKET, paths.STREAM_SOCKET, paths.CHANNEL_STREAM_SOCKET, paths.HISTORY_SOCKET)
        self._sockets = [config.run_directory / name for name in names]
        self._ledger = config.state_directory / paths.LEDGER
        self._servers = contextlib.ExitStack()
        self._mute = False
        """Whether it was logged that the sockets do not work."""
        host = HostMeter(config)
        for zone, why in host.source.left_out.items():
            log(f"{zone} is left out: {why}")
        simulated = host.source.name == "simulated"
        ledger = Ledger(self._ledger, simulated=simulated, log=log, history=config.history)
        policy = self._policy = Policy(config, uri, log)
        self._overruns = 0
        """How many samples began more than an interval late."""
        inventory = self._inventory = Inventory(uri, log, policy.changed, config.labels)
        self._meter = KeptMeter(host.meter, ledger, inventory, log)

        def describe(figures: Snapshot) -> Document:
            trouble = inventory.trouble or ("" if inventory.listed else "libvirt has not answered yet")
            seen, gone = inventory.seen(), inventory.gone()
            return host.document(figures, seen, policy.refusals(), trouble, self._overruns, gone)

        self._publisher = Publisher(self._meter, describe, config.interval)
        host_id = opaque_id()
        self._lines = Rendered(self._publisher.document, lambda document: channel_line.render(document, host_id))
        self._streams: list[Streams] = []
        self._asked_to_end = threading.Event()

    def start(self) -> None:
        """Load the totals, list the domains, begin to answer, and report to systemd that all is ready."""
        threading.Thread(target=self._wait_for_end, name="signals", daemon=True).start()
        self._meter.keep_soon().result()
        self._policy.start()
        self._inventory.start()
        self._inventory.attempted.wait(LISTING_SECONDS)
        self._meter.sample()
        self._answer()
        systemd.notify("READY=1")

    def _answer(self) -> None:
        """Serve `virt-rapl status`, and clients that want each document, from now on."""
        trouble = ""
        try:
            _make_directory(self._run_directory)
            self._servers.close()
            self._streams = []
            status, stream, channel, history = self._sockets
            for path, text in ((stream, self._publisher.text), (channel, self._lines_for_guests)):
                self._streams.append(Streams(path, text, log))
                self._servers.callback(self._streams[-1].close)
            self._servers.callback(status_socket.serve(status, self._publisher.text, log).close)
            self._servers.callback(history_socket.serve(history, self._ledger).close)
        except OSError as error:
            trouble = explain(error)
        if trouble and not self._mute:
            log(f"cannot listen in {self._sockets[0].parent}: {trouble}; `virt-rapl status` samples for itself")
        self._mute = bool(trouble)

    def _lines_for_guests(self) -> bytes:
        """Return what virt-rapl-channel gives out; nothing while no domain has a channel, as a document has its cost.

        Nothing, too, before there is any power: a client that connects then shall get the first lines that have it.
        """
        entries = self._inventory.entries.values()
        wanted = any(entry.pid is not None and entry.channel and entry.channel.socket for entry in entries)
        return self._lines() if wanted and self._meter.has_power.is_set() else b""

    def meter_until_asked_to_end(self) -> None:
        """Sample once an interval and keep the totals every FLUSH_SECONDS, or every interval if that is longer."""
        due = time.monotonic() + min(self._interval, FIRST_INTERVAL_SECONDS)
        flush_due = time.monotonic() + FLUSH_SECONDS
        while not self._asked_to_end.wait(max(0.0, due - time.monotonic())):
            if self._meter.sample():
                systemd.notify("WATCHDOG=1")
            self._overruns += self._meter.began > due + self._interval
            for streams in self._streams:
                streams.wake()
            now = time.monotonic()
            # Counted from its beginning, however late: missed samples are not made up for, no interval is shorter.
            due = self._meter.began + self._interval
            if due > flush_due:
                self._meter.keep_soon()
                if not all(path.is_socket() for path in self._sockets):  # somebody has removed the run directory
                    self._answer()
                flush_due = now + FLUSH_SECONDS

    def _wait_for_end(self) -> None:
        # Not sigtimedwait(): Python's returns a SIGCONT after its timeout as if it were one of these signals.
        signal.sigwait(END)
        self._asked_to_end.set()

    def end(self) -> None:
        """Count what has been used until now, keep the totals, and stop answering."""
        systemd.notify("STOPPING=1")
        with contextlib.suppress(OSError):
            for path in self._sockets:
                path.unlink(missing_ok=True)
            self._sockets[0].parent.rmdir()
        self._meter.sample()
        self._meter.keep_soon().result()
