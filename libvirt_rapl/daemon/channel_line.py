"""The lines that guests get through their channels, made of virt-rapld's document, and how virt-rapl-channel gets them.

A line has fewer fields than the document: the guest's own energy, and nothing that names the host or another domain. A
reading that is missing is absent, never 0. No I/O.

The lines, of which there may be 500 each second, are put together as text: that takes a third of the time. A test holds
that this is what `json.dumps` makes.
"""

import json

from libvirt_rapl.daemon import document
from libvirt_rapl.daemon.document import Document, DomainReading, Host, Reading, Vcpu
from libvirt_rapl.host.zones import kind_of

SCHEMA = 1


def render(shown: Document, host_id: str) -> bytes:
    """Return the lines of all running guests with a channel for virt-rapl-channel, as JSON in one line.

    `guests` has of each the UUID, name, QEMU's PID, path of the channel's socket, and line; `sampled_at` is that of the
    document. `host_id` is the opaque id by which guests may know the host.
    """
    lines = Lines(shown.host, host_id)
    guests = [
        (domain.uuid, domain.name, domain.pid, domain.channel_socket, lines.line(domain))
        for domain in shown.domains
        if domain.channel_socket
    ]
    return json.dumps({"schema": document.SCHEMA, "sampled_at": shown.host.sampled_at, "guests": guests}).encode()


class Lines:
    """Makes the lines of one document."""

    def __init__(self, host: Host, host_id: str) -> None:
        """Take the host of a document, and the opaque id by which guests may know it."""
        head = {
            "schema": SCHEMA,
            "time": host.sampled_at,
            "host": host_id,
            "since": host.since,
            "source": host.source,
            "simulated": host.source == "simulated",
        }
        self._head = f'{json.dumps(head).removesuffix("}")}, "interval_seconds": {host.interval_seconds}'
        zones = [(kind_of(zone.name), zone) for zone in host.zones]
        self._counted = {kind for kind, zone in zones if zone.energy_joules or not zone.unread}
        """Kinds of zones that have been read at least once."""
        self._read = self._counted - {kind for kind, zone in zones if zone.unread}
        """Kinds of zones of which all were read in the last interval."""

    def line(self, domain: DomainReading) -> str:
        """Return a domain's line, with its line end; empty if nothing of it has been read yet."""
        if "package" not in self._counted or (domain.unread and not domain.energy_joules):
            return ""
        read = () if domain.unread else self._read
        figures = _both if "package" in read else _energy
        zones = ", ".join(
            [
                f'"{kind}": {{{_both(zone) if kind in read else _energy(zone)}}}'
                for kind, zone in domain.zones.items()
                if kind in self._counted
            ]
        )
        vcpus = ", ".join([f'{{"id": {vcpu.id}, {figures(vcpu)}}}' for vcpu in domain.vcpus])
        return f'{self._head}, {figures(domain)}, "zones": {{{zones}}}, "vcpus": [{vcpus}]}}\n'


def _both(part: DomainReading | Reading | Vcpu) -> str:
    return f'"power_watts": {part.power_watts}, "energy_joules": {part.energy_joules}'


def _energy(part: DomainReading | Reading | Vcpu) -> str:
    return f'"energy_joules": {part.energy_joules}'
