"""The state of a domain's energy channel, and why no lines reach the guest: from libvirt and virt-rapl-channel."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from libvirt_rapl.choices import ChannelState

if TYPE_CHECKING:  # virt-rapl-channel, which uses this module, shall not load libvirt
    from libvirt_rapl.domains.inventory import Entry

DOES_NOT_RUN = "virt-rapl-channel does not run"
NOT_OPEN = "nothing in the guest has opened the port; virt-rapl-guest does"
NOT_CONNECTED = "virt-rapl-channel has not connected to it yet"
NOT_ALLOWED = "virt-rapl-channel may not connect"
"""How the reason begins then."""
NEXT_START = "it has its channel from its next start on"

DeliveryState = Literal["waiting", "connected", "stalled"]


class Delivery(NamedTuple):
    """What virt-rapl-channel reports of one guest."""

    pid: int
    """QEMU, for which it holds."""
    state: DeliveryState
    reason: str = ""
    """One line; empty if the guest is given its lines."""


def channel_state(domain: "Entry", report: Mapping[str, Delivery] | None) -> tuple[ChannelState, str]:
    """Return the state of a domain's channel, and why it is not `connected`; empty if it is, or nothing is missing.

    `report`: what virt-rapl-channel reports of each guest, by UUID; None if it reports nothing.
    """
    channel = domain.channel
    if channel is None or domain.pid is None:
        return "off", ""
    if channel.socket is None:
        return "off", NEXT_START
    if report is None:
        return "waiting", DOES_NOT_RUN
    if not channel.open:
        return "waiting", NOT_OPEN
    delivery = report.get(domain.uuid)
    if delivery is None or delivery.pid != domain.pid:  # it is of an earlier run
        return "waiting", NOT_CONNECTED
    return delivery.state, delivery.reason
