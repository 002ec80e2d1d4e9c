"""The meter together with the ledger that keeps its totals, for three kinds of threads at once.

One thread samples, one writes the ledger, others copy the figures and make documents of them. The lock is held while
the meter changes and while its figures are copied, which takes milliseconds: neither a disk nor a document delays
a sample.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from libvirt_rapl.domains.inventory import Inventory
from libvirt_rapl.energy import snapshot
from libvirt_rapl.energy.history import Identity, Moment
from libvirt_rapl.energy.ledger import Ledger
from libvirt_rapl.energy.meter import Meter, Running
from libvirt_rapl.energy.snapshot import Snapshot
from libvirt_rapl.errors import explain


class KeptMeter:
    """Meters the domains of the inventory."""

    def __init__(self, meter: Meter, ledger: Ledger, inventory: Inventory, log: Callable[[str], None]) -> None:
        """Take the parts; `log` takes one line. Nothing is read yet."""
        self.began = 0.0
        """When the last sample began, in monotonic seconds."""
        self.samples = 0
        """How many samples there have been, including those that failed."""
        self.has_power = threading.Event()
        """Set when there has been an interval, and so powers are known."""
        self._meter = meter
        self._ledger = ledger
        self._inventory = inventory
        self._log = log
        self._lock = threading.Lock()
        self._disk = ThreadPoolExecutor(1, "ledger")
        self._keeping: Future[None] | None = None
        """The write of the ledger that was requested last."""
        self._noting: Future[None] | None = None
        """The note in the ledger that was requested last."""
        self._shown: Snapshot | None = None
        """The figures that were to be shown last."""
        self._unkept = True
        """Whether there has been a sample since the ledger was written."""
        self._behind = True
        """Whether the ledger could not be written the last time, if it was ever tried."""
        self._kept_until = 0.0
        """Up to when all is in the ledger or in its note, in seconds of Meter.metered."""
        self._lost: Mapping[str, int] = {}
        """In how many intervals the count of each zone had been lost then."""
        self._has_written = False

    def sample(self) -> bool:
        """Meter every domain once; return False when the host cannot be read. Errors are logged once."""
        running = [
            Running(entry.uuid, entry.pid, entry.vcpu_tids)
            for entry in self._inventory.entries.values()
            if entry.pid is not None
        ]
        meter = self._meter
        with self._lock:
            self.began, before = time.monotonic(), meter.trouble
            try:
                meter.sample(running)
                sampled = self._unkept = True
            except (OSError, ValueError) as error:
                sampled, meter.trouble = False, explain(error)
            self.samples += 1
        if meter.interval_seconds:
            self.has_power.set()
        if meter.trouble and not before:
            self._log(f"cannot meter: {meter.trouble}; trying again")
        return sampled

    def snapshot(self) -> Snapshot:
        """Copy the figures of the last sample."""
        with self._lock:
            return snapshot.take(self._meter)

    def keep_soon(self) -> Future[None]:
        """Have the ledger's own thread write the present totals, because a disk may be slow.

        Nothing is written if they are in the ledger already; a write that fails is tried again at the next call.
        """
        with self._lock:
            self._keeping = self._soon(self._keep, self._keeping)
            return self._keeping

    def keep_shown(self, figures: Snapshot) -> Future[None]:
        """Have the ledger's own thread note the totals of these figures, which are about to be shown.

        Nothing is noted if they are in the ledger already; a note that fails is tried again at the next call.
        """
        with self._lock:
            self._shown = figures
            self._noting = self._soon(self._note, self._noting)
            return self._noting

    def _soon(self, work: Callable[[], None], requested: Future[None] | None) -> Future[None]:
        """Have work done that was requested before, too: what has not begun yet will include what is new."""
        if requested is None or requested.running() or requested.done():
            return self._disk.submit(work)
        return requested

    def _note(self) -> None:
        """Note what is to be shown; where the ledger is behind that, write it."""
        with self._lock:
            shown = self._shown
        if self._behind:
            self._keep()
            return
        if shown is None or shown.metered <= self._kept_until:  # it might have domains that were retired since
            return
        if self._ledger.note(snapshot.kept(shown), self._moment(shown, shown.sampled_at)):
            self._kept_until = shown.metered

    def _keep(self) -> None:
        """Write the totals; until that has worked once, first add those that were kept before."""
        if not self._unkept:
            return
        kept = self._ledger.load()
        entries = self._inventory.entries
        running = {uuid for uuid, entry in entries.items() if entry.pid is not None}
        known = entries.keys() if self._inventory.listed else None
        with self._lock:
            snapshot.add(self._meter, kept)
            self._meter.since = self._ledger.since
            retired = snapshot.retire(self._meter, running=running, known=known)
            counted = snapshot.take(self._meter)
            now = time.time()
            self._unkept = False
        names = {entry.uuid: Identity(entry.name, entry.title, entry.labels) for entry in entries.values()}
        self._behind = not self._ledger.write(snapshot.kept(counted), retired, self._moment(counted, now, names))
        if self._behind:
            self._unkept = True
        else:
            self._lost = {name: zone.lost for name, zone in counted.zones.items()}
            self._has_written, self._kept_until = True, counted.metered

    def _moment(self, figures: Snapshot, now: float, names: Mapping[str, Identity] | None = None) -> Moment:
        return Moment(
            now=now,
            booted=time.time() - time.clock_gettime(time.CLOCK_BOOTTIME),
            first=not self._has_written,
            model=self._meter.model,
            source=self._meter.source.name,
            lost={name: zone.lost - self._lost.get(name, 0) for name, zone in figures.zones.items()},
            domains=names or {},
        )
