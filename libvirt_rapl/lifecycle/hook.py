"""What hooks/qemu calls: libvirt reports what happens to a domain, and its helper is started and ended with it.

libvirt holds the domain locked meanwhile, so this never calls libvirt. The exit status: at `start`, non-zero keeps the
domain from starting; at `started` and `reconnect` it would kill the running domain, so these always return 0. Each
operation may take `hook_deadline` seconds, and is recorded as an event.

libvirt waits for a start, and Python is new each time. So this imports little: neither lxml nor YAML, unless something
is not as usual. hooks/qemu lets `started` go on while libvirt continues.
"""

import contextlib
import grp
import os
import pwd
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from libvirt_rapl import paths, start_settings
from libvirt_rapl.domains.glance import Glance
from libvirt_rapl.domains.names import MARK
from libvirt_rapl.errors import UnreadableError, VirtRaplError, explain, printable
from libvirt_rapl.helper import instances, plans
from libvirt_rapl.helper.records import Record, Registry, State
from libvirt_rapl.host.requirements import check_host
from libvirt_rapl.lifecycle import events, seeing
from libvirt_rapl.lifecycle.seeing import Seen, running
from libvirt_rapl.remembered import Memory
from libvirt_rapl.start_settings import CONFIGURATION, StartSettings

if TYPE_CHECKING:
    from libvirt_rapl.config import Config
    from libvirt_rapl.domains.definition import Definition

WORDS = Path("/", paths.RUN_DIRECTORY)
"""Where the wrapper looks for its word, whatever directory the configuration names: only root can put one there."""
HELPER_SHARE = 0.9
"""The part of a start's time in which the helper must answer. In the rest we record that it did not."""


def main(name: str, operation: str, stdin: TextIO, stdout: TextIO, stderr: TextIO, config: Path = CONFIGURATION) -> int:
    """Handle one operation of libvirt on the domain `name`, whose XML is on stdin. Returns the exit status."""
    began = time.monotonic()
    settings: StartSettings | None = None
    uuid, reason, is_ours = "", "", False
    result: events.Result = "failed"
    try:
        settings, config_error = _config_or_defaults(config)
        xml, restores = stdin.read(), operation in ("restore", "migrate")
        is_ours = MARK in xml
        uuid, seen = seeing.in_full(xml) if restores else seeing.at(xml, settings.run_directory)
        # Without our mark in it, a start does not need the definition.
        if isinstance(seen, UnreadableError) and (restores or (operation == "start" and is_ours)):
            raise seen
        if config_error and restores:
            raise config_error
        whole = None if config_error or isinstance(seen, Glance) else _whole(config)
        is_ours = _is_ours(seen, uuid, operation, settings, whole)
        if not (restores or is_ours):
            _leave_alone(name, operation, uuid, seen, settings, whole)
            return 0
        turn = contextlib.nullcontext() if restores else Registry(settings.run_directory).locked(uuid)
        with turn, contextlib.nullcontext() if operation == "start" else _within(settings.hook_deadline):
            if operation == "start" and not isinstance(seen, UnreadableError):
                result, reason = begin(seen, settings, config_error, stderr)
            else:
                output, result, reason = _handle(name, operation, uuid, seen, settings, whole)
                stdout.write(output)
    except Exception as error:  # a domain must not die of our mistakes
        reason = explain(error)
        if operation == "start" and is_ours and settings and settings.on_failure == "refuse":
            result = "refuse"
        _say(f"virt-rapl: {operation} of {name}: {reason}", stderr)
    event = events.Event.since(began, domain=name, uuid=uuid, operation=operation, result=result, reason=reason)
    events.record(settings.run_directory if settings else WORDS, event)
    return int(operation == "start" and result == "refuse")


