"""What the page shows in each state, for each user and in each size; virt-rapl's answers are made up."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from cockpit import PROGRAM, SERVER, Visits, text
from playwright.sync_api import Page, expect
from walking import wait_until

from libvirt_rapl.errors import printable
from libvirt_rapl.simulator.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium", "cockpit-bridge", str(Path(SERVER).parent))]

Document = dict[str, Any]
Change = Callable[[Document], object]

TESTS = Path(__file__).parent
NOBODY = 65534
UNKNOWN = "\u2013"
DOMAINS, SECONDS = 300, 15
"""How many domains the page has when it is measured, and how long."""
KEEP = "VIRT_RAPL_SCREENSHOTS"
"""A variable of the environment: a directory that screenshots are put into."""
WIDTHS = {"wide": 1280, "phone": 390}
EARLIEST = {"overview": "make room", "domain": "make room", "report": "made up"}
"""Words that a view has when all is there."""


class Fake:
    """A virt-rapl in the world that answers what the test says."""

    def __init__(self, directory: Path, program: Path) -> None:
        self.directory = directory
        self.program = program
        document = json.loads((TESTS / "data/status.json").read_text())
        document["host"] |= {"trouble": "", "libvirt_trouble": ""}
        del document["host"]["sampled_at"]
        for domain in document["domains"]:
            domain["channel"] = "off"
            for field in ("channel_reason", "channel_pending", "channel_socket"):
                domain.pop(field, None)
        self.document: Document = document
        """As virt-rapld makes it, of domains in several states, on a host without trouble."""

    def status(self, document: Document) -> None:
        self.answer("status", document)

    def answer(self, command: str, document: Document) -> None:
        """Have a command print this, beginning with the next document or call."""
        part = self.directory / "part"
        part.write_text(json.dumps(document))
        part.replace(self.directory / f"{command}.json")

    def fails(self, command: str, error: str) -> None:
        (self.directory / f"{command}.error").write_text(error)

    def warns(self, command: str, warning: str) -> None:
        (self.directory / f"{command}.warning").write_text(warning)

    def hold(self, command: str) -> Path:
        """Have a command wait until the file that is returned is gone."""
        (held := self.directory / f"{command}.held").touch()
        return held

    def calls(self, command: str) -> list[list[str]]:
        calls = map(json.loads, (self.directory / "calls").read_text().splitlines())
        return [arguments for name, *arguments in calls if name == command]


def report(document: Document, **of_host: object) -> Document:
    """Return a report by domain in which each has used what it has in the document."""
    known = {"cost": 1.25, "currency": "EUR", "grams_co2e": 2500.0}
    rows = [
        {"key": each["name"], "uuid": each["uuid"], "joules": each["energy_joules"], "share": 0.01, **known}
        | {"kwh": each["energy_joules"] / 100}
        for each in document["domains"]
    ]
    host = {"joules": 5e6, "domains_joules": 3e6, "other_joules": 1e6, "idle_joules": 1e6, "kwh": 1.39, **known}
    times = {"since": "2026-11-01T00:00:00+01:00", "until": "2026-11-28T13:45:00+01:00"}
    return {"schema": 1, **times, "by": "domain", "host": host | of_host, "rows": rows, "provenance": ["made up"]}


CHECKS = [
    {"name": "kvm", "state": "ok", "message": "/dev/kvm is there", "hint": ""},
    {"name": "hook", "state": "failed", "message": "there is no hook", "hint": "run `virt-rapl install`"},
    {"name": "domains", "state": "failed", "message": "batch: runs without its meter: no space", "hint": "make room"},
]


@pytest.fixture
def fake(world: World) -> Iterator[Fake]:
    directory, program = world.path("/mnt/fake"), world.path(PROGRAM)
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)  # other users note their calls there, too
    shutil.copy(TESTS / "fakes/virt_rapl.py", program)
    program.chmod(0o755)
    fake = Fake(directory, program)
    fake.status(fake.document)
    fake.answer("report", report(fake.document))
    fake.answer("doctor", {"schema": 1, "checks": CHECKS})
    yield fake
    program.unlink(missing_ok=True)
    shutil.rmtree(directory)


@pytest.fixture
def visit(world: World, tmp_path: Path) -> Iterator[Visits]:
    with Visits(world, tmp_path) as visit:
        yield visit


def words_of(words: str) -> re.Pattern[str]:
    """Return a pattern for these words, in which any space counts as one."""
    return re.compile(re.escape(words).replace(r"\ ", r"\s"))


def on_host(**fields: object) -> Change:
    return lambda document: document["host"].update(fields)


def no_domains(document: Document) -> None:
    document["domains"] = []


def none_enabled(document: Document) -> None:
    for domain in document["domains"]:
        domain |= {"vrapl": "off", "reason": None, "channel": "off"}


def by_channel(document: Document) -> None:
    first, second = document["domains"][:2]
    first |= {"vrapl": "off", "reason": None, "channel": "waiting", "channel_reason": "nothing has opened the port"}
    second |= {"vrapl": "off", "reason": None, "channel_pending": True}


NO_LIBVIRT = {
    "trouble": "psys: no such zone; libvirt cannot be reached",
    "libvirt_trouble": "libvirt cannot be reached",
}
STATES: dict[str, tuple[Change, list[str]]] = {
    "in order": (on_host(), ["101.00 W", "Degraded", "the helper cannot be started: no space", "Active", "make room"]),
    "simulated": (on_host(source="simulated"), ["Energy is simulated", "It is not what this machine uses."]),
    "no libvirt": (
        on_host(**NO_LIBVIRT),
        ["libvirt cannot be asked", "libvirt cannot be reached", "Not everything could be read", "psys: no such zone"],
    ),
    "old": (
        on_host(sampled_at="2026-11-28T12:00:00.000+00:00"),
        ["No new figures since", "What is shown below is old."],
    ),
    "no domains": (no_domains, ["libvirt has no domains."]),
    "none enabled": (none_enabled, ["No guest reads its own energy yet", "Press Enable for a guest"]),
    "by the channel": (by_channel, ["Channel: waiting", "nothing has opened the port", "Channel: at next start"]),
    "no virt-rapld": (on_host(overruns=None), ["virt-rapld does not answer", "systemctl enable --now virt-rapld"]),
}


@pytest.mark.parametrize("state", STATES)
def test_each_state_is_said(fake: Fake, visit: Visits, state: str) -> None:
    change, words = STATES[state]
    document = deepcopy(fake.document)
    change(document)
    fake.status(document)
    page = visit()
    for word in words:
        expect(page.get_by_text(word).first).to_be_visible()
    others = {word for name, (_, said) in STATES.items() for word in said if name not in (state, "in order")}
    seen = text(page)
    assert [word for word in others - {*words} if word in seen] == []


FAILURES: dict[str, tuple[str, int, str]] = {
    "not a member": ("virt-rapl: error: may not read energy_uj\nhint: run as root", NOBODY, "You may not see energy"),
    "mistake in the configuration": ("virt-rapl: error: virt-rapl.yaml:3: no\nhint: mend it", 0, "does not answer"),
    "not a command of ours": ("Traceback\nNameError", 0, "does not answer"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_why_there_are_no_figures(fake: Fake, visit: Visits, name: str) -> None:
    """In virt-rapl's words; and the page tries again."""
    error, user, title = FAILURES[name]
    fake.fails("status", error)
    page = visit(user=user)
    expect(page.get_by_role("heading", name=title)).to_be_visible()
    for line in error.splitlines():
        expect(page.locator(".empty")).to_contain_text(line.removeprefix("virt-rapl: error: ").removeprefix("hint: "))
    (fake.directory / "status.error").unlink()
    expect(page.get_by_role("table", name="Domains")).to_be_visible()


