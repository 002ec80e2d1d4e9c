"""Everything that is shown: the document, what is known of today, trends, and how current all that is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

from libvirt_rapl.daemon import explanations
from libvirt_rapl.daemon.document import Document, DomainReading
from libvirt_rapl.top.trends import Trends

Unit = Literal["W", "J", "kWh"]
"""Power, or energy since counting began in one of two units."""

DIGITS: Mapping[Unit, int] = {"W": 2, "J": 0, "kWh": 4}
"""After the point."""
JOULES_PER_KWH = 3_600_000
OLD_SECONDS = 5.0
"""After so long without a document, figures are called old."""


@dataclass(frozen=True, kw_only=True)
class Today:
    """What the history knows of this day, and what a kilowatt hour costs now."""

    kwh: Mapping[str, float] | None = None
    """By UUID; None if there is no history of today. A domain that has used nothing is not there."""
    price: Decimal | None = None
    """Of a kilowatt hour as the configuration's PUE makes it; None if it is not known."""
    currency: str = ""
    """Empty if the configuration has no tariff."""
    trouble: str = ""
    """Why something of this is not known."""

    def kwh_of(self, uuid: str) -> float | None:
        """Return the kilowatt hours that a domain has used today; None if that is not known."""
        return None if self.kwh is None else self.kwh.get(uuid, 0.0)

    def cost_of(self, watts: float) -> float | None:
        """Return what an hour at this power costs; None if that is not known."""
        return None if self.price is None else float(self.price) * watts / 1000


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is known at one moment."""

    document: Document
    is_own: bool = False
    """Whether it is of samples of our own, and not virt-rapld's."""
    silent_seconds: float = 0.0
    """How long no document has come."""
    is_away: bool = False
    """Whether virt-rapld has gone."""
    today: Today = Today()
    trends: Trends = field(default_factory=Trends)

    @property
    def clock(self) -> str:
        """Local time of the document."""
        sampled = self.document.host.sampled_at
        return f"{datetime.fromisoformat(sampled).astimezone():%H:%M:%S}" if sampled else "unknown time"


def alarms(figures: Figures) -> Iterator[str]:
    """Yield what makes the figures not what they seem to be."""
    document = figures.document
    if document.host.source == "simulated":
        yield "energy is SIMULATED: it is not this machine's own"
    hint = "" if figures.is_own else "; systemctl status virt-rapld"
    if figures.is_away:
        yield f"virt-rapld is AWAY, figures are of {figures.clock}{hint}"
    elif figures.silent_seconds >= OLD_SECONDS:
        yield f"figures are OLD: nothing for {int(figures.silent_seconds)} s, since {figures.clock}{hint}"
    if figures.is_own:
        since = explanations.local_time(document.host.since)
        yield f"WITHOUT virt-rapld: top's own samples, energies since {since}"
    without = document.host.libvirt_trouble
    if without:
        yield f"WITHOUT libvirt, there may be more domains: {without}"
    if other := document.host.trouble.removesuffix(without).rstrip("; "):
        yield f"not everything could be read: {other}"


def notes(figures: Figures) -> Iterator[str]:
    """Yield what else is worth knowing."""
    domains = figures.document.domains
    if domains and not any(map(has_meter, domains)):
        yield "no guest can read its energy yet; virt-rapl enable DOMAIN gives it a meter"
    if figures.today.trouble:
        yield f"not all of today is known: {figures.today.trouble}"


def has_meter(domain: DomainReading) -> bool:
    """Return whether a domain has a meter of its own, or from its next start on, whether that works or not."""
    return meter(domain) != "off" or domain.channel_reason is not None


def meter(domain: DomainReading) -> str:
    """Return the state of a domain's meter: that of its registers, or of its channel where it has none."""
    if domain.vrapl != "off":
        return domain.vrapl
    return "pending" if domain.channel_pending else domain.channel


def amount(watts: float, joules: float, unit: Unit) -> float:
    """Return a power or an energy in this unit."""
    match unit:
        case "W":
            return watts
        case "J":
            return joules
        case "kWh":
            return joules / JOULES_PER_KWH


def written(value: float, unit: Unit) -> str:
    """Return a number of this unit as it is shown."""
    return f"{value:.{DIGITS[unit]}f}"
