"""The page in a real browser, through a real Cockpit, with real guests: what it shows, what it does, and for whom."""

import json
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cockpit import PROGRAM, SERVER, Visits, text
from playwright.sync_api import expect
from walking import NewGuest, StartDaemon, asked, configure, grows, wait_until

from libvirt_rapl.simulator.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.needs("chromium", "cockpit-bridge", str(Path(SERVER).parent))]

SHOWN = """() => ({
    host: [...document.querySelectorAll(".figure, .legend dd")].map(node => node.textContent),
    domains: Object.fromEntries([...document.querySelectorAll(".domain-table tbody tr")].map(row =>
        [row.querySelector(".name").textContent, row.querySelector('[data-column="watts"]').textContent])),
})"""
HOSTILE = ("<img src=x onerror=alert(1)>", "'\"; `id` && $(id) <b>bold", "\u202eevil \u05d0\u05d1", "-h", "a: b")


@pytest.fixture
def visit(world: World, tmp_path: Path) -> Iterator[Visits]:
    """Opens the page, which runs our program."""
    path = world.path(PROGRAM)
    path.symlink_to(Path(sys.executable).parent / "virt-rapl")
    with Visits(world, tmp_path) as visit:
        yield visit
    path.unlink()


def watts(value: float) -> str:
    return f"{value:,.2f}\u00a0W"


def expected(document: dict[str, Any]) -> dict[str, Any]:
    parts = [document["host"][f"{part}_watts"] for part in ("domains", "other", "idle")]
    domains = {
        each["name"]: watts(each["power_watts"]) if each["pid"] else each["state"] for each in document["domains"]
    }
    return {"host": [watts(sum(parts)), *map(watts, parts)], "domains": domains}


def test_it_shows_what_status_shows(
    world: World, new_guest: NewGuest, start_daemon: StartDaemon, visit: Visits
) -> None:
    for duty in (90, 30):
        world.run(["virsh", "start", new_guest(duty, vcpus=2)])
    new_guest(0)
    start_daemon()
    page = visit()
    page.get_by_role("row").nth(3).wait_for()
    stream = world.popen(["virt-rapl", "status", "--json", "--watch"])
    documents, shown = [], []
    assert stream.stdout is not None
    for line in islice(stream.stdout, 7):
        documents.append(expected(json.loads(line)))
        shown.append(page.evaluate(SHOWN))
    stream.kill()
    stream.communicate()
    # The page may be one document behind the stream, and shows each as a whole.
    assert [each for each in shown[1:] if each not in documents] == []
    assert len({json.dumps(each) for each in shown}) > 3, "it moves"
    assert "Energy is simulated" in text(page)


def test_a_domain_is_enabled_and_its_guest_reads_energy_after_its_start(
    world: World, new_guest: NewGuest, start_daemon: StartDaemon, visit: Visits
) -> None:
    name = new_guest(50)
    definition = world.run(["virsh", "dumpxml", "--inactive", name]).stdout
    start_daemon()
    page = visit()
    expect(page.get_by_text("No guest reads its own energy yet")).to_be_visible()
    page.get_by_role("button", name=f"Enable {name}").click()
    dialog = page.get_by_role("dialog", name=f"Give {name} a meter")
    confirm = dialog.get_by_role("button", name="Enable")
    expect(confirm).to_be_enabled()
    expect(dialog).to_contain_text(f"{name} would be enabled")
    dialog.get_by_text("Change to its definition").click()
    assert "rapl" in dialog.locator("pre").inner_text()
    assert world.run(["virsh", "dumpxml", "--inactive", name]).stdout == definition, "nothing is done before that"
    confirm.click()
    row = page.get_by_role("row").filter(has_text=name)
    expect(row).to_contain_text("At next start")
    expect(dialog).to_have_count(0)

    world.run(["virsh", "start", name])
    expect(row).to_contain_text("Active")
    wait_until(lambda: grows(world, name), 30, "the guest reads its energy")
    expect(page.get_by_text("No guest reads its own energy yet")).to_have_count(0)

    row.get_by_role("button", name=f"Disable {name}").click()
    page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert world.run(["virsh", "dumpxml", "--inactive", name]).stdout == definition


def test_a_running_domain_gets_its_meter_after_it_is_said_how_long_that_takes(
    world: World, new_guest: NewGuest, start_daemon: StartDaemon, visit: Visits
) -> None:
    name = new_guest(50)
    world.run(["virsh", "start", name])
    start_daemon()
    page = visit()
    page.get_by_role("button", name=f"Enable {name}").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"{name}: pauses for about")
    dialog.get_by_role("combobox").select_option("channel")
    expect(dialog).to_contain_text(f"{name}: gets its channel without a pause")
    dialog.get_by_role("combobox").select_option("registers")
    expect(dialog).to_contain_text(f"{name}: pauses for about")
    dialog.get_by_role("button", name="Enable now").click()
    expect(page.get_by_role("row").filter(has_text=name)).to_contain_text("Active")
    wait_until(lambda: grows(world, name), 30, "the guest reads its energy")