def test_virt_rapl_is_not_installed_and_then_it_is(fake: Fake, visit: Visits) -> None:
    away = fake.program.with_name("away")
    fake.program.rename(away)
    page = visit()
    expect(page.get_by_role("heading", name="virt-rapl is not installed")).to_be_visible()
    away.rename(fake.program)
    expect(page.get_by_role("table", name="Domains")).to_be_visible()


def test_a_user_without_administrative_access_sees_and_changes_nothing(fake: Fake, visit: Visits) -> None:
    page = visit(user=NOBODY)
    expect(page.get_by_text("Limited access")).to_be_visible()
    buttons = page.get_by_role("table", name="Domains").locator("td button")
    expect(buttons).to_have_count(len(fake.document["domains"]))
    assert all(button.is_disabled() for button in buttons.all())


LATER = "{ const now = performance.now.bind(performance); performance.now = () => now() + 61_000 }"
"""A minute passes."""


def test_the_history_of_a_domain_is_read_again(fake: Fake, visit: Visits) -> None:
    """What is open stays open, and where there is less, it is not asked for what is gone."""
    page = visit("domain/" + fake.document["domains"][0]["uuid"])
    used = page.get_by_role("region", name="Energy used")
    used.get_by_text("As a table").click()
    expect(used.get_by_role("row")).to_have_count(1 + len(fake.document["domains"]))
    chart = used.get_by_role("slider")
    chart.focus()
    made = report(fake.document)
    fake.answer("report", made | {"rows": [made["rows"][0] | {"key": "2026-11", "kwh": 12}]})
    page.evaluate(LATER)
    expect(used.get_by_role("row")).to_have_count(2)
    expect(used.get_by_role("status")).to_have_text(words_of("12.00 kWh"))
    assert chart.evaluate("node => node === document.activeElement")
    own = [call for call in fake.calls("report") if "--domain" in call]
    assert own[1:] == own[:-1], "it is the same question"


