"""Which domains still need what is installed: `uninstall` refuses while there are any, or disables them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from libvirt_rapl.domains.definition import Definition, UnreadableError
from libvirt_rapl.domains.domain import Domain, DomainGoneError, every_domain
from libvirt_rapl.domains.domxml import WRAPPER_SUFFIX
from libvirt_rapl.domains.emulator import KNOWN
from libvirt_rapl.domains.marking import MARK
from libvirt_rapl.install.manifest import Manifest

WRAPPED = re.compile(rf"{WRAPPER_SUFFIX}</emulator>")


class Reason(StrEnum):
    """Why a domain needs us, in words."""

    RUNS = "runs with its meter"
    ENABLED = "is enabled"
    SAVED = "is saved with its meter"
    UNMARKED = "names the emulator wrapper without our mark"


@dataclass(frozen=True)
class Dependent:
    """A domain that needs its wrapper, hook or helper, and why."""

    domain: Domain
    why: Reason

    def __str__(self) -> str:
        """Return both in words."""
        return f"{self.domain.name} {self.why}"


def find(connection: Any) -> list[Dependent]:  # noqa: ANN401
    """Return the domains that still need us, a domain once for each of its reasons. Raises VirtRaplError."""
    found = []
    wrappers = _wrappers()
    for domain in every_domain(connection):
        try:
            found += [Dependent(domain, why) for why in _reasons(domain, wrappers)]
        except DomainGoneError:
            continue
    return found


def old_snapshots(connection: Any) -> list[str]:  # noqa: ANN401
    """Return DOMAIN/SNAPSHOT for each snapshot that needs the wrapper. Raises VirtRaplError."""
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
    if dependent.why == Reason.ENABLED:
        domain.define(domain.definition(secrets=True).strip())
    elif dependent.why == Reason.SAVED and (saved := domain.saved()):
        domain.define_saved(saved.strip())


def _wrappers() -> set[str]:
    """Return the paths of our wrappers: those that are installed, and those that a package has."""
    return {f"/{name}" for name in Manifest.load(Path("/")).files} | {path + WRAPPER_SUFFIX for path in KNOWN}


def _reasons(domain: Domain, wrappers: set[str]) -> Iterator[Reason]:
    if domain.active and _ours(domain.live, wrappers)[0]:
        yield Reason.RUNS
    kept: list[tuple[Reason, Callable[[], Definition | None]]] = [(Reason.SAVED, domain.saved)]
    if domain.persistent:
        kept.insert(0, (Reason.ENABLED, domain.definition))
    for why, read in kept:
        marked, wrapped = _ours(read, wrappers)
        if marked:
            yield why
        if wrapped:
            yield Reason.UNMARKED


def _ours(read: Callable[[], Definition | None], wrappers: set[str]) -> tuple[bool, bool]:
    """Return whether a definition carries the mark, and whether it names a wrapper of ours without it.

    If it cannot be read, anything that looks like ours counts as both: better once too often.
    """
    try:
        definition = read()
    except UnreadableError as error:
        looks_like_ours = MARK in error.xml or bool(WRAPPED.search(error.xml))
        return looks_like_ours, looks_like_ours
    if definition is None:
        return False, False
    return definition.has_registers, definition.strip().emulator() in wrappers
