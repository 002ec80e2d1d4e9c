"""What hooks/qemu calls: libvirt tells of a domain's life, and its helper comes and goes with it.

libvirt holds the domain locked meanwhile, so this never calls libvirt. What the exit status does: at `start` non-zero
keeps the domain from starting; at `started` and `reconnect` it would kill the running domain, so these always end in 0.
"""

import contextlib
import grp
import os
import pwd
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from libvirt_rapl import domxml, emulator, instances
from libvirt_rapl.config import DEFAULT_PATH, Config, load, stated_policy
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.registry import Record, Registry
from libvirt_rapl.runstate import read_run_state
from libvirt_rapl.vmsr.requirements import check_host

DEFINITIONS = Path("/etc/libvirt/qemu")


def main(name: str, operation: str, stdin: TextIO, stdout: TextIO, stderr: TextIO, config: Path = DEFAULT_PATH) -> int:
    """Handle one operation of libvirt on the domain `name`, whose XML is on stdin. Returns the exit status."""
    try:
        match operation:
            case "restore" | "migrate":
                stdout.write(filtered(stdin.read(), load(config)))
            case "start":
                return start(stdin.read(), config, stderr)
            case "started" | "reconnect":
                follow(name, stdin.read(), _config_or_defaults(config)[0])
            case "stopped" | "release":
                end(stdin.read(), _config_or_defaults(config)[0])
    except Exception as error:  # a domain shall not die of our mistakes
        print(f"virt-rapl: {operation} of {name}: {_one_line(error)}", file=stderr)
    return 0


def filtered(xml: str, config: Config) -> str:
    """Return the XML a restored or incoming domain shall have here; empty when it may stay as it is.

    A domain with the mark gets this host's socket; one that the operator chose gets the meter; where that is not
    possible on this host, the meter is taken out, so that the domain arrives.
    """
    name, uuid = domxml.identity(xml)
    marked = domxml.is_marked(xml)
    if not (marked or config.selects(name, uuid) or _definition_is_marked(name)):
        return ""
    try:
        wanted = domxml.inject(xml, socket=str(Registry(config.run_directory).path(uuid, "sock")))
        emulator.check(domxml.original_emulator(wanted))
    except VirtRaplError:
        wanted = domxml.strip(xml)
    # libvirt writes other quotes than we do, and marks a domain as tainted whenever a hook has changed it.
    return wanted if domxml.difference(xml, wanted, name) else ""


def _definition_is_marked(name: str) -> bool:
    """Tell whether the domain was enabled while it ran: then only its definition on disk knows."""
    try:
        return domxml.is_marked((DEFINITIONS / f"{name}.xml").read_text(encoding="utf-8"))
    except (OSError, VirtRaplError):
        return False


def start(xml: str, config_path: Path, stderr: TextIO) -> int:
    """Bring the helper up before QEMU. Non-zero only where the owner wants no domain without its meter."""
    config, config_error = _config_or_defaults(config_path)
    registry = Registry(config.run_directory)
    with registry.locked(domxml.identity(xml)[1]):
        return _start(xml, config, config_error, registry, stderr)


def _start(xml: str, config: Config, config_error: VirtRaplError | None, registry: Registry, stderr: TextIO) -> int:
    name, uuid = domxml.identity(xml)
    failed_state = "refuse" if config.on_failure == "refuse" else "degraded"
    record = registry.read(uuid) or Record(uuid=uuid, name=name, backend=config.helper, owner_uid=0, owner_gid=0)
    record.name, record.backend, record.state = name, config.helper, failed_state
    record.pid, record.vcpu_tids = None, {}  # those of a run that a crash has ended
    try:
        if config_error:
            raise config_error
        record.owner_uid, record.owner_gid = _owner(domxml.dac_label(xml))
        # Before anything can go wrong: what the wrapper reads if we do not come back.
        registry.write(record)
        socket = str(registry.path(uuid, "sock"))
        domxml.check(xml, socket)
        domxml.check_takes_effect(xml, socket)
        check_host()
        instances.start(record, registry, config.start_deadline)
        _enter(record, "ready", "")
        registry.write(record)
    except Exception as error:  # whatever it is, the owner has said what shall happen then
        return _fail(record, registry, failed_state, error, stderr)
    return 0


def _fail(record: Record, registry: Registry, state: str, error: Exception, stderr: TextIO) -> int:
    _enter(record, state, _one_line(error))
    try:
        instances.stop(record, registry)
        registry.write(record)
    except (OSError, VirtRaplError):
        with contextlib.suppress(OSError):
            registry.remove(record.uuid)  # without a word from us the wrapper leaves RAPL out
    if state == "refuse":
        print(f"virt-rapl: {record.name} is not started without RAPL: {record.reason}", file=stderr)
        return 1
    print(f"virt-rapl: {record.name} starts without RAPL: {record.reason}", file=stderr)
    return 0


def follow(name: str, xml: str, config: Config) -> None:
    """Record the processes of a domain that runs, and whether its helper still does."""
    registry = Registry(config.run_directory)
    with registry.locked(domxml.identity(xml)[1]):
        _follow(name, xml, config, registry)


def _follow(name: str, xml: str, config: Config, registry: Registry) -> None:
    _, uuid = domxml.identity(xml)
    record = registry.read(uuid)
    if record is None:
        uid, gid = _owner(domxml.dac_label(xml))
        record = Record(uuid=uuid, name=name, backend=config.helper, owner_uid=uid, owner_gid=gid)
        record.reason = "its record was lost"
    run_state = read_run_state(name)
    if run_state:
        record.pid, record.vcpu_tids = run_state.pid, run_state.vcpu_tids
    if not record.qemu_version:
        with contextlib.suppress(VirtRaplError):  # it matters for `status` only
            record.qemu_version = emulator.version(domxml.original_emulator(xml))
    if record.state == "ready" and not instances.alive(record):
        since = instances.ended_at(record, registry)
        _enter(record, "degraded", instances.HELPER_ENDED)
        record.since = since or record.since
    registry.write(record)


def end(xml: str, config: Config) -> None:
    """End the helper of a domain that is gone, and forget the domain."""
    _, uuid = domxml.identity(xml)
    registry = Registry(config.run_directory)
    with registry.locked(uuid):
        record = registry.read(uuid)
        if record:
            instances.stop(record, registry)
        registry.remove(uuid)


def _config_or_defaults(path: Path) -> tuple[Config, VirtRaplError | None]:
    """Return the configuration. Where it cannot be read: defaults, but what the owner wants on failure, and why."""
    try:
        return load(path), None
    except VirtRaplError as error:
        return replace(Config(), on_failure=stated_policy(path)), error


def _enter(record: Record, state: str, reason: str) -> None:
    record.state, record.reason, record.since = state, reason, time.time()


def _owner(label: str | None) -> tuple[int, int]:
    """Turn a DAC label (`+64055:+64055`, `libvirt-qemu:kvm`) into uid and gid; our own where there is none."""
    if label is None:
        return os.getuid(), os.getgid()
    user, _, group = label.partition(":")
    uid = int(user) if user.lstrip("+").isdigit() else pwd.getpwnam(user).pw_uid
    if not group:
        return uid, pwd.getpwuid(uid).pw_gid
    return uid, int(group) if group.lstrip("+").isdigit() else grp.getgrnam(group).gr_gid


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.stdin, sys.stdout, sys.stderr))
