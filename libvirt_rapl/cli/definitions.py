"""What enable and disable share: domains by name or by the configuration, and rewriting their definitions."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from libvirt_rapl.cli import say, warn
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, DomainGoneError, every_domain, lookup
from libvirt_rapl.errors import VirtRaplError, printable


def add_common_arguments(parser: argparse.ArgumentParser, by_configuration: str, meaning: str) -> None:
    """Declare what both take: domains, or the option that takes them from the configuration."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("domains", metavar="DOMAIN", nargs="*", default=[], help="name or UUID")
    which.add_argument(by_configuration, dest="by_configuration", action="store_true", help=meaning)
    parser.add_argument("--dry-run", action="store_true", help="print what would change as a unified diff, no more")


def chosen(uri: str, is_chosen: Callable[[Definition], bool]) -> Iterator[str]:
    """Yield the UUIDs of the domains whose definition is chosen; warn of each that raises VirtRaplError instead."""
    connection = connect(uri)
    for domain in every_domain(connection):
        try:
            if domain.persistent and is_chosen(domain.definition()):
                yield domain.uuid
        except DomainGoneError:
            continue
        except VirtRaplError as error:
            if not connection.isAlive():
                raise
            warn(f"{domain.name}: {error.message}", error.hint)


@dataclass(frozen=True)
class Change:
    """A definition before and after a change."""

    domain: Domain
    before: Definition
    after: Definition

    @property
    def difference(self) -> str:
        """Both as a unified diff; empty if nothing changes."""
        return self.before.difference(self.after)


def change_all(
    options: argparse.Namespace,
    rewrite: Callable[[Definition], Definition],
    *,
    done: Callable[[Change], str],
    nothing_to_do: Callable[[Change], str],
    at_once: Callable[[Domain], bool] = lambda _: False,
) -> None:
    """Rewrite the definitions of all named domains, or print the differences; say what was done to each.

    `at_once`: whether the caller changes the domain as it runs, too, so that nothing is left to its next start.
    Raises VirtRaplError, before anything is changed, when one domain cannot be changed; and when libvirt does not
    accept what a domain was changed to. Of domains that the configuration names, such a one is left out, with a
    warning.
    """
    connection = connect(options.connect)
    for change in [plan_change(lookup(connection, name), rewrite) for name in options.domains]:
        domain = change.domain
        if not change.difference:
            say(f"{domain.name}: {nothing_to_do(change)}")
        elif options.dry_run:
            sys.stdout.write(change.difference)
            print(printable(f"virt-rapl: {domain.name} would be {done(change)}"), file=sys.stderr)
        else:
            try:
                domain.define(change.after)
            except VirtRaplError as error:
                if not (options.by_configuration and connection.isAlive()):
                    raise
                warn(error.message, error.hint)
                continue
            running = " (it is running now, as it was started)" if domain.active else ""
            when = "" if at_once(domain) else f"; takes effect at the next start{running}"
            say(f"{domain.name}: {done(change)}{when}")


def plan_change(domain: Domain, rewrite: Callable[[Definition], Definition]) -> Change:
    """Return a domain's definition before and after `rewrite`. Raises VirtRaplError when it cannot be changed."""
    if not domain.persistent:
        raise VirtRaplError(
            f"{domain.name}: the domain is transient, it has no definition to change",
            "create it from the output of `virt-rapl inject`; or, as it runs, "
            "`virt-rapl enable --live --via channel` gives it the channel",
        )
    with named(domain):
        before = domain.definition(secrets=True)
        return Change(domain, before, rewrite(before))


@contextlib.contextmanager
def named(domain: Domain) -> Iterator[None]:
    """Put the domain's name before the message of a VirtRaplError."""
    try:
        yield
    except VirtRaplError as error:
        error.message = f"{domain.name}: {error.message}"
        error.args = (error.message,)
        raise
