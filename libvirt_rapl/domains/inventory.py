"""Which domains there are: from libvirt, kept up to date by its events, and without it from its run-time files."""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal

from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.connection import connect, subscribed
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, DomainGoneError, every_domain, lookup_uuid
from libvirt_rapl.domains.run_files import RunState, read_run_state, running_domains, written
from libvirt_rapl.errors import UnreadableError, VirtRaplError, explain
from libvirt_rapl.host.processes import start_time
from libvirt_rapl.labels import Labels

BACKOFF_SECONDS = (1.0, 2.0, 3.0)
"""Waits between attempts to reach libvirt; the last one is repeated."""

NO_LABELS = Labels()

STARTING_SECONDS, VCPUS_SECONDS = 1.0, 2.0
"""How often to look for the process of a starting domain, and for vCPUs that were plugged or unplugged."""

GONE_SECONDS = 3600.0
"""How long a domain is remembered that libvirt does not know any more: somebody may still want to read its energy."""

Mark = Literal["live", "next"]
"""The mark says that the domain has registers as it runs, or only from its next start on."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One domain."""

    name: str
    uuid: str
    id: int | None
    state: str
    """virsh's word."""
    pid: int | None
    """QEMU's main process; None when the domain does not run."""
    vcpu_tids: dict[int, int] = field(default_factory=dict)
    """Thread of each vCPU by its number, as far as libvirt has recorded them."""
    mark: Mark | None
    """Whether the domain has registers; None if not."""
    channel: Channel | None = None
    """Its energy channel, as it runs or from its next start on."""
    title: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """By name, those that the configuration wants and its metadata has."""


def describe(domain: Domain, labels: Labels = NO_LABELS) -> Entry:
    """Ask libvirt for all that an entry holds. Raises VirtRaplError; DomainGoneError when it is gone."""
    live = _readable(domain.live) if domain.active else None
    following = _readable(domain.definition)
    mark: Mark | None = "next" if following and following.has_registers else None
    if live and live.has_registers:
        mark = "live"
    channel = live.channel if live else None
    if channel is None and following:
        channel = _next(following.channel)
    definition = live or following
    state = run_state(domain)
    pid, vcpu_tids = (state.pid, state.vcpu_tids) if state else (None, {})
    return Entry(
        name=domain.name,
        uuid=domain.uuid,
        id=domain.id,
        state=domain.state,
        pid=pid,
        vcpu_tids=vcpu_tids,
        mark=mark,
        channel=channel,
        title=definition.title if definition else "",
        labels=definition.labels(labels) if definition else {},
    )


def _readable(read: Callable[[], Definition]) -> Definition | None:
    """Return a definition; None if its metadata make it unreadable: then nothing is known of it."""
    try:
        return read()
    except UnreadableError:
        return None


def run_state(domain: Domain) -> RunState | None:
    """Return the process and threads of a domain; None when it does not run.

    Raises VirtRaplError when libvirt's run-time files may not be read.
    """
    try:
        return read_run_state(domain.name) if domain.active else None
    except PermissionError as error:
        raise VirtRaplError(f"may not read {error.filename}", "run as root") from error


def describe_all(found: Iterable[Domain], labels: Labels = NO_LABELS) -> list[Entry]:
    """Describe listed domains; one that has gone since, such as a transient one that has ended, is left out."""
    entries = []
    for domain in found:
        with contextlib.suppress(DomainGoneError):
            entries.append(describe(domain, labels))
    return entries


