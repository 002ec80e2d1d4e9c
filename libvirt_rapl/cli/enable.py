"""Give domains their own energy meter from their next start on. All are checked before any is changed.

A guest reads its energy from registers, where this host's QEMU gives them to its domain, or else gets it by the energy
channel; --via chooses. With --live a running domain gets it now: the channel is attached to it; for registers the guest
pauses while it is saved to disk and restored. A domain that cannot be saved or restored like this is as it was before.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from libvirt_rapl.choices import Via
from libvirt_rapl.cli import DEFAULT_URI, say, via_option, warn
from libvirt_rapl.cli.definitions import Change, add_common_arguments, change_all, chosen, named, plan_change
from libvirt_rapl.config import Config, load
from libvirt_rapl.domains import emulator, security_modules
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, lookup
from libvirt_rapl.errors import NoRegistersError, VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.requirements import check_processor
from libvirt_rapl.lifecycle import live, live_channel, live_plan
from libvirt_rapl.lifecycle.enabling import enabled
from libvirt_rapl.lifecycle.policy import wanted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(
        parser, "--chosen", "all that `domains` in the configuration chooses, except those that cannot have a meter"
    )
    via_option.add_argument(parser)
    parser.add_argument(
        "--live", action="store_true", help="running domains get it now: registers by a save and a restore"
    )


def run(options: argparse.Namespace) -> int:
    """Define every domain again, with the meter in it."""
    config = load(options.config)
    via = via_option.chosen(options, config)
    if options.live and options.by_configuration:
        raise VirtRaplError("--live needs the domains' names: each of them pauses for it", "name them")
    if options.connect == DEFAULT_URI and not options.by_configuration and via in ("registers", "both"):
        check_processor()  # before what can be mended in a domain
    with_meter = _WithMeter(Registry(config.run_directory), via)
    if options.by_configuration:
        options.domains = list(_chosen(options.connect, config, via))
    if options.live:
        _enable_live(options, with_meter)
    else:
        change_all(options, with_meter, done=with_meter.done, nothing_to_do=_nothing_to_do)
    return 0


def _nothing_to_do(change: Change) -> str:
    if change.after.is_marked:
        return "already enabled"
    return "has a channel of its own, which is used as it is"


class _WithMeter:
    """Adds the meter to definitions, and remembers why some get the channel."""

    def __init__(self, registry: Registry, via: Via) -> None:
        self.registry = registry
        self.via = via
        self.reasons: dict[str, str] = {}
        """By UUID, why QEMU gives a domain no registers."""
        self._looked_at: set[str] = set()
        """Emulators, and UUIDs of domains that get the channel."""

    def __call__(self, definition: Definition) -> Definition:
        changed, self.reasons[definition.uuid] = enabled(definition, self.registry, self.via, emulator.check)
        if changed.has_registers and (path := changed.emulator()) not in self._looked_at:
            self._looked_at.add(path)
            for missing in security_modules.missing_rules(path):
                warn(missing.message, missing.hint)
        if changed.channel and changed.has_own_dac_label and changed.uuid not in self._looked_at:
            self._looked_at.add(changed.uuid)
            warn(
                f"{changed.name}: its definition gives QEMU a group of its own (<seclabel model='dac'>), "
                "and virt-rapl-channel may not connect to it unless it is in that group",
                "remove that element, or give virt-rapl-channel the group: docs/channel.md",
            )
        return changed

    def done(self, change: Change) -> str:
        """Return what has been done to a domain."""
        if change.after.has_registers:
            return "enabled" if change.after.channel is None else "enabled, by registers and by the channel"
        return f"enabled, by the channel{self.because(change.domain)}"

    def because(self, domain: Domain) -> str:
        """Return in parentheses why a domain gets the channel, if that was not its owner's choice."""
        reason = self.reasons.get(domain.uuid)
        return f" ({reason})" if reason else ""


