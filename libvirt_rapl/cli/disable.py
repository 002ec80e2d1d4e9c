"""Take the energy meter out of domains again: their definitions are then as they were before `enable`."""

import argparse

from libvirt_rapl.cli import warn
from libvirt_rapl.cli.definitions import add_common_arguments, change_all, chosen
from libvirt_rapl.config import load
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domxml import WRAPPER_SUFFIX
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.selection import Selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(parser, "--excluded", "all that `domains: exclude:` in the configuration names")


def run(options: argparse.Namespace) -> int:
    """Define every domain again, without the meter; warn of those that virt-rapld will enable again."""
    try:
        selection = load(options.config).domains
    except VirtRaplError:
        if options.by_configuration:
            raise
        selection = Selection()  # no virt-rapld starts with this configuration either
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

    change_all(options, without_meter, done="disabled", nothing_to_do="not enabled")
    for name in enabled_again:
        warn(
            f"{name} is chosen by `domains` in the configuration: virt-rapld enables it again",
            "put it under `exclude` there, `systemctl restart virt-rapld`, then disable it",
        )
    return 0
