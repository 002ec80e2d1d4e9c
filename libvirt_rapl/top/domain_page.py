"""The page of one domain: what it uses, how its meter is, its zones and its vCPUs."""

import textwrap
from collections.abc import Iterable, Iterator

from libvirt_rapl.daemon import explanations
from libvirt_rapl.daemon.document import DomainReading, Reading, Vcpu
from libvirt_rapl.top.figures import Figures, Unit, amount, meter, written
from libvirt_rapl.top.signs import Signs
from libvirt_rapl.top.state import State
from libvirt_rapl.top.trends import MOST, SECONDS

LEAST_COLUMNS = 20
"""Text is not broken into shorter lines."""
METERS = {
    "active": "the guest reads its own energy",
    "pending": "it gets its meter at its next start",
    "off": "the guest cannot read its energy",
    "degraded": "it runs without its meter",
    "waiting": "the guest gets nothing by its channel yet",
    "connected": "the guest gets its energy by its channel",
    "stalled": "the guest does not read its channel",
}
"""What the states of meters and channels mean."""


def domain_page(figures: Figures, state: State, signs: Signs, columns: int) -> Iterator[str]:
    """Yield its lines."""
    found = [domain for domain in figures.document.domains if domain.uuid == state.selected]
    if not found:
        yield "this domain is not there any more"
        return
    (domain,) = found

    def wrapped(texts: Iterable[str]) -> Iterator[str]:
        for text in map(signs.text, texts):
            yield from textwrap.wrap(
                text, max(columns, LEAST_COLUMNS), subsequent_indent="  ", break_on_hyphens=False
            ) or [""]

    yield from wrapped(_about(domain))
    yield ""
    yield from wrapped(["  ".join(_use(domain, figures))])
    trend = figures.trends.of(domain.uuid, min(MOST, columns - len("power  ")))
    highest = max((watts or 0 for watts in trend), default=0)
    yield f"power  {signs.trend(trend)}"
    yield f"       means of {SECONDS} s, the highest {highest:.2f} W, the last one is the present"
    yield ""
    yield from wrapped(_how(domain))
    yield ""
    unit: Unit = "J" if state.unit == "W" else state.unit
    yield _cells("ZONE", "W", unit)
    for kind, reading in domain.zones.items():
        yield _cells(kind, *_figures(domain, reading, unit))
    yield ""
    yield _cells("VCPU", "W", unit, "THREAD")
    for vcpu in domain.vcpus:
        thread = "-" if vcpu.tid is None else str(vcpu.tid)
        yield _cells(str(vcpu.id), *_figures(domain, vcpu, unit), thread)


def _about(domain: DomainReading) -> Iterator[str]:
    title = f'  "{domain.title}"' if domain.title else ""
    yield f"{domain.name}{title}"
    pid = f"  PID {domain.pid}" if domain.pid is not None else ""
    yield f"{domain.state}{pid}  UUID {domain.uuid}"
    if domain.labels:
        yield "  ".join(f"{name}={value}" for name, value in domain.labels.items())


def _use(domain: DomainReading, figures: Figures) -> Iterator[str]:
    yield "power not known" if domain.unread else f"{domain.power_watts:.2f} W"
    if domain.cpu_percent is not None and not domain.unread:
        yield f"{domain.cpu_percent:.1f} % CPU"
    yield f"{written(domain.energy_joules, 'J')} J in all"
    today = figures.today
    if (kwh := today.kwh_of(domain.uuid)) is not None:
        yield f"{written(kwh, 'kWh')} kWh today"
    if not domain.unread and (cost := today.cost_of(domain.power_watts)) is not None:
        yield f"{cost:.4f} {today.currency} an hour"


def _how(domain: DomainReading) -> Iterator[str]:
    state = meter(domain)
    yield f"meter {state}: {METERS[state]}" if state in METERS else f"meter {state}"  # of a newer virt-rapld
    yield from explanations.of_meter(domain)
    if domain.helper:
        works = "works" if domain.helper.healthy else "does not work"
        pid = f", PID {domain.helper.pid}" if domain.helper.pid is not None else ""
        yield f"helper {domain.helper.backend}{pid}, {works}, {domain.helper.socket}"
    yield from explanations.of_helper(domain)
    if domain.channel != "off" and not domain.channel_reason:
        yield f"channel {domain.channel}"
    yield from explanations.of_channel(domain)


def _figures(domain: DomainReading, part: Reading | Vcpu, unit: Unit) -> tuple[str, str]:
    watts = "-" if domain.unread else written(part.power_watts, "W")
    return watts, written(amount(part.power_watts, part.energy_joules, unit), unit)


def _cells(name: str, watts: str, energy: str, thread: str = "") -> str:
    return f"{name:8}{watts:>10}{energy:>16}{thread:>12}".rstrip()
