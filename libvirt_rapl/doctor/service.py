"""Checks of what runs, and of where it keeps things: configuration, libvirt, virt-rapld, directories, the ledger."""

import contextlib
import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path

from libvirt_rapl import paths, systemd
from libvirt_rapl.config import load
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.directories import NotOursError
from libvirt_rapl.doctor.finding import FAILED, OK, SKIPPED, WARNING, Finding, journal, to_start
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.domains.domain import every_domain
from libvirt_rapl.domains.names import check_socket
from libvirt_rapl.energy import ledger as ledger_file
from libvirt_rapl.energy.ledger_content import DamagedError
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import free_bytes
from libvirt_rapl.helper.run_directory import MODE, RunDirectory
from libvirt_rapl.host.energy_source import open_source
from libvirt_rapl.install import activation
from libvirt_rapl.install.program import PROGRAM, closed_directory, to_open
from libvirt_rapl.lifecycle import events as hook_events

USER = "virt-rapl"
"""The user as which systemd runs virt-rapld."""
SOME_UUID = "00000000-0000-0000-0000-000000000000"
FREE_BYTES = 1 << 20
"""At most this much is needed for records, sockets' names and a write of the ledger."""
DAY_SECONDS = 86400.0
OLDEST_LIBVIRT = (6, 5)
"""The first that runs what is in hooks/qemu.d."""


def configuration(machine: Machine) -> Iterator[Finding]:
    """Whether it is valid, and nobody but root can change it: load() checks both."""
    config = load(machine.config_path)
    where = machine.config_path if machine.config_path.exists() else "defaults"
    yield Finding(OK, f"{where}: helper {config.helper}, on_failure {config.on_failure}, model {config.model}")


def libvirt(machine: Machine) -> Iterator[Finding]:
    """Whether it answers, its version, and which daemon it is."""
    try:
        version = ".".join(map(str, machine.libvirt_version()))
    except VirtRaplError as error:
        if not os.geteuid():
            raise
        yield Finding(SKIPPED, error.message, error.hint)  # root may well be able to connect
        return
    if machine.libvirt_version()[:2] < OLDEST_LIBVIRT:
        oldest = ".".join(map(str, OLDEST_LIBVIRT))
        message = (
            f"libvirt {version} is older than {oldest} and runs no hook of ours: domains start without their meter"
        )
        yield Finding(FAILED, message, "upgrade libvirt")
        return
    daemons = [daemon for daemon in activation.LIBVIRT_DAEMONS if activation.pid_of(daemon, machine.root)]
    if len(daemons) > 1:
        message = f"{' and '.join(daemons)} both run: each has its own domains and does not know the other's"
        yield Finding(WARNING, message, "keep one of them: systemctl disable --now libvirtd, or virtqemud")
    else:
        yield Finding(OK, f"libvirt {version}, {daemons[0] if daemons else 'a daemon without PID file'}")


def run_directory(machine: Machine) -> Iterator[Finding]:
    """Whether QEMU, as its own user, can reach its socket, and no other user can put one there."""
    path = machine.config.run_directory
    check_socket(RunDirectory(path).socket(SOME_UUID))
    if path.is_symlink():
        yield Finding(FAILED, f"{path} is a link", f"rm {path}: it is made anew")
    elif not path.exists():
        yield Finding(OK, f"{path} is made at the first start of a domain")
    elif not path.is_dir():
        yield Finding(FAILED, f"{path} is no directory", f"rm {path}: it is made anew")
    elif trouble := _not_ours(path):
        yield Finding(FAILED, f"{trouble.message}: no domain gets its meter", trouble.hint)
    elif (found := path.stat()).st_mode & 0o777 != MODE:
        if stranger := RunDirectory(path).stranger():
            message = f"{path} is not virt-rapl's own, {stranger} is in it: no domain gets its meter"
            yield Finding(FAILED, message, "set `run_directory` to a directory that nobody else uses")
            return
        yield Finding(
            FAILED, f"{path} has mode {found.st_mode & 0o777:04o}, not {MODE:04o}", f"chmod {MODE:04o} {path}"
        )
    elif free_bytes(path) < FREE_BYTES:
        yield Finding(FAILED, f"the disk of {path} is full: helpers cannot be started", "make room there")
    else:
        yield Finding(OK, f"{path} is root's, and QEMU can reach its sockets")


def _not_ours(path: Path) -> NotOursError | None:
    try:
        RunDirectory(path).check_directory()
    except NotOursError as error:
        return error
    return None


def virt_rapld(machine: Machine) -> Iterator[Finding]:
    """Whether it runs and answers, and will do so after the next boot."""
    socket = machine.config.run_directory / paths.STATUS_SOCKET
    try:
        socket.stat()
    except FileNotFoundError:
        yield _not_running(machine)
        return
    if machine.status is None:
        hangs = status_socket.listens(socket)
        yield Finding(FAILED, f"virt-rapld {'does not answer' if hangs else 'has died'}", to_start("restart"))
        return
    host = machine.status["host"]
    trouble = host.get("trouble", "")
    if unknown := _domains_it_does_not_know(machine):
        message = f"virt-rapld does not know {', '.join(unknown)}: {trouble or 'it has lost libvirt'}"
        yield Finding(FAILED, message, _no_rights() or journal())
    elif trouble:
        yield Finding(WARNING, f"virt-rapld cannot read everything: {trouble}", _no_rights() or journal())
    elif lost := [zone["name"] for zone in host["zones"] if "lost_intervals" in zone]:
        yield Finding(
            WARNING, f"counts were lost of {', '.join(lost)}", "set a shorter `interval`, unless counters were set back"
        )
    elif systemd.runs() and not _starts_at_boot():
        yield Finding(WARNING, "virt-rapld runs, and does not start at boot", "systemctl enable virt-rapld")
    else:
        yield Finding(OK, f"virt-rapld answers; joules are counted since {host['since']}")


