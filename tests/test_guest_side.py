"""etc/guest: what runs in strangers' guests, reads the energy channel's lines and keeps counters that only grow."""

import ast
import base64
import contextlib
import gzip
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from node_exporter import joules_by_directory, node_exporter
from walking import wait_until

from libvirt_rapl.host.powercap import powercap_zones

GUEST = Path(__file__).parent.parent / "etc/guest"
PROGRAM = GUEST / "virt-rapl-guest"
UNIT = GUEST / "virt-rapl-guest.service"
RULES = GUEST / "60-virt-rapl-guest.rules"
SINCE = "2026-11-28T09:00:00Z"
PATIENCE = 20
TERMINATION = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


def loaded() -> ModuleType:
    """Return the program as a module; its name has no .py, and nothing is to be left beside it."""
    module = ModuleType("virt_rapl_guest")
    exec(compile(PROGRAM.read_text(), str(PROGRAM), "exec"), module.__dict__)
    return module


guest: Any = loaded()


def line(
    joules: Mapping[str, float], host: str = "0123456789ab", since: str = SINCE, *, simulated: bool = False
) -> dict[str, Any]:
    """Return a line of the channel, as docs/channel.md describes it; joules are by zone and vCPU."""
    readings = {name: {"power_watts": 2.5, "energy_joules": value} for name, value in joules.items()}
    return {
        "schema": 1,
        "time": "2026-11-28T10:00:00.123Z",
        "host": host,
        "since": since,
        "source": "simulated" if simulated else "powercap",
        "simulated": simulated,
        "interval_seconds": 1.0,
        "power_watts": 12.5,
        "energy_joules": joules.get("package", 0),
        "zones": {name: reading for name, reading in readings.items() if not name.isdecimal()},
        "vcpus": [{"id": int(name), **reading} for name, reading in readings.items() if name.isdecimal()],
    }


