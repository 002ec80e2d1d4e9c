"""Steps of the paths that users walk in a world."""

import json
import time
from collections.abc import Callable
from typing import Any

from libvirt_rapl import paths
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.world import World

CONSTANT_100_WATTS = ("--idle-watts=100", "--cpu-watts=0")
"""Options of a simulated package."""
CONFIGURATION = "/etc/virt-rapl/virt-rapl.yaml"
LOG = "/mnt/daemon.log"
"""What the daemon logged that the fixture start_daemon started."""
ALONE = "/etc/alone.yaml"
"""A configuration whose run directory has no daemon; there while start_daemon is used."""

NewGuest = Callable[..., str]
"""The fixture new_guest: duties -> name of a guest that is defined."""
StartDaemon = Callable[..., int]
"""The fixture start_daemon: variables of its environment -> PID of a daemon that answers, inside the world."""


def configure(world: World, **settings: object) -> None:
    """Set keys of the configuration; the fixture default_configuration takes them back."""
    world.path(CONFIGURATION).write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))


def start_enabled(world: World, name: str) -> None:
    world.run(["virt-rapl", "enable", name])
    world.run(["virsh", "start", name])


def status(world: World, name: str) -> dict[str, Any]:
    """Return what `virt-rapl status` shows for one domain."""
    document = json.loads(world.run(["virt-rapl", "status", "--json", name]).stdout)
    (domain,) = document["domains"]
    assert document["host"]["source"] == "simulated"
    assert isinstance(domain, dict)
    return domain


def asked(world: World) -> dict[str, dict[str, Any]] | None:
    """Return what the daemon reports of each domain, by name; None when there is no daemon."""
    document = status_socket.ask(world.path(f"/run/virt-rapl/{paths.STATUS_SOCKET}"))
    return None if document is None else {domain["name"]: domain for domain in document["domains"]}


def grows(world: World, name: str) -> bool:
    """Return whether the counter that the guest reads has moved since the guest's first reading."""
    return any(joules > 0 for joules in guest.joules(world.readings(name)).values())


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


def run_files(world: World) -> set[str]:
    """Return the names of what is in the run directory, events apart."""
    directory = world.path("/run/virt-rapl")
    names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    return names - {paths.EVENTS, paths.REMEMBERED}


def domain_log(world: World, name: str) -> str:
    return world.path(f"/var/log/libvirt/qemu/{name}.log").read_text()
