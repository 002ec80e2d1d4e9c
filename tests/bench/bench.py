"""What metering costs, beside other ways to do it: prints a table, and JSON with --json FILE.

Measured in one run, in turns, on the same processes: the meter that virt-rapld runs; a C program that does only its
reads; the same program reading every thread; psutil; and libvirt. Energy is read from files.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import correlation
from typing import Any
from uuid import uuid4

import programs

from libvirt_rapl import paths
from libvirt_rapl.daemon import stream_socket
from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.kvm import check_kvm
from libvirt_rapl.simulator.world import World, check_machine

sys.path.insert(0, str(Path(__file__).parent.parent))

from fakes.host import Host
from machine import Machine
from walking import CONSTANT_100_WATTS

HERE = Path(__file__).parent
DAEMON_DOMAINS = 500
STARTED_AT_ONCE = 20
VCPUS = 4
ZONES = 3
FOLLOWED = {"documents": paths.STREAM_SOCKET, "guests' lines": paths.CHANNEL_STREAM_SOCKET}
ABOUT = (
    "Stand-ins are processes of 9 threads, named as a QEMU's of 4 vCPUs, in no cgroup of their own. Before each sample "
    "their threads run for 20 us: `usual` main thread, vCPUs and kvm-msr; `every thread` all 9; `asleep` none. "
    "us: CPU time per domain and sample, medians; listing: what looking for what is new every tenth time adds to each."
)


def python(script: str, *arguments: str) -> Any:  # noqa: ANN401
    """Run a script of the benchmark in a process of its own, and return what it prints."""
    command = [sys.executable, str(HERE / script), *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def sample(load: str, count: int, ticks: int) -> dict[str, Any]:
    """Measure samples of `count` stand-ins."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        return {"load": load, **python("sampling.py", directory, load, str(ticks), str(count))}


@contextmanager
def living(count: int, load: str) -> Iterator[tuple[Path, Path, list[str]]]:
    """Run stand-ins on a host whose zones count, once a second; give its /sys, a directory and their PIDs."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        host = Host(Path(directory) / "host")
        ended = threading.Event()

        def live(herd: programs.Herd) -> None:
            energy = 0
            while not ended.is_set():
                energy += 50_000_000
                for part, entry in enumerate(("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:1"), 1):
                    host.zone(entry, ("package-0", "core", "dram")[part - 1], energy // part)
                herd.run(programs.LOADS[load])
                ended.wait(1)

        with programs.Herd(Path(directory), count) as herd:
            thread = threading.Thread(target=live, args=[herd])
            thread.start()
            try:
                time.sleep(1)
                yield host.sys, Path(directory), list(map(str, herd.pids))
            finally:
                ended.set()
                thread.join()


def daemon(count: int, seconds: float, load: str, followed: str = "") -> dict[str, Any]:
    """Let virt-rapld's loop run once a second on `count` stand-ins; return its own CPU time and memory.

    `followed`: a key of FOLLOWED, what a client is given each second.
    """
    with living(count, load) as (sys_root, directory, pids):
        client = threading.Thread(target=_follow, args=[directory / "run" / FOLLOWED.get(followed, "")])
        if followed:
            client.start()
        figures = python("daemon_cost.py", str(sys_root), str(directory), str(seconds), *pids)
        if followed:
            client.join()
    return {
        "domains": count,
        "load": load,
        "followed": followed,
        "percent_of_a_core": 100 * figures["cpu_seconds"] / figures["seconds"],
        **figures,
    }


def _follow(socket: Path) -> None:
    """Read each document, from when the daemon is there until it ends."""
    while not socket.exists():
        time.sleep(0.1)
    for _ in stream_socket.follow(socket):
        pass


def channels(count: int, seconds: float) -> dict[str, Any]:
    """Let virt-rapl-channel give `count` guests their lines; return its own CPU time and memory."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        figures = python("channels.py", directory, str(count), str(VCPUS), str(seconds))
    return {"percent_of_a_core": 100 * figures["cpu_seconds"] / figures["seconds"], **figures}