def sent(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def parsed(joules: Mapping[str, float], host: str = "a", since: str = SINCE) -> Any:  # noqa: ANN401 - a Line
    return guest.parse(sent(line(joules, host, since)).strip())


# Where it runs


def test_python_3_6_can_read_it() -> None:
    ast.parse(PROGRAM.read_text(), feature_version=(3, 6))


def test_it_needs_the_standard_library_alone() -> None:
    nodes = list(ast.walk(ast.parse(PROGRAM.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "json" in names
    assert names <= sys.stdlib_module_names


# Lines


def test_a_line_is_read() -> None:
    text = sent({**line({"package": 100.25, "dram": 3, "1": 50.125, "0": 50.125}), "later": [None]})
    assert guest.parse(text) == guest.Line(
        about={
            "time": "2026-11-28T10:00:00.123Z",
            "host": "0123456789ab",
            "since": SINCE,
            "source": "powercap",
            "simulated": False,
        },
        power_watts=12.5,
        watts={"package": 2.5, "dram": 2.5, "1": 2.5, "0": 2.5},
        microjoules={"package": 100250000, "dram": 3000000, "1": 50125000, "0": 50125000},
    )


@given(st.integers(0, 2**50))
def test_no_microjoule_is_lost_on_the_way(microjoules: int) -> None:
    assert parsed({"package": microjoules / 1e6}).microjoules == {"package": microjoules}


def test_zones_that_it_does_not_know_are_ignored() -> None:
    assert parsed({"package": 1, "cluster": 2}).microjoules == {"package": 1000000}


def changed(path: str, value: object) -> dict[str, Any]:
    """Return a line with another value at a path, such as `zones/package/energy_joules`."""
    whole = line({"package": 1, "0": 1})
    *above, last = path.split("/")
    part: Any = whole
    for key in above:
        part = part[0 if key == "0" else key]
    part[last] = value
    return whole


BAD_NUMBERS: tuple[object, ...] = (-1, -0.001, math.nan, math.inf, -math.inf, 1e10, 10**400, True, "1", None, [], {})
NUMBERS = (
    "power_watts",
    "zones/package/energy_joules",
    "zones/package/power_watts",
    "vcpus/0/energy_joules",
    "vcpus/0/id",
)
BAD_WORDS: tuple[object, ...] = ("", "a\nb", "\x1b[2J", "\ud800", "x" * 65, 1, None)
BAD: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(NUMBERS, BAD_NUMBERS),
    **dict.fromkeys(("time", "host", "since", "source"), BAD_WORDS),
    "schema": (0, 2, 1.5, True, "1", None),
    "simulated": (0, 1, "true", None),
    "zones": (None, 1, "package", ["package"], {"package": None}, {"package": {}}),
    "vcpus": (None, 1, "ab", {"id": 1}, [None], [{}], [[]]),
}
BAD["vcpus/0/id"] += (0.5, 4096)


@pytest.mark.parametrize("path", BAD)
def test_a_line_with_something_wrong_in_it_is_refused(path: str) -> None:
    assert guest.parse(sent(line({"package": 1, "0": 1})))
    for value in BAD[path]:
        with pytest.raises(guest.MALFORMED):
            print("accepted:", guest.parse(sent(changed(path, value))))


def test_a_line_that_lacks_something_is_refused() -> None:
    for name in ("schema", "time", "host", "since", "source", "simulated", "zones", "vcpus"):
        whole = line({"package": 1})
        del whole[name]
        with pytest.raises(guest.MALFORMED):
            print("accepted without", name, guest.parse(sent(whole)))


def test_power_that_the_host_could_not_read_is_missing(tmp_path: Path) -> None:
    whole = line(JOULES)
    for part in (whole, whole["zones"]["dram"], whole["vcpus"][0]):
        del part["power_watts"]
    one = meter(tmp_path)
    one.feed(sent(whole))
    shown = json.loads((tmp_path / "run/status.json").read_text())
    assert "power_watts" not in shown
    assert shown["zones"]["dram"] == {"energy_joules": JOULES["dram"]}
    assert shown["zones"]["package"]["power_watts"] == 2.5
    assert "power_watts 12" not in (tmp_path / "run/virt-rapl-guest.prom").read_text()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1",
        b'"schema"',
        b"\xff\xfe",
        b"\0" * 99,
        b"[" * 100_000,
        b'{"schema":' * 100_000,
        b"9" * 100_000,
        json.dumps(line({})).encode("utf-16"),
        sent(line({})).rstrip() + b" " * (1 << 20),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_line_is_refused(text: bytes) -> None:
    with pytest.raises(guest.MALFORMED):
        guest.parse(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([1, 1e10, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "package", "x"]), inner),
    max_leaves=5,
)
PATHS = st.sampled_from([*line({}), *NUMBERS, "zones/package", "zones/dram", "vcpus/0"])


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([(path, "") for path in line({})]) | st.tuples(PATHS, values) | st.binary(max_size=99))
def test_whatever_comes_is_a_line_or_refused(what: tuple[str, Any] | bytes) -> None:
    try:
        text = what if isinstance(what, bytes) else sent(changed(*(["vcpus", []] if what[0] == "vcpus/0" else what)))
        read = guest.parse(text)
    except guest.MALFORMED:
        return
    for name, microjoules in read.microjoules.items():
        assert 0 <= microjoules <= guest.MOST_MICROJOULES
        assert name in guest.ZONES or 0 <= int(name) < 4096


@given(st.lists(st.binary(max_size=9).filter(lambda text: b"\n" not in text)), st.lists(st.integers(0, 60)))
def test_lines_may_come_in_any_parts(texts: list[bytes], cuts: list[int]) -> None:
    stream, rest, found = b"\n".join(texts), b"", []
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for begin, end in itertools.pairwise(places):
        lines, rest = guest.split(rest, stream[begin:end])
        found += lines
    assert [*found, rest] == (texts or [b""])


def test_a_line_without_end_takes_no_memory_and_spoils_none() -> None:
    rest, lines = b"", []
    for _ in range(40):
        lines, rest = guest.split(rest, b"x" * (1 << 16))
        assert len(rest) <= guest.LONGEST_LINE + 1
    lines, rest = guest.split(rest, b"x\n" + sent(line({"package": 1})))
    with pytest.raises(ValueError, match="too long"):
        guest.parse(lines[0])
    assert guest.parse(lines[1])
    assert rest == b""


def test_a_line_is_not_read_up_to_the_limit() -> None:
    _, rest = guest.split(b"", sent(line({"package": 1})).strip() + b" " * guest.LONGEST_LINE)
    (text,), _ = guest.split(rest, b"\n")
    with pytest.raises(ValueError, match="too long"):
        guest.parse(text)


# Counters


def shown(*lines: tuple[str, Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the joules that are shown after each line of a host."""
    counters, found = guest.Counters(), []
    for host, joules in lines:
        name, _, since = host.partition(" ")
        counters.add(parsed(joules, name, since or SINCE))
        found.append({key: total / 1e6 for key, total in counters.totals.items()})
    return found


def packages(*lines: tuple[str, float]) -> list[float]:
    return [joules["package"] for joules in shown(*((host, {"package": value}) for host, value in lines))]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([("a", 5), ("a", 7), ("a", 7), ("a", 10)], [5, 7, 7, 10], id="one host"),
        pytest.param([("a", 5), ("b", 100), ("b", 101)], [5, 5, 6], id="migration"),
        pytest.param([("a", 5), ("b", 1), ("b", 3), ("a", 9), ("a", 10)], [5, 5, 7, 11, 12], id="and back"),
        pytest.param([("a", 5), ("a", 2), ("a", 3)], [5, 5, 6], id="the ledger is older"),
        pytest.param([("a", 5), ("a", 0), ("a", 9)], [5, 5, 14], id="the domain is new to the ledger"),
        pytest.param([("a", 5), ("a later", 2), ("a later", 3)], [5, 5, 6], id="the ledger is new"),
    ],
)
def test_counters_go_on(lines: list[tuple[str, float]], expected: list[float]) -> None:
    assert packages(*lines) == expected


def test_counters_wrap_where_readers_expect_it() -> None:
    most = guest.MOST_MICROJOULES
    counters = guest.Counters()
    for host, microjoules in (("a", most), ("b", 0), ("b", 5)):
        counters.add(guest.Line({"host": host, "since": SINCE}, None, {}, {"package": microjoules}))
    assert counters.totals == {"package": 4}
    guest.Counters().load(counters.dump())


def test_zones_and_vcpus_may_come_and_go() -> None:
    found = shown(
        ("a", {"package": 5, "0": 5}),
        ("a", {"package": 9, "0": 6, "1": 3, "dram": 2}),  # a vCPU was added: what it has used is new
        ("a", {"package": 10, "0": 7}),
        ("b", {"package": 50, "dram": 50, "1": 50}),
        ("a", {"package": 11, "0": 7, "1": 4, "dram": 4}),
    )
    assert found[1] == {"package": 9, "0": 6, "1": 3, "dram": 2}
    assert found[3] == {"package": 10, "0": 7, "1": 3, "dram": 2}
    assert found[4] == {"package": 11, "0": 7, "1": 4, "dram": 4}


def test_the_hosts_that_were_heard_last_are_remembered() -> None:
    counters = guest.Counters()
    for host in ["first", "old", "first", *(f"host-{number}" for number in range(guest.MOST_HOSTS - 1))]:
        counters.add(parsed({"package": 1}, host))
    assert len(counters.hosts) == guest.MOST_HOSTS
    assert ("first", SINCE) in counters.hosts
    assert ("old", SINCE) not in counters.hosts


def test_what_is_saved_is_what_is_loaded() -> None:
    counters, other = guest.Counters(), guest.Counters()
    for host in ("b", "a", "c", "b"):
        counters.add(parsed({"package": 1, "dram": 2, "7": 0.5}, host))
    other.load(counters.dump())
    assert (other.totals, list(other.hosts.items())) == (counters.totals, list(counters.hosts.items()))


DAMAGED = [
    "", "{", "null", "[]", "1", "[" * 100_000, '{"totals": {}}', '{"totals": {}, "hosts": {"a": 1}}',
    '{"totals": {"package": -1}, "hosts": []}', '{"totals": {"package": 1.5}, "hosts": []}',
    '{"totals": {"package": 9007199254740992}, "hosts": []}', '{"totals": {"../x": 1}, "hosts": []}',
    '{"totals": [1], "hosts": []}',
    '{"totals": {}, "hosts": [{"host": "a", "since": "s", "totals": {"dram": "1"}}]}',
    '{"totals": {}, "hosts": [{"host": "a", "totals": {}}]}',
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:40])
def test_damaged_totals_are_not_used(text: str) -> None:
    counters = guest.Counters()
    counters.add(parsed({"package": 1}))
    with pytest.raises(guest.MALFORMED):
        counters.load(text)
    assert counters.totals == {"package": 1000000}


uses = st.tuples(st.just("use"), st.integers(0, 10**9))
moves = st.tuples(st.just("move"), st.integers(0, 19))
others = st.tuples(
    st.sampled_from(["new ledger", "older ledger", "missed", "save", "crash", "stop"]), st.integers(0, 10**7)
)


@settings(deadline=None, max_examples=400)
@given(st.lists(uses | moves | others, max_size=40))
def test_counters_never_go_back_whatever_happens(steps: list[tuple[str, int]]) -> None:
    """A guest on 20 hosts that crashes and stops, and hosts that lose what they have counted."""
    counters, highest, saved = guest.Counters(), 0, guest.Counters().dump()
    hosts, ledgers, here = [0] * 20, [0] * 20, 0
    for step, value in steps:
        if step in ("use", "missed"):
            hosts[here] += value
        elif step == "move":
            here = value
        elif step == "new ledger":
            ledgers[here], hosts[here] = ledgers[here] + 1, value
        elif step == "older ledger":
            hosts[here] = max(0, hosts[here] - value)
        elif step == "crash":
            counters = guest.Counters()
            counters.load(saved)
        if step != "missed":
            must_save = counters.add(parsed({"package": hosts[here] / 1e6}, str(here), str(ledgers[here])))
            if must_save or step in ("save", "stop"):
                saved = counters.dump()
        if step == "stop":
            counters = guest.Counters()
            counters.load(saved)
        assert counters.totals.get("package", 0) >= highest
        highest = counters.totals.get("package", 0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from(["line", "no line", "save", "crash", "state is lost"]))),
)
def test_on_one_host_the_counters_are_the_hosts(steps: list[tuple[int, str]]) -> None:
    counters, saved, total = guest.Counters(), guest.Counters().dump(), 0
    for microjoules, step in steps:
        total += microjoules
        if step in ("crash", "state is lost"):
            counters = guest.Counters()
            if step == "crash":
                counters.load(saved)
        if step == "no line":
            continue
        if counters.add(parsed({"package": total / 1e6})) or step == "save":
            saved = counters.dump()
        assert counters.totals == {"package": total}


# What others read

JOULES = {"package": 1234.5, "dram": 12, "core": 0, "psys": 2000.000001, "0": 1000, "10": 234.5, "9": 0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The program's clock: `clock.now` are the seconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(guest, "time", SimpleNamespace(monotonic=lambda: clock.now, time=lambda: 1.7e9 + clock.now))
    return clock


def meter(tmp_path: Path, textfile: str = "virt-rapl-guest.prom") -> Any:  # noqa: ANN401 - a Meter
    return guest.Meter(tmp_path / "run", tmp_path / "state", tmp_path / "run" / textfile)


def texts(directory: Path) -> dict[str, str]:
    """Return the content of each file, and where each link leads."""
    return {
        str(path.relative_to(directory)): f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_the_tree_is_like_powercaps(tmp_path: Path) -> None:
    guest.write_tree(tmp_path, {name: round(joules * 1e6) for name, joules in JOULES.items()})
    most = "9007199254740991\n"

    def zone(path: str, name: str, energy: str) -> dict[str, str]:
        files = {"enabled": "1\n", "energy_uj": energy, "max_energy_range_uj": most, "name": name}
        return {f"powercap/{path}/{file}": text for file, text in files.items()}

    assert texts(tmp_path) == {
        "class/powercap": "-> ../powercap",
        "powercap/intel-rapl:0:0": "-> intel-rapl:0/intel-rapl:0:0",
        "powercap/intel-rapl:0:1": "-> intel-rapl:0/intel-rapl:0:1",
        **zone("intel-rapl:0", "package-0\n", "1234500000\n"),
        **zone("intel-rapl:0/intel-rapl:0:0", "dram\n", "12000000\n"),
        **zone("intel-rapl:0/intel-rapl:0:1", "core\n", "0\n"),
        **zone("intel-rapl:1", "psys\n", "2000000001\n"),
    }


def test_the_tree_is_read_as_the_kernels_is(tmp_path: Path) -> None:
    for factor in (1, 2):
        guest.write_tree(tmp_path, {"package": factor * 10, "dram": factor * 3, "uncore": factor})
        zones = {zone.name: zone for zone in powercap_zones(tmp_path)}
        assert {name: zone.read() for name, zone in zones.items()} == {
            "package-0": factor * 10,
            "dram-0": factor * 3,
            "uncore-0": factor,
        }
        assert {(zone.package, zone.wrap) for zone in zones.values()} == {(0, 2**53)}


def test_a_zone_may_come_later(tmp_path: Path) -> None:
    guest.write_tree(tmp_path, {"package": 1})
    guest.write_tree(tmp_path, {"package": 2, "dram": 1})
    assert texts(tmp_path)["powercap/intel-rapl:0/intel-rapl:0:0/energy_uj"] == "1\n"


def test_who_has_opened_a_counter_reads_it_whole(tmp_path: Path) -> None:
    guest.write_tree(tmp_path, {"package": 999})
    with (tmp_path / "powercap/intel-rapl:0/energy_uj").open() as before:
        guest.write_tree(tmp_path, {"package": 1000})
        assert before.read() == "999\n"
    assert (tmp_path / "powercap/intel-rapl:0/energy_uj").read_text() == "1000\n"


@pytest.mark.needs("prometheus-node-exporter")
def test_node_exporter_reads_the_tree(tmp_path: Path) -> None:
    guest.write_tree(tmp_path, {name: round(joules * 1e6) for name, joules in JOULES.items()})
    with node_exporter(sysfs=tmp_path) as url:
        assert joules_by_directory(url) == {
            "intel-rapl:0": 1234.5,
            "intel-rapl:0:0": 12,
            "intel-rapl:0:1": 0,
            "intel-rapl:1": 2000.000001,
        }


METRICS = """\
# HELP virt_rapl_guest_energy_joules_total Energy of this guest, as its host attributes it; zones do not add up, as package contains core and uncore.
# TYPE virt_rapl_guest_energy_joules_total counter
virt_rapl_guest_energy_joules_total{zone="package"} 1234.500000
virt_rapl_guest_energy_joules_total{zone="dram"} 12.000000
virt_rapl_guest_energy_joules_total{zone="core"} 0.000000
virt_rapl_guest_energy_joules_total{zone="psys"} 2000.000001
# HELP virt_rapl_guest_vcpu_energy_joules_total The packages' energy by vCPU.
# TYPE virt_rapl_guest_vcpu_energy_joules_total counter
virt_rapl_guest_vcpu_energy_joules_total{vcpu="0"} 1000.000000
virt_rapl_guest_vcpu_energy_joules_total{vcpu="9"} 0.000000
virt_rapl_guest_vcpu_energy_joules_total{vcpu="10"} 234.500000
# HELP virt_rapl_guest_power_watts Power of this guest in the packages; absent while its host knows none.
# TYPE virt_rapl_guest_power_watts gauge
virt_rapl_guest_power_watts 12.5
# HELP virt_rapl_guest_simulated Whether the energy is simulated.
# TYPE virt_rapl_guest_simulated gauge
virt_rapl_guest_simulated 1
# HELP virt_rapl_guest_last_line_timestamp_seconds When the host was heard last.
# TYPE virt_rapl_guest_last_line_timestamp_seconds gauge
virt_rapl_guest_last_line_timestamp_seconds 1700001000.000
"""  # noqa: E501
POWER = "virt_rapl_guest_power_watts 12.5\n"


@pytest.mark.usefixtures("clock")
def test_the_file_for_node_exporter(tmp_path: Path) -> None:
    one = meter(tmp_path)
    file = tmp_path / "run/virt-rapl-guest.prom"
    assert not file.exists()
    one.feed(sent(line(JOULES, simulated=True)))
    assert file.read_text() == METRICS


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("text", [METRICS, METRICS.replace(POWER, "")], ids=["fresh", "stale"])
def test_promtool_accepts_the_file(text: str) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_counters_stand_still_while_the_host_is_silent(tmp_path: Path, clock: SimpleNamespace) -> None:
    one = meter(tmp_path)
    one.feed(sent(line(JOULES, simulated=True)))
    before = texts(tmp_path / "run")
    clock.now += guest.FRESH_SECONDS
    one.tick()
    assert texts(tmp_path / "run") == before
    clock.now += 0.1
    one.tick()
    shown = json.loads(before.pop("status.json"))
    for reading in (shown, *shown["zones"].values(), *shown["vcpus"]):
        assert reading.pop("power_watts")
    after = texts(tmp_path / "run")
    assert json.loads(after.pop("status.json")) == shown
    assert after == {**before, "virt-rapl-guest.prom": METRICS.replace(POWER, "")}
    one.feed(sent(line(JOULES, simulated=True)))
    assert POWER in (tmp_path / "run/virt-rapl-guest.prom").read_text()


def test_everybody_may_read_and_nobody_else_write(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        process.send(line(JOULES))
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if not path.is_symlink()}
    assert modes == {0o644, 0o755}


def test_what_a_killed_run_has_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    meter(tmp_path).feed(sent(line(JOULES)))
    kept = {"run/class/mine": "1", "run/powercap/mine": "2", "run/mine": "3"}
    for name, text in kept.items():
        (tmp_path / name).write_text(text)
    meter(tmp_path)
    assert texts(tmp_path / "run") == {"class/mine": "1", "powercap/mine": "2", "mine": "3", "status.json": "{}"}


# The state


def kept(tmp_path: Path) -> dict[str, int]:
    totals = json.loads((tmp_path / "state/state.json").read_text())["totals"]
    assert isinstance(totals, dict)
    return totals


def test_totals_are_saved_when_they_begin_anew_and_each_minute(tmp_path: Path, clock: SimpleNamespace) -> None:
    one = meter(tmp_path)
    for host, joules, seconds, expected in (
        ("a", 1, 0, 1),
        ("a", 2, 59, 1),
        ("a", 3, 2, 3),
        ("a", 4, 1, 3),
        ("b", 9, 1, 4),
        ("b", 10, 1, 4),
        ("b", 5, 1, 5),
        ("b", 6, 1, 5),
        ("a", 5, 1, 7),
    ):
        clock.now += seconds
        one.feed(sent(line({"package": joules}, host)))
        one.tick()
        assert kept(tmp_path) == {"package": expected * 10**6}


def test_nothing_is_saved_without_news(tmp_path: Path, clock: SimpleNamespace) -> None:
    one, state = meter(tmp_path), tmp_path / "state/state.json"
    one.save()
    assert not state.exists()
    one.feed(sent(line({"package": 1})))
    saved = state.stat().st_ino
    clock.now += 2 * guest.MINUTE
    one.tick()
    assert state.stat().st_ino == saved


def test_lines_that_come_together_are_all_counted(tmp_path: Path) -> None:
    one = meter(tmp_path)
    one.feed(sent(line({"package": 1}, "a"), line({"package": 5}, "a"), line({"package": 70}, "b")) + b'{"sch')
    one.feed(b"\n" + sent(line({"package": 71}, "b")))
    assert one.counters.totals == {"package": 6 * 10**6}


def test_a_line_that_was_cut_off_spoils_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = meter(tmp_path)
    for chunk in (b'{"sch', b"", sent(line({"package": 5}))):
        one.feed(chunk)
    assert one.counters.totals == {"package": 5 * 10**6}
    assert capsys.readouterr().err == ""


def test_it_complains_once_a_minute(tmp_path: Path, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    one = meter(tmp_path)
    for seconds, complaints in ((0, 1), (30, 0), (30, 1), (59, 0)):
        clock.now += seconds
        one.feed(b"nonsense\n\xff\n")
        printed = capsys.readouterr().err
        assert printed.count("a line of the host was dropped, as it is not of schema 1: ") == complaints
        assert printed.count("\n") == complaints


@pytest.mark.parametrize("text", ["{", '{"totals": {}}'])
def test_a_damaged_state_is_set_aside(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/state.json").write_text(text)
    one = meter(tmp_path)
    assert capsys.readouterr().err.startswith("the saved totals are set aside, they cannot be used: ")
    one.feed(sent(line({"package": 5})))
    assert (tmp_path / "state/state.damaged").read_text() == text
    assert kept(tmp_path) == {"package": 5 * 10**6}


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").mkdir()
    make(tmp_path / "state/state.json")
    one = meter(tmp_path)
    assert capsys.readouterr().err.startswith("the saved totals are set aside, they cannot be used: ")
    one.feed(sent(line({"package": 5})))
    assert kept(tmp_path) == {"package": 5 * 10**6}


def test_a_state_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").write_text("a file")
    one = meter(tmp_path)
    one.feed(sent(line({"package": 5})))
    printed = capsys.readouterr().err.splitlines()
    assert [text.partition(":")[0] for text in printed] == [
        "the saved totals are set aside, they cannot be used",
        "totals cannot be saved",
    ]
    assert (tmp_path / "run/powercap/intel-rapl:0/energy_uj").read_text() == "5000000\n"


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = meter(tmp_path, "missing/x.prom")
    one.feed(sent(line({"package": 5})))
    assert capsys.readouterr().err.startswith("counters cannot be shown: ")
    assert (tmp_path / "run/powercap/intel-rapl:0/energy_uj").exists()


# The commands


class Process:
    """`run`, and the host's end of its port."""

    def __init__(self, directory: Path, process: "subprocess.Popen[str]", write: Callable[[bytes], object]) -> None:
        self.directory = directory
        self.process = process
        self.write = write

    def send(self, *lines: dict[str, Any]) -> None:
        """Write lines and wait until they are counted."""
        before = self.status().get("arrived", 0)
        self.write(sent(*lines))
        wait_until(lambda: self.status().get("arrived", 0) > before, PATIENCE, "the line is counted")

    def status(self) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            return dict(json.loads((self.directory / "status.json").read_text()))
        return {}

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@contextlib.contextmanager
def running(tmp_path: Path, *, python: Sequence[str] = (sys.executable,)) -> Iterator[Process]:
    """Run it on one end of a pair of sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs, started(tmp_path, "-", python=python, stdin=theirs.fileno()) as process:
        yield Process(tmp_path / "run", process, ours.sendall)


def _heed_signals() -> None:
    """Whoever runs the tests may ignore some, and that is inherited."""
    for number in TERMINATION:
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def started(
    tmp_path: Path, port: str, *, python: Sequence[str] = (sys.executable,), stdin: int = subprocess.DEVNULL
) -> Iterator["subprocess.Popen[str]"]:
    command = [*python, "-I", str(PROGRAM), "run", "--port", port]
    command += ["--directory", str(tmp_path / "run"), "--state-directory", str(tmp_path / "state")]
    command += ["--textfile", str(tmp_path / "run/virt-rapl-guest.prom")]
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "run/status.json").unlink()
    process = subprocess.Popen(command, stdin=stdin, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_signals)
    try:
        wait_until(lambda: (tmp_path / "run/status.json").exists() or process.poll() is not None, PATIENCE, "it runs")
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(tmp_path: Path, *options: str, stdout: int | IO[str] = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", str(PROGRAM), "status", "--directory", str(tmp_path / "run"), *options]
    return subprocess.run(command, text=True, check=False, timeout=PATIENCE, stdout=stdout, stderr=subprocess.PIPE)


def other_pythons() -> list[str]:
    """Return the oldest Python that runs here beside the one of the tests: 3.6, where it is installed."""
    for name in (f"python3.{minor}" for minor in range(6, 11)):
        if shutil.which(name) and subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode == 0:
            return [name]
    return []


@pytest.mark.parametrize("python", [sys.executable, *other_pythons()], ids=lambda path: Path(path).name)
def test_it_runs_and_says_what_it_has_read(tmp_path: Path, python: str) -> None:
    with running(tmp_path, python=[python]) as process:
        silent = ask(tmp_path)
        assert silent.returncode == 1
        assert silent.stderr == (
            "virt-rapl-guest: error: the host has sent nothing yet\n"
            "hint: on the host: systemctl status virt-rapl-channel virt-rapld\n"
        )
        process.send(line({"package": 100.5, "dram": 10, "0": 100.5}))
        done = ask(tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.sub(r"[0-9.]+ s ago", "N s ago", done.stdout) == (
            "power 12.5 W, as the host's virt-rapl attributes it\n"
            "package           100.500 J      2.5 W\n"
            "dram               10.000 J      2.5 W\n"
            "vcpu 0            100.500 J      2.5 W\n"
            f"host 0123456789ab, counting since {SINCE} (powercap); last line N s ago\n"
        )
        process.send(line({"package": 101}, simulated=True))
        assert ask(tmp_path).stdout.startswith("SIMULATED: this is not what the machine uses\n")
        shown = json.loads(ask(tmp_path, "--json").stdout)
        assert 0 <= shown.pop("age_seconds") < PATIENCE
        assert shown == {
            "schema": 1,
            "time": "2026-11-28T10:00:00.123Z",
            "host": "0123456789ab",
            "since": SINCE,
            "source": "simulated",
            "simulated": True,
            "power_watts": 12.5,
            "zones": {"package": {"power_watts": 2.5, "energy_joules": 101}, "dram": {"energy_joules": 10}},
            "vcpus": [{"id": 0, "energy_joules": 100.5}],
        }
        assert process.end() == (0, "")


@pytest.mark.parametrize("number", TERMINATION, ids=lambda number: number.name)
def test_a_signal_ends_it_and_what_it_showed(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as process:
        process.send(line({"package": 1}))
        process.send(line({"package": 2}))
        assert process.end(number) == (0, "")
    assert list((tmp_path / "run").iterdir()) == []
    assert kept(tmp_path) == {"package": 2 * 10**6}


def test_with_nohup_it_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, python=["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable]) as process:
        process.process.send_signal(signal.SIGHUP)
        process.send(line({"package": 1}))
        assert process.end() == (0, "")


def test_it_waits_while_no_host_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """select() does not: the end of a pipe, and a port without a host, can always be read."""
    calls: list[tuple[int, float]] = []

    def select(to_read: list[int], _write: list[int], _except: list[int], seconds: float) -> tuple[list[int]]:
        calls.append((len(to_read), seconds))
        return (to_read[:1],)

    monkeypatch.setattr(guest, "select", SimpleNamespace(select=select))
    options = f"--port /dev/null --directory {tmp_path}/run --state-directory {tmp_path}/state"
    assert command(monkeypatch, "run", *options.split()) == 0
    assert calls == [(2, 1), (1, 0.5)]


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        process.send(line({"package": 1}, "a"))
        process.send(line({"package": 70}, "b"))
        process.send(line({"package": 72}, "b"))
        process.end(signal.SIGKILL)
        assert kept(tmp_path) == {"package": 1 * 10**6}
    assert (tmp_path / "run/powercap").exists()
    with running(tmp_path) as process:
        assert not (tmp_path / "run/powercap").exists()
        process.send(line({"package": 75}, "b"))
        assert process.status()["zones"]["package"]["energy_joules"] == 6


def test_the_host_may_come_and_go(tmp_path: Path) -> None:
    fifo = tmp_path / "port"
    os.mkfifo(fifo)
    with started(tmp_path, str(fifo)) as running:
        for joules in (1, 2):
            with fifo.open("wb", buffering=0) as host:
                process = Process(tmp_path / "run", running, host.write)
                process.send(line({"package": joules}), line({"package": joules}))  # the first may be cut off as below
                process.write(b'{"schema": 1, ')
        assert process.status()["zones"]["package"]["energy_joules"] == 2
        assert process.end()[0] == 0


def test_it_ends_when_the_port_is_gone(tmp_path: Path) -> None:
    theirs, ours = os.openpty()
    with started(tmp_path, "-", stdin=theirs) as running:
        os.close(theirs)
        process = Process(tmp_path / "run", running, lambda data: os.write(ours, data))
        process.send(line({"package": 1}))
        os.close(ours)
        status, errors = process.ended()
    assert status == 1
    assert errors.splitlines() == [
        "virt-rapl-guest: error: the energy channel is gone: Input/output error",
        f"hint: {guest.ON_THE_HOST}",
    ]
    assert list((tmp_path / "run").iterdir()) == []
    assert kept(tmp_path) == {"package": 10**6}


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the program in this process."""
    monkeypatch.setattr(sys, "argv", ["virt-rapl-guest", *arguments])
    handlers = {number: signal.getsignal(number) for number in (*TERMINATION, signal.SIGPIPE)}
    try:
        return int(guest.main())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)


def test_where_there_is_no_port_it_says_what_to_do_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guest, "PORT", tmp_path / "port")
    assert command(monkeypatch, "status", "--directory", str(tmp_path)) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"virt-rapl-guest: error: this guest has no energy channel: there is no {tmp_path / 'port'}",
        f"hint: {guest.ON_THE_HOST}",
    ]
    (tmp_path / "port").touch()
    assert command(monkeypatch, "status", "--directory", str(tmp_path)) == 1
    assert capsys.readouterr().err.splitlines() == [
        "virt-rapl-guest: error: virt-rapl-guest.service is not running",
        "hint: systemctl start virt-rapl-guest",
    ]