def test_reports_are_made_while_somebody_sees_the_page(fake: Fake, visit: Visits) -> None:
    page = visit()
    expect(page.locator('tbody [data-column="month"]').first).to_contain_text("Wh")
    assert len(fake.calls("report")) == 2, "of today and of this month"
    page.evaluate("cockpit.hidden = true")
    page.evaluate(LATER)
    page.wait_for_timeout(3000)
    assert len(fake.calls("report")) == 2
    page.evaluate("cockpit.hidden = false; cockpit.dispatchEvent('visibilitychange')")
    wait_until(lambda: len(fake.calls("report")) == 4, 30, "they are asked for again")


def test_a_power_that_is_not_known_is_a_dash(fake: Fake, visit: Visits) -> None:
    domain = next(each for each in fake.document["domains"] if each["name"] == "web")
    fake.status(fake.document | {"domains": [domain | {"unread": True}]})
    page = visit(f"domain/{domain['uuid']}")
    expect(page.locator(".figure").last).to_have_text(UNKNOWN)
    for name, power in (("vCPUs", 2), ("Zones", 1)):
        rows = page.get_by_role("region", name=name).locator("tbody tr")
        expect(rows).not_to_have_count(0)
        assert {row.locator("th, td").nth(power).inner_text() for row in rows.all()} == {UNKNOWN}


@pytest.mark.usefixtures("fake")
def test_from_view_to_view(visit: Visits) -> None:
    """Each begins at its top, with the focus; the first is where it was."""
    page = visit(height=300)
    overview, report = page.get_by_role("link", name="VM energy"), page.get_by_role("link", name="Report")
    expect(overview).to_have_attribute("aria-current", "page")
    expect(page.get_by_text("make room")).to_be_visible()  # what doctor says makes rows higher
    expect(page.locator('tbody [data-column="month"]').first).to_contain_text("Wh")
    page.get_by_role("link", name="web", exact=True).click()
    heading = page.get_by_role("heading", name="web")
    expect(heading).to_be_in_viewport()
    expect(heading).to_be_focused()
    expect(page.locator("[aria-current]")).to_have_count(0)
    overview.click()
    expect(page.get_by_role("link", name="web", exact=True)).to_be_in_viewport()
    report.click()
    expect(page.get_by_role("heading", name="Report")).to_be_in_viewport()
    expect(report).to_have_attribute("aria-current", "page")
    expect(overview).not_to_have_attribute("aria-current", "page")
    page.evaluate("location.hash = '#/domain/none'")
    expect(page.get_by_role("heading", name="none")).to_be_focused()
    expect(page.get_by_text("libvirt does not know this domain any more.")).to_be_visible()


