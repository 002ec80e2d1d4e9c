"""What virt-rapld shows: one immutable document per sample, which `status --json` prints and every client gets.

Its fields are a contract (schema 1): some may be added, with a default for daemons that do not send them yet; none
changes its meaning. Energies are in joules since counting began, and only grow; powers are in watts, over the last
interval. Instants are ISO 8601 in UTC, to the second where nothing else is said.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from libvirt_rapl.choices import Backend, ChannelState, MeterState
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host.energy_source import Listing

SCHEMA = 1

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a domain has used of one kind of zone."""

    power_watts: float
    energy_joules: float


@dataclass(frozen=True, kw_only=True)
class Vcpu:
    """One vCPU of a domain."""

    id: int
    tid: int | None
    """Its thread; None when it is not followed."""
    power_watts: float
    energy_joules: float


@dataclass(frozen=True, kw_only=True)
class HelperState:
    """The helper of a domain."""

    backend: Backend
    pid: int | None
    socket: str
    """Path of its socket."""
    healthy: bool
    """Whether it runs and QEMU is connected to it, as far as can be seen."""
    note: str | None = None
    """Anything else worth knowing about it."""


@dataclass(frozen=True, kw_only=True)
class DomainReading:
    """One domain; its energy is that of the packages, and its vCPUs share it."""

    name: str
    uuid: str
    title: str = ""
    """Of at most 256 characters, as labels are; left out of JSON if there is none."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Those that the configuration wants, by name; left out of JSON if there are none."""
    id: int | None
    """libvirt's number of the domain while it runs."""
    state: str
    """virsh's word."""
    pid: int | None
    """QEMU's main process."""
    vrapl: MeterState
    by: Literal["policy", ""] = ""
    """`policy` if the configuration alone has given it its meter, without a mark; else empty and left out of JSON."""
    reason: str | None
    """Why it has no meter although it should."""
    since: str | None = None
    """Since when it is degraded."""
    helper: HelperState | None
    channel: ChannelState = "off"
    channel_reason: str | None = None
    """Why lines of energy do not reach the guest although it has a channel; left out of JSON if there is no reason."""
    channel_pending: bool = False
    """Whether it has its channel only from its next start on; else left out of JSON."""
    channel_socket: str | None = None
    """Path of QEMU's socket for the channel while the domain runs; left out of JSON if there is none."""
    unread: bool = False
    """Whether what it ran in the last interval could not be read: its powers and its CPU time are 0 and not known."""
    cpu_percent: float | None = None
    """CPU time of its processes over the last interval; 100 is one CPU. None from a daemon that does not send it."""
    power_watts: float
    energy_joules: float
    zones: Mapping[str, Reading]
    """By the kind of zone: `package`, `core`, `uncore`, `dram`, `psys`."""
    vcpus: tuple[Vcpu, ...]


@dataclass(frozen=True, kw_only=True)
class Zone:
    """One zone; the parts of domains, other and idle add up to what it counted."""

    name: str
    power_watts: float
    energy_joules: float
    domains_joules: float
    other_joules: float
    idle_joules: float
    lost_intervals: int = 0
    """In how many intervals its count was lost; left out of JSON if there are none."""
    unread: bool = False
    """Whether it could not be read in the last interval, so that its power, 0, is not known; else left out of JSON."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine; powers of domains, other and idle are those of the packages."""

    source: Listing | Literal["simulated"]
    """Where energy is read."""
    model: str | None
    """The processor."""
    since: str
    """When counting began."""
    interval_seconds: float
    """Length of the last interval; 0 until there is one."""
    sampled_at: str | None = None
    """When the counters were read last, to the millisecond; None if not yet, or by a daemon that does not send it."""
    sample_seconds: float | None = None
    """How long the last sample took; None if there has been none."""
    overruns: int | None = None
    """How many samples of this daemon began more than an interval later than they should have; None if unknown."""
    zones: tuple[Zone, ...]
    domains_watts: float
    other_watts: float
    idle_watts: float
    trouble: str = ""
    """What could not be read, libvirt included; left out of JSON if empty."""
    libvirt_trouble: str = ""
    """Why libvirt could not be asked, so that there may be more domains; left out of JSON if it could."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """All that is shown of one sample, with the domains sorted by name."""

    schema: int = SCHEMA
    version: str = ""
    """Of the virt-rapl that made it; empty if that is older than this field."""
    host: Host
    domains: tuple[DomainReading, ...]
    ended: tuple[DomainReading, ...] = ()
    """Domains that libvirt has ceased to know in the last hour, and what they had used; left out of JSON if empty."""


SAID_WHERE_THERE_ARE_ANY = {
    "by",
    "trouble",
    "libvirt_trouble",
    "lost_intervals",
    "unread",
    "title",
    "labels",
    "ended",
    "channel_reason",
    "channel_pending",
    "channel_socket",
}
LEAVE_OUT = (Document, Host, Zone, DomainReading)
"""What leaves them out; of its other parts a document has thousands."""


def render(document: Document, indent: int | None = None) -> str:
    """Return the document as JSON."""
    return json.dumps(document, default=_members, indent=indent, check_circular=False)


def _members(part: Any) -> dict[str, Any]:  # noqa: ANN401  any part of a document
    members: dict[str, Any] = vars(part)
    if type(part) in LEAVE_OUT:
        return {name: value for name, value in members.items() if value or name not in SAID_WHERE_THERE_ARE_ANY}
    return members


def read(values: Mapping[str, Any]) -> Document:
    """Return the document in this JSON, which may come from a daemon of another version.

    Unknown fields are left out. Raises VirtRaplError if a field is missing that all versions have.
    """
    try:
        host = values["host"]
        return Document(
            version=values.get("version", ""),
            host=_read(Host, host, zones=tuple(_read(Zone, zone) for zone in host["zones"])),
            domains=tuple(map(_domain, values["domains"])),
            ended=tuple(map(_domain, values.get("ended", ()))),
        )
    except (TypeError, KeyError) as error:
        raise not_understood(error) from error


def not_understood(error: Exception) -> VirtRaplError:
    """Return what to say when a document does not have what all versions have."""
    hint = "systemctl restart virt-rapld: it is of another version"
    return VirtRaplError(f"cannot understand the answer of virt-rapld: {error}", hint)


def _domain(values: Mapping[str, Any]) -> DomainReading:
    return _read(
        DomainReading,
        values,
        helper=_read(HelperState, values["helper"]) if values["helper"] else None,
        zones={kind: _read(Reading, reading) for kind, reading in values["zones"].items()},
        vcpus=tuple(_read(Vcpu, vcpu) for vcpu in values["vcpus"]),
    )


def _read(kind: type[Part], values: Mapping[str, Any], **parts: object) -> Part:
    """Make a part of this kind from its fields in `values`, and from `parts` that are made already."""
    known = {field.name: values[field.name] for field in fields(kind) if field.name in values}  # type: ignore[arg-type]
    return kind(**{**known, **parts})
