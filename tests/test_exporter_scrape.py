"""The text of a scrape: its format, and that it is made once for all who ask for the same."""

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import Metric, parser
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.registry import Collector

from libvirt_rapl.daemon.document import Document, read
from libvirt_rapl.exporter.scrape import Scrape

STATUS = json.loads((Path(__file__).parent / "data/status.json").read_text())
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


parse_text: Callable[[str], Iterable[Metric]] = cast("Any", parser).text_string_to_metric_families  # 0.16 has no types


class Source(Collector):
    """Gives out the document that the test sets, and counts how often metrics are made."""

    def __init__(self) -> None:
        self.now: Document | None = read(STATUS)
        self.made = 0
        self.scrape = Scrape(lambda: self.now, self)

    def collect(self) -> Iterable[Metric]:
        self.made += 1
        yield GaugeMetricFamily("up", "Is it?", float(self.now is not None))
        yield CounterMetricFamily("joules", "Energy.", 1.5)


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=0.0.4", "text/html"])
def test_text(accept: str) -> None:
    content_type, headers, body = Source().scrape.respond(accept)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert headers == {}
    assert {family.name for family in parse_text(body.decode())} == {"up", "joules"}


@pytest.mark.parametrize("accept", [PROMETHEUS_3, "application/openmetrics-text; version=nonsense\x00"])
def test_openmetrics(accept: str) -> None:
    content_type, _, body = Source().scrape.respond(accept)
    assert content_type.startswith("application/openmetrics-text; version=")
    assert body.endswith(b"# EOF\n")
    families = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
    assert {family.name for family in families} == {"up", "joules"}


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [
        ("gzip", True),
        ("deflate, gzip;q=1.0", True),
        ("GZIP; q=0.001", True),
        ("br", False),
        ("*", False),
        ("gzip;q=0", False),
        ("br, gzip; q=0.000", False),
    ],
)
def test_compression(accepted: str, zipped: bool) -> None:
    _, headers, body = Source().scrape.respond("", accepted)
    assert headers == ({"Content-Encoding": "gzip"} if zipped else {})
    assert (gzip.decompress(body) if zipped else body) == Source().scrape.respond()[2]


def test_it_is_made_once_for_each_document_and_format() -> None:
    source = Source()
    for _ in range(3):
        source.scrape.respond()
        source.scrape.respond(PROMETHEUS_3, "gzip")
    assert source.made == 2
    source.now = read(STATUS)
    source.scrape.respond()
    assert source.made == 3


def test_each_client_gets_what_it_asked_for_whoever_was_before() -> None:
    scrape = Source().scrape
    asked = [("", ""), (PROMETHEUS_3, "gzip"), ("", "gzip"), (PROMETHEUS_3, ""), ("", "")]
    answers = [scrape.respond(*each) for each in asked]
    assert ["openmetrics" in content_type for content_type, _, _ in answers] == [bool(accept) for accept, _ in asked]
    assert [bool(headers) for _, headers, _ in answers] == [bool(encoding) for _, encoding in asked]


def test_nothing_of_a_daemon_that_went_away_stays() -> None:
    source = Source()
    assert b"up 1.0" in source.scrape.respond()[2]
    source.now = None
    assert b"up 0.0" in source.scrape.respond()[2]
