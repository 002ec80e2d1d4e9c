"""The energy channel as a whole: real Linux guests read their joules, on an AMD and on an Intel host, come what may."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import linux_guest
import metered_guest
import pytest
from channel_host import CHANNEL_LOG, ChannelHost
from linux_guest import PORT, LinuxGuest
from metered_guest import DIRECTORY, METER, METER_PID, MeteredGuest, longest_gap, only_grows
from walking import CONSTANT_100_WATTS, status, wait_until

from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.needs(*linux_guest.NEEDS)]

MEASURED_SECONDS = 60
LOST_SECONDS = 3
"""How long lines may be missing after whatever it is that interrupts them."""
PATIENCE_SECONDS = 60
FILL = """\
import socket, sys, time
from libvirt_rapl.sockets import LineSender
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(sys.argv[1])
    peer.setblocking(False)
    sender = LineSender(peer)
    while time.monotonic() < sender.begun + 2:
        if sender.all_is_read():
            sender.begin(b"\\n")
        time.sleep(0.001)
"""
"""Send lines to a guest that does not read until its kernel keeps no more for it: 128, or 1,024 with newer QEMUs."""
BUSY = "timeout 10 sh -c 'while :; do :; done' &"
BOTH = "both"
LIVE = ("virt-rapl", "enable", "--live", "--via", "channel")

FLOODED = "/run/flooded"
FLOOD = f"""\
cat >/tmp/flood <<'END'
import os, signal
port = os.open("{PORT}", os.O_RDWR)
for data in (os.urandom(10**6), b'{{"schema": 1}}\\n' * 10**5):
    while data:
        data = data[os.write(port, data) :]
open("{FLOODED}", "w").close()
signal.pause()
END
python3 /tmp/flood >/tmp/flood.log 2>&1 & echo $! >/run/flood.pid
"""
"""10^6 bytes and 10^5 lines, and nothing is ever read."""


@dataclass
class Hosts:
    here: ChannelHost
    """With an AMD processor."""
    there: ChannelHost
    """With an Intel processor, and another run directory."""
    stranger: World
    """Without virt-rapl."""
    traveller: MeteredGuest
    """Has the channel, and begins here."""
    resident: MeteredGuest
    """Has the channel, and stays there."""
    plain: MeteredGuest
    """Runs here, and has no channel."""
    sleeper: MeteredGuest
    """Runs here; its owner has put the channel into its definition, and virt-rapl-guest is stopped in it."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o777)  # QEMU's user writes its log there

    def world(cpu: str, hostname: str) -> World:
        return World([f"--cpu={cpu}", *CONSTANT_100_WATTS], shared=shared, hostname=hostname)

    with world("amd", "here") as one, world("intel", "there") as two, world("amd", "stranger") as stranger:
        metered_guest.furnish(one, tmp_path_factory.mktemp("scratch"))
        stranger.start_libvirtd()
        here, there = ChannelHost(one), ChannelHost(two, "/run/elsewhere")
        names = {"traveller": here, "resident": there, "plain": here, "sleeper": here}
        for name, host in names.items():
            host.define(linux_guest.domain_xml(name, channel=name == "sleeper"))
        here.enable("traveller")
        there.world.run(["virt-rapl", "enable", "--via", "channel", "resident"])
        there.world.define_guest(BOTH, 30)
        there.world.run(["virt-rapl", "enable", "--via", "both", BOTH])
        there.virsh("start", BOTH)
        for name, host in names.items():
            host.virsh("start", name)
        guests = {name: MeteredGuest(host.world, name) for name, host in names.items()}
        for each in guests.values():
            each.wait_for_boot()
            each.start_meter()
        is_connected(here, "sleeper")
        guests["sleeper"].run(f"kill -STOP $(cat {METER_PID})")
        is_connected(here, "traveller")
        is_connected(there, "resident")
        is_connected(there, BOTH)
        yield Hosts(here, there, stranger, **guests)
        for host in (here, there):
            assert "Traceback" not in host.world.path(CHANNEL_LOG).read_text()


