"""What the hook makes of the XML of a domain that is restored or migrates in: the only time it can change it."""

from pathlib import Path

from libvirt_rapl import paths
from libvirt_rapl.config import Config
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import UnreadableError, VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.lifecycle import as_it_is, events
from libvirt_rapl.lifecycle.enabling import wants_registers, with_registers

DEFINITIONS = Path("/", paths.LIBVIRT_DEFINITIONS)


def filtered(definition: Definition, config: Config) -> tuple[str, events.Result, str]:
    """Return the XML that a restored or incoming domain gets here (empty: as it is), and the result and its reason.

    A domain with registers gets this host's socket; one that the operator chose gets registers; if that is not possible
    on this host, they are removed, so that the domain arrives. The channel is a device, which cannot come or go here.
    """
    registry = Registry(config.run_directory)
    traits = definition.traits
    how = registry.how_to_restore(traits.uuid)
    is_chosen = config.domains.selects(traits) and wants_registers(definition, config.via)
    enabled = how == "with" or _definition_has_registers(traits.name) or definition.has_registers
    if not (enabled or is_chosen):
        return "", "unchanged", ""
    if not enabled and (through := as_it_is.through_wrapper(definition)):
        return (through.xml, "injected", "") if definition.difference(through) else ("", "unchanged", "")
    result: events.Result
    try:
        if how == "without":
            raise VirtRaplError("it could not be restored with its meter")
        wanted, result, reason = with_registers(definition, registry, emulator.check), "injected", ""
    except VirtRaplError as error:
        wanted, result, reason = definition.without_registers(), "stripped", error.message
    # libvirt's quotes differ from ours, and it marks a domain as tainted whenever a hook has changed it.
    return (wanted.xml, result, reason) if definition.difference(wanted) else ("", "unchanged", reason)


def _definition_has_registers(name: str) -> bool:
    """Return whether the domain was enabled while it ran: then only its definition on disk has the mark."""
    try:
        return Definition.parse((DEFINITIONS / f"{name}.xml").read_text(encoding="utf-8")).has_registers
    except (OSError, UnreadableError):
        return False
