"""The line of a guest: what is in it, what is not, and that its text is JSON as `json.dumps` writes it."""

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libvirt_rapl.daemon.channel_line import Lines, render
from libvirt_rapl.daemon.document import Document, DomainReading, Host, Reading, Vcpu, Zone

KINDS = ("package", "core", "uncore", "dram", "psys")
SAMPLED = "2026-11-28T12:00:00.250+00:00"
HOST_ID = "0123456789ab"


def zone(name: str, joules: float = 100.0, *, unread: bool = False) -> Zone:
    return Zone(
        name=name,
        power_watts=1.0,
        energy_joules=joules,
        domains_joules=0.0,
        other_joules=0.0,
        idle_joules=0.0,
        unread=unread,
    )


def host(*zones: Zone, source: Literal["powercap", "simulated"] = "powercap", interval: float = 1.0002) -> Host:
    return Host(
        source=source,
        model="Some processor",
        since="2026-11-22T08:00:00+00:00",
        interval_seconds=interval,
        sampled_at=SAMPLED,
        zones=zones or (zone("package-0"), zone("dram-0")),
        domains_watts=40.0,
        other_watts=1.0,
        idle_watts=9.0,
    )


def domain(
    *, unread: bool = False, joules: float = 1234.5, kinds: tuple[str, ...] = ("package", "dram")
) -> DomainReading:
    return DomainReading(
        name="secret-name",
        uuid="11111111-2222-4333-8444-555555555555",
        id=3,
        state="running",
        pid=4711,
        vrapl="off",
        reason=None,
        helper=None,
        channel="connected",
        channel_socket="/run/libvirt/qemu/channel/3-web/org.virt-rapl.energy.0",
        unread=unread,
        power_watts=7.25,
        energy_joules=joules,
        zones={kind: Reading(power_watts=2.0 + len(kind), energy_joules=joules / 2) for kind in kinds},
        vcpus=(
            Vcpu(id=0, tid=815, power_watts=3.25, energy_joules=1000.0),
            Vcpu(id=1, tid=None, power_watts=4.0, energy_joules=234.5),
        ),
    )


def text_of(host: Host, domain: DomainReading) -> str:
    return Lines(host, HOST_ID).line(domain)


def line(host: Host, domain: DomainReading) -> dict[str, Any]:
    text = text_of(host, domain)
    assert text.endswith("\n")
    assert text.count("\n") == 1
    made = json.loads(text)
    assert isinstance(made, dict)
    return made


def test_the_line() -> None:
    assert line(host(), domain()) == {
        "schema": 1,
        "time": SAMPLED,
        "host": HOST_ID,
        "since": "2026-11-22T08:00:00+00:00",
        "source": "powercap",
        "simulated": False,
        "interval_seconds": 1.0002,
        "power_watts": 7.25,
        "energy_joules": 1234.5,
        "zones": {
            "package": {"power_watts": 9.0, "energy_joules": 617.25},
            "dram": {"power_watts": 6.0, "energy_joules": 617.25},
        },
        "vcpus": [
            {"id": 0, "power_watts": 3.25, "energy_joules": 1000.0},
            {"id": 1, "power_watts": 4.0, "energy_joules": 234.5},
        ],
    }


def test_simulated_energy_is_named_so() -> None:
    made = line(host(source="simulated"), domain())
    assert (made["source"], made["simulated"]) == ("simulated", True)


def test_a_guest_learns_nothing_that_names_host_or_processes() -> None:
    text = text_of(host(), domain())
    for secret in ("secret-name", "4711", "815", "Some processor", "/run", "40.0", "11111111"):
        assert secret not in text, secret


def powers(made: dict[str, Any]) -> set[str]:
    """Return where in the line there is power."""
    parts = {"whole": made, **made["zones"], **{f"vcpu{vcpu['id']}": vcpu for vcpu in made["vcpus"]}}
    assert all("energy_joules" in part for part in parts.values())
    return {name for name, part in parts.items() if "power_watts" in part}


EVERYWHERE = {"whole", "package", "dram", "vcpu0", "vcpu1"}