def is_connected(host: ChannelHost, name: str) -> None:
    wait_until(lambda: host.channel_of(name) == "connected", PATIENCE_SECONDS, f"the channel of {name} is connected")


def instant(line: dict[str, Any]) -> float:
    """Return when the host has made a line, in seconds since 1970."""
    return datetime.fromisoformat(line["time"]).timestamp()


def lines_go_on(guest: MeteredGuest, since: float, pause: float) -> list[metered_guest.Seen]:
    """Hold that lines were missing for no longer than this pause and a bit, and that the counter has not gone back."""
    now = time.time()
    wait_until(lambda: guest.seen()[-1].time > now + 1, PATIENCE_SECONDS + pause, f"{guest.name} gets lines")
    seen = guest.seen(since)
    assert longest_gap(seen) <= pause + LOST_SECONDS, seen
    assert only_grows(seen)
    return seen


class Reading(NamedTuple):
    """One sample, as the guest and as `status` on its host show it."""

    at: float
    guest: dict[str, Any]
    host: dict[str, Any]


@dataclass
class Minute:
    """What was read in the beginning and in the end."""

    readings: dict[str, tuple[Reading, Reading]]
    """In Linux guests."""
    lines: list[str]
    """Of the channel of the guest that has registers, too."""


def read(host: ChannelHost, guest: MeteredGuest) -> Reading:
    found: list[Reading] = []

    def both_show_it() -> bool:
        document = guest.document()
        wait_until(lambda: max(host.watched(guest.name)) >= instant(document), PATIENCE_SECONDS, "status shows it, too")
        shown = host.watched(guest.name)
        found.extend(Reading(at, document, shown[at]) for at in shown if at == instant(document))
        return bool(found)

    wait_until(both_show_it, PATIENCE_SECONDS, f"{guest.name} and its host show the same sample")
    return found[0]


@pytest.fixture(scope="module")
def minute(hosts: Hosts) -> Minute:
    guests = {hosts.traveller: hosts.here, hosts.resident: hosts.there}
    begun = {each.name: read(host, each) for each, host in guests.items()}
    first = len(hosts.there.world.channel_lines(BOTH)) - 1
    for each in guests:
        each.run(BUSY)
    time.sleep(MEASURED_SECONDS)
    lines = hosts.there.world.channel_lines(BOTH)[first:]
    return Minute({each.name: (begun[each.name], read(host, each)) for each, host in guests.items()}, lines)


@pytest.mark.parametrize(("name", "kinds"), [("traveller", {"package"}), ("resident", {"package", "dram"})])
def test_a_guest_reads_what_status_shows(minute: Minute, name: str, kinds: set[str]) -> None:
    """Of the same sample, to the microjoule."""
    begun, ended = minute.readings[name]
    for reading in (begun, ended):
        zones = reading.guest["zones"]
        assert zones.keys() >= kinds
        for kind, zone in zones.items():
            assert zone["energy_joules"] == pytest.approx(reading.host["zones"][kind]["energy_joules"], abs=1e-6)
        for own, shown in zip(reading.guest["vcpus"], reading.host["vcpus"], strict=True):
            assert own["energy_joules"] == pytest.approx(shown["energy_joules"], abs=1e-6)
        assert reading.guest["simulated"]
    assert ended.at - begun.at >= MEASURED_SECONDS - 1
    assert ended.guest["zones"]["package"]["energy_joules"] > begun.guest["zones"]["package"]["energy_joules"] + 100