def test_without_history_there_is_no_energy_and_the_reason(fake: Fake, visit: Visits) -> None:
    fake.fails("report", "virt-rapl: error: there is no history\nhint: history is off")
    page = visit()
    expect(page.get_by_text("there is no history; history is off")).to_be_visible()
    assert page.locator('tbody [data-column="today"]').first.inner_text() == UNKNOWN
    expect(page.get_by_role("columnheader", name="Cost")).to_have_count(0)
    page.get_by_role("link", name="web", exact=True).click()
    expect(page.get_by_text("there is no history; history is off")).to_have_count(2)


def test_what_doctor_finds_is_shown(fake: Fake, visit: Visits) -> None:
    page = visit()
    page.get_by_text("Checks of this host: 1 failed, warnings: 0").click()
    expect(page.get_by_text("hook: there is no hook")).to_be_visible()
    expect(page.locator(".checks code")).to_have_text("virt-rapl install")
    fake.answer("doctor", {"schema": 1, "checks": []})
    page.get_by_role("button", name="Check again").click()
    expect(page.get_by_text("Checks of this host")).to_be_hidden()


def test_what_cannot_be_done_is_said_in_the_dialog(fake: Fake, visit: Visits) -> None:
    fake.fails("enable", "virt-rapl: error: plain: it has an -accel of its own\nhint: remove it; `virsh edit plain`")
    page = visit()
    page.get_by_role("button", name="Enable plain").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("alert")).to_contain_text("it has an -accel of its own")
    expect(dialog.locator("code")).to_have_text("virsh edit plain")
    expect(dialog.get_by_role("button", name="Enable now")).to_be_disabled()
    dialog.get_by_role("radio", name="From its next start on").check()
    uuid = next(each["uuid"] for each in fake.document["domains"] if each["name"] == "plain")
    wait_until(lambda: len(fake.calls("enable")) == 2, 30, "it is asked about the next start, too")
    expect(dialog.get_by_role("button", name="Enable")).to_be_disabled()
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    assert fake.calls("enable") == [["--live", "--dry-run", uuid], ["--dry-run", uuid]]


def test_a_name_that_is_printed_in_another_way(fake: Fake, visit: Visits) -> None:
    """What is to happen is said of it, too, and the name turns nothing around but itself."""
    name, told = "\u202eevil", "pauses for about 2 s"
    domain = next(each for each in fake.document["domains"] if each["name"] == "plain")
    fake.status(fake.document | {"domains": [domain | {"name": name}]})
    (fake.directory / "enable.json").write_text(f"--- before\n+++ after\n{printable(name)}: {told}\n")
    page = visit()
    page.get_by_role("button", name="Enable").click()
    dialog = page.get_by_role("dialog", name=f"Give {name} a meter")
    expect(dialog.locator(".plan")).to_contain_text(told)
    expect(dialog.locator("pre")).not_to_contain_text(told)
    expect(dialog.locator("h2 bdi")).to_have_text(name)


