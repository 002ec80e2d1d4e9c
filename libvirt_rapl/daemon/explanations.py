"""What a document says is wrong, in sentences for people, and its instants as they read them."""

from collections.abc import Iterator
from datetime import datetime

from libvirt_rapl.daemon.document import DomainReading, Host


def of_host(host: Host) -> Iterator[str]:
    """Yield what could not be read of the host."""
    if host.trouble:
        yield f"not everything could be read: {host.trouble}"
    for zone in host.zones:
        if zone.lost_intervals:
            yield (
                f"{zone.name}: lost the count {zone.lost_intervals} times (counter not readable, or read so late that "
                "it may have wrapped more than once); that energy is missing"
            )


def of_meter(domain: DomainReading) -> Iterator[str]:
    """Yield why a domain has no meter although it should."""
    if not domain.reason:
        return
    if domain.vrapl == "degraded":
        since = f" since {local_time(domain.since)}" if domain.since else ""
        yield f"{domain.name} runs without its meter{since}: {domain.reason}"
    else:
        who = f"{domain.name} gets no meter at its next start, though the configuration's `domains` choose it"
        yield f"{who}: {domain.reason}"


def of_channel(domain: DomainReading) -> Iterator[str]:
    """Yield why a guest gets nothing by its channel."""
    if domain.channel_reason:
        yield f"{domain.name}: channel {domain.channel}: {domain.channel_reason}"


def of_helper(domain: DomainReading) -> Iterator[str]:
    """Yield what else is worth knowing about a domain's helper."""
    if domain.helper and domain.helper.note:
        yield f"{domain.name}: {domain.helper.note}"


def local_time(instant: str) -> str:
    """Return an instant of a document in local time."""
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M:%S")
