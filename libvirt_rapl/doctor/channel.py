"""The check of virt-rapl-channel: whether it runs and may connect. What is wrong with one guest, `domains` reports."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from libvirt_rapl import paths, systemd
from libvirt_rapl.doctor.finding import FAILED, OK, SKIPPED, WARNING, Finding
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.domains.emulator import INSTALL
from libvirt_rapl.install import packaged
from libvirt_rapl.install.qemu_group import qemu_group
from libvirt_rapl.lifecycle.channel_state import DOES_NOT_RUN, NOT_ALLOWED, NOT_CONNECTED, NOT_OPEN

UNIT = paths.CHANNEL_UNIT
NAME = UNIT.removesuffix(".service")
JOURNAL = f"`journalctl -u {NAME}` says more"


def channel(machine: Machine) -> Iterator[Finding]:
    """Whether it gives guests that have a channel their energy."""
    if machine.status is None:
        yield Finding(
            SKIPPED, "virt-rapld does not answer, and so nothing is known of channels", "see virt-rapld above"
        )
        return
    guests = [domain for domain in machine.status["domains"] if domain.get("channel", "off") != "off"]
    if not guests:
        yield Finding(SKIPPED, "no running domain has an energy channel")
        return
    if not _is_active() or any(domain.get("channel_reason") == DOES_NOT_RUN for domain in guests):
        how = "does not run" if not systemd.runs() or not _is_active() else "hangs, it reports nothing"
        yield Finding(FAILED, f"{NAME} {how}: no guest is given its energy by a channel", _to_start())
        return
    if systemd.runs() and (trouble := _group_trouble(machine)):
        yield trouble
        return
    given = sum(domain["channel"] == "connected" for domain in guests)
    message = f"{NAME} runs; of {len(guests)} guests with a channel {given or 'none'} read their energy there"
    yield Finding(OK, message) if given else Finding(WARNING, message, "see each one's reason at `domains` below")


def what_to_do(domain: Mapping[str, Any]) -> str:
    """Return what makes a channel that is `waiting` or `stalled` give its guest lines; `domain` is of the document."""
    reason = domain["channel_reason"]
    if domain["channel"] == "stalled":
        return "restart virt-rapl-guest in the guest, unless its QEMU hangs, or `ss -xp` shows who else has connected"
    if reason == NOT_OPEN:
        return "in the guest: systemctl start virt-rapl-guest; etc/guest/README.md has how it is installed"
    if reason == DOES_NOT_RUN:
        return _to_start()
    if reason == NOT_CONNECTED:
        return f"wait a few seconds; if it stays so, {JOURNAL}"
    if reason.startswith(NOT_ALLOWED):
        with contextlib.suppress(OSError, KeyError):
            return _to_add(Path(domain["channel_socket"]).parent.group())
    return "docs/channel.md has what to do for each reason"


def _is_active() -> bool:
    """Return whether systemd says that it runs; where there is no systemd, nothing says the contrary."""
    return not systemd.runs() or systemd.unit_property(UNIT, "ActiveState") == "active"


def _to_start() -> str:
    if not systemd.runs():
        return "run `virt-rapl channel`"
    unmask = f"systemctl unmask {NAME}; " if systemd.unit_property(UNIT, "LoadState") == "masked" else ""
    return f"{unmask}systemctl {'restart' if _is_active() else 'start'} {NAME}; {JOURNAL}"


def _to_add(group: str) -> str:
    return f"`systemctl edit {NAME}`, and there [Service] and SupplementaryGroups={group}; then restart it"


def _group_trouble(machine: Machine) -> Finding | None:
    """Return what keeps it from connecting to QEMU's sockets, as far as its groups show; None if nothing does."""
    group = qemu_group(machine.root)
    if not group:
        message = "no group of QEMU's user is found: neither qemu.conf nor a distribution's usual name has one"
        return Finding(WARNING, message, f"set `group` in {machine.root / paths.QEMU_CONFIGURATION}, then {INSTALL}")
    if group in systemd.unit_property(UNIT, "SupplementaryGroups").split():
        return None
    hint = f"{INSTALL}; then `systemctl restart {NAME}`"
    if packaged.owns(machine.root):
        hint = _to_add(group)
    return Finding(FAILED, f"{NAME} is not in {group}, the group of QEMU's user, and may not connect to it", hint)
