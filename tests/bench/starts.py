"""The benchmark's part on starts: what a meter adds to the start and the end of a domain, and the hook's part of it.

Run inside a private world, as `python starts.py PAIRS PLAIN... / METERED...`, with the names of as many domains without
a meter as with one. Everything is measured in turns, so that what else the machine does falls on both.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import libvirt

HOOK = "/etc/libvirt/hooks/qemu.d/virt-rapl"
OPERATIONS = (
    ("prepare", "begin"),
    ("start", "begin"),
    ("started", "begin"),
    ("stopped", "end"),
    ("release", "end"),
)
"""What libvirt calls a hook for, in the life of a domain."""


def milliseconds(action: Callable[[], object]) -> float:
    """Return how long it takes."""
    begin = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - begin) / 1e6


def one_by_one(pairs: int, plain: libvirt.virDomain, metered: libvirt.virDomain) -> dict[str, Any]:
    """Start and end both in turns; return the medians of each."""
    times: dict[str, dict[str, list[float]]] = {what: {"plain": [], "metered": []} for what in ("start", "stop")}
    for turn in range(pairs):
        both = [("plain", plain), ("metered", metered)]
        for name, domain in both if turn % 2 else reversed(both):
            times["start"][name].append(milliseconds(domain.create))
            times["stop"][name].append(milliseconds(domain.destroy))
    return {what: _compared(found["plain"], found["metered"]) for what, found in times.items()}


def at_once(rounds: int, plain: list[libvirt.virDomain], metered: list[libvirt.virDomain]) -> dict[str, Any]:
    """Start all that have a meter at once, and all that have none; return what that takes for each domain."""
    times: dict[str, list[float]] = {"plain": [], "metered": []}
    for turn in range(rounds):
        both = [("plain", plain), ("metered", metered)]
        for name, domains in both if turn % 2 else reversed(both):
            with ThreadPoolExecutor(len(domains)) as pool:
                times[name].append(milliseconds(partial(_all, pool, _create, domains)) / len(domains))
                _all(pool, _destroy, domains)
    return {"domains": len(plain), **_compared(times["plain"], times["metered"])}


def hook(rounds: int, domain: libvirt.virDomain) -> dict[str, float]:
    """Call the hook as libvirt does, for a domain that does not run; return the median of each operation."""
    domain.create()
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
    domain.destroy()
    times: dict[str, list[float]] = {operation: [] for operation, _ in OPERATIONS}
    for _ in range(rounds):
        for operation, sub in OPERATIONS:
            time.sleep(0.1)  # what the operation before has left to do is done
            command = [HOOK, domain.name(), operation, sub, "-"]
            call = partial(subprocess.run, command, input=xml.encode(), capture_output=True, check=True)
            times[operation].append(milliseconds(call))
    return {operation: median(found) for operation, found in times.items()}


def _compared(plain: list[float], metered: list[float]) -> dict[str, float]:
    added = [more - less for less, more in zip(plain, metered, strict=True)]
    return {"plain": median(plain), "metered": median(metered), "added": median(added)}


def _all(pool: ThreadPoolExecutor, do: Callable[[Any], None], domains: list[Any]) -> None:
    list(pool.map(do, domains))


def _create(domain: libvirt.virDomain) -> None:
    domain.create()


def _destroy(domain: libvirt.virDomain) -> None:
    domain.destroy()


def main(pairs: int, names: Iterator[str]) -> dict[str, Any]:
    connection = libvirt.open("qemu:///system")
    plain = [connection.lookupByName(name) for name in iter(lambda: next(names), "/")]
    metered = [connection.lookupByName(name) for name in names]
    one_by_one(2, plain[0], metered[0])  # libvirt has asked the emulators by then
    return {
        "alone": one_by_one(pairs, plain[0], metered[0]),
        "hook": hook(pairs, metered[0]),
        "at_once": at_once(max(pairs // 4, 2), plain, metered),
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), iter(sys.argv[2:]))))