@pytest.mark.parametrize("age", [11, 3600, -5])
def test_old_figures_are_shown_as_old(
    tmp_path: Path, age: float, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    meter(tmp_path).feed(sent(line({"package": 7, "0": 7})))
    file = tmp_path / "run/status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "arrived": time.monotonic() - age}))
    assert command(monkeypatch, "status", "--json", "--directory", str(tmp_path / "run")) == 1
    shown = capfd.readouterr().out
    assert ("power_watts" in shown, json.loads(shown)["zones"]) == (False, {"package": {"energy_joules": 7}})
    assert command(monkeypatch, "status", "--directory", str(tmp_path / "run")) == 1
    printed = capfd.readouterr()
    assert (
        "power unknown, as the host's virt-rapl attributes it\npackage             7.000 J    unknown\n" in printed.out
    )
    assert re.match(r"virt-rapl-guest: error: the host has sent nothing for -?\d+ s\nhint: on the host: ", printed.err)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ("--port {}/none", "cannot open the energy channel: .*No such file.*", guest.ON_THE_HOST),
        ("--port {}", "cannot read the energy channel: .* is a directory", "--port takes a port"),
        ("--port /dev/null --directory /proc/self/x", "cannot keep counters: .*/proc/self/x'", "run it as root"),
        ("--port /dev/null --textfile {}/x.txt", "--textfile: node_exporter does not read it", "give it a name"),
    ],
)
def test_what_run_cannot_do_is_said_in_a_line(
    options: str,
    message: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, "run", *options.format(tmp_path).split()) == 1
    error, then = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"virt-rapl-guest: error: {message}", error)
    assert then.startswith(f"hint: {hint}")