def _chosen(uri: str, config: Config, via: Via) -> Iterator[str]:
    """Yield the UUIDs of the domains that are chosen and not in order yet; warn of those that cannot have a meter."""
    registry = Registry(config.run_directory)
    try:
        if via in ("registers", "both"):
            check_processor()
    except VirtRaplError as error:
        if config.domains.include:
            warn(f"cannot enable the configuration's `domains`: {error.message}", error.hint)
        return
    yield from chosen(uri, lambda definition: bool(wanted(definition, config.domains, via, registry, emulator.check)))


@dataclass(frozen=True)
class _LiveChange:
    """What is to happen to a running domain."""

    domain: Domain
    difference: str
    """In its definition."""
    enable: Callable[[], None]
    """Changes its definition."""
    plan: live_plan.Plan | None
    """The save and restore that registers take; None if it gets none."""
    channel: bool
    """Whether it gets the channel."""


def _enable_live(options: argparse.Namespace, with_meter: _WithMeter) -> None:
    """Give running domains their meters, one after the other; say before and after what happens to each."""
    if options.connect != DEFAULT_URI:
        raise VirtRaplError(f"--live works with this machine's own libvirt only ({DEFAULT_URI})", "log in there")
    connection = connect(options.connect)
    changes = []
    for name in options.domains:
        domain = lookup(connection, name)
        if _is_active(domain, with_meter):
            say(f"{domain.name}: its meter is already active")
            continue
        changes.append(change := _plan_live(domain, with_meter))
        if options.dry_run:
            sys.stdout.write(change.difference)
    for change in changes:
        because = with_meter.because(change.domain)
        if options.dry_run and change.channel:
            has_it = change.domain.live().channel is not None
            what = "its channel is already there" if has_it else "gets its channel without a pause"
            say(f"{change.domain.name}: {what}{because}")
        elif change.channel:
            _attach(change, with_meter.registry, because)
        if change.plan:
            say(str(change.plan))
        if change.plan and not options.dry_run:
            live.switch_on(change.plan, with_meter.registry, say)


def _is_active(domain: Domain, with_meter: _WithMeter) -> bool:
    """Return whether the guest has registers already, and they are all that it is to have now."""
    if with_meter.via == "channel" or not live.is_active(domain, with_meter.registry):
        return False
    return with_meter.via != "both" or domain.live().channel is not None


def _plan_live(domain: Domain, with_meter: _WithMeter) -> _LiveChange:
    """Return what is to happen. Raises VirtRaplError if it cannot."""
    change = plan_change(domain, with_meter) if domain.persistent else None
    difference = change.difference if change else ""

    def enable() -> None:
        if difference:
            if not domain.persistent:
                raise VirtRaplError("it was undefined meanwhile", "`virsh dumpxml` shows it as it runs")
            # The definition as it is by then: its owner may edit it while the domain is saved.
            domain.define(plan_change(domain, with_meter).after)

    with named(domain):
        after = change.after if change else with_meter(domain.live())
        plan = _plan_registers(domain, enable, with_meter) if after.has_registers else None
        channel = plan is None or with_meter.via == "both"
        if channel:
            live_channel.check(domain)
    return _LiveChange(domain, difference, enable, plan, channel)


def _plan_registers(domain: Domain, enable: Callable[[], None], with_meter: _WithMeter) -> live_plan.Plan | None:
    """Return how the domain gets registers; None if it has them, or is to have the channel instead."""
    if live.is_active(domain, with_meter.registry):
        return None
    try:
        return live_plan.plan(domain, enable, with_meter.registry)
    except NoRegistersError as error:  # as it runs, whatever its definition says
        if with_meter.via != "auto":
            raise
        with_meter.reasons[domain.uuid] = error.message
        return None


def _attach(change: _LiveChange, registry: Registry, because: str) -> None:
    with named(change.domain):
        attached = live_channel.attach(change.domain, registry)
        change.enable()
    say(f"{change.domain.name}: {'has its channel now' if attached else 'its channel is already there'}{because}")
