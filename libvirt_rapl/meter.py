"""The meter: samples zones and clocks, and adds up what each domain and vCPU has used since the meter began.

One sample reads everything once; whoever owns the meter decides when. Every zone is given out to the domains, other and
idle; a domain's energy as a whole is that of the package zones, which its guest's own counter shows, and its vCPUs
share it. What a domain runs before it is first sampled, and after it is last, is `other`. A domain is its QEMU and the
processes that serve it in its cgroup.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from libvirt_rapl.attribution import Charges, DomainTime, Work, among_vcpus, attribute, together
from libvirt_rapl.host.cgroups import MachineClock
from libvirt_rapl.host.clocks import ThreadRun, boot_nanoseconds
from libvirt_rapl.host.cpus import busy_nanoseconds, packages
from libvirt_rapl.host.processes import PROC, vcpu_number
from libvirt_rapl.host.source import Source
from libvirt_rapl.host.zones import EnergyCounter, Zone

LIST_AGAIN_NS = 10_000_000_000
"""How often zones are looked for that were not there before."""


@dataclass
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

    def add(self, microjoules: int, interval_ns: int) -> None:
        """Add energy of the current interval."""
        self.microjoules += microjoules
        self.watts += microjoules * 1000 / interval_ns  # microjoules per nanosecond are kilowatts


@dataclass
class ZoneUsage(Usage):
    """What a zone has counted, and how much of it is no domain's; the domains' parts make up the rest."""

    kind: str = "package"
    other: Usage = field(default_factory=Usage)
    idle: Usage = field(default_factory=Usage)
    lowest: tuple[int, int] = (0, 0)
    """Energy and nanoseconds of the interval of lowest power so far; no time when there has been none."""

    def idle_energy(self, microjoules: int, interval_ns: int) -> int:
        """Tell what the zone uses in such an interval when nothing runs, after it counted `microjoules` in this one.

        Taken for it is the lowest power seen so far, this interval included. The true idle power is never higher: it
        is the best that can be known without a guess, and gets better whenever the host is quieter than before.
        """
        self.learn(microjoules, interval_ns)
        lowest, lowest_ns = self.lowest
        return lowest * interval_ns // lowest_ns

    def learn(self, microjoules: int, interval_ns: int) -> None:
        """Take in that the zone counted `microjoules` in an interval: its power may be the lowest so far."""
        lowest, lowest_ns = self.lowest
        if microjoules * lowest_ns <= lowest * interval_ns:  # the first time, too
            self.lowest = microjoules, interval_ns


@dataclass
class DomainUsage(Usage):
    """What a domain has used of the packages, and each of its vCPUs; theirs add up to the domain's."""

    vcpus: defaultdict[int, Usage] = field(default_factory=lambda: defaultdict(Usage))
    zones: defaultdict[str, Usage] = field(default_factory=lambda: defaultdict(Usage))
    """What it has used of every zone, by the zone's name."""
    last_ran: float = 0.0
    """When it was last seen to run, in seconds since the epoch; see libvirt_rapl.totals."""


