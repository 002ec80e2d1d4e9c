"""Helper instances, one process per domain: systemd units where systemd runs, else processes of their own.

An instance must outlive the hook that starts it, and libvirtd, whose child the hook is: QEMU connects once and never
again.

Its socket is root's: neither QEMU nor another process of QEMU's user can change its mode or name. Only that user may
connect, by an access control list; its group, which stat shows, may be a shared one, such as kvm.
"""

import contextlib
import errno
import os
import select
import signal
import struct
import time
from pathlib import Path

from libvirt_rapl import paths, systemd
from libvirt_rapl.choices import EnergySource
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper import plans
from libvirt_rapl.helper.process import OWNER
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.run_directory import RunDirectory, Suffix
from libvirt_rapl.host import processes
from libvirt_rapl.host.processes import is_stopped, start_time

HELPER_ENDED = "its helper ended, and QEMU connects only once; restart the domain"
HELPER_ALONE = "QEMU is not connected to its helper; restart the domain"
UNRECORDED = (
    "nothing is known of its helper: the hook did not run or was killed when it started, its record was lost, "
    "or `run_directory` was changed since; restart the domain"
)
HELPER_STOPPED = "its helper is stopped; `kill -CONT {}` lets it continue"
LISTENING: tuple[Suffix, ...] = ("sock", "alive")
"""Files that a helper makes and nobody removes while it runs."""
STOP_SECONDS = 2.0
POLL_SECONDS = 0.002
UNIT_STARTS = "VIRT_RAPL_UNIT_STARTS"
"""In the environment, if hooks/qemu has told systemd to start the unit, while this Python started."""
UNIT_SECONDS = 0.5
"""Such a unit may take this long before we tell systemd, too, and hear what is wrong."""
UNITS = RunDirectory(Path("/", paths.RUN_DIRECTORY))
"""Where a unit looks for its plan, whatever directory the configuration names."""

_READ_WRITE = 6
_ACL = struct.Struct("<HHI")
_ACL_USER_OBJ, _ACL_USER, _ACL_GROUP_OBJ, _ACL_MASK, _ACL_OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
"""acl(5) in the kernel's attribute: tag, permissions, user for each entry; the version, 2, comes before them."""
_NOBODY = 0xFFFFFFFF


def start(record: Record, registry: Registry, source: EnergySource, deadline: float) -> None:
    """Start the domain's helper and wait until it answers as QEMU needs; sets helper_pid and helper_start.

    `deadline` is in seconds. If the helper does not answer by then, ends it and raises VirtRaplError.
    """
    until, as_unit = time.monotonic() + deadline, systemd.runs()
    if as_unit:
        record.helper_pid = record.helper_start = None
    try:
        # Looked for before there is a plan: a unit that waits for it makes these files at once.
        left = any(registry.path(record.uuid, suffix).exists() for suffix in LISTENING)
        if left or not as_unit:
            stop(record, registry)  # one that a crash has left behind
        # One that comes when nobody waits any more finds no plan, and ends.
        with plans.written(record, registry, source, UNITS if as_unit else registry) as plan:
            if as_unit:
                _start_unit(record, registry, until, anew=left)
            else:
                record.helper_pid = _spawn(record, registry, plan)
                record.helper_start = start_time(record.helper_pid)
            record.helper_pid = _wait_until_ready(record, registry, until)
            record.helper_start = start_time(record.helper_pid)
        _admit(record, registry.path(record.uuid, "sock"))
    except (OSError, VirtRaplError):
        stop(record, registry)
        raise


def alive(record: Record) -> bool:
    """Return whether the very process that was started still runs."""
    return record.helper_pid is not None and record.helper_start == start_time(record.helper_pid) is not None


def trouble(record: Record, registry: Registry) -> str:
    """Return in one line why the helper that was started does not answer now; empty when nothing is wrong."""
    if record.helper_pid is None or not alive(record):
        return HELPER_ENDED
    if is_stopped(record.helper_pid):
        return HELPER_STOPPED.format(record.helper_pid)
    return "" if _serves(record, registry) else HELPER_ALONE


def _serves(record: Record, registry: Registry) -> bool:
    """Return whether QEMU is connected, as far as the helper shows it: see SignOfLife in vmsr.serving."""
    try:
        return registry.path(record.uuid, "alive").stat().st_atime_ns != 0
    except OSError:
        return True  # qemu-vmsr-helper shows nothing


def ended_at(record: Record, registry: Registry) -> float | None:
    """Return when a helper last served its QEMU, as far as it knew, in seconds since the epoch; None: unknown."""
    try:
        return registry.path(record.uuid, "alive").stat().st_mtime
    except OSError:
        return None