def test_output_that_nobody_takes_makes_no_traceback(tmp_path: Path) -> None:
    meter(tmp_path).feed(sent(line({"package": 7})))
    with Path("/dev/full").open("w") as full:
        done = ask(tmp_path, stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (1, 2)
    reader, writer = os.pipe()
    os.close(reader)
    done = ask(tmp_path, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")
    shell = f"exec {sys.executable} -I {PROGRAM} status --directory {tmp_path} 2>&- >&-"
    assert subprocess.run(["sh", "-c", shell], check=False).returncode == 1


# The unit, the rule and the page


@pytest.mark.needs("systemd-analyze", "systemd-escape")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text()
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/usr/local/bin/virt-rapl-guest", str(PROGRAM)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    escape = ["systemd-escape", "--path", "--suffix=device", str(guest.PORT)]
    device = subprocess.run(escape, capture_output=True, text=True, check=True).stdout.strip()
    for setting in (
        f"BindsTo={device}",
        f"After={device}",
        f"StandardInput=file:{guest.PORT}",
        f"DeviceAllow={guest.PORT} r",
    ):
        assert f"\n{setting}\n" in text


@pytest.mark.needs("systemd-analyze")
def test_the_unit_is_confined() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+) ", printed)
    assert found, printed
    assert float(found[1]) <= 0.4, printed


def calls(*names: str) -> set[str]:
    """Return the system calls of groups, such as @system-service, as systemd understands them."""
    found: set[str] = set()
    for name in names:
        if name.startswith("@"):
            command = ["systemd-analyze", "syscall-filter", "--no-pager", name]
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            found |= calls(*(text.strip() for text in listed[1:] if not text.strip().startswith("#")))
        else:
            found.add(name)
    return found


@pytest.mark.needs("systemd-analyze", "strace")
def test_the_unit_forbids_no_system_call_that_it_makes(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with running(tmp_path, python=["strace", "-D", "-q", "-o", str(trace), sys.executable]) as process:
        process.send(line(JOULES))
        assert process.end() == (0, "")
    wait_until(lambda: "+++ exited with 0 +++" in trace.read_text(), PATIENCE, "all calls are written down")
    made = set(re.findall(r"^(\w+)\(", trace.read_text(), re.MULTILINE))
    assert {"fsync", "rename"} <= made
    (allowed,) = re.findall("^SystemCallFilter=(@.*)$", UNIT.read_text(), re.MULTILINE)
    (forbidden,) = re.findall("^SystemCallFilter=~(.*)$", UNIT.read_text(), re.MULTILINE)
    assert made - (calls(*allowed.split()) - calls(*forbidden.split())) == set()


@pytest.mark.needs("udevadm")
def test_udev_understands_the_rule() -> None:
    assert f'ATTR{{name}}=="{guest.PORT.name}"' in RULES.read_text()
    if subprocess.run(["udevadm", "verify", "--help"], capture_output=True, check=False).returncode:
        pytest.skip("this udevadm has no verify: it came with systemd 254")
    done = subprocess.run(["udevadm", "verify", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_user_data_for_cloud_init_has_all_files(tmp_path: Path) -> None:
    (script,) = [
        text
        for text in re.findall(r"```sh\n(.*?)```", (GUEST / "README.md").read_text(), re.DOTALL)
        if "cloud-config" in text
    ]
    subprocess.run(
        ["sh", "-euc", f"cd '{GUEST}'\n{script.replace('> user-data', f'> {tmp_path}/user-data')}"], check=True
    )
    text = (tmp_path / "user-data").read_text()
    assert text.startswith("#cloud-config\n")
    data = yaml.safe_load(text)
    assert {Path(file["path"]): gzip.decompress(base64.b64decode(file["content"])) for file in data["write_files"]} == {
        Path(place, path.name): path.read_bytes()
        for place, path in (("/usr/local/bin", PROGRAM), ("/etc/systemd/system", UNIT), ("/etc/udev/rules.d", RULES))
    }
    assert [file["permissions"] for file in data["write_files"]] == ["0755", "0644", "0644"]
    assert data["runcmd"][0] == "systemctl daemon-reload"