class Meter:
    """Call sample() at the beginning and then once an interval; read the rest in between."""

    def __init__(
        self,
        source: Source,
        *,
        sys: Path,
        proc: Path = PROC,
        model: str = "capacity",
        clock: Callable[[], int] = boot_nanoseconds,
    ) -> None:
        """Take the zones, the roots of sysfs and /proc, and the `model` of libvirt_rapl.attribution.

        `clock` tells nanoseconds; those in which the machine is suspended count, as the zones count them too. Nothing
        is read yet.
        """
        self.zones = {zone.name: ZoneUsage(kind=zone.kind) for zone in source.zones}
        self.domains: defaultdict[str, DomainUsage] = defaultdict(DomainUsage)
        """By UUID. A domain stays when its process ends: it may be started again."""
        self.other = Usage()
        """Of the packages, as `idle`."""
        self.idle = Usage()
        self._model = model
        self._interval_ns = 0
        self._source = source
        self._counters = {zone.name: EnergyCounter(zone) for zone in source.zones}
        self._listed = 0
        self._sys = sys
        self._proc = proc
        self._clock = clock
        self._time = 0
        self._busy: dict[int, int] = {}
        self._packages: dict[int, list[int]] = {}
        self._package_of: dict[int, int] = {}
        self._processes: dict[str, MachineClock] = {}
        self._ended: dict[str, int] = {}
        """PIDs of processes that have ended and that the caller still names."""

    @property
    def interval_seconds(self) -> float:
        """Length of the last interval; 0 until there is one."""
        return self._interval_ns / 1_000_000_000

    @property
    def domains_watts(self) -> float:
        """Power of all domains together."""
        return sum(domain.watts for domain in self.domains.values())

    def vcpu_tids(self, uuid: str) -> dict[int, int]:
        """Return the TID of each vCPU of a domain that is followed, by vCPU number; empty for any other."""
        process = self._processes.get(uuid)
        return process.vcpu_tids() if process else {}

    def zones_of(self, uuid: str) -> dict[str, Usage]:
        """Return what a domain has used of each kind of zone that the host has: `package` and others."""
        kinds = {zone.kind: Usage() for zone in self.zones.values()}
        for name, usage in self.domains.get(uuid, DomainUsage()).zones.items():
            kind = kinds[self.zones[name].kind]
            kind.microjoules += usage.microjoules
            kind.watts += usage.watts
        return kinds

    @property
    def lost(self) -> dict[str, int]:
        """How often the count of each zone was broken, so that energy is missing from it and from the charges."""
        return {name: counter.lost for name, counter in self._counters.items()}

    def sample(self, processes: Iterable[tuple[str, int]]) -> None:
        """Read everything once and give out the energy since the previous sample.

        `processes`: UUID and PID of each running domain. One that has just ended, or a zone that cannot be read, costs
        nothing but its own reading. Raises OSError or ValueError when /proc or sysfs itself does not tell.
        """
        last_time, self._time = self._time, self._clock()
        if not last_time:
            self._listed = self._time
        elif self._time - self._listed >= LIST_AGAIN_NS:
            self._list_zones()
        counted = [(counter.zone, counter.advance(self._time)) for counter in self._counters.values()]
        last_busy, self._busy = self._busy, busy_nanoseconds(self._proc)
        if self._busy.keys() != self._package_of.keys():  # the first time, and when a CPU goes on or off line
            self._packages = packages(self._sys)
            self._package_of = {cpu: package for package, cpus in self._packages.items() for cpu in cpus}
        domain_times = {uuid: self._domain_times(runs) for uuid, runs in self._thread_runs(processes).items()}
        if not last_time:
            return
        self._interval_ns = self._time - last_time
        for usage in self._usages():
            usage.watts = 0.0
        works = {package: self._work(package, last_busy, domain_times) for package in self._packages}
        machine = together(works.values())
        for zone, microjoules in counted:
            if microjoules is not None:
                # Nobody runs on a package none of whose CPUs is online.
                work = machine if zone.package is None else works.get(zone.package, Work(0, 0, {}))
                self._add(zone, microjoules, work, domain_times)

    def _list_zones(self) -> None:
        """Take up zones that appeared, and those that are now found in another place."""
        self._listed = self._time
        with contextlib.suppress(OSError, ValueError):
            for zone in self._source.list_zones():
                self._counters.setdefault(zone.name, EnergyCounter(zone)).zone = zone
                self.zones.setdefault(zone.name, ZoneUsage(kind=zone.kind))

    def _thread_runs(self, processes: Iterable[tuple[str, int]]) -> dict[str, list[ThreadRun]]:
        """What the threads of each process ran since the previous sample; one that is new is followed from now on."""
        wanted = dict(processes)
        self._ended = {uuid: pid for uuid, pid in self._ended.items() if wanted.get(uuid) == pid}
        runs = {}
        for uuid, process in list(self._processes.items()):
            try:
                if wanted.get(uuid) == process.pid:
                    runs[uuid] = process.advance()
                    continue
            except ProcessLookupError:
                self._ended[uuid] = process.pid  # another process may have its PID now
            self._processes.pop(uuid).close()
        for uuid in wanted.keys() - self._processes.keys() - self._ended.keys():
            with contextlib.suppress(ProcessLookupError):
                self._processes[uuid] = MachineClock(
                    wanted[uuid], with_cpu=len(self._packages) > 1, sys=self._sys, proc=self._proc
                )
        return runs

    def _work(self, package: int, last_busy: dict[int, int], domains: dict[str, dict[int, DomainTime]]) -> Work:
        cpus = self._packages[package]
        busy = sum(self._busy[cpu] - last_busy.get(cpu, self._busy[cpu]) for cpu in cpus if cpu in self._busy)
        runs = {uuid: times[package].total for uuid, times in domains.items()}
        return Work(self._interval_ns * len(cpus), busy, runs)

    def _domain_times(self, runs: list[ThreadRun]) -> dict[int, DomainTime]:
        """Sort the threads of one domain by the package they ran on last."""
        vcpus: dict[int, dict[int, int]] = {package: {} for package in self._packages}
        non_vcpu = dict.fromkeys(self._packages, 0)
        first = min(self._packages)
        for run in runs:
            # With one package nobody asks where a thread ran; a CPU that has just gone off line is the first's.
            package = first if run.cpu is None else self._package_of.get(run.cpu, first)
            vcpu = vcpu_number(run.name)
            if vcpu is None:
                non_vcpu[package] += run.nanoseconds
            else:
                vcpus[package][vcpu] = run.nanoseconds
        # QEMU makes its vCPU threads a moment after its start; until then its work is vCPU 0's.
        everywhere = {vcpu: 0 for times in vcpus.values() for vcpu in times} or {0: 0}
        return {package: DomainTime(times or everywhere, non_vcpu[package]) for package, times in vcpus.items()}

    def _add(self, zone: Zone, microjoules: int, work: Work, domains: dict[str, dict[int, DomainTime]]) -> None:
        """Give out what a zone counted in the last interval."""
        interval, counted = self._interval_ns, self.zones[zone.name]
        charges = attribute(self._model, microjoules, counted.idle_energy(microjoules, interval), work)
        counted.add(microjoules, interval)
        counted.other.add(charges.other, interval)
        counted.idle.add(charges.idle, interval)
        for uuid, charge in charges.domains.items():
            self.domains[uuid].zones[zone.name].add(charge, interval)
        if zone.kind == "package" and zone.package is not None:
            self._add_package(zone.package, charges, domains)

    def _add_package(self, package: int, charges: Charges, domains: dict[str, dict[int, DomainTime]]) -> None:
        """Add to what is told of the packages as a whole; each die of a package may have a zone."""
        self.other.add(charges.other, self._interval_ns)
        self.idle.add(charges.idle, self._interval_ns)
        for uuid, charge in charges.domains.items():
            domain = self.domains[uuid]
            domain.add(charge, self._interval_ns)
            for vcpu, part in among_vcpus(charge, domains[uuid][package]).items():
                domain.vcpus[vcpu].add(part, self._interval_ns)

    def _usages(self) -> Iterator[Usage]:
        yield from (self.other, self.idle)
        for zone in self.zones.values():
            yield from (zone, zone.other, zone.idle)
        for domain in self.domains.values():
            yield from (domain, *domain.zones.values(), *domain.vcpus.values())
