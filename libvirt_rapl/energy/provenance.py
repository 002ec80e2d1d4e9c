"""Where the figures of a report come from, and what is missing in them: a line each, for people."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from libvirt_rapl.config import Config
from libvirt_rapl.energy.history import DAY, HOUR, QUARTER, Reason
from libvirt_rapl.energy.report import Report

MOST_TIMES = 10
"""More gaps than that are added up."""

REASONS: dict[Reason, str] = {
    "daemon": "virt-rapld did not run",
    "host": "the host was off",
    "clock": "the clock was set forward",
    "off": "history was off",
}


def provenance(report: Report, config: Config) -> list[str]:
    """Return the lines."""
    return [
        *_source(report),
        *_price(report, config),
        *_carbon(report, config),
        *_missing(report),
    ]


def local(instant: float, *, seconds: bool = False) -> str:
    """Return a time for people, with its offset."""
    return datetime.fromtimestamp(instant).astimezone().strftime(f"%Y-%m-%d %H:%M{':%S' * seconds} %z")


def _source(report: Report) -> Iterator[str]:
    known = report.known
    if known.simulated:
        yield "simulated: no energy was measured"
    if report.zones:
        zones = ", ".join(zone.name for zone in report.zones)
        yield f"energy is that of the RAPL zones {zones}, not of the wall socket; core and uncore are part of package"
    else:
        yield "energy is that of the RAPL zones of the packages, not of the wall socket"
    for number, how in enumerate(known.metering):
        ended = known.metering[number + 1].since if number + 1 < len(known.metering) else report.question.until
        if ended > report.question.since:
            since = f" from {local(how.since)} on" if how.since > report.question.since else ""
            source = "simulated energy" if how.source == "simulated" else f"read from {how.source}"
            yield f"attributed by the model {how.model}, {source}{since}"
    pue = report.factors.pue
    if pue != 1 and (report.factors.price or report.factors.grams):
        yield f"cost and CO2e are for the energy times PUE {pue}"


def _price(report: Report, config: Config) -> Iterator[str]:
    if not config.tariff:
        yield "no cost: the configuration has no tariff"
    elif config.tariff.csv:
        yield f"price: {config.tariff.csv} of {_modified(config.tariff.csv.stat().st_mtime)}"
    else:
        prices = [config.tariff.price, *(window.price for window in config.tariff.windows)]
        windows = f" by the time of the week ({config.tariff.time_zone or 'local'})" if config.tariff.windows else ""
        known = ", ".join(str(price) for price in prices if price is not None)
        yield f"price: {known} {config.tariff.currency}/kWh{windows}, of the configuration"
    yield from _times("no price", report.unpriced)


def _carbon(report: Report, config: Config) -> Iterator[str]:
    if not config.carbon:
        yield "no CO2e: the configuration has no carbon"
    elif config.carbon.csv:
        age = _modified(config.carbon.csv.stat().st_mtime)
        yield f"CO2e: {config.carbon.csv} of {age}, from {config.carbon.source}"
    else:
        yield f"CO2e: {config.carbon.grams} g/kWh, from {config.carbon.source}"
    yield from _times("no grams of CO2e", report.ungraded)


def _modified(instant: float) -> str:
    return datetime.fromtimestamp(instant).date().isoformat()


def _missing(report: Report) -> Iterator[str]:
    known, question = report.known, report.question
    if known.begin is not None and known.begin > question.since:
        yield f"nothing is known before {local(known.begin)}, when history begins"
    for reason, text in REASONS.items():
        gaps = [gap for gap in known.gaps if gap.reason == reason]
        times = [(max(gap.since, question.since), min(gap.until, question.until)) for gap in gaps]
        yield from _times(f"not metered ({text})", times)
    zones = sorted({lost.zone for lost in known.lost})
    for zone in zones:
        intervals = sum(lost.intervals for lost in known.lost if lost.zone == zone)
        yield f"{zone}: its count was lost in {intervals} intervals"
    for width in known.widths:
        if width != QUARTER:
            detail = {HOUR: "hour", DAY: "day"}[width]
            yield f"the oldest is kept by the {detail} (UTC): it counts where its middle is, at mean price and CO2e"


def _times(what: str, times: Sequence[tuple[float, float]]) -> Iterator[str]:
    for since, until in times[:MOST_TIMES]:
        seconds = local(since) == local(until)
        yield f"{what} from {local(since, seconds=seconds)} to {local(until, seconds=seconds)}"
    if more := times[MOST_TIMES:]:
        hours = sum(until - since for since, until in more) / HOUR
        yield f"{what} at {len(more)} more times, {hours:.1f} hours in all"