def test_registers_and_channel_agree(hosts: Hosts, minute: Minute, tmp_path: Path) -> None:
    printed = hosts.there.world.path(f"/mnt/{BOTH}.log").read_text(errors="replace").splitlines()
    begin, end = (printed.index(guest.FROM_CHANNEL + minute.lines[index]) for index in (0, -1))
    between = tmp_path / "between"
    between.write_text("\n".join(printed[begin + 1 : end]) + "\n")
    (by_registers,) = guest.joules(guest.readings(between)).values()
    lines = [json.loads(line) for line in minute.lines]
    by_channel = lines[-1]["energy_joules"] - lines[0]["energy_joules"]
    an_interval = max(line["power_watts"] * line["interval_seconds"] for line in lines)
    print(f"registers {by_registers:.2f} J, channel {by_channel:.2f} J, an interval {an_interval:.2f} J")
    assert by_registers == pytest.approx(by_channel, abs=0.01 * by_channel + an_interval)
    assert by_channel > 10 * an_interval
    assert hosts.there.domain(BOTH)["vrapl"] == "active"


@pytest.mark.parametrize("name", ["traveller", "resident"])
def test_node_exporter_in_the_guest_shows_it(hosts: Hosts, name: str) -> None:
    """By both of its collectors."""
    each = {"traveller": hosts.traveller, "resident": hosts.resident}[name]
    options = f"--collector.disable-defaults --collector.rapl --path.sysfs={DIRECTORY} "
    options += f"--collector.textfile --collector.textfile.directory={DIRECTORY}"
    each.run(f"prometheus-node-exporter {options} >/run/log 2>&1 & echo $! >/run/exporter.pid")
    fetch = "wget -q -O - http://127.0.0.1:9100/metrics"
    wait_until(lambda: each.run(fetch, check=False).returncode == 0, PATIENCE_SECONDS, "node_exporter answers")
    before, metrics, after = each.document()["zones"], each.run(fetch).stdout, each.document()["zones"]
    each.run("kill $(cat /run/exporter.pid)")
    for pattern in (r"node_rapl_(\w+)_joules_total\{.*\}", r'virt_rapl_guest_energy_joules_total\{zone="(\w+)"\}'):
        shown = {kind: float(value) for kind, value in re.findall(rf"^{pattern} (\S+)$", metrics, re.MULTILINE)}
        assert shown.keys() == before.keys()
        for kind, value in shown.items():
            assert before[kind]["energy_joules"] - 1e-6 <= value <= after[kind]["energy_joules"] + 1e-6


def has_port(guest: LinuxGuest) -> bool:
    return guest.run(f"test -c {PORT}", check=False).returncode == 0


def without_controller(xml: str) -> str:
    return re.sub(r" *<controller type='virtio-serial'.*?</controller>\n", "", xml, flags=re.DOTALL)


def test_attached_and_detached_while_it_runs(hosts: Hosts) -> None:
    """Twice."""
    here, plain = hosts.here, hosts.plain
    definition, running = here.xml(plain.name, "--inactive"), here.xml(plain.name)

    def shows_nothing() -> bool:
        return plain.run(f"test ! -e {DIRECTORY}/powercap", check=False).returncode == 0

    assert not has_port(plain)
    for _ in range(2):
        here.world.run([*LIVE, plain.name])
        wait_until(plain.is_metered, PATIENCE_SECONDS, "it reads its energy")
        is_connected(here, plain.name)
        here.world.run(["virt-rapl", "disable", plain.name])
        wait_until(lambda: not has_port(plain), PATIENCE_SECONDS, "the port goes")
        assert here.xml(plain.name, "--inactive") == definition
        assert without_controller(here.xml(plain.name)) == running
        wait_until(lambda: here.channel_of(plain.name) == "off", PATIENCE_SECONDS, "status shows that it has none")
        wait_until(shows_nothing, PATIENCE_SECONDS, "it shows no counters any more")
    assert only_grows(plain.seen())
    done = json.loads(here.world.run(["virt-rapl", "events", "--json", plain.name]).stdout)["events"]
    assert [event["operation"] for event in done] == ["attach", "detach"] * 2


def restart_virt_rapld(host: ChannelHost, name: str) -> None:
    host.world.kill(host.daemon, "TERM")

    def waits() -> bool:
        found = status(host.world, name)
        return found["channel"] == "waiting" and "virt-rapld does not answer" in found["channel_reason"]

    wait_until(waits, PATIENCE_SECONDS, "status shows what is missing")
    host.start_daemon()
    wait_until(lambda: (host.asked() or {"host": {}})["host"].get("sampled_at"), PATIENCE_SECONDS, "it has sampled")


