"""Which domains need what is installed still: `uninstall` refuses while there are any, or disables them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libvirt_rapl.domains import domxml
from libvirt_rapl.domains.emulator import KNOWN
from libvirt_rapl.domains.libvirtd import Domain, DomainGoneError, every_domain
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install.manifest import Manifest

RUNS = "runs with its meter"
ENABLED = "is enabled"
SAVED = "is saved with its meter"
UNMARKED = "names the emulator wrapper without our mark"
WRAPPED = re.compile(rf"{domxml.WRAPPER_SUFFIX}</emulator>")


@dataclass(frozen=True)
class Dependent:
    """A domain that needs its wrapper, hook or helper, and why: RUNS, ENABLED, SAVED or UNMARKED."""

    domain: Domain
    why: str

    def __str__(self) -> str:
        """Say both."""
        return f"{self.domain.name} {self.why}"


def find(connection: Any) -> list[Dependent]:  # noqa: ANN401
    """Return the domains that need us still, one more than once if it has several reasons. Raises VirtRaplError."""
    found = []
    wrappers = _wrappers()
    for domain in every_domain(connection):
        try:
            found += [Dependent(domain, why) for why in _reasons(domain, wrappers)]
        except DomainGoneError:
            continue
    return found


def old_snapshots(connection: Any) -> list[str]:  # noqa: ANN401
    """Return DOMAIN/SNAPSHOT for each snapshot that goes back to the wrapper. Raises VirtRaplError."""
    found = []
    for domain in every_domain(connection):
        try:
            found += [f"{domain.name}/{name}" for name, xml in domain.snapshots().items() if WRAPPED.search(xml)]
        except DomainGoneError:
            continue
    return found


def disable(dependent: Dependent) -> None:
    """Take the meter out of the domain's definition, or of its saved state. Raises VirtRaplError."""
    domain = dependent.domain
    if dependent.why == ENABLED:
        domain.define(domxml.strip(domain.inactive_xml(secrets=True)))
    elif dependent.why == SAVED and (saved := domain.saved_xml()):
        domain.define_saved(domxml.strip(saved))


def _wrappers() -> set[str]:
    """Return the paths of our wrappers: those that are installed, and those that a package brings."""
    return {f"/{name}" for name in Manifest.load(Path("/")).files} | {path + domxml.WRAPPER_SUFFIX for path in KNOWN}


def _reasons(domain: Domain, wrappers: set[str]) -> Iterator[str]:
    if domain.active and _holds(domain.live_xml(), domxml.is_marked):
        yield RUNS
    for why, xml in ((ENABLED, domain.inactive_xml() if domain.persistent else None), (SAVED, domain.saved_xml())):
        if xml and _holds(xml, domxml.is_marked):
            yield why
        if xml and _holds(xml, lambda xml: domxml.original_emulator(domxml.strip(xml)) in wrappers):
            yield UNMARKED


def _holds(xml: str, question: Callable[[str], bool]) -> bool:
    """Ask something of the XML. Where it cannot be read, what looks like ours counts: better once too often."""
    try:
        return question(xml)
    except VirtRaplError:
        return domxml.MARK in xml or bool(WRAPPED.search(xml))
