"""What a helper's process is to do. Who starts the process finds it out, because each domain costs the memory of one.

It is written to a file for root alone, and removed when the helper answers, or is not waited for any more.
"""

import contextlib
import marshal
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TypedDict, cast

from libvirt_rapl import without_site
from libvirt_rapl.choices import EnergySource
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import replace
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.run_directory import RunDirectory
from libvirt_rapl.helper.vmsr.registers import Registers, find
from libvirt_rapl.host.requirements import check_processes_are_seen, qemu_helper

PROCESS = "libvirt_rapl.helper.process"
"""The module that is a helper's process. It takes the path of its plan."""


class Plan(TypedDict):
    """What a process needs to know to become a domain's helper."""

    program: str
    """Of qemu-vmsr-helper; empty for our own."""
    socket: str
    """Where it listens."""
    life: str
    state: str
    owner_uid: int
    machine: str
    registers: Registers
    """These are what vmsr.serving takes."""


def command(path: str) -> tuple[str, ...]:
    """Return how to start a helper's process."""
    return sys.executable, "-I", "-S", without_site.PATH, PROCESS, path


@contextlib.contextmanager
def written(record: Record, registry: Registry, source: EnergySource, place: RunDirectory) -> Iterator[str]:
    """Write the plan of a domain's helper to a file in `place`, and remove it at the end. Yields its path.

    Raises VirtRaplError if there is something that keeps the helper from serving; OSError.
    """
    path = place.path(record.uuid, "plan")
    place.create_directory()
    _write(path, _plan(record, registry, source))
    try:
        yield str(path)
    finally:
        with contextlib.suppress(OSError):
            place.discard(record.uuid, "plan")


def keep_compiled() -> None:
    """Let Python keep in compiled form what a helper imports when it cannot write files any more."""
    from libvirt_rapl.helper.vmsr import serving  # noqa: F401  no part of a start


def become_helper(uuid: str, run_directory: Path, source: EnergySource) -> NoReturn:
    """Become the domain's helper. Raises VirtRaplError, OSError."""
    registry = Registry(run_directory)
    try:
        record, path = registry.read(uuid), registry.path(uuid, "plan")
    except ValueError as error:
        raise VirtRaplError(str(error), "give the domain's UUID, as `virsh domuuid` prints it") from error
    if record is None:
        raise VirtRaplError(f"no record of domain {uuid}", "helpers are started by the hook at `virsh start`")
    if record.reason:
        raise VirtRaplError(f"{record.name} was started without its helper: {record.reason}", "restart the domain")
    keep_compiled()
    _write(path, _plan(record, registry, source))
    os.execv(sys.executable, command(str(path)))


def _write(path: Path, plan: Plan) -> None:
    replace(path, marshal.dumps(dict(plan)).hex(), 0o600)


def _plan(record: Record, registry: Registry, source: EnergySource) -> Plan:
    check_processes_are_seen()
    plan = Plan(
        program="",
        socket=registry.name(record.uuid, "sock"),
        life=registry.name(record.uuid, "alive"),
        state=registry.name(record.uuid, "state"),
        owner_uid=record.owner_uid,
        machine="" if record.id is None else str(record.id),
        registers=cast("Registers", ()),
    )
    if record.backend == "qemu":
        return {**plan, "program": qemu_helper()}
    try:
        found = find(source)
    except (OSError, ValueError) as error:
        raise VirtRaplError(f"cannot read energy: {error}", "run as root") from error
    plain = (*found[:1], tuple(map(tuple, found.counters)), *found[2:])  # marshal knows no subclasses of tuple
    return {**plan, "registers": cast("Registers", plain)}
