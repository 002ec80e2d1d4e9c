"""Domains that get registers although their definition stays as it is, because it is somebody else's.

Their emulator is the one that `virt-rapl install --default-emulator` gives to domains which name none: a link to the
wrapper. So the word that the hook leaves for the wrapper is enough, and the configuration decides who gets one.
"""

from libvirt_rapl.choices import Via
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import message_of
from libvirt_rapl.host.requirements import check_processor
from libvirt_rapl.lifecycle.enabling import wants_registers
from libvirt_rapl.selection import Selection


def is_chosen(definition: Definition, selection: Selection, via: Via) -> bool:
    """Return whether the domain is to have registers as it is: it is chosen, is not enabled, and has that emulator."""
    return (
        not definition.has_registers
        and emulator.is_default_wrapper(definition.emulator())
        and selection.selects(definition.traits)
        and wants_registers(definition, via)
    )


def obstacle(definition: Definition, socket: str) -> str:
    """Return in one line why such a domain cannot have registers; empty if it can, and for one that is enabled."""
    return "" if definition.has_registers else message_of(lambda: check(definition, socket))


def check(definition: Definition, socket: str) -> None:
    """Raise VirtRaplError if such a domain cannot have registers, read at `socket`: then it starts without."""
    check_processor()
    definition.check(socket)


def through_wrapper(definition: Definition) -> Definition | None:
    """Return the definition with the default wrapper as its emulator, if that is the wrapper of it; else None.

    A domain that comes from a host without virt-rapl may name the emulator itself.
    """
    path = definition.emulator()
    if emulator.is_default_wrapper(path):
        return definition
    return definition.with_emulator(str(emulator.DEFAULT_WRAPPER)) if path == emulator.wrapped_by_default() else None
