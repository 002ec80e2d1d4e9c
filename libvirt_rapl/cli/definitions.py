"""What enable and disable share: domains by name or by the configuration, and rewriting their definitions."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from libvirt_rapl.cli import say
from libvirt_rapl.domains import domxml
from libvirt_rapl.domains.libvirtd import Domain, DomainGoneError, connect, every_domain, lookup
from libvirt_rapl.errors import VirtRaplError


def add_common_arguments(parser: argparse.ArgumentParser, by_configuration: str, meaning: str) -> None:
    """Declare what both take: domains, or the option that takes them from the configuration."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("domains", metavar="DOMAIN", nargs="*", default=[], help="name or UUID")
    which.add_argument(by_configuration, dest="by_configuration", action="store_true", help=meaning)
    parser.add_argument("--dry-run", action="store_true", help="print what would change as a unified diff, no more")


def definitions(uri: str) -> Iterator[tuple[Domain, str]]:
    """Yield each domain that has a definition, and the definition without its passwords."""
    for domain in every_domain(connect(uri)):
        with contextlib.suppress(DomainGoneError):
            if domain.persistent:
                yield domain, domain.inactive_xml()


@dataclass(frozen=True)
class Change:
    """What a definition is and shall be."""

    domain: Domain
    before: str
    after: str

    @property
    def difference(self) -> str:
        """Both as a unified diff; empty where nothing changes."""
        return domxml.difference(self.before, self.after, self.domain.name)


def change_all(
    options: argparse.Namespace, rewrite: Callable[[Domain, str], str], *, done: str, nothing_to_do: str
) -> None:
    """Rewrite the definitions of all domains named, or print the differences; say what was done to each.

    Raises VirtRaplError, before anything is changed, when one domain cannot be changed.
    """
    connection = connect(options.connect)
    for change in [plan_change(lookup(connection, name), rewrite) for name in options.domains]:
        domain = change.domain
        if not change.difference:
            say(f"{domain.name}: {nothing_to_do}")
        elif options.dry_run:
            sys.stdout.write(change.difference)
        else:
            domain.define(change.after)
            running = " (it is running now, as it was started)" if domain.active else ""
            say(f"{domain.name}: {done}; takes effect at the next start{running}")


def plan_change(domain: Domain, rewrite: Callable[[Domain, str], str]) -> Change:
    """Return what `rewrite` makes of a definition. Raises VirtRaplError when it cannot be changed."""
    if not domain.persistent:
        raise VirtRaplError(
            f"{domain.name}: the domain is transient, it has no definition to change",
            "pass the XML it is created from through `virt-rapl inject`",
        )
    before = domain.inactive_xml(secrets=True)
    with named(domain):
        return Change(domain, before, rewrite(domain, before))


@contextlib.contextmanager
def named(domain: Domain) -> Iterator[None]:
    """Put the domain's name before what goes wrong."""
    try:
        yield
    except VirtRaplError as error:
        raise VirtRaplError(f"{domain.name}: {error.message}", error.hint) from error