@pytest.mark.parametrize(
    ("zones", "unread", "expected"),
    [
        ((zone("package-0"), zone("dram-0")), False, EVERYWHERE),
        ((zone("package-0"), zone("dram-0")), True, set()),
        ((zone("package-0"), zone("dram-0", unread=True)), False, EVERYWHERE - {"dram"}),
        ((zone("package-0", unread=True), zone("dram-0")), False, {"dram"}),
        ((zone("package-0"), zone("package-1", unread=True), zone("dram-0")), False, {"dram"}),
    ],
)
def test_power_that_could_not_be_read_is_absent(zones: tuple[Zone, ...], unread: bool, expected: set[str]) -> None:
    assert powers(line(host(*zones), domain(unread=unread))) == expected


def test_a_zone_that_has_never_been_read_is_absent() -> None:
    made = line(host(zone("package-0"), zone("dram-0", 0.0, unread=True)), domain())
    assert made["zones"].keys() == {"package"}


def test_a_zone_without_energy_that_was_read_is_there() -> None:
    made = line(host(zone("package-0"), zone("dram-0", 0.0)), domain())
    assert made["zones"].keys() == {"package", "dram"}


def test_there_is_no_line_before_anything_is_known() -> None:
    assert text_of(host(), domain(unread=True, joules=0.0)) == ""
    assert text_of(host(zone("package-0", 0.0, unread=True), zone("dram-0")), domain()) == ""
    assert text_of(host(), domain(joules=0.0)) != "", "0 was read"


figure = st.floats(min_value=0, max_value=1e12) | st.integers(min_value=0, max_value=10**9)
reading = st.builds(Reading, power_watts=figure, energy_joules=figure)


@given(
    interval=figure,
    watts=figure,
    joules=figure,
    zones=st.dictionaries(st.sampled_from(KINDS), reading),
    vcpus=st.lists(st.tuples(figure, figure), max_size=6),
)
def test_the_text_is_what_json_dumps_makes(
    interval: float, watts: float, joules: float, zones: dict[str, Reading], vcpus: list[tuple[float, float]]
) -> None:
    given_host = host(*(zone(f"{kind}-0") for kind in KINDS), interval=interval)
    given_domain = dataclasses.replace(
        domain(joules=joules),
        power_watts=watts,
        zones=zones,
        vcpus=tuple(
            Vcpu(id=number, tid=number, power_watts=each[0], energy_joules=each[1]) for number, each in enumerate(vcpus)
        ),
    )
    expected = {
        "schema": 1,
        "time": SAMPLED,
        "host": HOST_ID,
        "since": given_host.since,
        "source": "powercap",
        "simulated": False,
        "interval_seconds": interval,
        "power_watts": watts,
        "energy_joules": joules,
        "zones": {
            kind: {"power_watts": each.power_watts, "energy_joules": each.energy_joules} for kind, each in zones.items()
        },
        "vcpus": [
            {"id": number, "power_watts": each[0], "energy_joules": each[1]} for number, each in enumerate(vcpus)
        ],
    }
    assert text_of(given_host, given_domain) == json.dumps(expected) + "\n"


def test_what_virt_rapl_channel_gets_of_running_guests_with_a_channel() -> None:
    with_channel, name = domain(), 'N\u00e4m"e'
    others = [
        dataclasses.replace(with_channel, uuid="2", name=name, pid=4712),
        dataclasses.replace(with_channel, uuid="3", channel_socket=None),
    ]
    rendered = render(Document(host=host(), domains=(with_channel, *others)), HOST_ID)
    assert b"\n" not in rendered
    line, path = text_of(host(), with_channel), with_channel.channel_socket
    assert json.loads(rendered) == {
        "schema": 1,
        "sampled_at": SAMPLED,
        "guests": [
            [with_channel.uuid, with_channel.name, 4711, path, line],
            ["2", name, 4712, path, line],
        ],
    }


def test_time_is_an_instant_in_utc_with_milliseconds() -> None:
    when = datetime.fromisoformat(line(host(), domain())["time"])
    assert when == datetime(2026, 11, 28, 12, 0, 0, 250_000, tzinfo=UTC)
