"""The check of domains: which should have a meter and do not, and why."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator

from libvirt_rapl import paths, systemd
from libvirt_rapl.doctor.channel import what_to_do
from libvirt_rapl.doctor.finding import FAILED, OK, SKIPPED, WARNING, Finding
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.domains import inventory
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, DomainGoneError, every_domain
from libvirt_rapl.errors import NoRegistersError, VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.processes import read
from libvirt_rapl.host.requirements import WITHOUT_REGISTERS, ProcessorError, check_processor
from libvirt_rapl.lifecycle import policy
from libvirt_rapl.lifecycle.as_it_is import is_chosen
from libvirt_rapl.lifecycle.meter_state import by_policy, unknown_qemu, vrapl_state

ANEW = "then `virt-rapl enable --live {0}`, or shut {0} down and start it"


def domains(machine: Machine) -> Iterator[Finding]:
    """One line for each domain that needs attention, and one for the rest."""
    try:
        found = every_domain(machine.connect())
    except VirtRaplError:
        yield Finding(SKIPPED, "libvirt cannot be asked which domains there are", "see libvirt above")
        return
    if machine.config.domains.include and not machine.can_enable:
        message = "the configuration's `domains` enable none: this processor's guests have no registers"
        yield Finding(WARNING, message, WITHOUT_REGISTERS)
    emulators = policy.Emulators()
    fine: Counter[str] = Counter()
    for domain in found:
        with contextlib.suppress(DomainGoneError):
            entry = inventory.describe(domain)
            try:
                findings = list(_of_domain(machine, domain, entry, emulators))
            except DomainGoneError:
                raise
            except VirtRaplError as error:  # for example, its XML cannot be read: the others are still checked
                findings = [Finding(FAILED, f"{domain.name}: {error.message}", error.hint)]
            yield from findings
            if not findings:
                fine[_state(machine, entry)] += 1
    counts = ", ".join(f"{state}: {count}" for state, count in sorted(fine.items()))
    yield Finding(OK, f"domains: {len(found)}" + (f"; in order: {counts}" if counts else ""))


def _state(machine: Machine, entry: inventory.Entry) -> str:
    registry = Registry(machine.config.run_directory)
    return vrapl_state(entry, registry.read(entry.uuid), registry)[0]


def _of_domain(
    machine: Machine, domain: Domain, entry: inventory.Entry, emulators: policy.Emulators
) -> Iterator[Finding]:
    registry = Registry(machine.config.run_directory)
    if entry.mark == "live" or by_policy(entry, registry.read(entry.uuid)):
        yield from _now(machine, entry)
    if not domain.persistent:
        return
    definition = domain.definition()
    if definition.has_registers:
        yield from _next_start(machine, domain, definition, emulators)
    if definition.channel:
        yield from _channel(machine, domain, entry)
    if definition.has_registers or definition.channel:
        return
    if machine.can_enable and machine.config.domains.selects(definition.traits):
        yield from _chosen(machine, domain, definition, emulators)
    else:
        try:
            definition.check(_socket(machine, domain))
        except NoRegistersError:
            return  # it could have the channel
        except VirtRaplError as error:
            yield Finding(
                SKIPPED, f"{domain.name}: is not enabled, and could not have a meter: {error.message}", error.hint
            )


def _channel(machine: Machine, domain: Domain, entry: inventory.Entry) -> Iterator[Finding]:
    """Check the energy channel of a domain that runs: what virt-rapld says of it."""
    if not domain.active:
        return
    if entry.channel is None or entry.channel.socket is None:
        message = f"{domain.name}: has the channel only from its next start on"
        yield Finding(WARNING, message, f"`virt-rapl enable --live --via channel {domain.name}`")
        return
    for shown in (machine.status or {}).get("domains", []):
        if shown["uuid"] == domain.uuid and shown.get("channel") in ("waiting", "stalled"):
            message = f"{domain.name}: its channel is {shown['channel']}: {shown['channel_reason']}"
            yield Finding(WARNING, message, what_to_do(shown))


def _now(machine: Machine, entry: inventory.Entry) -> Iterator[Finding]:
    """Check a domain that runs and should have its meter."""
    registry = Registry(machine.config.run_directory)
    with contextlib.suppress(FileNotFoundError):
        registry.path(entry.uuid, "json").open().close()  # a record that we may not read is not missing: raise
    record = registry.read(entry.uuid)
    vrapl, reason = vrapl_state(entry, record, registry)
    if vrapl == "degraded" and not machine.can_serve_guests:
        undo = f"`virt-rapl disable {entry.name}`, or create it from the output of `virt-rapl strip`"
        hint = f"{undo}; {WITHOUT_REGISTERS}"
        yield Finding(WARNING, f"{entry.name}: runs without its meter: {reason}", hint)
    elif vrapl == "degraded":
        hint = f"mend that, {ANEW.format(entry.name)}; `virt-rapl events {entry.name}` shows more"
        yield Finding(FAILED, f"{entry.name}: runs without its meter: {reason}", hint)
    elif record and (note := unknown_qemu(record)):
        yield Finding(WARNING, f"{entry.name}: {note}", "upgrade virt-rapl")


def _next_start(
    machine: Machine, domain: Domain, definition: Definition, emulators: policy.Emulators
) -> Iterator[Finding]:
    """Check a domain whose definition has the mark."""
    socket = _socket(machine, domain)
    try:
        check_processor(machine.proc)
        definition.check(socket)
        definition.check_takes_effect()
        emulators.check(definition.emulator())
    except VirtRaplError as error:
        remedy = machine.remedy(error, definition.emulator())
        if isinstance(error, ProcessorError):
            remedy = f"`virt-rapl disable {domain.name}`; {remedy}"
        yield Finding(FAILED, f"{domain.name}: gets no meter at its next start: {error.message}", remedy)
        return
    if domain.active and not domain.live().has_registers:
        message = f"{domain.name}: is enabled, but was started before that: it has no meter yet"
        yield Finding(WARNING, message, f"`virt-rapl enable --live {domain.name}`, or shut it down and start it")


def _chosen(machine: Machine, domain: Domain, definition: Definition, emulators: policy.Emulators) -> Iterator[Finding]:
    """Check a domain that the configuration chooses and that is not enabled."""
    registry = Registry(machine.config.run_directory)
    chosen = f"{domain.name}: the configuration's `domains` choose it, but"
    as_it_is = is_chosen(definition, machine.config.domains, machine.config.via)
    try:
        policy.wanted(definition, machine.config.domains, machine.config.via, registry, emulators.check)
    except VirtRaplError as error:
        yield Finding(FAILED, f"{chosen} {error.message}", error.hint)
        return
    if as_it_is:
        if domain.active and not by_policy(inventory.describe(domain), registry.read(domain.uuid)):
            message = f"{domain.name}: is chosen by the configuration's `domains`, and was started without its meter"
            yield Finding(WARNING, message, ANEW.format(domain.name).removeprefix("then "))
        return
    reasons = {entry["uuid"]: entry["reason"] for entry in (machine.status or {}).get("domains", [])}
    reason = reasons.get(domain.uuid) or "it is not enabled"
    hint = f"virt-rapld enables it, see virt-rapld above and its journal; or `virt-rapl enable {domain.name}`"
    rule = machine.root / paths.POLKIT_RULE
    if systemd.runs() and not os.geteuid() and not policy.gives_right_to_manage(read(rule) or ""):
        hint = f"give virt-rapld the right to manage: {policy.GRANT}; or `virt-rapl enable {domain.name}`"
    yield Finding(WARNING, f"{chosen} {reason}", hint)


def _socket(machine: Machine, domain: Domain) -> str:
    return Registry(machine.config.run_directory).socket(domain.uuid)
