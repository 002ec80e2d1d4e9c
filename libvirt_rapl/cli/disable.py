"""Take the energy meter out of domains again: their definitions are then as they were before `enable`."""

import argparse
from collections.abc import Iterator

from libvirt_rapl.cli import warn
from libvirt_rapl.cli.definitions import add_common_arguments, change_all, definitions
from libvirt_rapl.config import load
from libvirt_rapl.domains import domxml
from libvirt_rapl.domains.libvirtd import Domain
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.selection import Selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(parser, "--excluded", "all that `domains: exclude:` in the configuration names")


def run(options: argparse.Namespace) -> int:
    """Define every domain anew, without the meter; warn of those that virt-rapld enables again."""
    try:
        selection = load(options.config).domains
    except VirtRaplError:
        if options.by_configuration:
            raise
        selection = Selection()  # no virt-rapld starts with this configuration either
    if options.by_configuration:
        options.domains = list(_excluded(options.connect, selection))
    chosen: list[str] = []

    def without_meter(domain: Domain, xml: str) -> str:
        stripped = domxml.strip(xml)
        if selection.selects(domxml.traits(stripped)):
            chosen.append(domain.name)
        if stripped == xml and (path := domxml.original_emulator(xml)).endswith(domxml.WRAPPER_SUFFIX):
            warn(
                f"{domain.name}: its emulator {path} has a wrapper's name, and there is no mark: it is left as it is",
                "where `virt-rapl enable` has put it there, enable it once more, then disable it",
            )
        return stripped

    change_all(options, without_meter, done="disabled", nothing_to_do="not enabled")
    for name in chosen:
        warn(
            f"{name} is chosen by `domains` in the configuration: virt-rapld enables it again",
            "put it under `exclude` there, `systemctl restart virt-rapld`, then disable it",
        )
    return 0


def _excluded(uri: str, selection: Selection) -> Iterator[str]:
    """Yield the UUIDs of the domains that are excluded and enabled; warn of those that cannot be read."""
    for domain, xml in definitions(uri):
        try:
            if selection.excludes(domxml.traits(xml)) and domxml.strip(xml) != xml:
                yield domain.uuid
        except VirtRaplError as error:
            warn(f"{domain.name}: {error.message}", error.hint)
