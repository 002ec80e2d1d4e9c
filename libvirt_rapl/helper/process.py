"""The process of a helper, from its start as root until it becomes the confined program that serves its domain."""

import marshal
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from libvirt_rapl import start_settings, systemd
from libvirt_rapl.choices import EnergySource
from libvirt_rapl.errors import VirtRaplError, explain, printable
from libvirt_rapl.helper.confinement import drop_privileges, filter_system_calls, open_program
from libvirt_rapl.helper.records import OWNER, Record, Registry
from libvirt_rapl.helper.vmsr import serving
from libvirt_rapl.helper.vmsr.registers import find
from libvirt_rapl.host.requirements import check_processes_are_seen, qemu_helper
from libvirt_rapl.sockets import listen

PACKAGES = Path(__file__).parents[2]
SERVE = f"import sys; sys.path.append(sys.argv[1]); from {serving.__name__} import main; main(*sys.argv[2:])"
"""What an instance runs. The interpreter imports no more than that, because each domain costs its memory.

It is imported here, too, so that Python finds it compiled: an instance cannot write files.
"""


def run(uuid: str) -> NoReturn:
    """Become the domain's helper, or end with a line that says why not: what the hook starts, directly or as a unit."""
    try:
        settings = start_settings.load()
        become_helper(uuid, settings.run_directory, settings.source)
    except (VirtRaplError, OSError) as error:
        hint = getattr(error, "hint", "") or "is there space, and permission?"
        sys.exit(printable(f"virt-rapl: error: {explain(error)}") + "\n" + printable(f"hint: {hint}"))


def become_helper(uuid: str, run_directory: Path, source: EnergySource) -> NoReturn:
    """Do all that needs privileges, give them up, and become the program that serves this domain.

    Raises VirtRaplError, OSError.
    """
    registry = Registry(run_directory)
    try:
        record, path = registry.read(uuid), registry.path(uuid, "sock")
    except ValueError as error:
        raise VirtRaplError(str(error), "give the domain's UUID, as `virsh domuuid` prints it") from error
    if record is None:
        raise VirtRaplError(f"no record of domain {uuid}", "helpers are started by the hook at `virsh start`")
    if record.reason:
        raise VirtRaplError(f"{record.name} was started without its helper: {record.reason}", "restart the domain")
    check_processes_are_seen()
    if record.backend == "qemu":
        _exec_qemu_helper(qemu_helper(), _listen(path))
    _exec_native(record, registry, source, _listen(path))


def _listen(path: Path) -> socket.socket:
    """Listen with access for ourselves alone: our starter admits the domain's user. Then systemd says that we run."""
    try:
        listener = listen(path)
    except OSError as error:
        raise VirtRaplError(f"cannot listen on {path}: {error}", "it needs root and free space") from error
    systemd.notify("READY=1")
    return listener


def _exec_native(record: Record, registry: Registry, source: EnergySource, listener: socket.socket) -> NoReturn:
    try:
        found = find(source)
    except (OSError, ValueError) as error:
        raise VirtRaplError(f"cannot read energy: {error}", "run as root") from error
    registers = marshal.dumps((*found[:1], tuple(map(tuple, found.counters)), *found[2:])).hex()
    life = os.open(registry.path(record.uuid, "alive"), os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    for descriptor in (listener.fileno(), life):
        os.set_inheritable(descriptor, True)
    state_file = registry.path(record.uuid, "state")
    machine = "" if record.id is None else record.id
    arguments = map(str, (PACKAGES, listener.fileno(), life, state_file, record.owner_uid, machine, registers))
    program = open_program(sys.executable)
    drop_privileges(registers=any(counter.register for counter in found.counters))
    filter_system_calls(program)
    os.execve(program, [sys.executable, "-I", "-S", "-c", SERVE, *arguments], os.environ)


def _exec_qemu_helper(path: str, listener: socket.socket) -> NoReturn:
    """Become qemu-vmsr-helper, passing it the socket as systemd's socket activation would (sd_listen_fds(3)).

    By itself it would make a socket of root's with mode 0600, which the domain's QEMU cannot open. It does not drop its
    privileges, although it is meant to; so they are dropped here.
    """
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)  # also when it was 3 already and dup2 had nothing to do
    program = open_program(path)
    drop_privileges(registers=True)
    filter_system_calls(program, as_qemu=True)
    owner = {OWNER: os.environ[OWNER]} if OWNER in os.environ else {}
    os.execve(program, [path], {**owner, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
