"""The meter: samples zones and clocks, and adds up what each domain and vCPU has used since the meter began.

One sample reads everything once; whoever owns the meter decides when. Energy is attributed from the package zones;
other zones are told as the host's. What a domain runs before it is first sampled, and after it is last, is `other`.
A domain is its QEMU and the processes that serve it in its cgroup.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from libvirt_rapl.attribution import Charges, DomainTime, capacity
from libvirt_rapl.host.cgroups import MachineClock
from libvirt_rapl.host.clocks import ThreadRun, boot_nanoseconds
from libvirt_rapl.host.cpus import busy_nanoseconds, packages
from libvirt_rapl.host.processes import PROC, vcpu_number
from libvirt_rapl.host.source import Source
from libvirt_rapl.host.zones import EnergyCounter

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
class DomainUsage(Usage):
    """What a domain has used, and each of its vCPUs; theirs add up to the domain's."""

    vcpus: dict[int, Usage] = field(default_factory=dict)


class Meter:
    """Call sample() at the beginning and then once an interval; read the rest in between."""

    def __init__(
        self, source: Source, *, sys: Path, proc: Path = PROC, clock: Callable[[], int] = boot_nanoseconds
    ) -> None:
        """Take the zones and the roots of sysfs and /proc. Nothing is read yet.

        `clock` tells nanoseconds; those in which the machine is suspended count, as the zones count them too.
        """
        self.zones = {zone.name: Usage() for zone in source.zones}
        self.domains: dict[str, DomainUsage] = {}
        """By UUID. A domain stays when its process ends: it may be started again."""
        self.other = Usage()
        self.idle = Usage()
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

    @property
    def interval_seconds(self) -> float:
        """Length of the last interval; 0 until there is one."""
        return self._interval_ns / 1_000_000_000

    @property
    def domains_watts(self) -> float:
        """Power of all domains together."""
        return sum(domain.watts for domain in self.domains.values())

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
        energy: Counter[int] = Counter()
        for zone, microjoules in counted:
            if microjoules is not None:
                self.zones[zone.name].add(microjoules, self._interval_ns)
                if zone.kind == "package" and zone.package in self._packages:
                    energy[zone.package] += microjoules  # a package of several dies has a zone for each
        for package, microjoules in energy.items():
            cpus = self._packages[package]
            busy = sum(self._busy[cpu] - last_busy.get(cpu, self._busy[cpu]) for cpu in cpus if cpu in self._busy)
            package_times = {uuid: times[package] for uuid, times in domain_times.items()}
            self._add(capacity(microjoules, self._interval_ns, len(cpus), busy, package_times))

    def _list_zones(self) -> None:
        """Take up zones that appeared, and those that are now found in another place."""
        self._listed = self._time
        with contextlib.suppress(OSError, ValueError):
            for zone in self._source.list_zones():
                self._counters.setdefault(zone.name, EnergyCounter(zone)).zone = zone
                self.zones.setdefault(zone.name, Usage())

    def _thread_runs(self, processes: Iterable[tuple[str, int]]) -> dict[str, list[ThreadRun]]:
        """What the threads of each process ran since the previous sample; one that is new is followed from now on."""
        wanted = dict(processes)
        runs = {}
        for uuid, process in list(self._processes.items()):
            try:
                if wanted.get(uuid) == process.pid:
                    runs[uuid] = process.advance()
                    continue
            except ProcessLookupError:
                pass  # it has gone; a new process may have its PID
            self._processes.pop(uuid).close()
        for uuid in wanted.keys() - self._processes.keys():
            with contextlib.suppress(ProcessLookupError):
                self._processes[uuid] = MachineClock(
                    wanted[uuid], with_cpu=len(self._packages) > 1, sys=self._sys, proc=self._proc
                )
        return runs

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

    def _add(self, charges: Charges) -> None:
        self.other.add(charges.other, self._interval_ns)
        self.idle.add(charges.idle, self._interval_ns)
        for uuid, vcpus in charges.vcpus.items():
            domain = self.domains.setdefault(uuid, DomainUsage())
            domain.add(sum(vcpus.values()), self._interval_ns)
            for vcpu, microjoules in vcpus.items():
                domain.vcpus.setdefault(vcpu, Usage()).add(microjoules, self._interval_ns)

    def _usages(self) -> Iterator[Usage]:
        yield from (*self.zones.values(), self.other, self.idle)
        for domain in self.domains.values():
            yield from (domain, *domain.vcpus.values())