def scrapes(count: int, seconds: float) -> dict[str, Any]:
    """Measure scrapes of virt-rapld's loop on `count` stand-ins."""
    with living(count, "usual") as (sys_root, directory, pids):
        return {"domains": count, **python("scraping.py", str(sys_root), str(directory), str(seconds), *pids)}


def top(domains: int, seconds: float) -> dict[str, Any]:
    """Measure `virt-rapl top` while virt-rapld shows so many domains."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        figures = python("top.py", directory, str(seconds), str(domains))
    return {"domains": domains, "percent_of_a_core": 100 * figures["cpu_seconds"] / figures["seconds"], **figures}


def history(domains: int, days: int) -> dict[str, Any]:
    """Measure a ledger with so many days of history."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        figures = python("history.py", directory, str(domains), str(VCPUS), str(ZONES), str(days))
    return {"domains": domains, "days": days, **figures}


@contextmanager
def guests(count: int) -> Iterator[tuple[World, list[int]]]:
    """Start a private libvirt with real KVM guests of four vCPUs that do next to nothing; return their PIDs, too."""
    with World(None) as world:
        world.start_libvirtd()
        uuids = {str(uuid4()) for _ in range(count)}
        for number, uuid in enumerate(uuids):
            world.define_guest(f"bench-{number}", 0, vcpus=VCPUS, uuid=uuid)
            world.run(["virsh", "start", f"bench-{number}"])
        yield world, [pid for pid in every_process() if uuids & set(arguments(pid))]


def starts(pairs: int, count: int) -> dict[str, Any]:
    """Measure what a meter adds to the start and the end of a guest, alone and of `count` guests at once.

    Helpers are processes of their own in a world, and units on a machine with systemd.
    """
    with World(CONSTANT_100_WATTS) as world:
        world.run(["virt-rapl", "install", "--force"])
        world.start_libvirtd()
        spawned = starts_at(world, "/mnt", pairs, count)
    with Machine() as machine:
        machine.run(["virt-rapl", "install", "--force"])
        units = starts_at(machine, "/var/lib/libvirt/images", pairs, count)
    return {"pairs": pairs, "spawned": spawned, "systemd": units}


def starts_at(place: World | Machine, directory: str, pairs: int, count: int) -> dict[str, Any]:
    """Measure it at one place, where virt-rapl is installed and libvirt runs; `directory` is for files of guests."""
    names = {kind: [f"{kind}-{number}" for number in range(count)] for kind in ("plain", "metered")}
    for name in names["plain"] + names["metered"]:
        rom, log, xml = (f"{directory}/{name}.{suffix}" for suffix in ("rom", "log", "xml"))
        place.path(rom).write_bytes(guest.rom(0))
        place.path(xml).write_text(guest.domain_xml(name, rom, log))
        place.run(["virsh", "define", xml])
    place.run(["virt-rapl", "enable", *names["metered"]])
    script = [sys.executable, "-I", str(HERE / "starts.py"), str(pairs)]
    done = place.run([*script, *names["plain"], "/", *names["metered"]], timeout=1200)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def every_process() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def real(count: int, ticks: int) -> dict[str, Any]:
    """Measure on real guests: the meter and C as on stand-ins, and libvirt asked for CPU times."""
    with guests(count) as (world, pids), tempfile.TemporaryDirectory(prefix="bench-") as directory:
        time.sleep(5)  # they have started
        threads = [len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids]
        sampled = python("sampling.py", directory, "usual", str(ticks), "=", *map(str, pids))
        inside = world.run([sys.executable, "-I", str(HERE / "guests.py")], timeout=600)
        return {"threads": sum(threads) / len(threads), "sampled": sampled, "libvirt": json.loads(inside.stdout)}