def test_it_outlives_virt_rapld(world: World, new_guest: NewGuest, start_daemon: StartDaemon, visit: Visits) -> None:
    """Also if that is away for longer than `status` waits; figures that `status` samples by itself are not shown."""
    name = new_guest(0)
    pid = start_daemon()
    page = visit()
    row = page.get_by_role("row").filter(has_text=name)
    row.wait_for()
    world.kill(pid, "TERM")
    expect(page.get_by_text("No new figures since")).to_be_visible()
    expect(row).to_be_visible()
    expect(page.get_by_role("heading", name="virt-rapld does not answer")).to_be_visible(timeout=60_000)
    expect(row).to_be_hidden()
    page.wait_for_timeout(4000)
    expect(row).to_be_hidden()
    start_daemon()
    expect(row).to_be_visible()
    expect(page.get_by_text("No new figures since")).to_have_count(0)


def test_names_stay_text(world: World, start_daemon: StartDaemon, visit: Visits) -> None:
    """Whoever may define a domain chooses what is shown to administrators."""
    try:
        for name in HOSTILE:
            world.define_guest(name, 0)
        start_daemon()
        page = visit()
        expect(page.locator(".domain-table .name")).to_have_count(len(HOSTILE))
        assert sorted(page.locator(".domain-table .name").all_text_contents()) == sorted(HOSTILE)
        for name in HOSTILE:
            page.get_by_role("searchbox").fill(name)
            page.get_by_role("link", name=name, exact=True).click()
            expect(page.get_by_role("heading", level=1, name=name, exact=True)).to_be_visible()
            page.get_by_role("button", name="Enable").click()
            expect(page.get_by_role("dialog").get_by_role("button", name="Enable")).to_be_enabled()
            assert name in page.get_by_role("dialog").inner_text()
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
            page.get_by_role("link", name="VM energy").click()
        assert page.locator("img, b").count() == 0
    finally:
        for name in HOSTILE:
            world.run(["virsh", "undefine", "--domain", name], check=False)
            for file in (f"/mnt/{name}.rom", f"/mnt/{name}.log"):
                world.path(file).unlink(missing_ok=True)


@pytest.mark.usefixtures("default_configuration")
def test_a_domain_has_a_view_with_its_history_and_a_report_is_what_the_command_prints(
    world: World,
    new_guest: NewGuest,
    start_daemon: StartDaemon,
    visit: Visits,
    tmp_path: Path,
) -> None:
    configure(world, tariff={"currency": "EUR", "price": 0.3}, carbon={"grams_per_kwh": 400, "source": "test"})
    name = new_guest(80, vcpus=2)
    world.run(["virsh", "start", name])
    pid = start_daemon()
    wait_until(lambda: (asked(world) or {})[name]["energy_joules"] > 200, 60, "energy is used")
    world.kill(pid, "TERM")  # it writes what it has
    start_daemon()
    page = visit()
    row = page.get_by_role("row").filter(has_text=name)
    expect(row).to_contain_text("EUR")
    expect(row).to_contain_text("g")
    row.get_by_role("link", name=name).click()
    domain = (asked(world) or {})[name]
    expect(page.get_by_role("region", name="vCPUs").get_by_role("row")).to_have_count(3)
    expect(page.get_by_role("region", name="Zones").get_by_role("row")).to_have_count(1 + len(domain["zones"]))
    for thread in (vcpu["tid"] for vcpu in domain["vcpus"]):
        expect(page.get_by_role("region", name="vCPUs")).to_contain_text(str(thread))
    for span in ("month", "year", "day"):
        page.get_by_role("combobox", name="Time").select_option(span)
        expect(page.get_by_role("slider", name="Energy of this domain")).to_be_visible()
    used = page.get_by_role("slider", name="Energy of this domain")
    expect(used).to_have_attribute("aria-valuemax", re.compile("2[34]"))
    used.press("End")
    expect(used).to_have_attribute("aria-valuetext", re.compile(r": .*,\s.*\sEUR,\s.*\sCO₂e"))

    page.get_by_role("link", name="Report").click()
    expect(page.get_by_role("region", name="Report")).to_contain_text(name)
    expect(page.get_by_role("region", name="Report")).to_contain_text("100.0")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    copy = tmp_path / "downloaded.csv"
    waiting.value.save_as(copy)
    printed = world.run(["virt-rapl", "report", "--format", "csv", "--since", "this month", "--until", "now"]).stdout
    assert copy.read_text().splitlines()[0] == printed.splitlines()[0]
    assert name in copy.read_text()
    page.get_by_role("combobox", name="Time").select_option("custom")
    page.get_by_role("textbox", name="From").fill("2001-01-01")
    page.get_by_role("textbox", name="to, not including").fill("2001-02-01")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("alert")).to_contain_text("there is no history")
