"""What a helper answers QEMU, so that the guest gains what its domain is charged, in spite of QEMU's arithmetic.

The charge is that of the model `capacity` (libvirt_rapl.energy.attribution), as on the host: what a package counted,
times the domain's CPU time there, divided by all the time that the package's CPUs had. It is added up without a gap,
from the end of one of QEMU's windows to the end of the next. At each end the helper answers the largest difference
whose outcome, by libvirt_rapl.helper.vmsr.qemu_arithmetic, stays within what is owed; the rest is carried over. So
nothing is lost, and nothing is given twice: what QEMU did with the difference is computed when the next window begins
and more is known of the ticks that QEMU saw.

QEMU reads ticks a moment after an end is answered and a moment before it asks for a beginning, so a thread may have
run a tick more than was seen here. Of a tick in between, a third is expected in the window before, a third in the one
after, and a third in neither, between QEMU's own readings. If every thread of the package had one tick more, the guest
would still gain no more than is owed plus what the package itself counted meanwhile.

The window is held (no difference is answered, and everything is carried over) where QEMU would write garbage, as it
does when a thread that had run a tick is gone at the end of a window:

- a thread is gone that was there at the beginning, or when the window before ended;
- a thread that is no vCPU ran last about ten seconds ago: AIO workers end after ten seconds without work. The time when
  one ran last is known to a second, so a window or two are held each time workers go idle;
- it is one of the first two windows: vCPU threads are being created, and QEMU listed them a moment earlier.

The same goes for a window that began while a thread moved to another package: it is unknown on which one QEMU saw it.

What remains is a thread that ends of its own accord, not by that timeout, between the reading here and QEMU's reading a
moment later (a worker whose pool is made smaller, the end of a migration that was cancelled). That moment is a part of
the 1.4 to 1.6 ms that pass between two windows of QEMU 10.0 with seven threads, and may be 20 ms if the CPUs are
overloaded: of a thousand such ends in the course of a second, one or two at most do harm.

The package of a CPU that came online since the last reading is unknown: a window that begins with a thread there is
held, too. The charge goes by the CPUs that are online now; QEMU goes on with those of its start.

With several packages each has its own difference and its own debt. Where no vCPU was, QEMU gives nothing to any vCPU:
what is owed there moves to a package where one was.
"""

from __future__ import annotations

import os

from libvirt_rapl.helper.vmsr.energy import Package, boot_nanoseconds
from libvirt_rapl.helper.vmsr.qemu_arithmetic import MOST, Qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from libvirt_rapl.helper.vmsr.cpus import Cpus
    from libvirt_rapl.helper.vmsr.threads import Domain, Thread

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
WINDOW_NS = 900_000_000
"""QEMU sleeps for a second between beginning and end. A question that comes sooner after a beginning is no end: nobody
gets finer readings than QEMU, because they reveal what others on the package compute (CVE-2020-8694)."""
IDLE_NS = 10_000_000_000
"""An AIO worker ends after this long without work (QEMU's util/thread-pool.c)."""
SOONER_NS, LATER_NS = 250_000_000, 500_000_000
"""How long QEMU may take to read the ticks after an answer, and a thread to end after its timeout."""
FIRST_WINDOWS = 2


class Span:
    """The ticks of one thread in one window."""

    __slots__ = ("around", "begin", "cpu", "end", "is_vcpu")

    def __init__(self, thread: Thread) -> None:
        """Take the thread as it was when the window began."""
        self.is_vcpu = thread.is_vcpu
        self.cpu = thread.cpu
        """The CPU where it was last seen."""
        self.begin = self.end = thread.ticks
        self.around = 0.0
        """Ticks before the beginning and after the end that QEMU is expected to have seen too."""


class Side:
    """One package on behalf of one domain."""

    __slots__ = ("begun", "counter", "difference", "energy", "owed", "qemu", "seen", "spans", "used")

    def __init__(self, energy: Package, cpus: int, now: int) -> None:
        """Take what the package counts, the number of its CPUs when QEMU starts, and the time."""
        self.energy = energy
        self.qemu = Qemu(cpus * TICKS_PER_SECOND)
        self.counter = 1
        """The value that QEMU is answered, in units: never 0, and it never wraps."""
        self.owed = 0
        """What the guest has yet to gain, in microjoules x `unit[1]`; negative when it gained more."""
        self.seen = energy.advance(now)
        self.used = 0
        """Microjoules that the package counted between the last two ends."""
        self.begun = 0
        """When QEMU asked for the beginning of the window; 0 when it is over."""
        self.spans: dict[int, Span] = {}
        """The threads that were here when the window began."""
        self.difference = 0
        """What was answered in this window."""

    def ticks(self, of: Callable[[Span], float]) -> tuple[list[float], list[float]]:
        """Return the ticks of the vCPUs that were here, and of the other threads."""
        spans = self.spans.values()
        return [of(span) for span in spans if span.is_vcpu], [of(span) for span in spans if not span.is_vcpu]

    @property
    def has_vcpus(self) -> bool:
        """Return whether a vCPU was here when the window began."""
        return any(span.is_vcpu for span in self.spans.values())


