"""A meter into a definition: the one place for enable, inject, the policy and the hook."""

from collections.abc import Callable

from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domxml import DEFAULT_EMULATOR
from libvirt_rapl.helper.records import Registry


def enabled(
    definition: Definition,
    registry: Registry,
    check_emulator: Callable[[str], object],
    default_emulator: str = DEFAULT_EMULATOR,
) -> Definition:
    """Return the definition with which the domain gets its meter at its next start.

    Raises VirtRaplError when this domain cannot have one, and what `check_emulator` raises for the path of its emulator
    (usually emulator.check: that emulator cannot give it a meter on this host).
    """
    socket = registry.socket(definition.uuid)
    changed = definition.inject(socket=socket, default_emulator=default_emulator)
    check_emulator(changed.emulator())
    return changed


def is_enabled(definition: Definition, registry: Registry) -> bool:
    """Return whether enabled() would change nothing that matters. Raises VirtRaplError where inject() does."""
    changed = definition.inject(socket=registry.socket(definition.uuid))
    return not definition.difference(changed)