def test_a_dialog_stays_until_what_it_does_is_done(fake: Fake, visit: Visits) -> None:
    """However often Esc is pressed: it has to say what became of it."""
    page = visit()
    page.get_by_role("button", name="Enable plain").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Enable now")).to_be_enabled()
    held = fake.hold("enable")
    dialog.get_by_role("button", name="Enable now").click()
    expect(dialog).to_contain_text("Working")
    for _ in range(5):
        page.keyboard.press("Escape")
        page.wait_for_timeout(50)
    fake.fails("enable", "virt-rapl: error: plain: libvirt did not save it\nhint: see its log")
    held.unlink()
    expect(dialog.get_by_role("alert")).to_contain_text("libvirt did not save it")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_warnings_are_read_before_it_is_done(fake: Fake, visit: Visits) -> None:
    fake.warns("disable", "virt-rapl: warning: web is chosen by `domains`\nhint: put it under `exclude`")
    page = visit()
    page.get_by_role("button", name="Disable web").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("web is chosen by domains")
    expect(dialog).to_contain_text("put it under exclude")
    expect(dialog).to_contain_text("The domain's definition becomes what it was before.")
    dialog.get_by_role("button", name="Disable").click()
    expect(dialog).to_have_count(0)
    uuid = next(each["uuid"] for each in fake.document["domains"] if each["name"] == "web")
    assert fake.calls("disable") == [["--dry-run", uuid], [uuid]]


