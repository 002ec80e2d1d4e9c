"""The meter: samples zones and clocks, and adds up what each domain and vCPU has used since the meter began.

One sample reads everything once; the meter's owner decides when. Every zone is given out to the domains, other and
idle; a domain's energy as a whole is that of the package zones, which its guest's own counter shows, and its vCPUs
share it. What a domain runs before its first sample, and after its last, is `other`. A domain is its QEMU and the
processes that serve it in its cgroup.
"""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from libvirt_rapl.choices import Model
from libvirt_rapl.energy.attribution import Charges, DomainTime, Work, among_vcpus, attribute, work_for
from libvirt_rapl.energy.roaming import Places, settle
from libvirt_rapl.host.busy_clock import BusyClock
from libvirt_rapl.host.energy_counter import EnergyCounter
from libvirt_rapl.host.energy_source import Source
from libvirt_rapl.host.machine_clock import MachineClock
from libvirt_rapl.host.process_clock import ThreadRun
from libvirt_rapl.host.topology import packages
from libvirt_rapl.host.zones import Zone
from libvirt_rapl.paths import PROC

LIST_AGAIN_NS = 10_000_000_000
"""How often to look for new zones."""


@dataclass(slots=True)
class Usage:
    """What a zone, domain or vCPU has used."""

    microjoules: int = 0
    """Since the meter began."""
    watts: float = 0.0
    """Over the last interval; 0 when nothing could be read in it."""

    @property
    def joules(self) -> float:
        """The energy in joules."""
        return self.microjoules / 1_000_000


@dataclass(slots=True)
class ZoneUsage(Usage):
    """What a zone has counted, and how much of it is no domain's; the domains' parts make up the rest."""

    kind: str = "package"
    other: Usage = field(default_factory=Usage)
    idle: Usage = field(default_factory=Usage)
    lowest: tuple[int, int] = (0, 0)
    """Energy and nanoseconds of the interval of lowest power so far; no time when there has been none."""

    def idle_energy(self, microjoules: int, interval_ns: int) -> int:
        """Return what the zone uses in such an interval when nothing runs, after it counted `microjoules` in this one.

        This is the lowest power seen so far, including this interval. The true idle power is never higher: it is the
        best that can be known without a guess, and gets better whenever the host is quieter than before.
        """
        self.learn(microjoules, interval_ns)
        lowest, lowest_ns = self.lowest
        return lowest * interval_ns // lowest_ns

    def learn(self, microjoules: int, interval_ns: int) -> None:
        """Note that the zone counted `microjoules` in an interval: its power may be the lowest so far."""
        lowest, lowest_ns = self.lowest
        if microjoules * lowest_ns <= lowest * interval_ns:  # the first time, too
            self.lowest = microjoules, interval_ns


@dataclass(slots=True)
class DomainUsage(Usage):
    """What a domain has used of the packages, and each of its vCPUs; theirs add up to the domain's."""

    vcpus: defaultdict[int, Usage] = field(default_factory=lambda: defaultdict(Usage))
    zones: defaultdict[str, Usage] = field(default_factory=lambda: defaultdict(Usage))
    """What it has used of every zone, by the zone's name."""
    last_ran: float | None = None
    """When it was last seen to run, in seconds of Meter.metered; see libvirt_rapl.energy.snapshot."""


class Running(NamedTuple):
    """A running domain."""

    uuid: str
    pid: int
    """QEMU's main process."""
    vcpu_tids: Mapping[int, int]
    """The thread of each vCPU, by vCPU number, as libvirt has them; all else that runs is the emulator's."""


DomainTimes = dict[str, Places]
"""What each domain ran on each package, by UUID."""


class _Given(NamedTuple):
    """How the energy that a zone counted in an interval was given out, in microjoules."""

    zone: Zone
    energy: int
    charges: Charges
    vcpus: dict[str, dict[int, int]] | None
    """For a package's zone, each vCPU's part of its domain's charge; None for others."""


