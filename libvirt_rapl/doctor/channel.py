"""The check of virt-rapl-channel: whether it runs and may connect. What is wrong with one guest, `domains` reports."""

from collections.abc import Iterator

from libvirt_rapl import paths, systemd
from libvirt_rapl.doctor.finding import FAILED, OK, SKIPPED, WARNING, Finding
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.domains.emulator import INSTALL
from libvirt_rapl.install import packaged
from libvirt_rapl.install.qemu_group import qemu_group

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
    if systemd.runs() and systemd.unit_property(UNIT, "ActiveState") != "active":
        yield Finding(FAILED, f"{NAME} does not run: no guest is given its energy by a channel", _to_start())
        return
    if systemd.runs() and (trouble := _group_trouble(machine)):
        yield trouble
        return
    given = sum(domain["channel"] == "connected" for domain in guests)
    yield Finding(OK, f"{NAME} runs; of {len(guests)} guests with a channel {given} read their energy there")


def _to_start() -> str:
    unmask = f"systemctl unmask {NAME}; " if systemd.unit_property(UNIT, "LoadState") == "masked" else ""
    return f"{unmask}systemctl start {NAME}; {JOURNAL}"


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
        hint = f"`systemctl edit {NAME}`, and there [Service] and SupplementaryGroups={group}; then restart it"
    return Finding(FAILED, f"{NAME} is not in {group}, the group of QEMU's user, and may not connect to it", hint)