def _handle(
    name: str, operation: str, uuid: str, seen: Seen, settings: StartSettings, config: "Config | None"
) -> tuple[str, events.Result, str]:
    """Handle what is not `start`; return what to print, and what came of it."""
    match operation:
        case "restore" | "migrate" if config and not isinstance(seen, Glance | UnreadableError):
            from libvirt_rapl.lifecycle.restoring import filtered

            return filtered(seen, config)
        case "started" | "reconnect":
            record = follow(name, uuid, seen, settings, operation)
            return ("", record.state, record.reason) if record else ("", "unchanged", "")
        case "stopped" | "release":
            return "", end(name, uuid, seen, settings, operation), ""
    raise ValueError(f"not an operation of libvirt's hook: {operation}")


def _is_ours(seen: Seen, uuid: str, operation: str, settings: StartSettings, config: "Config | None") -> bool:
    """Return whether the domain has registers, or a record: it may have no mark, or not one that can be read now.

    A configuration that cannot be read, None, chooses nothing.
    """
    if isinstance(seen, Glance) or (not isinstance(seen, UnreadableError) and seen.has_registers):
        return True
    if operation != "start":
        return any(registry.read(uuid) for registry in _registries(seen, settings))
    if config is None or isinstance(seen, UnreadableError):
        return False
    from libvirt_rapl.lifecycle import as_it_is

    return as_it_is.is_chosen(seen, config.domains, config.via)


def _leave_alone(
    name: str, operation: str, uuid: str, seen: Seen, settings: StartSettings, config: "Config | None"
) -> None:
    """Let a domain start that does not concern us."""
    if operation != "start":
        return
    # What an earlier run has left is removed: the wrapper would believe it.
    end(name, uuid, seen, settings, operation)
    if config:
        from libvirt_rapl.lifecycle import chosen

        chosen.note(WORDS, config)


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


def begin(
    seen: "Glance | Definition", config: StartSettings, config_error: VirtRaplError | None, stderr: TextIO
) -> tuple[events.Result, str]:
    """Start the helper, and return the result and its reason; of a domain that cannot have registers, nothing."""
    if not (isinstance(seen, Glance) or seen.has_registers):
        from libvirt_rapl.lifecycle import as_it_is

        if obstacle := as_it_is.obstacle(seen, Registry(config.run_directory).socket(seen.uuid)):
            end(seen.name, seen.uuid, seen, config, "start")
            return "unchanged", obstacle
    record = start(seen, config, config_error, stderr)
    return record.state, record.reason


def start(
    seen: "Glance | Definition", config: StartSettings, config_error: VirtRaplError | None, stderr: TextIO
) -> Record:
    """Start the helper before QEMU. The state is `refuse` only if the owner wants no domain without its meter."""
    name, uuid = seen.name, seen.uuid
    registry, *former = _registries(seen, config)
    for left in (*former, *([Registry(WORDS)] if config.run_directory != WORDS else [])):
        with contextlib.suppress(OSError):
            left.remove(uuid)  # or the wrapper would believe the word of an earlier run
    failed_state: State = "refuse" if config.on_failure == "refuse" else "degraded"
    record = registry.read(uuid) or Record(uuid=uuid, name=name, backend=config.helper, owner_uid=0, owner_gid=0)
    record.name, record.backend, record.state, record.reason = name, config.helper, failed_state, ""
    record.by_policy = not (isinstance(seen, Glance) or seen.has_registers)
    record.id, record.pid, record.vcpu_tids = seen.id, None, {}  # a crash leaves those of the run that it ended
    try:
        if config_error:
            raise config_error
        with _within(config.hook_deadline):
            record.owner_uid, record.owner_gid = _owner(seen.dac_label)
            # Before anything can go wrong: the wrapper reads this if we do not get any further.
            _write(record, registry)
            if not (isinstance(seen, Glance) or record.by_policy):  # of these the same is known already
                seen.check(registry.socket(uuid))
                seen.check_takes_effect()
            check_host()
            instances.start(record, registry, config.source, config.hook_deadline * HELPER_SHARE)
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


