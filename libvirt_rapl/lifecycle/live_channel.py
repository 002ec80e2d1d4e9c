"""The energy channel into a running domain, and out of it: libvirt attaches and detaches it, without a pause.

The mark goes into the metadata of the domain as it runs, too, so that it is known later that the channel is ours: if
the domain migrates, what runs becomes the definition there. A controller that was attached stays until the domain ends,
because not every guest gives up a PCI device.
"""

from libvirt_rapl.domains.domain import Domain
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.lifecycle import events


def check(domain: Domain) -> None:
    """Raise VirtRaplError if a domain cannot get the channel as it runs."""
    if not domain.active:
        raise VirtRaplError("the domain does not run", "without --live it is enabled from its next start on")
    domain.live().with_channel()


def attach(domain: Domain, registry: Registry) -> bool:
    """Give a running domain the channel; return False if it has one. Raises VirtRaplError if it cannot have one now."""
    running = domain.live()
    changed = running.with_channel()
    if changed is running:
        return False
    with events.recording(registry.run_directory, domain.name, domain.uuid, "attach") as has_come_to:
        try:
            there = running.channel_devices()  # the controller, if somebody has detached the channel alone
            for device in changed.channel_devices():
                if device not in there:
                    domain.attach(device)
        except VirtRaplError as error:
            raise VirtRaplError(
                f"libvirt cannot attach the channel: {error.message}",
                "without --live it is there from the next start on",
            ) from error
        domain.set_live_mark(changed.mark)
        has_come_to("active")
    return True


def detach(domain: Domain, registry: Registry) -> None:
    """Take the channel, which its mark says is ours, out of a running domain. Raises VirtRaplError."""
    running = domain.live()
    with events.recording(registry.run_directory, domain.name, domain.uuid, "detach") as has_come_to:
        if running.channel:  # somebody else may have detached it
            domain.detach(running.channel_devices()[-1])
        domain.set_live_mark(running.without_channel().mark)
        has_come_to("ended")