def growth(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Measure how CPU time and memory grow with the number of domains."""
    counts = [float(each["domains"]) for each in samples]
    times = [each["microseconds"]["ours"] * each["domains"] for each in samples]
    memory = [float(each["memory"]["grown_pss_bytes"]) for each in samples]
    first, last = samples[0], samples[-1]
    span = last["domains"] - first["domains"]
    return {
        "time_r_squared": correlation(counts, times) ** 2,
        "time_per_domain_last_to_first": last["microseconds"]["ours"] / first["microseconds"]["ours"],
        "bytes_per_domain": (memory[-1] - memory[0]) / span,
    }


def row(name: str, sampled: dict[str, Any]) -> str:
    us, listing = sampled["microseconds"], sampled["listing_microseconds"]
    ours = [us["read"], us["attribute"], us["count"], us["ours"], listing.get("ours", 0.0)]
    theirs = [us["c_same"], us["c_all"], us["psutil"]]
    ratios = [us["ours"] / us["c_same"], us["ours"] / us["c_all"], us["psutil"] / us["ours"]]
    return f"{sampled['domains']:>7} {name:<13}" + "".join(f"{value:>10.2f}" for value in ours + theirs + ratios)


def show(document: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{document['machine']}\n{document['about']}\n")
    columns = ["read", "attribute", "count", "ours", "listing", "C same", "C all", "psutil"]
    ratios = ["/ C same", "/ C all", "psutil x"]
    print(f"{'domains':>7} {'load':<13}" + "".join(f"{name:>10}" for name in columns + ratios))
    for each in document["samples"]:
        print(row(each["load"], each))
    if found := document.get("real"):
        print(row("real guests", found["sampled"]))
        asked, ours = found["libvirt"], found["sampled"]["microseconds"]["ours"]
        cpu, wall = asked["cpu_microseconds"], asked["wall_microseconds"]
        print(
            f"\nlibvirt: virConnectGetAllDomainStats of {asked['domains']} real guests costs per domain\n"
            f"  {cpu:.0f} us of CPU time (libvirtd and client), {cpu / ours:.0f} x ours\n"
            f"  {wall:.0f} us of wall time, {wall / ours:.0f} x ours"
        )
    if grown := document.get("growth"):
        print(
            f"\ngrowth from fewest to most domains: time R2 {grown['time_r_squared']:.4f}, time per domain x "
            f"{grown['time_per_domain_last_to_first']:.2f}; memory {grown['bytes_per_domain'] / 1024:.1f} KiB a domain"
        )
    for each in document["daemon"]:
        followed = f", with a client that reads all {each['followed']}," if each["followed"] else ""
        print(
            f"\n{each['domains']} domains of {VCPUS} vCPUs (9 threads each, load {each['load']}) at 1 Hz{followed} "
            f"cost {each['percent_of_a_core']:.2f} % of one core and {each['rss_bytes'] / 1e6:.0f} MB "
            f"({each['pss_bytes'] / 1e6:.0f} MB PSS), ledger and all, in {each['seconds']:.0f} s"
        )
    if given := document.get("channels"):
        print(
            f"\nlines to {given['domains']} guests of {VCPUS} vCPUs with {ZONES} zones at 1 Hz cost "
            f"{given['percent_of_a_core']:.2f} % of one core and {given['rss_bytes'] / 1e6:.0f} MB "
            f"({given['pss_bytes'] / 1e6:.0f} MB PSS)"
        )
    if scraped := document.get("scrapes"):
        ms, late = scraped["scrape_ms"], scraped["late_ms"]
        print(
            f"\na scrape of {scraped['domains']} domains with their vCPUs takes {ms['ours']['median']:.0f} ms "
            f"(max {ms['ours']['max']:.0f}), {scraped['bytes'] / 1000:.0f} kB compressed; of node_exporter's zones "
            f"{ms['node_exporter']['median']:.0f} ms\n"
            f"  the exporter takes {scraped['exporter']['rss_bytes'] / 1e6:.0f} MB "
            f"({scraped['exporter']['pss_bytes'] / 1e6:.0f} MB PSS)\n"
            f"  99 % of samples begin {late['alone']['p99']:.1f} ms late at most while nobody asks, "
            f"{late['scraped']['p99']:.1f} ms while it is scraped every two seconds"
        )
    if watched := document.get("top"):
        print(
            f"\nvirt-rapl top with {watched['domains']} domains costs {watched['percent_of_a_core']:.2f} % of one core "
            f"and {watched['rss_bytes'] / 1e6:.0f} MB ({watched['pss_bytes'] / 1e6:.0f} MB PSS), and writes "
            f"{watched['bytes'] / watched['seconds'] / 1000:.1f} kB a second to the terminal"
        )
    if started := document.get("starts"):
        show_starts(started)
    if kept := document.get("history"):
        writes, reports = kept["write_ms"], kept["report_s"]
        megabytes, ratio = kept["bytes"] / 1e6, writes["with"] / writes["without"]
        print(
            f"\n{kept['days']} days of history of {kept['domains']} domains and {ZONES} zones: {megabytes:.0f} MB\n"
            f"  a write of the ledger takes {writes['with']:.1f} ms, {ratio:.2f} x one without history\n"
            f"  adding up an hour takes {kept['compact_hour_ms']:.0f} ms\n"
            f"  a report of 30 days takes {reports['domain']:.2f} s, by day and domain {reports['day,domain']:.2f} s"
        )


def show_starts(started: dict[str, Any]) -> None:
    """Print what a meter adds to the start and the end of a domain."""
    print(f"\n{'ms, medians':<36}{'without':>10}{'with':>10}{'added':>10}")
    for kind in ("spawned", "systemd"):
        found = started[kind]
        at_once = found["at_once"]
        rows = {
            "start": found["alone"]["start"],
            "end": found["alone"]["stop"],
            f"start, each of {at_once['domains']} at once": at_once,
        }
        for name, row in rows.items():
            print(f"{kind + ', ' + name:<36}{row['plain']:>10.0f}{row['metered']:>10.0f}{row['added']:>10.0f}")
        parts = ", ".join(f"{name} {value:.0f}" for name, value in found["hook"].items())
        print(f"  the hook by itself: {parts} ms")


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")
    return f"{name}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}"


def processes(domains: int, seconds: float) -> dict[str, Any]:
    """Return what virt-rapld and those who ask it take of a CPU with that many domains, by names in the document."""
    loads = [daemon(domains, seconds, load) for load in ("usual", "asleep")]
    return {
        "daemon": [*loads, *(daemon(domains, seconds, "usual", followed) for followed in FOLLOWED)],
        "channels": channels(domains, seconds),
        "scrapes": scrapes(domains, seconds),
        "top": top(domains, seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--domains", default="50,100,200,500,1000", help="numbers of stand-ins (%(default)s)")
    parser.add_argument("--ticks", type=int, default=20, help="samples of each number (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="how long the daemon runs (%(default)s); 0: not")
    parser.add_argument("--guests", type=int, default=40, help="how many real KVM guests (%(default)s); 0: none")
    parser.add_argument("--starts", type=int, default=12, help="pairs of starts (%(default)s); 0: none")
    parser.add_argument("--days", type=int, default=35, help="how many days of history (%(default)s); 0: none")
    options = parser.parse_args()
    counts = [int(word) for word in options.domains.split(",")]

    document: dict[str, Any] = {"machine": machine(), "about": ABOUT, "samples": [], "daemon": []}
    for count in counts:
        document["samples"].append(sample("usual", count, options.ticks))
    if len(counts) > 1:
        document["growth"] = growth(document["samples"])
    for load in ("every thread", "asleep"):
        document["samples"].append(sample(load, counts[-1] if len(counts) < 4 else DAEMON_DOMAINS, options.ticks))
    if options.seconds:
        document |= processes(min(DAEMON_DOMAINS, counts[-1]), options.seconds)
    if options.guests:
        check_machine()
        check_kvm()
        document["real"] = real(options.guests, options.ticks)
    if options.starts:
        check_machine()
        check_kvm()
        document["starts"] = starts(options.starts, STARTED_AT_ONCE)
    if options.days:
        document["history"] = history(min(DAEMON_DOMAINS, counts[-1]), options.days)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    show(document)


if __name__ == "__main__":
    main()