def follow(name: str, uuid: str, seen: Seen, config: StartSettings, operation: str) -> Record | None:
    """Record the processes of a running domain, and whether its helper still runs.

    None if this `started` comes too late: the domain has ended, or is started anew.
    """
    found = [(registry, registry.read(uuid)) for registry in _registries(seen, config)]
    registry, record = next((each for each in found if each[1]), found[0])
    threads = running(name)
    if operation == "started" and (threads is None or (record and record.id != _id(seen, record))):
        if record is None:
            registry.discard(uuid, "lock")  # which we hold: nobody else would remove it
        return None
    if record is None:
        uid, gid = _owner(None if isinstance(seen, UnreadableError) else seen.dac_label)
        record = Record(uuid=uuid, name=name, backend=config.helper, owner_uid=uid, owner_gid=gid)
        record.reason = instances.UNRECORDED
    if threads:
        record.pid, record.vcpu_tids = threads.pid, threads.vcpu_tids
    if record.state == "ready" and not instances.alive(record):
        since = instances.ended_at(record, registry)
        _enter(record, "degraded", instances.HELPER_ENDED)
        record.since = since or record.since
    _write(record, registry)
    # Asked last: if QEMU hangs, only its version is missing, which matters for `status` only.
    if not isinstance(seen, UnreadableError) and not record.qemu_version:
        plans.keep_compiled()  # nobody waits any more
        with contextlib.suppress(VirtRaplError):
            record.qemu_version = seeing.version(seen.emulator(), _memory())
            _write(record, registry)
    return record


def _id(seen: Seen, record: Record) -> int | None:
    """Return libvirt's number of the domain; if its XML does not say it, that of the record."""
    return record.id if isinstance(seen, UnreadableError) or seen.id is None else seen.id


def end(name: str, uuid: str, seen: Seen, config: StartSettings, operation: str) -> events.Result:
    """End the helper of a domain that is gone, and forget the domain. After `stopped`, `release` finds nothing left."""
    ended = False
    for number, registry in enumerate(_registries(seen, config)):
        record = registry.read(uuid)
        if record or (operation == "stopped" and number == 0):  # a helper outlives a record that was lost
            unknown = Record(uuid=uuid, name=name, backend=config.helper, owner_uid=0, owner_gid=0)
            ended |= instances.stop(record or unknown, registry) or record is not None
        registry.remove(uuid)
    return "ended" if ended else "unchanged"


def _registries(seen: Seen, config: StartSettings) -> list[Registry]:
    """Return the registry that the configuration names, and others where the domain may have been started.

    These are the directory of the socket in its own argument, and the default one, which is used if the configuration
    is broken. XML may name any directory: one that is not as we make them is not ours.
    """
    socket = None if isinstance(seen, UnreadableError) else seen.helper_socket
    named = [Path(socket).parent] if socket else []
    others = dict.fromkeys([*named, WORDS])
    former = [Registry(directory) for directory in others if directory != config.run_directory]
    return [Registry(config.run_directory), *(registry for registry in former if registry.is_made_by_us())]


def _memory() -> Memory:
    return Memory(WORDS / paths.REMEMBERED)


def _config_or_defaults(path: Path) -> tuple[StartSettings, VirtRaplError | None]:
    """Return the configuration. If it cannot be read: the defaults with the owner's `on_failure`, and the error."""
    try:
        return start_settings.load(path, _memory()), None
    except VirtRaplError as error:
        return start_settings.defaults(path), error


def _whole(path: Path) -> "Config":
    """Return the whole configuration, which a glance at the domain does without. Raises VirtRaplError."""
    from libvirt_rapl.config import load

    return load(path)


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


def run(name: str, operation: str, *_: str) -> NoReturn:
    """Handle one operation and end this process."""
    status = main(name, operation, sys.stdin, sys.stdout, sys.stderr)
    sys.stdout.flush()
    os._exit(status)  # Python itself would exit with 120 if nobody reads stderr any more


if __name__ == "__main__":
    run(*sys.argv[1:])