def _no_rights() -> str:
    """Return what to do if there is no polkit that libvirt can ask; empty if there is."""
    if systemd.runs() and (state := systemd.unit_property("polkit", "LoadState")) in ("masked", "not-found"):
        do = "systemctl unmask polkit" if state == "masked" else "install polkit (Debian: polkitd)"
        return f"{do}: libvirt asks it what virt-rapld, which is not root, may do"
    return ""


def _domains_it_does_not_know(machine: Machine) -> list[str]:
    """Return the names of domains that libvirt lists and virt-rapld does not."""
    known = {domain["uuid"] for domain in (machine.status or {})["domains"]}
    with contextlib.suppress(VirtRaplError):  # another check reports what is wrong with libvirt
        return [domain.name for domain in every_domain(machine.connect()) if domain.uuid not in known]
    return []


def _not_running(machine: Machine) -> Finding:
    if closed := closed_directory(*PROGRAM):
        message = f"virt-rapld has a user of its own and cannot be run: {closed} is not open to all users"
        return Finding(FAILED, message, to_open(closed))
    if systemd.runs() and not _has_user():
        return Finding(FAILED, f"virt-rapld does not run: there is no user {USER}", machine.to_install())
    hint = journal() if systemd.runs() and _fails() else to_start("enable --now")
    if machine.config.domains.include and machine.can_enable:
        return Finding(FAILED, "virt-rapld does not run, and so nothing enables the configuration's `domains`", hint)
    return Finding(WARNING, "virt-rapld does not run: no totals are kept; guests' meters work without it", hint)


def _has_user() -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(USER))
    return False


def _fails() -> bool:
    """Return whether systemd has tried to start it and failed, or is trying again and again."""
    return systemd.unit_property("virt-rapld", "ActiveState") not in ("inactive", "")


def _starts_at_boot() -> bool:
    return systemd.unit_property("virt-rapld", "UnitFileState") not in ("disabled", "masked")


def ledger(machine: Machine) -> Iterator[Finding]:
    """Whether totals are kept, in a file that is intact."""
    path = machine.config.state_directory / paths.LEDGER
    try:
        found = path.lstat()
    except FileNotFoundError:
        if machine.status is None:
            yield Finding(SKIPPED, f"there is no {path} yet: virt-rapld makes it")
        else:
            hint = f"{journal()}; a `state_directory` of your own needs a drop-in, see docs/configuration.md"
            yield Finding(FAILED, f"virt-rapld runs and cannot make {path}: totals are in memory only", hint)
        return
    try:
        since, simulated, domains = ledger_file.summary(path)
    except DamagedError as error:
        if not os.access(path, os.R_OK):
            raise PermissionError(0, "not readable", str(path)) from error
        hint = f"{to_start('restart')}: it sets the file aside and begins a new one"
        yield Finding(FAILED, f"{path} cannot be read: {error}", hint)
        return
    aside = sorted(
        str(old) for old in path.parent.glob(f"{paths.LEDGER}.aside-*") if not old.name.endswith(("-wal", "-shm"))
    )
    if path.stat().st_mode & 0o007:
        yield Finding(
            WARNING, f"others may read {path}: fine readings of energy reveal what a guest does", f"chmod o= {path}"
        )
    elif free_bytes(path.parent) < FREE_BYTES:
        yield Finding(FAILED, f"the disk of {path} is full: totals are kept in memory only", "make room there")
    elif not _belongs(machine, simulated=simulated):
        which = ("measured", "simulated")
        message = f"{path} holds {which[simulated]} energy and is not used: energy here is {which[not simulated]}"
        yield Finding(WARNING, message, "use another `state_directory` for simulations")
    elif aside:
        message = f"virt-rapld could not use an older ledger and has set it aside: {', '.join(aside)}"
        yield Finding(WARNING, message, "delete it if you do not need what is in it")
    else:
        date = time.strftime("%Y-%m-%d", time.localtime(since))
        yield Finding(OK, f"{path}: totals of {domains} domains since {date}, {found.st_size >> 10} KiB")


def _belongs(machine: Machine, *, simulated: bool) -> bool:
    """Return whether a ledger holds the kind of energy that there is here, as far as that is known."""
    try:
        source = open_source(machine.config.source, sys=machine.sys, dev=machine.dev, proc=machine.proc)
    except VirtRaplError:
        return True
    return (source.name == "simulated") == simulated


def events(machine: Machine) -> Iterator[Finding]:
    """Whether an operation of the hook failed, or a start was refused, within a day."""
    directory = machine.config.run_directory
    recent = [
        event
        for event in hook_events.read(directory)
        if event.time > time.time() - DAY_SECONDS and event.operation not in hook_events.COMMANDS
    ]
    failed = [event for event in recent if event.result in ("failed", "refuse")]
    if not failed:
        yield Finding(OK, f"the hook's operations of the last 24 hours: {len(recent)}, none failed")
        return
    last = failed[-1]
    message = f"{len(failed)} operations of the hook failed or were refused in the last 24 hours; the last one"
    yield Finding(WARNING, f"{message}: {last.operation} of {last.domain}: {last.reason}", "`virt-rapl events`")
