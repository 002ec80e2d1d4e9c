"""Take the energy meter out of domains again: their definitions are then as they were before `enable`.

The channel is detached from running domains, too; registers stay until the domain ends.
"""

import argparse

from libvirt_rapl.cli import say, warn
from libvirt_rapl.cli.definitions import Change, add_common_arguments, change_all, chosen, named
from libvirt_rapl.config import Config, load
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, lookup
from libvirt_rapl.domains.names import WRAPPER_SUFFIX
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.lifecycle import live_channel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(parser, "--excluded", "all that `domains: exclude:` in the configuration names")


def run(options: argparse.Namespace) -> int:
    """Define every domain again, without the meter; warn of those that virt-rapld will enable again."""
    try:
        config = load(options.config)
    except VirtRaplError:
        if options.by_configuration:
            raise
        config = Config()  # no virt-rapld starts with this configuration either
    selection = config.domains
    if options.by_configuration:
        excluded = chosen(options.connect, lambda each: selection.excludes(each.traits) and each.is_marked)
        options.domains = list(excluded)
    enabled_again: list[str] = []

    def without_meter(definition: Definition) -> Definition:
        if selection.selects(definition.strip().traits):
            enabled_again.append(definition.name)
        if not definition.is_marked and (path := definition.emulator()).endswith(WRAPPER_SUFFIX):
            warn(
                f"{definition.name}: its emulator {path} has a wrapper's name, and no mark: it is left as it is",
                "if `virt-rapl enable` has put it there, enable it once more, then disable it",
            )
        return definition.strip()

    connection = connect(options.connect)
    names = options.domains
    # A transient domain has no definition to change.
    options.domains = [name for name in names if not _is_transient_with_channel(lookup(connection, name))]
    change_all(
        options,
        without_meter,
        done=lambda _: "disabled",
        nothing_to_do=_nothing_to_do,
        at_once=_runs_with_channel_alone,
    )
    for name in names:
        _detach(lookup(connection, name), Registry(config.run_directory), options.dry_run)
    for name in enabled_again:
        warn(
            f"{name} is chosen by `domains` in the configuration: virt-rapld enables it again",
            "put it under `exclude` there, `systemctl restart virt-rapld`, then disable it",
        )
    return 0


def _nothing_to_do(change: Change) -> str:
    return "not enabled; its channel is not ours and stays" if change.after.channel else "not enabled"


def _is_transient_with_channel(domain: Domain) -> bool:
    return not domain.persistent and domain.live().channel_is_ours


def _runs_with_channel_alone(domain: Domain) -> bool:
    """Return whether nothing of ours is left in a running domain, once its channel is detached."""
    running = domain.live()
    return domain.active and running.channel_is_ours and not running.has_registers


def _detach(domain: Domain, registry: Registry, dry_run: bool) -> None:
    if not (domain.active and domain.live().channel_is_ours):
        return
    if dry_run:
        say(f"{domain.name}: its channel would be detached now")
        return
    with named(domain):
        live_channel.detach(domain, registry)
    say(f"{domain.name}: its channel is detached")