class Meter:
    """Call sample() at the beginning and then once an interval; read the rest in between."""

    def __init__(
        self,
        source: Source,
        *,
        sys: Path,
        proc: Path = PROC,
        model: Model = "capacity",
        clock: Callable[[int], int] = time.clock_gettime_ns,
    ) -> None:
        """Take the zones, the roots of sysfs and /proc, and the `model` of libvirt_rapl.energy.attribution.

        `clock` returns the nanoseconds of a clock, by its id. Nothing is read yet.
        """
        self.zones = {zone.name: ZoneUsage(kind=zone.kind) for zone in source.zones}
        self.domains: defaultdict[str, DomainUsage] = defaultdict(DomainUsage)
        """By UUID. A domain stays when its process ends: it may be started again."""
        self.other = Usage()
        """Of the packages, as `idle`."""
        self.idle = Usage()
        self.since = 0.0
        """When counting began, in seconds since the epoch; the owner sets it: this class never reads that clock."""
        self.trouble = ""
        """Why not every domain and zone could be read at the last sample; empty when all could."""
        self.sampled_at = 0.0
        """When zones and clocks were read last, in seconds since the epoch; 0 before."""
        self.sample_seconds = 0.0
        """How long the last sample took."""
        self.read_domains: frozenset[str] = frozenset()
        """Domains whose use in the last interval is known, by UUID, also if they used nothing."""
        self.unread_zones: frozenset[str] = frozenset()
        """Zones that should have been read and whose use in the last interval is not known, by name."""
        self.times: DomainTimes = {}
        """What domains ran in the last interval, those that ran at all."""
        self.metered = 0.0
        """Seconds that it has metered, including those of earlier meters whose totals it continues."""
        self.model = model
        self._interval_ns = 0
        self.source = source
        self._counters = {zone.name: EnergyCounter(zone) for zone in source.zones}
        self._listed = 0
        self._sys = sys
        self._proc = proc
        self._clock = clock
        self._time = 0
        self._busy_clock = BusyClock(proc, clock)
        self._busy: dict[int, int] = {}
        self._packages: dict[int, list[int]] = {}
        self._package_of: dict[int, int] = {}
        self._roaming: set[str] = set()
        """Domains with threads that have moved from package to package since QEMU was started."""
        self._processes: dict[str, MachineClock] = {}
        self._ended: dict[str, int] = {}
        """PIDs of processes that have ended and that the caller still names."""
        self._drawing: list[Usage] = []
        """Everything that has used energy in the last interval."""

    @property
    def interval_seconds(self) -> float:
        """Length of the last interval; 0 until there is one."""
        return self._interval_ns / 1_000_000_000

    @property
    def domains_watts(self) -> float:
        """Power of all domains together."""
        return math.fsum(domain.watts for domain in self.domains.values())  # the same in any order

    def vcpu_tids(self, uuid: str) -> dict[int, int]:
        """Return the TID of each vCPU of a domain that is followed, by vCPU number; empty for any other."""
        process = self._processes.get(uuid)
        return process.vcpu_tids() if process else {}

    @property
    def lost(self) -> dict[str, int]:
        """How often the count of each zone was lost, so that energy is missing from it and from the charges."""
        return {name: counter.lost for name, counter in self._counters.items()}

    def sample(self, running: Iterable[Running]) -> None:
        """Read everything once and give out the energy since the previous sample.

        A domain that has just ended or cannot be read, or a zone that cannot be read, costs nothing but its own
        reading. Raises OSError or ValueError, with nothing lost, when /proc or sysfs itself cannot be read.
        """
        began, last_time = self._clock(time.CLOCK_MONOTONIC), self._time
        self.read_domains, self.unread_zones, self.times = frozenset(), frozenset(self._counters), {}
        counted, busy, times = self._read(running)
        if last_time:
            self._interval_ns = self._time - last_time
            self.metered += self.interval_seconds
            self.times = times
            self._count(self._give_out(counted, busy, times))
        self.sample_seconds = (self._clock(time.CLOCK_MONOTONIC) - began) / 1_000_000_000

    def _read(self, running: Iterable[Running]) -> tuple[list[tuple[Zone, int]], dict[int, int], DomainTimes]:
        """Read all clocks and counters.

        Return what happened since the last time: what each zone counted, how long each package was busy, and what each
        domain ran.
        """
        # The time in which the machine is suspended counts, because the zones count then too.
        now = self._clock(time.CLOCK_BOOTTIME)
        # What may fail as a whole comes first: after that, everything that the zones have counted is given out.
        busy_now = self._busy_clock.read()
        if busy_now.keys() != self._package_of.keys():  # the first time, and when a CPU goes online or offline
            self._packages = packages(self._sys)
            self._package_of = {cpu: package for package, cpus in self._packages.items() for cpu in cpus}
        self._time, last_busy, self._busy = now, self._busy, busy_now
        self.sampled_at = self._clock(time.CLOCK_REALTIME) / 1_000_000_000
        if not self._listed:
            self._listed = self._time
        elif self._time - self._listed >= LIST_AGAIN_NS:
            self._list_zones()
        readings = [(counter.zone, counter.advance(self._time)) for counter in self._counters.values()]
        busy = {
            package: sum(self._busy[cpu] - last_busy.get(cpu, self._busy[cpu]) for cpu in cpus if cpu in self._busy)
            for package, cpus in self._packages.items()
        }
        runs = self._thread_runs(running)
        times = {uuid: self._domain_times(uuid, ran) for uuid, ran in runs.items() if ran}
        unread = [f"{name}: {counter.trouble}" for name, counter in self._counters.items() if counter.trouble]
        self.trouble = "; ".join(filter(None, [self.trouble, *unread]))
        if self._roaming:
            times = settle(times, self._roaming & times.keys(), busy)
        counted = [(zone, microjoules) for zone, microjoules in readings if microjoules is not None]
        self.read_domains = frozenset(runs)
        self.unread_zones = frozenset(self._counters).difference(zone.name for zone, _ in counted)
        return counted, busy, times

    def _list_zones(self) -> None:
        """Add zones that have appeared, and those that are now in another place."""
        self._listed = self._time
        with contextlib.suppress(OSError, ValueError):
            for zone in self.source.list_zones():
                self._counters.setdefault(zone.name, EnergyCounter(zone)).zone = zone
                self.zones.setdefault(zone.name, ZoneUsage(kind=zone.kind))

    def _thread_runs(self, running: Iterable[Running]) -> dict[str, list[ThreadRun]]:
        """Return what each process's threads ran since the last sample, nothing if it slept; follow new ones."""
        wanted = {domain.uuid: domain for domain in running}
        self._ended = {uuid: pid for uuid, pid in self._ended.items() if uuid in wanted and wanted[uuid].pid == pid}
        self.trouble = ""
        runs = {}
        for uuid, process in list(self._processes.items()):
            try:
                if uuid in wanted and wanted[uuid].pid == process.pid:
                    process.set_vcpus(wanted[uuid].vcpu_tids)
                    runs[uuid] = process.advance()
                    continue
            except ProcessLookupError:
                self._ended[uuid] = process.pid  # another process may have its PID now
            except OSError as error:  # usually too many open files; its clock keeps counting, for a later sample
                self.trouble = str(error)
                continue
            self._processes.pop(uuid).close()
            self._roaming.discard(uuid)
        for uuid in wanted.keys() - self._processes.keys() - self._ended.keys():
            try:
                self._processes[uuid] = MachineClock(
                    wanted[uuid].pid,
                    with_cpu=len(self._packages) > 1,
                    vcpu_tids=wanted[uuid].vcpu_tids,
                    sys=self._sys,
                    proc=self._proc,
                )
            except ProcessLookupError:
                pass
            except OSError as error:
                self.trouble = str(error)
        return runs

    def _give_out(self, counted: list[tuple[Zone, int]], busy: dict[int, int], times: DomainTimes) -> list[_Given]:
        """Give out what each zone counted in the last interval."""
        works = {package: self._work(package, ran, times) for package, ran in busy.items()}
        given = []
        for zone, energy in counted:
            idle_energy = self.zones[zone.name].idle_energy(energy, self._interval_ns)
            charges = attribute(self.model, energy, idle_energy, work_for(zone.package, works))
            vcpus = None
            if zone.kind == "package" and zone.package is not None:
                vcpus = {uuid: among_vcpus(part, times[uuid][zone.package]) for uuid, part in charges.domains.items()}
            given.append(_Given(zone, energy, charges, vcpus))
        return given

    def _work(self, package: int, busy: int, times: DomainTimes) -> Work:
        runs = {uuid: run for uuid, time in times.items() if (run := time[package].total)}
        return Work(self._interval_ns * len(self._packages[package]), busy, runs)

    def _domain_times(self, uuid: str, runs: list[ThreadRun]) -> Places:
        """Divide the time of one domain's threads among packages, half where each was and half where it is."""
        if len(self._packages) == 1:  # where a thread ran does not matter
            return {
                package: _domain_time([(run.vcpu, run.nanoseconds) for run in runs], {}) for package in self._packages
            }
        parts: dict[int, list[tuple[int | None, int]]] = {package: [] for package in self._packages}
        for run in runs:
            before, now, half = self._place(run.cpu_before), self._place(run.cpu), 0
            if before != now:
                self._roaming.add(uuid)
                half = run.nanoseconds // 2
                parts[before].append((run.vcpu, half))
            parts[now].append((run.vcpu, run.nanoseconds - half))
        everywhere = {run.vcpu: 0 for run in runs if run.vcpu is not None}
        return {package: _domain_time(there, everywhere) for package, there in parts.items()}

    def _place(self, cpu: int | None) -> int:
        """Return the package of a CPU. One that has just gone offline, or is not known, counts as the first's."""
        first = next(iter(self._packages))
        return first if cpu is None else self._package_of.get(cpu, first)

    def _count(self, given: list[_Given]) -> None:
        """Add what was given out to the totals, and set the power of each."""
        for usage in self._drawing:
            usage.watts = 0.0
        self._drawing.clear()
        add = self._add
        for zone, energy, charges, vcpus in given:
            counted = self.zones[zone.name]
            add(counted, energy)
            add(counted.other, charges.other)
            add(counted.idle, charges.idle)
            name = zone.name
            for uuid, charge in charges.domains.items():
                add(self.domains[uuid].zones[name], charge)
            if vcpus is not None:  # each die of a package may have a zone
                add(self.other, charges.other)
                add(self.idle, charges.idle)
                for uuid, parts in vcpus.items():
                    domain = self.domains[uuid]
                    add(domain, charges.domains[uuid])
                    for vcpu, part in parts.items():
                        add(domain.vcpus[vcpu], part)

    def _add(self, usage: Usage, microjoules: int) -> None:
        usage.microjoules += microjoules
        usage.watts += microjoules * 1000 / self._interval_ns  # microjoules per nanosecond are kilowatts
        self._drawing.append(usage)


def _domain_time(parts: Iterable[tuple[int | None, int]], everywhere: dict[int, int]) -> DomainTime:
    """Add up what threads of one domain ran on one package; `everywhere` has the vCPUs that it has on any."""
    vcpus: dict[int, int] = {}
    non_vcpu = 0
    for vcpu, nanoseconds in parts:
        if vcpu is None:
            non_vcpu += nanoseconds
        else:
            vcpus[vcpu] = vcpus.get(vcpu, 0) + nanoseconds
    # libvirt knows QEMU's vCPU threads a moment after its start; until then its work is vCPU 0's.
    return DomainTime(vcpus or everywhere or {0: 0}, non_vcpu)
