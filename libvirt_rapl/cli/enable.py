"""Give domains their own energy meter from their next start on. All are checked before any is changed."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from libvirt_rapl import domxml, emulator
from libvirt_rapl.config import load
from libvirt_rapl.domains import Domain, connect, lookup
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("domains", metavar="DOMAIN", nargs="+", help="name or UUID")
    parser.add_argument("--dry-run", action="store_true", help="print what would change as a unified diff, no more")


def run(options: argparse.Namespace) -> int:
    """Define every domain anew, with the meter in it."""
    registry = Registry(load(options.config).run_directory)

    def with_meter(domain: Domain, xml: str) -> str:
        injected = domxml.inject(xml, socket=str(registry.path(domain.uuid, "sock")))
        emulator.check(domxml.original_emulator(injected))
        return injected

    change_all(options, with_meter, done="enabled", nothing_to_do="already enabled")
    return 0


@dataclass(frozen=True)
class _Change:
    domain: Domain
    before: str
    after: str


def change_all(
    options: argparse.Namespace, rewrite: Callable[[Domain, str], str], *, done: str, nothing_to_do: str
) -> None:
    """Rewrite the definitions of all domains named, or print the differences; say what was done to each.

    Raises VirtRaplError, before anything is changed, when one domain cannot be changed.
    """
    connection = connect(options.connect)
    for change in [_plan(lookup(connection, name), rewrite) for name in options.domains]:
        domain = change.domain
        difference = domxml.difference(change.before, change.after, domain.name)
        if not difference:
            print(f"{domain.name}: {nothing_to_do}")
        elif options.dry_run:
            sys.stdout.write(difference)
        else:
            domain.define(change.after)
            running = " (it is running now, as it was started)" if domain.active else ""
            print(f"{domain.name}: {done}; takes effect at the next start{running}")


def _plan(domain: Domain, rewrite: Callable[[Domain, str], str]) -> _Change:
    if not domain.persistent:
        raise VirtRaplError(
            f"{domain.name}: the domain is transient, it has no definition to change",
            "pass the XML it is created from through `virt-rapl inject`",
        )
    before = domain.inactive_xml(secrets=True)
    try:
        return _Change(domain, before, rewrite(domain, before))
    except VirtRaplError as error:
        raise VirtRaplError(f"{domain.name}: {error.message}", error.hint) from error
