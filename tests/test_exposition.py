"""The metrics for Prometheus: the declared table, what a document becomes, and what is missing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from libvirt_rapl import __version__
from libvirt_rapl.daemon.document import Document, DomainReading, Host, Reading, Vcpu, Zone
from libvirt_rapl.daemon.exposition import KEPT_SECONDS, METRICS, Exposition
from libvirt_rapl.errors import printable

A, B = "aaaaaaaa-0000-4000-8000-000000000000", "bbbbbbbb-0000-4000-8000-000000000000"
EXPORTER = ("virt_rapl_build_info", {"component": "exporter", "version": __version__}, 1.0)
Samples = list[tuple[str, dict[str, str], float]]
Parse = Callable[[str], Any]
ENCODINGS = [(generate_latest, parse_text), (openmetrics.generate_latest, parse_openmetrics)]


def zone(name: str, joules: float = 100.0, **more: Any) -> Zone:  # noqa: ANN401
    parts = {"domains_joules": joules / 2, "other_joules": joules / 4, "idle_joules": joules / 4}
    return Zone(name=name, power_watts=10.0, energy_joules=joules, **{**parts, **more})


def domain(name: str = "web", uuid: str = A, joules: float = 50.0, **more: Any) -> DomainReading:  # noqa: ANN401
    values: dict[str, Any] = {
        "id": 1,
        "state": "running",
        "pid": 7,
        "vrapl": "active",
        "reason": None,
        "helper": None,
        "power_watts": 5.0,
        "zones": {"package": Reading(power_watts=5.0, energy_joules=joules)},
        "vcpus": (Vcpu(id=0, tid=8, power_watts=5.0, energy_joules=joules),),
    }
    return DomainReading(name=name, uuid=uuid, energy_joules=joules, **{**values, **more})


def document(*domains: DomainReading, zones: tuple[Zone, ...] = (zone("package-0"),), **host: Any) -> Document:  # noqa: ANN401
    values: dict[str, Any] = {
        "source": "powercap",
        "model": "CPU",
        "since": "2026-01-01T12:00:00+00:00",
        "interval_seconds": 1.0,
        "sampled_at": "2026-01-02T12:00:00.125+00:00",
        "sample_seconds": 0.004,
        "overruns": 0,
        "domains_watts": 5.0,
        "other_watts": 2.5,
        "idle_watts": 2.5,
    }
    return Document(version="1.2.3", host=Host(zones=zones, **{**values, **host}), domains=domains)


def collected(shown: Document | None, *, vcpus: bool = False) -> list[Metric]:
    return list(Exposition(lambda: shown, vcpus=vcpus).collect())


def samples(families: list[Metric]) -> Samples:
    return [(each.name, each.labels, each.value) for family in families for each in family.samples]


def named(shown: Document | None, name: str, *, vcpus: bool = False) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by those of its labels."""
    found = samples(collected(shown, vcpus=vcpus))
    return {tuple(labels.values()): value for each, labels, value in found if each == f"virt_rapl_{name}"}


def text(shown: Document, generate: Callable[[CollectorRegistry], bytes]) -> str:
    registry = CollectorRegistry()
    registry.register(Exposition(lambda: shown, vcpus=True))
    return generate(registry).decode()


def test_what_is_emitted_is_what_is_declared() -> None:
    shown = document(domain(labels={"project": "shop"}), domain("old", B, pid=None))
    emitted = collected(shown, vcpus=True)
    assert {family.samples[0].name for family in emitted} == {metric.name for metric in METRICS}
    for family in emitted:
        (metric,) = (metric for metric in METRICS if metric.name == family.samples[0].name)
        assert (family.type, family.unit, family.documentation) == (metric.type, metric.unit, metric.help)
        for sample in family.samples:
            more = ("project",) if metric.name == "virt_rapl_domain_info" and sample.labels["domain"] == "web" else ()
            assert (sample.name, tuple(sample.labels)) == (metric.name, metric.labels + more)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("domain_energy_joules_total", {("web", A, "package"): 50}),
        ("domain_power_watts", {("web", A): 5}),
        ("vcpu_energy_joules_total", {("web", A, "0"): 50}),
        ("domain_info", {("web", A, "The shop", "shop"): 1}),
        (
            "domain_meter_state",
            {("web", A, state): float(state == "active") for state in ("active", "degraded", "pending", "off")},
        ),
        (
            "domain_channel_state",
            {("web", A, state): float(state == "off") for state in ("off", "waiting", "connected", "stalled")},
        ),
        ("zone_energy_joules_total", {("package-0",): 100}),
        ("unattributed_energy_joules_total", {("package-0", "other"): 25, ("package-0", "idle"): 25}),
        ("lost_intervals_total", {("package-0",): 3}),
        ("sample_duration_seconds", {(): 0.004}),
        ("sample_overruns_total", {(): 2}),
        ("last_sample_timestamp_seconds", {(): 1767355200.125}),
        ("simulated", {(): 1}),
        ("up", {(): 1}),
        ("build_info", {("exporter", __version__): 1, ("virt-rapld", "1.2.3"): 1}),
    ],
)
def test_what_a_document_becomes(name: str, values: dict[tuple[str, ...], float]) -> None:
    shown = document(
        domain(title="The shop", labels={"project": "shop"}),
        zones=(zone("package-0", lost_intervals=3),),
        overruns=2,
        source="simulated",
    )
    assert named(shown, name, vcpus=True) == values