class Shaper:
    """Answers one QEMU."""

    def __init__(
        self,
        domain: Domain,
        packages: Mapping[int, Package],
        cpus: Cpus,
        unit: tuple[int, int],
        clock: Callable[[], int] = boot_nanoseconds,
    ) -> None:
        """Begin to charge. `cpus`: still those of QEMU's start. `unit`: of the register, a fraction of microjoules."""
        self._domain = domain
        self._cpus = cpus
        self._unit = unit
        self._clock = clock
        self._charged = now = clock()
        self._sides = {package: Side(energy, cpus.counts.get(package, 0), now) for package, energy in packages.items()}
        self._windows = 0
        self._over = True
        """The window has ended: the next question begins another, except for the ends of other packages."""
        self._held = True
        self._alive: set[int] = set()
        """The threads that were there at the last end."""
        self._idle = Idle(domain, now)

    def energy(self, package: int) -> int:
        """Return the answer to QEMU's question for the energy of a package. Raises OSError when QEMU has gone."""
        side = self._sides[package]
        now = self._clock()
        if not side.begun:
            if self._over:
                self._begin(now)
            side.begun = now
        elif now - side.begun >= WINDOW_NS:
            self._end(side, now)
        return side.counter

    def _begin(self, now: int) -> None:
        self._cpus.look()
        package_of = self._cpus.package_of
        threads = self._domain.threads()
        thirds: dict[int, float] = {}
        moved = False
        for side in self._sides.values():
            for tid in side.spans.keys() & threads.keys():
                thirds[tid] = (threads[tid].ticks - side.spans[tid].end) / 3
                side.spans[tid].around += thirds[tid]
                moved |= package_of.get(threads[tid].cpu) != package_of.get(side.spans[tid].cpu)
            self._reckon(side)
            side.begun = 0
            side.spans = {}
        for tid, thread in threads.items():
            if side_here := self._sides.get(package_of.get(thread.cpu, -1)):
                span = side_here.spans[tid] = Span(thread)
                span.around = thirds.get(tid, 0.0)
        moved |= any(thread.cpu not in package_of for thread in threads.values())
        self._held = moved or self._windows < FIRST_WINDOWS or not self._alive <= threads.keys()
        self._windows += 1
        self._idle.watch(threads, now)
        self._over = False

    def _reckon(self, side: Side) -> None:
        """Account for the window that is over, as QEMU is expected to have seen it."""
        vcpus, others = side.ticks(lambda span: span.end - span.begin + span.around)
        side.owed -= side.qemu.advance(side.difference, vcpus, others) * self._unit[0]
        side.difference = 0

    def _end(self, side: Side, now: int) -> None:
        if not self._over:
            self._charge(now)
            self._over = True
        side.begun = 0
        # The threads are read last: the less time there is until QEMU reads them, the better.
        alive = self._domain.look(side.spans)
        garbage = self._held or self._idle.may_end(side.spans, now)
        for tid, span in side.spans.items():
            thread = alive.get(tid)
            if thread and thread.ticks >= span.begin:
                span.end, span.is_vcpu, span.cpu = thread.ticks, thread.is_vcpu, thread.cpu
            elif span.begin:
                garbage = True
        self._alive = set(self._domain.tids())
        if not garbage:
            side.difference = self._solve(side)
            side.counter += side.difference

    def _charge(self, now: int) -> None:
        """Add what the domain owes for the time since the previous end."""
        runs = self._domain.advance()
        elapsed, self._charged = now - self._charged, now
        for package, side in self._sides.items():
            seen = side.energy.advance(now)
            side.used, side.seen = seen - side.seen, seen
            capacity = elapsed * self._cpus.counts.get(package, 0)
            run = sum(run for cpu, run in runs.items() if self._place(cpu) == package)
            if capacity:  # else all its CPUs are offline
                side.owed += side.used * self._unit[1] * min(run, capacity) // capacity
        home = next((side for side in self._sides.values() if side.has_vcpus), None)
        for side in self._sides.values():
            if home and not side.has_vcpus:
                home.owed += side.owed
                side.owed = 0

    def _place(self, cpu: int) -> int:
        """Return the package of a CPU; the first one if it is unknown, as on the host."""
        return self._cpus.package_of.get(cpu, next(iter(self._sides)))

    def _solve(self, side: Side) -> int:
        """Return the difference that makes the guest gain what is owed, and not much more, whatever QEMU has seen."""
        vcpus, others = side.ticks(lambda span: span.end - span.begin)
        if not any(vcpus):
            return 0
        owed = side.owed // self._unit[0]
        most = owed + side.used * self._unit[1] // self._unit[0]
        unseen = side.qemu.solve(min(most, MOST), [ticks + 1 for ticks in vcpus], [ticks + 1 for ticks in others])
        vcpus, others = side.ticks(lambda span: span.end - span.begin + span.around)
        return min(side.qemu.solve(min(owed, MOST), vcpus, others), unseen)


class Idle:
    """Finds the threads that may end now, because they have had no work for IDLE_NS."""

    def __init__(self, domain: Domain, now: int) -> None:
        """Take the domain and the time."""
        self._domain = domain
        self._watched = now
        self._last: dict[int, tuple[int, int, int]] = {}
        """For each thread, how long it has run, and between which two times it ran last."""

    def watch(self, threads: Mapping[int, Thread], now: int) -> None:
        """Read these threads; to be called once a window."""
        last, self._last = self._last, {}
        for tid, thread in threads.items():
            if thread.ticks and not thread.is_vcpu:  # the end of one that never ran a tick does no harm
                run = max(self._domain.run_nanoseconds(tid), thread.ticks)
                known = last.get(tid)
                self._last[tid] = known if known and known[0] == run else (run, self._watched, now)
        self._watched = now

    def may_end(self, tids: Iterable[int], now: int) -> bool:
        """Return whether one of these threads may end before QEMU has read it."""
        return any(
            self._last[tid][1] + IDLE_NS - SOONER_NS <= now <= self._last[tid][2] + IDLE_NS + LATER_NS
            for tid in tids
            if tid in self._last
        )