def restart_channel(host: ChannelHost, name: str) -> None:
    host.world.kill(host.channel, "TERM")

    def waits() -> bool:
        found = host.domain(name)
        return (found["channel"], found.get("channel_reason")) == ("waiting", "virt-rapl-channel does not run")

    wait_until(waits, PATIENCE_SECONDS, "status shows what is missing")
    host.start_channel()


def kill_channel(host: ChannelHost, _: str) -> None:
    host.world.kill(host.channel, "KILL")
    host.start_channel()


@pytest.mark.parametrize("restart", [restart_virt_rapld, restart_channel, kill_channel])
def test_restarts(hosts: Hosts, restart: Callable[[ChannelHost, str], None]) -> None:
    since = time.time()
    restart(hosts.here, hosts.traveller.name)
    took = time.time() - since
    is_connected(hosts.here, hosts.traveller.name)
    lines_go_on(hosts.traveller, since, took)


def test_lines_go_on_without_libvirtd(hosts: Hosts) -> None:
    since = time.time()
    hosts.here.world.stop_libvirtd()
    lines_go_on(hosts.traveller, since, 0)
    assert hosts.here.channel_of(hosts.traveller.name) == "connected"
    hosts.here.world.start_libvirtd()
    lines_go_on(hosts.traveller, since, 0)
    assert hosts.here.channel_of(hosts.traveller.name) == "connected"


def test_saved_and_restored(hosts: Hosts) -> None:
    since = time.time()
    hosts.here.virsh("save", hosts.traveller.name, "/var/saved")
    hosts.here.virsh("restore", "/var/saved")
    seen = lines_go_on(hosts.traveller, since, time.time() - since)
    assert len({line.host for line in seen}) == 1
    is_connected(hosts.here, hosts.traveller.name)


def test_migrates_there_and_back(hosts: Hosts) -> None:
    traveller, name = hosts.traveller, hosts.traveller.name

    def moves(source: ChannelHost, destination: ChannelHost) -> None:
        since = time.time()
        pause = source.migrate(name, destination.world.hostname)
        traveller.world = destination.world
        seen = lines_go_on(traveller, since, pause)
        assert len({line.host for line in seen}) == 2
        assert seen[-1].host == traveller.document()["host"] != seen[0].host
        is_connected(destination, name)
        wait_until(lambda: source.channel_of(name) == "off", PATIENCE_SECONDS, "status shows that it has left")

    moves(hosts.here, hosts.there)
    moves(hosts.there, hosts.here)
    reading, spent_there = read(hosts.here, traveller), hosts.there.domain(name)["energy_joules"]
    spent_here = reading.host["energy_joules"]
    assert spent_here < reading.guest["zones"]["package"]["energy_joules"] <= spent_here + spent_there + 1e-6


def test_a_host_without_virt_rapl_sends_no_lines(hosts: Hosts) -> None:
    traveller = hosts.traveller
    since = time.time()
    hosts.here.migrate(traveller.name, "stranger")
    traveller.world = hosts.stranger
    arrived = traveller.seen()[-1]
    wait_until(lambda: not traveller.is_metered(), PATIENCE_SECONDS, "the guest says that no lines come")
    assert "the host has sent nothing" in traveller.run(f"{METER} status", check=False).stderr
    assert traveller.seen()[-1] == arrived
    to = "qemu+unix:///system?socket=/mnt/here/libvirt-sock"
    hosts.stranger.run(["virsh", "migrate", "--live", traveller.name, to, "--migrateuri", "unix:///mnt/stream"])
    traveller.world = hosts.here.world
    lines_go_on(traveller, since, time.time() - since)
    is_connected(hosts.here, traveller.name)


