"""The documents that `status` and `top` show: virt-rapld's, or of the command's own samples where it does not run."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from libvirt_rapl import paths
from libvirt_rapl.cli import DEFAULT_URI
from libvirt_rapl.config import Config
from libvirt_rapl.daemon import status_socket, stream_socket
from libvirt_rapl.daemon.document import render
from libvirt_rapl.daemon.host_meter import HostMeter
from libvirt_rapl.domains import inventory
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.domain import Domain, every_domain, lookup, no_such_domain
from libvirt_rapl.energy import snapshot
from libvirt_rapl.energy.meter import Meter, Running
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.process_clock import allow_many_descriptors

INTERVAL_SECONDS = 1.0
RESTART_SECONDS = 30.0
"""How long until_gone() waits for a daemon that has gone: it may be restarting."""

Origin = Literal["virt-rapld", "own", "own, as virt-rapld does not answer"]


class Documents(NamedTuple):
    """Documents as they are made, and who makes them."""

    origin: Origin
    each: Iterator[dict[str, Any] | None]
    """As JSON; None about once a second while virt-rapld is away. May raise VirtRaplError."""


def find(uri: str, config: Config, names: list[str]) -> Documents:
    """Return the documents of the named domains, or of all if none is named. Raises VirtRaplError if there can be none.

    Own samples are taken once a second, the first of them a second from now; their energies are counted from now on.
    """
    socket = config.run_directory / paths.STATUS_SOCKET
    with contextlib.suppress(FileNotFoundError, PermissionError):  # or a user who made it could answer for virt-rapld
        Registry(config.run_directory).check_directory()
    if uri != DEFAULT_URI:  # virt-rapld meters the machine's own libvirt, and no other
        return Documents("own", _sampled(uri, config, names))
    first = status_socket.ask(socket)
    if first is not None:
        return Documents("virt-rapld", _from_daemon(config, first, names))
    origin: Origin = "own, as virt-rapld does not answer" if status_socket.listens(socket) else "own"
    return Documents(origin, _sampled(uri, config, names))


def until_gone(found: Documents) -> Iterator[dict[str, Any]]:
    """Yield the documents. Raises VirtRaplError when virt-rapld has been away for RESTART_SECONDS."""
    heard = time.monotonic()
    for document in found.each:
        if document:
            heard = time.monotonic()
            yield document
        elif time.monotonic() > heard + RESTART_SECONDS:
            raise VirtRaplError("virt-rapld has gone", "systemctl start virt-rapld, or run this again without it")


def _from_daemon(config: Config, first: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any] | None]:
    chosen = {_uuid(first, name) for name in names}
    document: dict[str, Any] | None = first
    while True:
        yield document and _of(document, chosen)
        for streamed in stream_socket.follow(config.run_directory / paths.STREAM_SOCKET):
            yield _of(streamed, chosen)
        time.sleep(INTERVAL_SECONDS)
        document = status_socket.ask(config.run_directory / paths.STATUS_SOCKET)  # an older daemon has no stream


def _of(document: dict[str, Any], chosen: set[str]) -> dict[str, Any]:
    if not chosen:
        return document
    shown = [domain for domain in document["domains"] if domain["uuid"] in chosen]
    return {name: value for name, value in document.items() if name != "ended"} | {"domains": shown}


def _uuid(document: dict[str, Any], name_or_uuid: str) -> str:
    for key in ("name", "uuid"):
        for domain in document["domains"]:
            if domain[key] == name_or_uuid:
                return str(domain["uuid"])
    raise no_such_domain(name_or_uuid)


def _sampled(uri: str, config: Config, names: list[str]) -> Iterator[dict[str, Any]]:
    allow_many_descriptors()
    host = HostMeter(config)
    connection = connect(uri)
    chosen = {lookup(connection, name).uuid for name in names}
    _sample(host.meter, connection)
    due = time.monotonic()
    while True:
        due += INTERVAL_SECONDS
        time.sleep(max(0.0, due - time.monotonic()))
        found = _sample(host.meter, connection)
        wanted = (domain for domain in found if not chosen or domain.uuid in chosen)
        entries = inventory.describe_all(wanted, config.labels)
        # There is no daemon whose samples could be late.
        yield json.loads(render(host.document(snapshot.take(host.meter), entries, overruns=None)))


def _sample(meter: Meter, connection: Any) -> list[Domain]:  # noqa: ANN401
    """Measure every domain once, named or not: none of their energy is `other`."""
    found = every_domain(connection)
    states = {domain.uuid: inventory.run_state(domain) for domain in found}
    meter.sample(Running(uuid, state.pid, state.vcpu_tids) for uuid, state in states.items() if state)
    return found
