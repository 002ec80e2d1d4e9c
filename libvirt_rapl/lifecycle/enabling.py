"""A meter into a definition, by registers or by the channel: the one place for enable, inject, policy and hook."""

from collections.abc import Callable

from libvirt_rapl.choices import Via
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.names import DEFAULT_EMULATOR
from libvirt_rapl.errors import NoRegistersError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.requirements import check_processor

CheckEmulator = Callable[[str], object]
"""Raises VirtRaplError if the emulator at a path cannot give registers on this host: usually emulator.check."""


def enabled(
    definition: Definition,
    registry: Registry,
    via: Via,
    check_emulator: CheckEmulator,
    default_emulator: str = DEFAULT_EMULATOR,
    *,
    here: bool = True,
) -> tuple[Definition, str]:
    """Return the definition with which the domain gets its energy from its next start on, that way and no other.

    With `auto`, one that has the channel alone keeps to it, because its owner has chosen that; any other one gets
    registers or, if QEMU does not give them to it on this host, the channel: then also returned is why. `here`: whether
    it will run on this host. Raises VirtRaplError when this domain cannot have what is wanted, or `check_emulator`
    does.
    """
    if not wants_registers(definition, via):
        return definition.without_registers().with_channel(), ""
    try:
        if via == "auto" and here:
            check_processor()  # before what could be mended in the definition
        changed = with_registers(definition, registry, check_emulator, default_emulator)
    except NoRegistersError as error:
        if via != "auto":
            raise
        return definition.without_registers().with_channel(), error.message
    if via == "both":
        return changed.with_channel(), ""
    return (changed.without_channel() if via == "registers" else changed), ""


def wants_registers(definition: Definition, via: Via) -> bool:
    """Return whether the domain is to have registers where QEMU gives them to it."""
    return via != "channel" and not (via == "auto" and definition.channel and not definition.has_registers)


def with_registers(
    definition: Definition,
    registry: Registry,
    check_emulator: CheckEmulator,
    default_emulator: str = DEFAULT_EMULATOR,
) -> Definition:
    """Return the definition with registers that are read through this host's helper. Raises as enabled() does.

    They need a UUID: XML that has none, as `inject` may get it, gets one.
    """
    definition.check_kind()
    definition = definition.with_uuid()
    changed = definition.with_registers(socket=registry.socket(definition.uuid), default_emulator=default_emulator)
    check_emulator(changed.emulator())
    return changed


def is_enabled(definition: Definition, registry: Registry, via: Via) -> bool:
    """Return whether the domain has what is wanted, and perhaps more. Raises VirtRaplError where it cannot."""
    if via in ("channel", "both") and not definition.channel:
        return False
    if not wants_registers(definition, via):
        return True
    try:
        changed = definition.with_registers(socket=registry.socket(definition.uuid))
    except NoRegistersError:
        if via != "auto":
            raise
        return False
    return changed is definition