def test_vcpus_are_exported_where_they_are_wanted() -> None:
    assert named(document(domain()), "vcpu_energy_joules_total") == {}


def test_without_virt_rapld_nothing_is_exported_but_that() -> None:
    assert samples(collected(None)) == [("virt_rapl_up", {}, 0), EXPORTER]
    shown: list[Document | None] = [document(domain()), None]
    exposition = Exposition(lambda: shown.pop(0))
    assert len(samples(list(exposition.collect()))) > 10
    assert samples(list(exposition.collect())) == [("virt_rapl_up", {}, 0), EXPORTER]


def test_without_libvirt_what_is_still_measured_is_exported() -> None:
    """But a state that only libvirt knows is not: whether the next start of a domain has a meter."""
    shown = document(domain(), domain("db", B, vrapl="off"), libvirt_trouble="it is away")
    assert named(shown, "up") == {(): 0}
    assert named(shown, "domain_power_watts") == {("web", A): 5, ("db", B): 5}
    assert {uuid for _, uuid, _ in named(shown, "domain_meter_state")} == {A}
    assert named(shown, "domain_channel_state") == {}
    shown = document(domain(channel="stalled"), domain("db", B), libvirt_trouble="it is away")
    assert named(shown, "domain_channel_state") == {
        ("web", A, state): float(state == "stalled") for state in ("off", "waiting", "connected", "stalled")
    }


@pytest.mark.parametrize(
    ("shown", "absent"),
    [
        (document(domain(joules=0.0, unread=True)), {"domain_energy_joules_total", "vcpu_energy_joules_total"}),
        (document(domain(joules=0.0, unread=True)), {"domain_power_watts"}),
        (document(domain(unread=True)), {"domain_power_watts"}),
        (document(domain(), zones=(zone("package-0"), zone("package-1", unread=True))), {"domain_power_watts"}),
        (document(domain(), zones=(zone("package-0", 0.0, unread=True),)), {"zone_energy_joules_total"}),
        (document(domain(), zones=(zone("package-0", 0.0, unread=True),)), {"unattributed_energy_joules_total"}),
        (document(domain(), zones=(zone("package-0", 0.0, unread=True),)), {"domain_energy_joules_total"}),
        (document(sampled_at=None), {"last_sample_timestamp_seconds"}),
        (document(sample_seconds=None, overruns=None), {"sample_duration_seconds", "sample_overruns_total"}),
    ],
)
def test_a_reading_that_is_missing_is_absent(shown: Document, absent: set[str]) -> None:
    there = {name.removeprefix("virt_rapl_") for name, _, _ in samples(collected(shown, vcpus=True))}
    assert not absent & there
    assert {"up", "lost_intervals_total"} <= there


def test_a_reading_of_0_is_there() -> None:
    shown = document(domain(joules=0.0, power_watts=0.0), zones=(zone("package-0", 0.0),))
    assert named(shown, "domain_power_watts") == {("web", A): 0}
    assert named(shown, "domain_energy_joules_total") == {("web", A, "package"): 0}
    assert named(shown, "zone_energy_joules_total") == {("package-0",): 0}


def test_a_zone_that_is_no_package_takes_no_power_away() -> None:
    shown = document(domain(), zones=(zone("package-0"), zone("dram-0", unread=True)))
    assert named(shown, "domain_power_watts") == {("web", A): 5}


def test_a_daemon_of_an_older_version_has_no_version() -> None:
    assert named(dataclasses.replace(document(), version=""), "build_info") == {("exporter", __version__): 1}


