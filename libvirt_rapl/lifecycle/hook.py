"""What hooks/qemu calls: libvirt reports what happens to a domain, and its helper is started and ended with it.

libvirt holds the domain locked meanwhile, so this never calls libvirt. The exit status: at `start`, non-zero keeps the
domain from starting; at `started` and `reconnect` it would kill the running domain, so these always return 0. Each
operation may take `hook_deadline` seconds, and is recorded as an event.
"""

import contextlib
import grp
import os
import pwd
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from libvirt_rapl import paths
from libvirt_rapl.config import DEFAULT_PATH, Config, load, stated_policy
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.names import MARK
from libvirt_rapl.domains.run_files import read_run_state
from libvirt_rapl.errors import UnreadableError, VirtRaplError, explain, printable
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry, State
from libvirt_rapl.host.requirements import check_host
from libvirt_rapl.lifecycle import as_it_is, chosen, events
from libvirt_rapl.lifecycle.enabling import wants_registers, with_registers

OPENING = re.compile(r"<domain [^<>]*>\n  <name>[^<\n]*</name>\n  <uuid>([0-9a-f-]{36})</uuid>\n")
"""How libvirt's XML begins; a name contains no line feed."""
WORDS = Config.run_directory
"""Where the wrapper looks for its word, whatever directory the configuration names: only root can put one there."""
DEFINITIONS = Path("/", paths.LIBVIRT_DEFINITIONS)
HELPER_SHARE = 0.9
"""The part of a start's time in which the helper must answer. In the rest we record that it did not."""


def main(name: str, operation: str, stdin: TextIO, stdout: TextIO, stderr: TextIO, config: Path = DEFAULT_PATH) -> int:
    """Handle one operation of libvirt on the domain `name`, whose XML is on stdin. Returns the exit status."""
    began = time.monotonic()
    settings, uuid, reason, is_ours = Config(), "", "", False
    result: events.Result = "failed"
    try:
        settings, config_error = _config_or_defaults(config)
        xml = stdin.read()
        is_ours = MARK in xml
        uuid, definition = _read(xml)
        restores = operation in ("restore", "migrate")
        if isinstance(definition, UnreadableError) and _must_be_read(operation, definition.xml):
            raise definition
        is_ours = _is_ours(definition, uuid, operation, settings)
        if not (restores or is_ours):
            _leave_alone(name, operation, uuid, definition, settings, config_error)
            return 0
        turn = contextlib.nullcontext() if restores else Registry(settings.run_directory).locked(uuid)
        with turn, contextlib.nullcontext() if operation == "start" else _within(settings.hook_deadline):
            match operation, definition:
                case "restore" | "migrate", Definition():
                    if config_error:
                        raise config_error
                    output, result, reason = filtered(definition, settings)
                    stdout.write(output)
                case "start", Definition():
                    result, reason = begin(definition, settings, config_error, stderr)
                case "started" | "reconnect", _:
                    record = follow(name, uuid, definition, settings)
                    result, reason = record.state, record.reason
                case "stopped" | "release", _:
                    result = end(name, uuid, definition, settings, operation)
    except Exception as error:  # a domain must not die of our mistakes
        reason = explain(error)
        if operation == "start" and is_ours and settings.on_failure == "refuse":
            result = "refuse"
        _say(f"virt-rapl: {operation} of {name}: {reason}", stderr)
    event = events.Event.since(began, domain=name, uuid=uuid, operation=operation, result=result, reason=reason)
    events.record(settings.run_directory, event)
    return int(operation == "start" and result == "refuse")


def _read(xml: str) -> tuple[str, Definition | UnreadableError]:
    """Return the domain's UUID and its definition, or why there is none: its metadata can make the XML unreadable."""
    try:
        definition = Definition.parse(xml)
        return definition.uuid, definition
    except UnreadableError as error:
        if found := OPENING.match(xml):
            return found[1], error
        raise


def _must_be_read(operation: str, xml: str) -> bool:
    """Return whether an operation needs the definition: without our mark in it, a start does not."""
    return operation in ("restore", "migrate") or (operation == "start" and MARK in xml)


def _is_ours(definition: Definition | UnreadableError, uuid: str, operation: str, config: Config) -> bool:
    """Return whether the domain has registers, or a record: it may have no mark, or not one that can be read now."""
    if isinstance(definition, Definition):
        if definition.has_registers:
            return True
        if operation == "start":
            return as_it_is.is_chosen(definition, config.domains, config.via)
    return operation != "start" and any(registry.read(uuid) for registry in _registries(definition, config))


