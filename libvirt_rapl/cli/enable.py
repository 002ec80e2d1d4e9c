"""Give domains their own energy meter from their next start on. All are checked before any is changed.

With --live a running domain gets it now: the guest pauses while it is saved to disk and restored. A domain that cannot
be saved or restored like this is as it was before.
"""

import argparse
import sys
from collections.abc import Callable, Iterator

from libvirt_rapl.cli import DEFAULT_URI, say, warn
from libvirt_rapl.cli.definitions import add_common_arguments, change_all, chosen, named, plan_change
from libvirt_rapl.config import load
from libvirt_rapl.domains import emulator, security_modules
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, lookup
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.requirements import check_processor
from libvirt_rapl.lifecycle import live, live_plan
from libvirt_rapl.lifecycle.enabling import enabled
from libvirt_rapl.lifecycle.policy import wanted
from libvirt_rapl.selection import Selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(
        parser, "--chosen", "all that `domains` in the configuration chooses, except those that cannot have a meter"
    )
    parser.add_argument("--live", action="store_true", help="running domains get it now, by a save and a restore")


def run(options: argparse.Namespace) -> int:
    """Define every domain again, with the meter in it."""
    config = load(options.config)
    registry = Registry(config.run_directory)
    looked_at: set[str] = set()

    def with_meter(definition: Definition) -> Definition:
        changed = enabled(definition, registry, emulator.check)
        if (path := changed.emulator()) not in looked_at:
            looked_at.add(path)
            for missing in security_modules.missing_rules(path):
                warn(missing.message, missing.hint)
        return changed

    if options.live and options.by_configuration:
        raise VirtRaplError("--live needs the domains' names: each of them pauses for it", "name them")
    if options.connect == DEFAULT_URI and not options.by_configuration:
        check_processor()  # before what can be mended in a domain
    if options.by_configuration:
        options.domains = list(_chosen(options.connect, config.domains, registry))
    if options.live:
        _enable_live(options, with_meter, registry)
    else:
        change_all(options, with_meter, done="enabled", nothing_to_do="already enabled")
    return 0


def _chosen(uri: str, selection: Selection, registry: Registry) -> Iterator[str]:
    """Yield the UUIDs of the domains that are chosen and not in order yet; warn of those that cannot have a meter."""
    try:
        check_processor()
    except VirtRaplError as error:
        if selection.include:
            warn(f"cannot enable the configuration's `domains`: {error.message}", error.hint)
        return
    yield from chosen(uri, lambda definition: bool(wanted(definition, selection, registry, emulator.check)))


def _enable_live(
    options: argparse.Namespace, with_meter: Callable[[Definition], Definition], registry: Registry
) -> None:
    """Give running domains their meters, one after the other; say before and after what happens to each."""
    if options.connect != DEFAULT_URI:
        raise VirtRaplError(f"--live works with this machine's own libvirt only ({DEFAULT_URI})", "log in there")
    connection = connect(options.connect)
    plans = []
    for name in options.domains:
        domain = lookup(connection, name)
        if live.is_active(domain, registry):
            say(f"{domain.name}: its meter is already active")
            continue
        plan, difference = _plan_live(domain, with_meter, registry)
        plans.append(plan)
        if options.dry_run:
            sys.stdout.write(difference)
    for plan in plans:
        say(str(plan))
        if not options.dry_run:
            live.switch_on(plan, registry, say)


def _plan_live(
    domain: Domain, with_meter: Callable[[Definition], Definition], registry: Registry
) -> tuple[live_plan.Plan, str]:
    """Return what is to happen to a running domain, and the difference in its definition."""
    difference = plan_change(domain, with_meter).difference if domain.persistent else ""

    def enable() -> None:
        if difference:
            if not domain.persistent:
                raise VirtRaplError("it was undefined meanwhile", "`virsh dumpxml` shows it as it runs")
            # The definition as it is by then: its owner may edit it while the domain is saved.
            change = plan_change(domain, with_meter)
            domain.define(change.after)

    with named(domain):
        return live_plan.plan(domain, enable, registry), difference