@pytest.mark.usefixtures("fake")
def test_by_keyboard_alone(visit: Visits) -> None:
    page = visit()
    chart = page.get_by_role("slider", name="Power of this host")
    chart.focus()
    page.keyboard.press("ArrowLeft")
    expect(chart).to_have_attribute("aria-valuetext", words_of("domains 10.14 W, other 25.31 W, idle 65.55 W"))
    page.get_by_role("button", name="Power", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader", name="Power", exact=True)).to_have_attribute("aria-sort", "descending")
    names = page.locator(".domain-table .name")
    expect(names.first).to_have_text("web")
    page.get_by_role("searchbox").focus()
    page.keyboard.type("SHOP")
    expect(names).to_have_text(["web"])
    page.keyboard.press("Tab")
    for _ in range(20):
        if page.evaluate("document.activeElement.textContent") == "Disable":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.evaluate("document.activeElement.textContent") == "Disable", "the focus is back where it was"


NEXT_STEP = """async chart => {
    const now = Date.now;
    while (now() % 5000 < 3500)
        await new Promise(resolve => setTimeout(resolve, 50));
    const shift = 5000 - now() % 5000;
    Date.now = () => now() + shift;
    document.dispatchEvent(new Event("visibilitychange"));
    chart.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
    return chart.getAttribute("aria-valuetext");
}"""
"""The curve's next step begins, the page is drawn anew, and somebody asks for the step's value."""


@pytest.mark.usefixtures("fake")
def test_a_step_that_has_just_begun_is_not_empty(visit: Visits) -> None:
    page = visit()
    page.get_by_role("table", name="Domains").wait_for()
    assert "not known" not in page.get_by_role("slider").evaluate(NEXT_STEP)


@pytest.mark.usefixtures("fake")
def test_in_german(visit: Visits) -> None:
    page = visit(language="de-de")
    expect(page.get_by_role("heading", name="Leistung dieses Rechners")).to_be_visible()
    assert "101,00 W" in text(page)
    assert page.title() == "VM-Energie"
    too_wide = "cells => cells.filter(cell => cell.scrollWidth > cell.clientWidth).map(cell => cell.textContent)"
    assert page.locator(".domain-table").locator("th, td").evaluate_all(too_wide) == []
    assert page.locator("html").get_attribute("lang") == "de"


@pytest.mark.usefixtures("fake")
def test_dark_is_what_cockpit_or_the_browser_says(visit: Visits) -> None:
    def is_dark(page: Page) -> bool:
        return bool(page.evaluate("getComputedStyle(document.documentElement).colorScheme === 'dark'"))

    assert is_dark(visit(dark=True))
    page = visit()
    assert not is_dark(page)
    page.evaluate("dispatchEvent(new CustomEvent('cockpit-style', { detail: { style: 'dark' } }))")
    assert is_dark(page)
    page.evaluate("localStorage.setItem('shell:style', 'dark')")
    page.reload()
    expect(page.get_by_role("table", name="Domains")).to_be_visible()
    assert is_dark(page)


@pytest.mark.usefixtures("fake")
def test_the_legend_has_the_colours_of_the_curve_in_high_contrast_too(visit: Visits) -> None:
    page = visit()
    page.emulate_media(forced_colors="active")
    expect(page.locator(".legend .swatch")).to_have_count(3)
    back = page.locator(".legend .swatch").evaluate_all(
        "all => all.map(node => getComputedStyle(node).backgroundColor)"
    )
    parts = page.locator(".chart path:not(.chart-lines)")
    assert back == parts.evaluate_all("all => all.map(node => getComputedStyle(node).fill)")


@pytest.mark.usefixtures("fake")
def test_curves_go_on_when_the_page_is_loaded_anew(visit: Visits) -> None:
    """As Cockpit does when administrative access is turned on."""
    page = visit()
    chart = page.get_by_role("slider", name="Power of this host")
    page.wait_for_timeout(11_000)
    page.reload()
    assert page.evaluate("Object.keys(sessionStorage).filter(key => key.startsWith('virt-rapl'))") == [
        "virt-rapl:localhost"
    ]
    expect(page.get_by_role("table", name="Domains")).to_be_visible()
    chart.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(chart).to_have_attribute("aria-valuetext", words_of("domains 10.14 W"))


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("kept", ["no JSON", '{"seconds": 1, "of": "another version"}'])
def test_curves_that_cannot_be_understood_begin_anew(visit: Visits, kept: str) -> None:
    page = visit()
    expect(page.get_by_role("table", name="Domains")).to_be_visible()
    page.evaluate("kept => sessionStorage.setItem('virt-rapl:localhost', kept)", kept)
    page.evaluate("Storage.prototype.setItem = () => {}")  # the page keeps its curves when it is left
    page.reload()
    expect(page.get_by_role("table", name="Domains")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(fake: Fake, visit: Visits, tmp_path: Path, width: str, dark: bool) -> None:
    """Of each view, also with a long name; look at its screenshot, which VIRT_RAPL_SCREENSHOTS=DIRECTORY keeps."""
    into = Path(os.environ.get(KEEP, tmp_path))
    long = "a-very-long-name-without-any-space-" * 4
    fake.document["domains"][0] |= {"name": long, "title": "and a title " * 12}
    fake.status(fake.document)
    check = {**CHECKS[-1], "message": f"{long}: runs without its meter"}
    fake.answer("doctor", {"schema": 1, "checks": [*CHECKS[:-1], check]})
    views = {"overview": "", "domain": f"domain/{fake.document['domains'][0]['uuid']}", "report": "report"}
    for name, view in views.items():
        page = visit(view, width=WIDTHS[width], dark=dark)
        page.get_by_text(EARLIEST[name]).first.wait_for()
        page.wait_for_timeout(1500)
        page.screenshot(path=into / f"{name}-{width}-{'dark' if dark else 'light'}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], name


@pytest.mark.slow
def test_what_300_domains_cost(fake: Fake, visit: Visits, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints when there was something to see, and the share of a core that the page's main thread took while live."""
    domain = fake.document["domains"][-1]
    fake.document["domains"] = [
        deepcopy(domain) | {"name": f"vm-{number:03}", "uuid": f"{number:08}-0000-4000-8000-000000000000"}
        for number in range(DOMAINS)
    ]
    fake.status(fake.document)
    page = visit()
    expect(page.locator(".domain-table .name")).to_have_count(DOMAINS)
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.wait_for_timeout(5000)

    def busy() -> float:
        found = session.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in found if each["name"] == "TaskDuration"))

    before = busy()
    for _ in range(SECONDS):
        for each in fake.document["domains"]:
            each["power_watts"] += 0.37
        fake.status(fake.document)
        page.wait_for_timeout(1000)
    share = (busy() - before) / SECONDS
    expect(page.locator('tbody [data-column="watts"]').first).not_to_have_text(words_of("4.11 W"))
    with capsys.disabled():
        print(f"\n{DOMAINS} domains: first contentful paint after {painted:.0f} ms, main thread {share:.1%} of a core")