class Inventory:
    """Follows the domains in a thread of its own, so that readers of `entries` never wait for libvirt.

    While libvirt cannot be reached, running domains stay listed, and those that libvirt recorded as running are found.
    """

    def __init__(
        self,
        uri: str,
        log: Callable[[str], None],
        changed: Callable[[Iterable[str]], None] = lambda _: None,
        labels: Labels = NO_LABELS,
    ) -> None:
        """Take libvirt's URI and the labels to find; `log` takes a line when libvirt is lost and when it is back.

        `changed` takes the UUIDs of domains that have come, changed or gone; called in our thread, it must not wait.
        """
        self.entries: dict[str, Entry] = {}
        """By UUID. Replaced as a whole at each change, never changed in place."""
        self.listed = False
        """Whether libvirt has listed its domains since we began: it knows none that is not in `entries`."""
        self.attempted = threading.Event()
        """Set when the domains have been listed for the first time, with libvirt or without."""
        self._uri = uri
        self._log = log
        self._changed = changed
        self._labels = labels
        self._gone: dict[str, tuple[float, Entry]] = {}
        """When each domain that libvirt does not know any more was last known, and as what; replaced as a whole."""
        self.trouble = ""
        """Why libvirt cannot be reached; empty while it can."""
        self._attempts = 0
        self._written: dict[str, tuple[int, int] | None] = {}
        """The state of each running domain's status file when it was last read; by UUID."""

    def start(self) -> None:
        """Start following; domains that libvirt recorded as running are found at once, whether it answers or not."""
        self._follow_run_state()
        threading.Thread(target=self._run, name="inventory", daemon=True).start()

    def seen(self) -> list[Entry]:
        """Return the entries, after a look at their processes: an ended one is seen before libvirt reports it."""
        return [_without_dead_process(entry) for entry in self.entries.values()]

    def gone(self) -> list[Entry]:
        """Return the domains that libvirt has ceased to know in the last hour, as a transient one that ended."""
        since = time.monotonic() - GONE_SECONDS
        return [entry for last, entry in self._gone.values() if last >= since]

    def _replace(self, entries: dict[str, Entry]) -> None:
        """Set `entries`, and remember those that are not among them any more."""
        now = time.monotonic()
        gone = self._gone | {uuid: (now, _ended(entry)) for uuid, entry in self.entries.items()}
        self._gone = {
            uuid: (last, entry)
            for uuid, (last, entry) in gone.items()
            if uuid not in entries and last >= now - GONE_SECONDS
        }
        self.entries = entries

    def _run(self) -> None:
        while True:
            try:
                self._follow()
            except Exception as error:  # whatever it is, domains come and go, and libvirt may be back soon
                before, self.trouble = self.trouble, explain(error)
                if not before:
                    self._log(f"without libvirt for now: {self.trouble}; running domains are still metered")
            self._follow_run_state()
            self.attempted.set()
            time.sleep(BACKOFF_SECONDS[min(self._attempts, len(BACKOFF_SECONDS) - 1)])
            self._attempts += 1

    def _follow(self) -> None:
        """List the domains and follow every change until libvirt is lost, which raises VirtRaplError."""
        changes: SimpleQueue[str | None] = SimpleQueue()
        connection = connect(self._uri, read_only=True)
        with subscribed(connection, changed=changes.put, lost=lambda: changes.put(None)):
            self._replace(self._by_uuid(every_domain(connection)))
            self.listed = True
            if self.trouble:
                self._log("libvirt is back")
            self.trouble, self._attempts = "", 0
            self.attempted.set()
            self._changed(self.entries)
            while (changed := self._next_changed(changes)) is not None:
                if changed:
                    found = [domain for uuid in changed if (domain := lookup_uuid(connection, uuid))]
                    others = {uuid: entry for uuid, entry in self.entries.items() if uuid not in changed}
                    self._replace(others | self._by_uuid(found))
                    self._changed(changed)
                self._follow_devices()
        raise VirtRaplError(f"libvirt at {self._uri} closed the connection")

    def _next_changed(self, changes: SimpleQueue[str | None]) -> set[str] | None:
        """Wait for a change, for VCPUS_SECONDS at most, and return the domain's UUID; None when libvirt is lost."""
        # A starting domain that has no process yet will get one without another event.
        starting = {entry.uuid for entry in self.entries.values() if entry.id is not None and entry.pid is None}
        try:
            uuid = changes.get(timeout=STARTING_SECONDS if starting else VCPUS_SECONDS)
        except Empty:
            return starting
        return None if uuid is None else {uuid}

    def _follow_devices(self) -> None:
        """Find vCPUs and channels that were plugged, unplugged or opened: libvirt has no event, but writes the file."""
        before, self._written = self._written, {}
        found = {}
        for uuid, entry in self.entries.items():
            if entry.pid is None:
                continue
            now = self._written[uuid] = written(entry.name)
            if now == before.get(uuid):
                continue
            with contextlib.suppress(PermissionError):
                state = read_run_state(entry.name)
                if state and state.pid == entry.pid and state.vcpu_tids:
                    channel = state.channel or _next(entry.channel)
                    found[uuid] = dataclasses.replace(entry, vcpu_tids=state.vcpu_tids, channel=channel)
        self.entries = self.entries | found

    def _follow_run_state(self) -> None:
        """Find which domains run, without libvirt; definitions cannot be seen and stay as they were."""
        entries = {uuid: _without_dead_process(entry) for uuid, entry in self.entries.items()}
        for found in running_domains():
            definition = _readable(functools.partial(Definition.parse, found.xml))
            entries[found.uuid] = Entry(
                name=found.name,
                uuid=found.uuid,
                id=found.id,
                state=found.state,
                pid=found.pid,
                vcpu_tids=found.vcpu_tids,
                mark="live" if definition and definition.has_registers else None,
                channel=definition.channel if definition else None,
                title=definition.title if definition else "",
                labels=definition.labels(self._labels) if definition else {},
            )
        self.entries = entries

    def _by_uuid(self, found: Iterable[Domain]) -> dict[str, Entry]:
        return {entry.uuid: entry for entry in describe_all(found, self._labels)}


def _without_dead_process(entry: Entry) -> Entry:
    if entry.pid is None or start_time(entry.pid) is not None:
        return entry
    # Only libvirt knows whether its next start will have the mark and the channel; usually it will.
    return dataclasses.replace(_ended(entry), mark="next" if entry.mark else None, channel=_next(entry.channel))


def _ended(entry: Entry) -> Entry:
    return dataclasses.replace(entry, id=None, state="shut off", pid=None, vcpu_tids={}, mark=None, channel=None)


def _next(channel: Channel | None) -> Channel | None:
    """Return what is known of a channel that is not there now, and may be from the next start on."""
    return channel and Channel(None, open=False)