def _leave_alone(
    name: str,
    operation: str,
    uuid: str,
    definition: Definition | UnreadableError,
    config: Config,
    config_error: VirtRaplError | None,
) -> None:
    """Let a domain start that does not concern us."""
    if operation == "start":
        # What an earlier run has left is removed: the wrapper would believe it.
        end(name, uuid, definition, config, operation)
        chosen.note(WORDS, config, config_error)


class _LateError(Exception):
    """An operation has used up its time. Not one of the kinds of error that are caught on the way."""


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise _LateError in whatever takes longer than that."""

    def late(*_: object) -> None:
        raise _LateError(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def filtered(definition: Definition, config: Config) -> tuple[str, events.Result, str]:
    """Return the XML that a restored or incoming domain gets here (empty: as it is), and the result and its reason.

    A domain with registers gets this host's socket; one that the operator chose gets registers; if that is not possible
    on this host, they are removed, so that the domain arrives. The channel is a device, which cannot come or go here.
    """
    registry = Registry(config.run_directory)
    traits = definition.traits
    how = registry.how_to_restore(traits.uuid)
    is_chosen = config.domains.selects(traits) and wants_registers(definition, config.via)
    enabled = how == "with" or _definition_has_registers(traits.name) or definition.has_registers
    if not (enabled or is_chosen):
        return "", "unchanged", ""
    if not enabled and (through := as_it_is.through_wrapper(definition)):
        return (through.xml, "injected", "") if definition.difference(through) else ("", "unchanged", "")
    result: events.Result
    try:
        if how == "without":
            raise VirtRaplError("it could not be restored with its meter")
        wanted, result, reason = with_registers(definition, registry, emulator.check), "injected", ""
    except VirtRaplError as error:
        wanted, result, reason = definition.without_registers(), "stripped", error.message
    # libvirt's quotes differ from ours, and it marks a domain as tainted whenever a hook has changed it.
    return (wanted.xml, result, reason) if definition.difference(wanted) else ("", "unchanged", reason)


def _definition_has_registers(name: str) -> bool:
    """Return whether the domain was enabled while it ran: then only its definition on disk has the mark."""
    try:
        return Definition.parse((DEFINITIONS / f"{name}.xml").read_text(encoding="utf-8")).has_registers
    except (OSError, UnreadableError):
        return False


def begin(
    definition: Definition, config: Config, config_error: VirtRaplError | None, stderr: TextIO
) -> tuple[events.Result, str]:
    """Start the helper, and return the result and its reason; of a domain that cannot have registers, nothing."""
    if obstacle := as_it_is.obstacle(definition, Registry(config.run_directory).socket(definition.uuid)):
        end(definition.name, definition.uuid, definition, config, "start")
        return "unchanged", obstacle
    record = start(definition, config, config_error, stderr)
    return record.state, record.reason


def start(definition: Definition, config: Config, config_error: VirtRaplError | None, stderr: TextIO) -> Record:
    """Start the helper before QEMU. The state is `refuse` only if the owner wants no domain without its meter."""
    name, uuid = definition.name, definition.uuid
    registry, *former = _registries(definition, config)
    for left in (*former, *([Registry(WORDS)] if config.run_directory != WORDS else [])):
        with contextlib.suppress(OSError):
            left.remove(uuid)  # or the wrapper would believe the word of an earlier run
    failed_state: State = "refuse" if config.on_failure == "refuse" else "degraded"
    record = registry.read(uuid) or Record(uuid=uuid, name=name, backend=config.helper, owner_uid=0, owner_gid=0)
    record.name, record.backend, record.state, record.reason = name, config.helper, failed_state, ""
    record.by_policy = not definition.has_registers
    record.id, record.pid, record.vcpu_tids = definition.id, None, {}  # a crash leaves those of the run that it ended
    try:
        if config_error:
            raise config_error
        with _within(config.hook_deadline):
            record.owner_uid, record.owner_gid = _owner(definition.dac_label)
            # Before anything can go wrong: the wrapper reads this if we do not get any further.
            _write(record, registry)
            socket = registry.socket(uuid)
            definition.check(socket)
            if not record.by_policy:
                definition.check_takes_effect()
            check_host()
            instances.start(record, registry, config.hook_deadline * HELPER_SHARE)
            _enter(record, "ready", "")
            _write(record, registry)
    except Exception as error:  # whatever it is, the owner's `on_failure` says what happens then
        _fail(record, registry, failed_state, error, stderr)
    return record


def _fail(record: Record, registry: Registry, state: State, error: Exception, stderr: TextIO) -> None:
    _enter(record, state, explain(error))
    # Written first: a helper that starts only after this (systemd may be slow) reads it and ends.
    for place in dict.fromkeys((WORDS, registry.run_directory)):
        try:
            _write_in(place, record, registry)
        except OSError:
            with contextlib.suppress(OSError):
                Registry(place).remove(record.uuid)  # without a word the wrapper leaves RAPL out
    with contextlib.suppress(OSError, VirtRaplError):
        instances.stop(record, registry)
    what = "is not started" if state == "refuse" else "starts"
    _say(f"virt-rapl: {record.name} {what} without RAPL: {record.reason}", stderr)


def _write(record: Record, registry: Registry) -> None:
    """Write the record, and the word where the wrapper looks for it. Raises OSError."""
    for place in dict.fromkeys((WORDS, registry.run_directory)):
        _write_in(place, record, registry)


def _write_in(place: Path, record: Record, registry: Registry) -> None:
    if place == registry.run_directory:
        registry.write(record)
    else:
        Registry(place).write_word(record, registry.socket(record.uuid))


def follow(name: str, uuid: str, definition: Definition | UnreadableError, config: Config) -> Record:
    """Record the processes of a running domain, and whether its helper still runs."""
    found = [(registry, registry.read(uuid)) for registry in _registries(definition, config)]
    registry, record = next((each for each in found if each[1]), found[0])
    if record is None:
        uid, gid = _owner(definition.dac_label if isinstance(definition, Definition) else None)
        record = Record(uuid=uuid, name=name, backend=config.helper, owner_uid=uid, owner_gid=gid)
        record.reason = instances.UNRECORDED
    run_state = read_run_state(name)
    if run_state:
        record.pid, record.vcpu_tids = run_state.pid, run_state.vcpu_tids
    if record.state == "ready" and not instances.alive(record):
        since = instances.ended_at(record, registry)
        _enter(record, "degraded", instances.HELPER_ENDED)
        record.since = since or record.since
    _write(record, registry)
    # Asked last: if QEMU hangs, only its version is missing, which matters for `status` only.
    if isinstance(definition, Definition) and not record.qemu_version:
        with contextlib.suppress(VirtRaplError):
            record.qemu_version = emulator.version(definition.emulator())
            _write(record, registry)
    return record


def end(
    name: str, uuid: str, definition: Definition | UnreadableError, config: Config, operation: str
) -> events.Result:
    """End the helper of a domain that is gone, and forget the domain. After `stopped`, `release` finds nothing left."""
    ended = False
    for number, registry in enumerate(_registries(definition, config)):
        record = registry.read(uuid)
        if record or (operation == "stopped" and number == 0):  # a helper outlives a record that was lost
            unknown = Record(uuid=uuid, name=name, backend=config.helper, owner_uid=0, owner_gid=0)
            ended |= instances.stop(record or unknown, registry) or record is not None
        registry.remove(uuid)
    return "ended" if ended else "unchanged"


def _registries(definition: Definition | UnreadableError, config: Config) -> list[Registry]:
    """Return the registry that the configuration names, and others where the domain may have been started.

    These are the directory of the socket in its own argument, and the default one, which is used if the configuration
    is broken. XML may name any directory: one that is not as we make them is not ours.
    """
    socket = definition.helper_socket if isinstance(definition, Definition) else None
    named = [Path(socket).parent] if socket else []
    others = dict.fromkeys([*named, WORDS])
    former = [Registry(directory) for directory in others if directory != config.run_directory]
    return [Registry(config.run_directory), *(registry for registry in former if registry.is_made_by_us())]


def _config_or_defaults(path: Path) -> tuple[Config, VirtRaplError | None]:
    """Return the configuration. If it cannot be read: the defaults with the owner's `on_failure`, and the error."""
    try:
        return load(path), None
    except VirtRaplError as error:
        return replace(Config(), on_failure=stated_policy(path)), error


def _enter(record: Record, state: State, reason: str) -> None:
    record.state, record.reason, record.since = state, reason, time.time()


def _owner(label: str | None) -> tuple[int, int]:
    """Turn a DAC label (`+64055:+64055`, `libvirt-qemu:kvm`) into uid and gid; without a label, return our own."""
    if label is None:
        return os.getuid(), os.getgid()
    user, _, group = label.partition(":")
    uid = int(user) if user.lstrip("+").isdigit() else pwd.getpwnam(user).pw_uid
    if not group:
        return uid, pwd.getpwuid(uid).pw_gid
    return uid, int(group) if group.lstrip("+").isdigit() else grp.getgrnam(group).gr_gid


def _say(line: str, stderr: TextIO) -> None:
    with contextlib.suppress(OSError):  # libvirt, which reads it, may have been killed
        print(printable(line), file=stderr, flush=True)


if __name__ == "__main__":
    status = main(sys.argv[1], sys.argv[2], sys.stdin, sys.stdout, sys.stderr)
    sys.stdout.flush()
    os._exit(status)  # Python itself would exit with 120 if nobody reads stderr any more