def stop(record: Record, registry: Registry) -> bool:
    """End the domain's helper and remove its socket and its sign of life. Return whether one was found.

    A helper without a record is ended as well: the hook may have been killed, or the record lost. Raises
    NotOursError, OSError.
    """
    found = _end(record.helper_pid, record) if record.helper_pid is not None and alive(record) else False
    if not found and systemd.runs():
        with contextlib.suppress(VirtRaplError):
            systemd.systemctl("kill", "--signal=KILL", _unit(record), timeout=STOP_SECONDS * 2)
    elif not found:
        for pid in processes.with_environment(OWNER, record.uuid):
            found |= _end(pid, record)
    registry.discard(record.uuid, *LISTENING)
    return found


def _appears(path: Path, until: float) -> bool:
    while not (found := path.exists()) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return found


def _wait_until_ready(record: Record, registry: Registry, until: float) -> int:
    """Return its PID when it answers."""
    from libvirt_rapl.helper.vmsr.client import probe  # here, so that this is done while the helper starts

    socket = registry.path(record.uuid, "sock")
    while True:
        try:
            return probe(socket, timeout=max(until - time.monotonic(), POLL_SECONDS))
        except ValueError as error:
            raise VirtRaplError(f"the helper answers, but {error}", "QEMU would not start with it") from error
        except OSError as error:
            trouble = error
        # The process of a unit is not known before, but when systemd says that it has started, it listens.
        if isinstance(trouble, ConnectionRefusedError) if record.helper_pid is None else not alive(record):
            raise VirtRaplError(f"the helper ended: {_last_words(record, registry)}", "try `virt-rapl status`")
        if time.monotonic() > until:
            raise VirtRaplError(f"the helper does not answer on {socket}: {trouble}", "see its log") from trouble
        time.sleep(POLL_SECONDS)


def _spawn(record: Record, registry: Registry, plan: str) -> int:
    """Start a helper that shares nothing with the hook: libvirt waits for every process that has the hook's output."""
    from libvirt_rapl import commands  # here, so that nobody waits for it where systemd runs

    path = registry.path(record.uuid, "log")
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as log:
        return commands.start(*plans.command(plan), environment={**os.environ, OWNER: record.uuid}, output=log)


def _admit(record: Record, socket: Path) -> None:
    """Let the domain's QEMU user connect. Raises OSError."""
    entries = (
        (_ACL_USER_OBJ, _READ_WRITE, _NOBODY),
        (_ACL_USER, _READ_WRITE, record.owner_uid),
        (_ACL_GROUP_OBJ, 0, _NOBODY),
        (_ACL_MASK, _READ_WRITE, _NOBODY),
        (_ACL_OTHER, 0, _NOBODY),
    )
    attribute = struct.pack("<I", 2) + b"".join(_ACL.pack(*entry) for entry in entries)
    try:
        os.setxattr(socket, "system.posix_acl_access", attribute, follow_symlinks=False)
    except OSError as error:
        # Our helper asks the kernel which user connects. qemu-vmsr-helper does not, and would admit the whole group.
        if error.errno != errno.EOPNOTSUPP or record.backend == "qemu":
            raise
        socket.chmod(0o660)
    os.chown(socket, -1, record.owner_gid, follow_symlinks=False)


def _end(pid: int, record: Record) -> bool:
    """End a process, by SIGTERM if that works, if it is the domain's helper. Return whether it was.

    A record is only a file, and PIDs are used again: the process is checked itself, while a descriptor holds it.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not _is_helper(pid, record):
            return False
        ended = select.poll()
        ended.register(process, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)
            if ended.poll(STOP_SECONDS / 2 * 1000):
                break
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # if it is our own child
    finally:
        os.close(process)
    return True


def _is_helper(pid: int, record: Record) -> bool:
    """Return whether root has started a process as this domain's helper; users can only fake that for their own."""
    if systemd.runs():
        return processes.unit(pid) == _unit(record)
    return processes.has_environment(pid, OWNER, record.uuid)


def _last_words(record: Record, registry: Registry) -> str:
    if systemd.runs():
        return f"see `journalctl -u {_unit(record)}`"
    try:
        lines = registry.path(record.uuid, "log").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    errors = [line for line in lines if line.strip() and not line.startswith("hint:")]
    return errors[-1].removeprefix("virt-rapl: error: ") if errors else "it said nothing"


def _unit(record: Record) -> str:
    return f"virt-rapl-helper@{record.uuid}.service"


def _start_unit(record: Record, registry: Registry, until: float, *, anew: bool) -> None:
    """Start the unit; systemd says that it has when the process listens. `anew`: it has just been ended."""
    unit, socket = _unit(record), registry.path(record.uuid, "sock")
    if not anew and UNIT_STARTS in os.environ and _appears(socket, min(time.monotonic() + UNIT_SECONDS, until)):
        return
    systemd.systemctl("start", unit, timeout=until - time.monotonic())
    if not anew and not socket.exists():
        stop(record, registry)  # it ran, without its files, and so nothing was started
        systemd.systemctl("start", unit, timeout=until - time.monotonic())