def used(host: ChannelHost) -> tuple[float, int]:
    """Return the CPU seconds and the resident memory, in kB, of virt-rapl-channel."""
    process = host.world.path(f"/proc/{host.channel}")
    (resident,) = re.findall(r"^VmRSS:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE)
    return int((process / "schedstat").read_text().split()[0]) / 1e9, int(resident)


def test_a_hostile_guest_harms_nobody(hosts: Hosts) -> None:
    here, hostile = hosts.here, hosts.plain
    hostile.stop_meter()
    here.world.run([*LIVE, hostile.name])
    wait_until(lambda: has_port(hostile), PATIENCE_SECONDS, "the port comes")
    since, before = time.time(), used(here)
    hostile.run(FLOOD)
    flooded = f"test -e {FLOODED}"
    wait_until(lambda: hostile.run(flooded, check=False).returncode == 0, PATIENCE_SECONDS, "all is written")
    wait_until(lambda: here.channel_of(hostile.name) != "waiting", PATIENCE_SECONDS, "it is seen that the port is open")
    states = set()
    for _ in range(20):
        states.add(here.channel_of(hostile.name))
        time.sleep(0.5)
    assert states <= {"connected", "stalled"}
    until, after = time.time(), used(here)
    lines_go_on(hosts.traveller, since, 0)
    sampled = [at for at in here.watched(hosts.traveller.name) if since <= at <= until]
    missed = set(sampled) - {line.time for line in hosts.traveller.seen(since)}
    assert len(missed) <= len(sampled) / 4
    print(f"in {until - since:.1f} s: {after[0] - before[0]:.3f} s of a CPU, and {after[1] - before[1]} kB")
    assert after[0] - before[0] < 0.25 * (until - since)
    assert after[1] - before[1] < 4096
    hostile.run("kill $(cat /run/flood.pid)")
    here.world.run(["virt-rapl", "disable", hostile.name])


def test_a_policy_gives_the_channel_to_a_new_domain(hosts: Hosts) -> None:
    here = hosts.here
    here.configure(domains="['*']")
    here.world.kill(here.daemon, "TERM")
    here.start_daemon()
    here.world.define_guest("newcomer", 20)

    def defined() -> Definition:
        return Definition.parse(here.xml("newcomer", "--inactive"))

    wait_until(lambda: defined().channel_is_ours, PATIENCE_SECONDS, "it is enabled")
    assert not defined().has_registers
    here.virsh("start", "newcomer")
    is_connected(here, "newcomer")
    wait_until(lambda: len(here.world.channel_lines("newcomer")) > 2, PATIENCE_SECONDS, "it gets lines")
    energies = [json.loads(line)["energy_joules"] for line in here.world.channel_lines("newcomer")]
    assert energies == sorted(energies)
    assert status(here.world, "newcomer")["channel"] == "connected"
    checks = json.loads(here.world.run(["virt-rapl", "doctor", "--json"], check=False).stdout)["checks"]
    (check,) = [check for check in checks if check["name"] == "channel"]
    assert check["state"] == "ok"
    assert re.search(r"of \d guests with a channel \d read", check["message"])


def test_a_guest_that_does_not_read_is_stalled(hosts: Hosts) -> None:
    here, sleeper = hosts.here, hosts.sleeper
    channel = Definition.parse(here.xml(sleeper.name)).channel
    assert channel
    assert channel.socket
    here.world.kill(here.channel)  # QEMU takes one connection at a time
    here.world.run([sys.executable, "-I", "-c", FILL, channel.socket], timeout=PATIENCE_SECONDS)
    here.start_channel()
    wait_until(lambda: here.channel_of(sleeper.name) == "stalled", PATIENCE_SECONDS, "it is stalled")
    assert "it has not read its last line" in here.domain(sleeper.name)["channel_reason"]
    sleeper.run(f"kill -CONT $(cat {METER_PID})")
    is_connected(here, sleeper.name)
    reading = read(here, sleeper)
    assert reading.guest["zones"]["package"]["energy_joules"] == pytest.approx(
        reading.host["zones"]["package"]["energy_joules"], abs=1e-6
    )
