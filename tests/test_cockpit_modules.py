"""The Cockpit page's modules that touch no page, in the browser that they run in; its words, and its colours."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, sync_playwright

from libvirt_rapl.doctor import CHECKS
from libvirt_rapl.errors import printable

PAGE = Path(__file__).parent.parent / "etc/cockpit/virt-rapl"
ORIGIN = "http://page.test/"
MODULES = sorted(path for path in PAGE.glob("*.js") if not path.name.startswith("po."))

needs_browser = pytest.mark.needs("chromium")
Call = Callable[..., Any]
"""The fixture js: an expression in which the modules have their names, and its variables -> its value."""


@pytest.fixture(scope="module")
def js(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    home = tmp_path_factory.mktemp("home")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"], env={**os.environ, "HOME": str(home)}
        )
        page = chromium.new_page()

        def serve(route: Route) -> None:
            path = PAGE / route.request.url.removeprefix(ORIGIN)
            kind = "text/javascript" if path.suffix == ".js" else "text/html"
            route.fulfill(body=path.read_text() if path.is_file() else "", content_type=kind)

        page.route("**/*", serve)
        page.goto(ORIGIN)
        names = ("commands", "curves", "format", "geometry", "lines", "model", "order")
        page.evaluate("async names => { for (const n of names) window[n] = await import(`./${n}.js`) }", names)

        def call(expression: str, **variables: Any) -> Any:  # noqa: ANN401
            return page.evaluate(f"({{ {', '.join(variables)} }}) => {expression}", variables)

        yield call
        chromium.close()


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@needs_browser
@pytest.mark.parametrize(
    ("how", "value", "english", "german"),
    [
        ("watts", 1234.5, "1,234.50 W", "1.234,50 W"),
        ("watts", 0, "0.00 W", "0,00 W"),
        ("watts", None, "\u2013", "\u2013"),
        ("energy", 0, "0.00 Wh", "0,00 Wh"),
        ("energy", 0.00005, "180.0 J", "180,0 J"),
        ("energy", 0.0012, "1.20 Wh", "1,20 Wh"),
        ("energy", 0.123, "123.0 Wh", "123,0 Wh"),
        ("energy", 12.345, "12.35 kWh", "12,35 kWh"),
        ("energy", 1234.5, "1,234.5 kWh", "1.234,5 kWh"),
        ("energy", None, "\u2013", "\u2013"),
        ("joules", 7_200_000, "2.00 kWh", "2,00 kWh"),
        ("carbon", 12.34, "12.3 g", "12,3 g"),
        ("carbon", 2500, "2.50 kg", "2,50 kg"),
        ("percent", 0.125, "12.5 %", "12,5 %"),
    ],
)
def test_how_figures_are_written(js: Call, how: str, value: float | None, english: str, german: str) -> None:
    for language, expected in (("en", english), ("de", german)):
        assert plain(js("format.formats(language)[how](value)", language=language, how=how, value=value)) == expected


@needs_browser
def test_money_has_its_currency_and_little_of_it_more_digits(js: Call) -> None:
    money = "[12.5, 0.0123, null].map(cost => format.formats('pt_BR').money(cost, 'EUR'))"
    assert list(map(plain, js(money))) == ["12,50 EUR", "0,0123 EUR", "\u2013"]


@needs_browser
@pytest.mark.parametrize(
    ("top", "marks"), [(2, ["0 kWh", "1.5 kWh"]), (0.02, ["0 Wh", "15 Wh"]), (0.001, ["0 Wh", "0.75 Wh"])]
)
def test_a_scale_of_energy_has_one_unit(js: Call, top: float, marks: list[str]) -> None:
    found = js("[0, 0.75].map(part => format.formats('en').energyMark(part * top, top))", top=top)
    assert list(map(plain, found)) == marks


@needs_browser
@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (0.0034, 0.004), (1, 1), (1.01, 1.5), (99, 100), (101, 150), (650, 800), (8.1, 10)]
)
def test_a_scale_ends_at_a_round_number(js: Call, value: float, top: float) -> None:
    found = js("geometry.scale(value)", value=value)
    assert found["top"] == pytest.approx(top)
    assert (top / found["parts"]) * 1000 == pytest.approx(round(top / found["parts"] * 1000, 1)), "each mark, too"


@needs_browser
def test_areas_are_stacked_and_open_where_nothing_is_known(js: Call) -> None:
    lower, upper = js("geometry.areas([[10, 30], [20, 30], null, [0, 50]], 100)")
    assert lower == "M0,90L0.5,90L1.5,80L2,80L2,100L1.5,100L0.5,100L0,100ZM3,100L3.5,100L4,100L4,100L3.5,100L3,100Z"
    assert upper == "M0,60L0.5,60L1.5,50L2,50L2,80L1.5,80L0.5,90L0,90ZM3,50L3.5,50L4,50L4,100L3.5,100L3,100Z"
    assert js("geometry.areas([], 1)") == js("geometry.areas([null], 1)") == []


@needs_browser
def test_names_are_known_as_commands_print_them(js: Call) -> None:
    names = [chr(code) for code in (*range(0x300), 0x2003, *range(0x2028, 0x2070), 0xD800, 0xFEFF, 0x1F600, 0xE0041)]
    assert js("names.map(commands.printed)", names=names) == [printable(name) for name in names]
    assert js("commands.printed(name)", name="a b\u202ec\n") == "a b\\u202ec\\n"


@needs_browser
def test_bars_and_curves(js: Call) -> None:
    assert js("geometry.bars([[50], [0], null, [100]], 100)") == "M0.12,100V50H0.88V100ZM3.12,100V0H3.88V100Z"
    assert js("geometry.curve([null, [1], [2]], 2, 20)") == "M1,10L1.5,10L2.5,0L3,0"
    assert js("geometry.highest([[1, 2], null, [0, 4]])") == 4
    assert js("geometry.highest([])") == 0


@needs_browser
def test_a_series_has_the_mean_of_each_step_and_forgets_the_oldest(js: Call) -> None:
    made = """{
        const curve = new curves.Curve(2);
        for (const [seconds, ...values] of samples)
            curve.add(seconds, values);
        return curve.until(until, count);
    }"""
    samples = [[100, 1, 10], [102, 3, 20], [104.9, 5, 30], [110, 7, 40]]
    assert js(made, samples=samples, until=111, count=3) == [[3, 20], None, [7, 40]]
    assert js(made, samples=samples, until=121, count=3) == [[7, 40], None, None]
    # After more than it holds, nothing of before is left in the places that are used again.
    later = [*samples, [100 + 900, 2, 2]]
    assert js(made, samples=later, until=1000, count=200).count(None) == 199 - 1
    assert js(made, samples=[*samples, [100_000, 1, 1]], until=100_000, count=180) == [None] * 179 + [[1, 1]]
    # The clock was set back: by more than it holds, or by less.
    assert js(made, samples=[[5000, 1, 1], [4000, 2, 2], [10, 9, 9]], until=10, count=2) == [None, [9, 9]]
    assert js(made, samples=[[5000, 1, 1], [4996, 3, 3]], until=5000, count=2) == [[3, 3], [1, 1]]


@needs_browser
def test_a_history_follows_domains_and_can_be_kept(js: Call) -> None:
    kept = """{
        const made = new curves.Curves();
        const host = { domains_watts: 3, other_watts: 2, idle_watts: 1 };
        const domain = (uuid, power_watts, unread) => ({ uuid, power_watts, unread });
        made.add(100, { host, domains: [domain("a", 1), domain("b", 2)] });
        made.add(105, { host, domains: [domain("a", 3.00049), domain("c", 9, true)] });
        const anew = new curves.Curves();
        anew.restore(JSON.parse(JSON.stringify(made.saved(109))));
        return [made, anew].map(each => [each.host.until(109, 2),
            [...each.domains].map(([uuid, curve]) => [uuid, curve.until(109, 2)])]);
    }"""
    made, anew = js(kept)
    assert made == [[[3, 2, 1]] * 2, [["a", [[1], [3.00049]]], ["c", [None, None]]]]
    assert anew == [[[3, 2, 1]] * 2, [["a", [[1], [3]]], ["c", [None, None]]]]


@needs_browser
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_lines_come_whole_however_the_text_is_cut(js: Call, size: int) -> None:
    text = "one\n\ntwo \u00e4\nthree\nfour"
    split = """{
        const found = [];
        const take = lines.splitter(line => found.push(line));
        pieces.forEach(piece => take(piece));
        return found;
    }"""
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert js(split, pieces=pieces) == ["one", "two \u00e4", "three"]


@needs_browser
@pytest.mark.parametrize(
    ("text", "errors", "warnings"),
    [
        (None, [], []),
        ("virt-rapl: error: no\nhint: mend it\n", [{"message": "no", "hint": "mend it"}], []),
        ("virt-rapl: error: no", [{"message": "no", "hint": ""}], []),
        (
            "virt-rapl: warning: one\nvirt-rapl: warning: two\nhint: of two\nvirt-rapl: energy is SIMULATED\n",
            [],
            [{"message": "one", "hint": ""}, {"message": "two", "hint": "of two"}],
        ),
        ("Traceback\nhint: none", [], []),
    ],
)
def test_what_a_command_says_on_standard_error(
    js: Call, text: str | None, errors: list[dict[str, str]], warnings: list[dict[str, str]]
) -> None:
    said = js("['error', 'warning'].map(kind => commands.said(kind, text))", text=text)
    assert said == [errors, warnings]
    notes = js("commands.notes(text)", text=text)
    assert notes == (["energy is SIMULATED"] if "SIMULATED" in (text or "") else [])


@needs_browser
def test_attempts_become_rarer(js: Call) -> None:
    assert js("[0, 1, 2, 3, 4, 50].map(lines.pause)") == [1, 2, 4, 8, 15, 15]


def row(name: str, **fields: object) -> dict[str, object]:
    empty = {"title": "", "labels": [], "state": "running", "uuid": name, "registers": "off", "channel": "off"}
    return {"name": name, "watts": 0, "today": None, "month": None, **empty, **fields}


@needs_browser
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["web1", "db"]),
        ("WEB", ["web1"]),
        ("shop off", ["db"]),
        ("shop active", []),
        ("active", ["web1"]),
        ("a.b", []),
        ("  ", ["web1", "db"]),
    ],
)
def test_rows_are_filtered_by_all_words(js: Call, text: str, names: list[str]) -> None:
    rows = [row("web1", registers="active"), row("db", title="The Shop's", labels=["gold"])]
    assert [each["name"] for each in js("order.filtered(rows, text)", rows=rows, text=text)] == names


@needs_browser
@pytest.mark.parametrize(
    ("key", "descending", "names"),
    [
        ("name", False, ["vm2", "vm10", "vm33"]),
        ("name", True, ["vm33", "vm10", "vm2"]),
        ("watts", True, ["vm10", "vm2", "vm33"]),
        ("watts", False, ["vm2", "vm10", "vm33"]),
        ("cost", True, ["vm33", "vm2", "vm10"]),
        ("meter", False, ["vm33", "vm2", "vm10"]),
    ],
)
def test_rows_are_sorted_and_what_is_not_known_comes_last(
    js: Call, key: str, descending: bool, names: list[str]
) -> None:
    rows = [
        row("vm33", watts=None, month={"cost": 2}, registers="degraded"),
        row("vm10", watts=5),
        row("vm2", watts=1, registers="active"),
    ]
    found = js("order.sorted(rows, key, descending)", rows=rows, key=key, descending=descending)
    assert [each["name"] for each in found] == names


def domain(name: str = "web", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "name": name,
        "uuid": f"uuid-{name}",
        "state": "running",
        "pid": 7,
        "vrapl": "off",
        "reason": None,
        "helper": None,
        "channel": "off",
        "power_watts": 3.5,
        "energy_joules": 7200.0,
        **fields,
    }


def document(*domains: dict[str, object], **host: object) -> dict[str, Any]:
    return {"host": {"source": "powercap", "interval_seconds": 1.0, **host}, "domains": list(domains)}


@needs_browser
@pytest.mark.parametrize(
    ("fields", "actions"),
    [
        ({}, ["enable"]),
        ({"pid": None}, ["enable"]),
        ({"vrapl": "pending", "pid": None}, ["disable"]),
        ({"vrapl": "pending"}, ["live", "disable"]),
        ({"vrapl": "active"}, ["disable"]),
        ({"vrapl": "degraded"}, ["live", "disable"]),
        ({"channel": "waiting"}, ["disable"]),
        ({"channel": "connected", "vrapl": "degraded"}, ["live", "disable"]),
        ({"channel_pending": True}, ["live", "disable"]),
        ({"channel_pending": True, "pid": None}, ["disable"]),
    ],
)
def test_what_can_be_done_to_a_domain(js: Call, fields: dict[str, Any], actions: list[str]) -> None:
    assert js("model.actions(domain)", domain=domain(**fields)) == actions
    without = domain(**fields)
    del without["channel"]
    if "channel" not in fields:  # virt-rapld may be of a version before it
        assert js("model.actions(domain)", domain=without) == actions


@needs_browser
def test_a_row_has_energy_and_what_doctor_says(js: Call) -> None:
    report = {"host": {"cost": 5.0, "currency": "EUR", "grams_co2e": None}, "rows": [{"uuid": "uuid-web", "kwh": 2.5}]}
    checks = [
        {"name": "domains", "state": "failed", "message": "web: has: no meter", "hint": "mend it"},
        {"name": "domains", "state": "warning", "message": "web: 2: is enabled", "hint": "start it"},
        {"name": "domains", "state": "warning", "message": "web: 2: lost its helper", "hint": "start it"},
        {"name": "domains", "state": "ok", "message": "web: fine", "hint": "nothing"},
        {"name": "hook", "state": "failed", "message": "web: is no domain here", "hint": ""},
    ]
    domains = [domain(), domain("web: 2", reason="lost its helper", unread=True, title="T", labels={"project": "shop"})]
    made = "model.rows(document, today, month, checks)"
    web, other = js(made, document=document(*domains), today=report, month=None, checks=checks)
    assert (web["today"]["kwh"], web["month"], web["watts"]) == (2.5, None, 3.5)
    assert (web["reasons"], web["hints"]) == (["has: no meter"], ["mend it"])
    assert other["today"] == {"kwh": 0, "cost": 0, "currency": "EUR", "grams_co2e": None}
    assert (other["watts"], other["title"], other["labels"]) == (None, "T", ["shop"])
    assert (other["reasons"], other["hints"]) == (["lost its helper", "is enabled"], ["start it"])


def test_doctor_calls_the_check_of_domains_so() -> None:
    assert "domains" in CHECKS


@needs_browser
def test_failures_come_first_and_only_those_of_the_host(js: Call) -> None:
    names = {"kvm": "warning", "clock": "ok", "hook": "failed", "domains": "failed", "selinux": "skipped"}
    checks = [{"name": name, "state": state} for name, state in names.items()]
    assert [check["name"] for check in js("model.problems(checks)", checks=checks)] == ["hook", "kvm"]


ACTIVE = domain(vrapl="active")


@needs_browser
@pytest.mark.parametrize(
    ("made", "about", "kinds"),
    [
        (document(ACTIVE), {}, []),
        (document(ACTIVE), {"sampledAt": 94.9}, ["old"]),
        (document(ACTIVE, interval_seconds=30.0), {"sampledAt": 11}, []),
        (document(ACTIVE, interval_seconds=30.0), {"sampledAt": 9}, ["old"]),
        (document(ACTIVE, source="simulated"), {}, ["simulated"]),
        (document(ACTIVE, libvirt_trouble="gone", trouble="gone"), {}, ["libvirt"]),
        (document(ACTIVE, libvirt_trouble="gone", trouble="psys: no; gone"), {}, ["libvirt", "unread"]),
        (document(ACTIVE), {"report": {"error": "off"}}, ["no-report"]),
        (document(ACTIVE), {"report": {"rows": []}}, []),
        (document(domain()), {}, ["none-enabled"]),
        (document(domain(channel_pending=True)), {}, []),
        (document(), {}, []),
        (document(ACTIVE), {"mayChange": False}, ["read-only"]),
        (document(ACTIVE), {"mayChange": None}, []),
    ],
)
def test_what_is_said_above_the_figures(
    js: Call, made: dict[str, Any], about: dict[str, object], kinds: list[str]
) -> None:
    usual = {"seconds": 100, "sampledAt": 99, "mayChange": True, "report": None}
    found = js("model.notices(made, about)", made=made, about=usual | about)
    assert [notice["kind"] for notice in found] == kinds


@needs_browser
@pytest.mark.parametrize(
    ("error", "member", "kind"),
    [
        ({"problem": "not-found"}, False, "not-installed"),
        ({"problem": "not-found"}, True, "not-installed"),
        ({"problem": None, "message": "may not read"}, False, "no-permission"),
        ({"problem": None, "message": "may not read"}, True, "away"),
        ({"problem": "access-denied", "message": ""}, True, "no-permission"),
        ({"problem": None, "message": ""}, False, "away"),
    ],
)
def test_why_there_is_no_document(js: Call, error: dict[str, object], member: bool, kind: str) -> None:
    assert js("model.failure(error, member)", error=error, member=member) == kind


@needs_browser
@pytest.mark.parametrize(
    ("by", "since", "until", "rows", "keys"),
    [
        (
            "hour",
            "2026-10-24T22:15:00+00:00",
            "2026-10-25T00:45:00+00:00",
            ["2026-10-24T23:00+00:00"],
            ["2026-10-24T22:00+00:00", "2026-10-24T23:00+00:00", "2026-10-25T00:00+00:00"],
        ),
        # The clock is set back: an hour has its name as virt-rapl gives it, and is there twice.
        (
            "hour",
            "2026-10-25T01:30:00+02:00",
            "2026-10-25T03:00:00+01:00",
            ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"],
            ["2026-10-25T01:00+02:00", "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"],
        ),
        ("hour", "2026-01-01T05:45:00-03:30", "2026-01-01T06:00:00-03:30", [], ["2026-01-01T05:00-03:30"]),
        (
            "day",
            "2026-02-27T10:00:00+01:00",
            "2026-03-01T10:00:00+01:00",
            ["2026-03-01"],
            ["2026-02-27", "2026-02-28", "2026-03-01"],
        ),
        ("day", "2026-02-27T00:00:00+01:00", "2026-02-28T00:00:00+01:00", [], ["2026-02-27"]),
        (
            "month",
            "2025-11-28T00:00:00+01:00",
            "2026-02-01T00:00:00+01:00",
            ["2026-01"],
            ["2025-11", "2025-12", "2026-01"],
        ),
    ],
)
def test_hours_days_and_months_without_energy_are_there_too(
    js: Call, by: str, since: str, until: str, rows: list[str], keys: list[str]
) -> None:
    report = {"by": by, "since": since, "until": until, "rows": [{"key": key, "kwh": 1} for key in rows]}
    found = js("model.timeline(report)", report=report)
    assert [each["key"] for each in found] == keys
    assert [each["key"] for each in found if each["kwh"]] == rows


@needs_browser
def test_times_are_those_of_the_host(js: Call) -> None:
    instants = ["2026-10-25T02:00+02:00", "2026-10-25", "2026-10", "2026-11-01T00:00:00+01:00"]
    found = js("instants.map(each => model.localTime(each))", instants=instants)
    assert found == ["2026-10-25 02:00", "2026-10-25", "2026-10", "2026-11-01 00:00"]


# Words and colours.


def entries(name: str) -> dict[str, str]:
    """Return the translations in a file: it is JavaScript, of which each line is an entry in JSON."""
    found = re.findall(r'^    (".+"): \[null, (".+")\],$', (PAGE / name).read_text(), re.MULTILINE)
    return {json.loads(english): json.loads(german) for english, german in found}


def test_every_text_is_translated_and_no_other() -> None:
    texts = {
        json.loads(f'"{text}"')
        for path in MODULES
        for text in re.findall(r'\b_\(\s*"((?:[^"\\]|\\.)*)"', path.read_text())
    }
    assert len(texts) > 100
    german = entries("po.de.js")
    assert german.keys() == texts
    for english, translated in german.items():
        assert sorted(re.findall(r"\$\d", english)) == sorted(re.findall(r"\$\d", translated)), english
    label = json.loads((PAGE / "manifest.json").read_text())["menu"]["index"]["label"]
    assert entries("po.manifest.de.js") == {label: german[label]}


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_html() -> None:
    for path in PAGE.iterdir():
        addresses = set(re.findall(r"\w+://[^\s\"')]*", path.read_text())) - {"http://www.w3.org/2000/svg"}
        assert addresses == set(), path
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser")
    assert [path.name for path in MODULES if forbidden.search(path.read_text())] == []
    assert re.findall(r"<script(?![^>]*src=)|\bon\w+=|style=", (PAGE / "index.html").read_text()) == []


def colors(theme: str) -> dict[str, tuple[float, ...]]:
    css = (PAGE / "virt-rapl.css").read_text()
    light, dark = (re.search(rf"^{name} \{{(.*?)\}}", css, re.MULTILINE | re.DOTALL) for name in THEMES.values())
    assert light
    assert dark
    found = dict(re.findall(r"--([\w-]+): #(\w+);", light[1]))
    if theme == "dark":
        assert found.keys() == dict(re.findall(r"--([\w-]+): #(\w+);", dark[1])).keys(), "each colour has a dark one"
        found = dict(re.findall(r"--([\w-]+): #(\w+);", dark[1]))
    long = {name: value if len(value) == 6 else "".join(2 * sign for sign in value) for name, value in found.items()}
    return {name: tuple(int(value[at : at + 2], 16) / 255 for at in (0, 2, 4)) for name, value in long.items()}


THEMES = {"light": ":root", "dark": r":root\.pf-v6-theme-dark"}


def luminance(color: tuple[float, ...]) -> float:
    """Return it as WCAG 2 defines it."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


LABELS = ("green", "blue", "orange", "red", "grey")
TEXTS = [
    *((text, back) for text in ("text", "muted", "link") for back in ("card", "page")),
    *((label, f"{label}-back") for label in LABELS),
    *(("text", f"{label}-back") for label in ("blue", "orange", "red", "grey")),
    ("on-primary", "primary"),
    ("on-primary", "primary-over"),
    ("card", "danger"),
]
SHAPES = [(shape, "card") for shape in ("domains", "other", "idle", "primary", "field")]


@pytest.mark.parametrize("theme", THEMES)
def test_contrast_suffices(theme: str) -> None:
    """As WCAG 2.2 wants it at level AA: 4.5 for text, 3 for what is no text."""
    found = colors(theme)
    ratios = {
        pair: (contrast(found[pair[0]], found[pair[1]]), least)
        for least, pairs in ((4.5, TEXTS), (3.0, SHAPES))
        for pair in pairs
    }
    assert {pair: round(ratio, 2) for pair, (ratio, least) in ratios.items() if ratio < least} == {}
