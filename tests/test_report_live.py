"""Reports of real guests, by root and by a member of the group, are what virt-rapld has counted."""

import json
import sys
import time
from typing import Any

import pytest
from walking import NewGuest, StartDaemon, start_enabled, wait_until

from libvirt_rapl import paths
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

LEDGER = """
import contextlib, json, sqlite3
with contextlib.closing(sqlite3.connect("file:/var/lib/virt-rapl/ledger.db?mode=ro", uri=True)) as ledger:
    rows = ledger.execute("SELECT owner, microjoules FROM total WHERE vcpu = -1 AND zone LIKE 'package-%'").fetchall()
print(json.dumps(rows))
"""


def report(world: World, *arguments: str, by: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        world.run(["sh", "-c", f"{by} virt-rapl report --json {' '.join(arguments)}"]).stdout
    )
    return found


def rows_of_today(world: World) -> list[dict[str, Any]]:
    """Return the rows; none while virt-rapld, which writes every ten seconds, has not written yet."""
    done = world.run(["virt-rapl", "report", "--json", "--since", "today"], check=False)
    return list(json.loads(done.stdout)["rows"]) if done.returncode == 0 else []


def microjoules(joules: float) -> int:
    return round(joules * 1_000_000)


def test_a_report_is_what_the_ledger_has(world: World, new_guest: NewGuest, start_daemon: StartDaemon) -> None:
    names = [new_guest(60), new_guest(20)]
    pid = start_daemon()
    for name in names:
        start_enabled(world, name)
    wait_until(lambda: len(rows_of_today(world)) >= 2, 60, "both guests are in the report")
    time.sleep(3)
    world.kill(pid, "TERM")  # it writes what it has
    wait_until(lambda: not world.path(f"/proc/{pid}").exists(), 30, "the daemon ends")

    found = report(world, "--since", "2d")
    host = {name: microjoules(joules) for name, joules in found["host"].items() if name.endswith("joules")}
    assert host["joules"] == host["domains_joules"] + host["other_joules"] + host["idle_joules"] > 0
    assert sum(microjoules(row["joules"]) for row in found["rows"]) == host["domains_joules"]
    assert {row["key"] for row in found["rows"]} >= set(names)
    kept: dict[str, int] = {}
    for owner, energy in json.loads(world.run([sys.executable, "-c", LEDGER]).stdout):
        kept[owner] = kept.get(owner, 0) + energy
    assert {row["uuid"]: microjoules(row["joules"]) for row in found["rows"]} == {
        owner: energy for owner, energy in kept.items() if owner not in ("host", "other", "idle") and energy
    }
    assert (host["joules"], host["other_joules"], host["idle_joules"]) == (kept["host"], kept["other"], kept["idle"])
    assert found["simulated"]


def test_a_member_of_the_group_asks_virt_rapld(world: World, new_guest: NewGuest, start_daemon: StartDaemon) -> None:
    name = new_guest(60)
    start_enabled(world, name)
    start_daemon()
    wait_until(lambda: rows_of_today(world), 60, "the guest is in the report")
    group = "setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all"
    refused = world.run(["sh", "-c", f"{group} virt-rapl report"], check=False)
    assert refused.returncode == 1
    assert "group virt-rapl" in refused.stderr
    world.run(["chgrp", "-R", "65534", f"/run/virt-rapl/{paths.DAEMON}"])
    try:
        asked = report(world, "--since", "today", "--until", "now", "--by", "domain", by=group)
        assert [row["key"] for row in asked["rows"]] == [name]
        assert asked["rows"][0]["joules"] <= rows_of_today(world)[0]["joules"]
    finally:
        world.run(["chgrp", "-R", "0", f"/run/virt-rapl/{paths.DAEMON}"])
