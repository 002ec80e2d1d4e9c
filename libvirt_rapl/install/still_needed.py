"""Which domains still need what is installed: `uninstall` refuses while there are any, or disables them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, DomainGoneError, every_domain
from libvirt_rapl.domains.emulator import KNOWN
from libvirt_rapl.domains.names import MARK, WRAPPER_SUFFIX
from libvirt_rapl.errors import UnreadableError
from libvirt_rapl.install.manifest import Manifest
from libvirt_rapl.install.places import is_wrapper

WRAPPED = re.compile(rf"{WRAPPER_SUFFIX}</emulator>")


class Reason(StrEnum):
    """Why a domain needs us, in words."""

    RUNS = "runs with its meter"
    ENABLED = "is enabled"
    SAVED = "is saved with its meter"
    RUNS_BY_DEFAULT = "runs, and was started through the default emulator of virt-rapl"
    BY_DEFAULT = "has the default emulator of virt-rapl"
    SAVED_BY_DEFAULT = "is saved with the default emulator of virt-rapl"
    UNMARKED = "names the emulator wrapper without our mark"


BY_DEFAULT = (Reason.RUNS_BY_DEFAULT, Reason.BY_DEFAULT, Reason.SAVED_BY_DEFAULT)
"""These name the link that `virt-rapl install --default-emulator` makes; libvirt has put it into their XML."""
HOW_TO_LEAVE = (
    "shut down those that run; then `virt-rapl uninstall --disable-domains` names QEMU itself in the others, or do that"
)
NAME_QEMU = "name QEMU itself in its <emulator>: `virsh edit`, of a saved one `virsh managedsave-edit`"


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


def needs_default_emulator(xml: str) -> bool:
    """Return whether XML of libvirt's names the link that `virt-rapl install --default-emulator` makes."""
    return f"<emulator>{emulator.DEFAULT_WRAPPER}</emulator>" in xml and emulator.wrapped_by_default() is not None


def needs_wrapper(xml: str) -> bool:
    """Return whether XML of libvirt's names a wrapper, by that link or otherwise."""
    return needs_default_emulator(xml) or bool(WRAPPED.search(xml))


def old_snapshots(connection: Any, needs: Callable[[str], bool] = needs_wrapper) -> list[str]:  # noqa: ANN401
    """Return DOMAIN/SNAPSHOT for each snapshot whose XML needs us in this way. Raises VirtRaplError."""
    found = []
    for domain in every_domain(connection):
        try:
            found += [f"{domain.name}/{name}" for name, xml in domain.snapshots().items() if needs(xml)]
        except DomainGoneError:
            continue
    return found


def disable(dependent: Dependent) -> None:
    """Take the meter out of the domain's definition, or of its saved state. Raises VirtRaplError."""
    domain = dependent.domain
    real = emulator.wrapped_by_default()
    if dependent.why == Reason.BY_DEFAULT and real:
        domain.define(domain.definition(secrets=True).with_emulator(real))
    elif dependent.why == Reason.SAVED_BY_DEFAULT and real and (saved := domain.saved()):
        domain.define_saved(saved.with_emulator(real))
    elif dependent.why == Reason.ENABLED:
        domain.define(domain.definition(secrets=True).strip())
    elif dependent.why == Reason.SAVED and (saved := domain.saved()):
        domain.define_saved(saved.strip())


def _wrappers() -> set[str]:
    """Return the paths of our wrappers: those that are installed, and those that a package has."""
    installed = {f"/{name}" for name in Manifest.load(Path("/")).files if is_wrapper(name)}
    return installed | {path + WRAPPER_SUFFIX for path in KNOWN}


def _reasons(domain: Domain, wrappers: set[str]) -> Iterator[Reason]:
    if domain.active and _ours(domain.live, wrappers)[0]:
        yield Reason.RUNS
    if domain.active and _by_default(domain.live):
        yield Reason.RUNS_BY_DEFAULT
    kept: list[tuple[Reason, Reason, Callable[[], Definition | None]]]
    kept = [(Reason.SAVED, Reason.SAVED_BY_DEFAULT, domain.saved)]
    if domain.persistent:
        kept.insert(0, (Reason.ENABLED, Reason.BY_DEFAULT, domain.definition))
    for enabled, by_default, read in kept:
        marked, wrapped = _ours(read, wrappers)
        if marked:
            yield enabled
        if wrapped:
            yield Reason.UNMARKED
        if _by_default(read):
            yield by_default


def _by_default(read: Callable[[], Definition | None]) -> bool:
    """Return whether a definition names the default emulator of ours."""
    try:
        definition = read()
    except UnreadableError as error:
        return needs_default_emulator(error.xml)
    return definition is not None and emulator.is_default_wrapper(definition.strip().emulator())


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
