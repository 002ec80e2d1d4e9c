"""A report as a table, CSV or JSON."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from libvirt_rapl.cli import aligned
from libvirt_rapl.energy.provenance import local
from libvirt_rapl.energy.report import Amount, Report, Row
from libvirt_rapl.errors import printable, spreadsheet_text


def table(report: Report, provenance: Sequence[str]) -> str:
    """Return it for people."""
    question, factors = report.question, report.factors
    keys = len(question.by)
    columns = ["kWh", *[factors.currency] * bool(factors.price), *["gCO2e"] * bool(factors.grams), "SHARE"]
    rows = [[*map(str.upper, question.by), *columns]]
    rows += [
        [*key, *_cells(report, row.amount), _percent(row.share)]
        for key, row in zip(report.shown_keys(), report.rows, strict=True)
    ]
    rows.append([""] * (keys + len(columns)))  # a domain may be called "= host"
    host = report.host.microjoules
    rows += [
        [name, *[""] * (keys - 1), *_cells(report, amount), _percent(amount.microjoules / host)]
        for name, amount in (
            ("= domains", report.domains),
            ("+ other", report.other),
            ("+ idle", report.idle),
            ("= host", report.host),
        )
    ]
    heading, *shown = aligned(rows, right=range(keys, keys + len(columns)))
    lines = [f"{local(question.since)} to {local(question.until)}", "", heading]
    if not report.rows:
        lines.append(f"no domain {'of these ' * bool(question.uuids)}used energy in this time")
    lines += shown
    if report.zones:
        lines += ["", *aligned([("ZONE", "kWh", "DOMAINS", "OTHER", "IDLE"), *_zones(report)], right=range(1, 5))]
    return "\n".join([*lines, "", *(f"- {printable(line)}" for line in provenance)]) + "\n"


def _cells(report: Report, amount: Amount) -> list[str]:
    factors = report.factors
    cells = [_kwh(amount)]
    if factors.price:
        cells.append("" if amount.cost is None else f"{amount.cost:.4f}")
    if factors.grams:
        cells.append("" if amount.grams is None else f"{amount.grams:.1f}")
    return cells


def _kwh(amount: Amount) -> str:
    """Return four digits after the point, or for very little, four that are not leading zeros."""
    return f"{amount.kwh:.4f}" if amount.kwh >= 0.001 or not amount.kwh else f"{Decimal(f'{amount.kwh:.3e}'):f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _zones(report: Report) -> list[tuple[str, ...]]:
    return [
        (zone.name, *(_kwh(Amount(part)) for part in (zone.counted, zone.domains, zone.other, zone.idle)))
        for zone in report.zones
    ]


def as_csv(report: Report, provenance: Sequence[str]) -> str:
    """Return it for spreadsheets; what is not a row of the report begins with #."""
    question, factors = report.question, report.factors
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    uuid = ["uuid"] * ("domain" in question.by)
    writer.writerow([*question.by, *uuid, "joules", "kwh", "cost", "currency", "grams_co2e", "share"])
    for row in report.rows:
        writer.writerow(
            [
                *map(spreadsheet_text, row.key),
                *[row.uuid] * len(uuid),
                _joules(row.amount),
                row.amount.kwh,
                _number(row.amount.cost if factors.price else None),
                factors.currency,
                _number(row.amount.grams if factors.grams else None),
                "" if row.share is None else round(row.share, 6),
            ]
        )
    parts = {"domains": report.domains, "other": report.other, "idle": report.idle}
    sums = " + ".join(f"{name} {_joules(amount)} J" for name, amount in parts.items())
    lines = [
        f"{local(question.since)} to {local(question.until)}",
        f"host {_joules(report.host)} J = {sums}",
        *provenance,
    ]
    return text.getvalue() + "".join(f"# {printable(line)}\n" for line in lines)


def _joules(amount: Amount) -> str:
    joules, microjoules = divmod(amount.microjoules, 1_000_000)
    return f"{joules}.{microjoules:06}"


def _number(number: Decimal | None) -> float | None:
    return None if number is None else round(float(number), 9)


def as_json(report: Report, provenance: Sequence[str]) -> str:
    """Return it for programs: schema 1, to which fields may be added."""
    question = report.question
    document = {
        "schema": 1,
        "since": _instant(question.since),
        "until": _instant(question.until),
        "by": ",".join(question.by),
        "simulated": report.known.simulated,
        "host": {
            "joules": report.host.joules,
            "domains_joules": report.domains.joules,
            "other_joules": report.other.joules,
            "idle_joules": report.idle.joules,
            **_factors(report, report.host),
        },
        "rows": [_row(report, row) for row in report.rows],
        "zones": [
            {
                "name": zone.name,
                "joules": Amount(zone.counted).joules,
                "domains_joules": Amount(zone.domains).joules,
                "other_joules": Amount(zone.other).joules,
                "idle_joules": Amount(zone.idle).joules,
            }
            for zone in report.zones
        ],
        "provenance": list(provenance),
    }
    return json.dumps(document, indent=2) + "\n"


def _row(report: Report, row: Row) -> dict[str, Any]:
    return {
        "key": row.key[0] if len(row.key) == 1 else list(row.key),
        **({"uuid": row.uuid} if row.uuid else {}),
        "joules": row.amount.joules,
        **_factors(report, row.amount),
        "share": row.share,
    }


def _factors(report: Report, amount: Amount) -> dict[str, Any]:
    factors = report.factors
    return {
        "kwh": amount.kwh,
        "cost": _number(amount.cost if factors.price else None),
        "currency": factors.currency or None,
        "grams_co2e": _number(amount.grams if factors.grams else None),
    }


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat()


FORMATS: dict[str, Callable[[Report, Sequence[str]], str]] = {"table": table, "csv": as_csv, "json": as_json}