class Series:
    """Scrapes documents at chosen times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shown = document()
        self.exposition = Exposition(lambda: self.shown, vcpus=True, clock=lambda: self.now)

    def at(self, now: float, *domains: DomainReading) -> Samples:
        """Return the samples that are about domains."""
        self.now, self.shown = now, document(*domains)
        return [each for each in samples(list(self.exposition.collect())) if "domain" in each[1]]


ENERGIES = {"virt_rapl_domain_energy_joules_total", "virt_rapl_vcpu_energy_joules_total", "virt_rapl_domain_info"}


def test_what_a_domain_used_between_the_last_scrape_and_its_end_is_exported() -> None:
    """Also if libvirt has forgotten it by then."""
    shown = [document(domain()), dataclasses.replace(document(), ended=(domain(joules=61.5, pid=None),))]
    exposition = Exposition(lambda: shown.pop(0))
    list(exposition.collect())
    found = {name: value for name, _, value in samples(list(exposition.collect()))}
    assert found["virt_rapl_domain_energy_joules_total"] == 61.5
    assert "virt_rapl_domain_power_watts" not in found


@pytest.mark.parametrize("transient", [False, True])
def test_counters_of_a_domain_that_ended_stay_for_an_hour(*, transient: bool) -> None:
    series = Series()
    off = () if transient else (domain(joules=60.0, pid=None, state="shut off"),)
    last = 50.0 if transient else 60.0
    series.at(0, domain())
    for now in (10.0, KEPT_SECONDS - 1):
        found = series.at(now, *off)
        assert {name for name, _, _ in found} == ENERGIES
        assert {value for _, _, value in found} == {1.0, last}
    for now in (KEPT_SECONDS + 10, 3 * KEPT_SECONDS):
        assert series.at(now, *off) == []
    assert len(series.at(3 * KEPT_SECONDS + 1, domain(joules=70.0))) > 3, "it runs again"


def test_what_an_ended_domain_is_still_charged_is_shown_for_an_hour() -> None:
    series = Series()
    series.at(0, domain())
    series.at(10, domain(joules=50.0, pid=None))
    series.at(20, domain(joules=60.0, pid=None))
    assert series.at(KEPT_SECONDS + 19, domain(joules=60.0, pid=None))
    assert not series.at(KEPT_SECONDS + 21, domain(joules=60.0, pid=None))


def test_a_domain_that_was_off_from_the_beginning_is_shown_for_an_hour_if_it_ever_ran() -> None:
    series = Series()
    off = (domain(pid=None), domain("new", B, 0.0, pid=None))
    assert {labels["domain"] for _, labels, _ in series.at(0, *off)} == {"web"}
    assert series.at(KEPT_SECONDS + 1, *off) == []


def test_a_domain_is_exported_under_its_newest_name() -> None:
    series = Series()
    series.at(0, domain())
    assert {labels["domain"] for _, labels, _ in series.at(1, domain("renamed", pid=None))} == {"renamed"}


NAMES = [
    '"quoted"',
    "back\\slash",
    "line\nfeed",
    "tab\tand\resc\x1b",
    "{zone=}",
    "\N{GRINNING FACE}",
    "",
    "\udc80\ud83d",
    "web\N{RIGHT-TO-LEFT OVERRIDE}1",
]


@pytest.mark.parametrize(("generate", "parse"), ENCODINGS)
@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_exported(name: str, generate: Callable[[CollectorRegistry], bytes], parse: Parse) -> None:
    shown = document(domain(name, A, title=name, labels={"project": name}))
    found = (sample for family in parse(text(shown, generate)) for sample in family.samples)
    (info,) = (sample for sample in found if sample.name == "virt_rapl_domain_info")
    shown_name = printable(name)  # as `virt-rapl status` prints it
    assert info.labels == {"domain": shown_name, "uuid": A, "title": shown_name, "project": shown_name}


@pytest.mark.parametrize(("generate", "parse"), ENCODINGS)
def test_two_domains_of_one_name_are_two(generate: Callable[[CollectorRegistry], bytes], parse: Parse) -> None:
    found = parse(text(document(domain("web", A), domain("web", B, 60.0)), generate))
    energies = {
        sample.labels["uuid"]: sample.value
        for family in found
        for sample in family.samples
        if sample.name == "virt_rapl_domain_energy_joules_total"
    }
    assert energies == {A: 50, B: 60}


MICROJOULES = st.integers(0, 2**52)
"""As many as a float of joules can tell apart: 1.25 MWh."""


@given(st.lists(MICROJOULES, min_size=4, max_size=4), st.sampled_from(ENCODINGS))
def test_energies_are_written_to_the_microjoule(
    counted: list[int], encoding: tuple[Callable[[CollectorRegistry], bytes], Parse]
) -> None:
    generate, parse = encoding
    whole, vcpu, other, idle = (microjoules / 1_000_000 for microjoules in counted)
    one = domain(
        zones={"package": Reading(power_watts=0.0, energy_joules=whole)},
        vcpus=(Vcpu(id=0, tid=None, power_watts=0.0, energy_joules=vcpu),),
    )
    shown = document(one, zones=(zone("package-0", whole, other_joules=other, idle_joules=idle),))
    found = {
        (sample.name, sample.labels.get("kind")): round(sample.value * 1_000_000)
        for family in parse(text(shown, generate))
        for sample in family.samples
    }
    for name, kind, microjoules in (
        ("domain", None, counted[0]),
        ("vcpu", None, counted[1]),
        ("zone", None, counted[0]),
        ("unattributed", "other", counted[2]),
        ("unattributed", "idle", counted[3]),
    ):
        assert found[f"virt_rapl_{name}_energy_joules_total", kind] == microjoules
