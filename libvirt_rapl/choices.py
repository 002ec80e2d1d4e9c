"""Words of which there is a fixed set, as types, so that mypy finds any other: choices of the configuration, states."""

from typing import Literal, NamedTuple

Backend = Literal["native", "qemu"]
"""A domain's helper: ours, or qemu-vmsr-helper."""
OnFailure = Literal["degrade", "refuse"]
"""What to do with a domain whose meter cannot be set up."""
EnergySource = Literal["auto", "powercap", "msr"]
"""Where energy is read; `auto` is powercap if it has zones, else MSR."""
Model = Literal["capacity", "active", "baseline"]
"""How energy is given out to domains; see libvirt_rapl.energy.attribution."""
Via = Literal["auto", "registers", "channel", "both"]
"""How a guest gets its energy. `auto`: by registers if QEMU gives them to its domain on this host, else channel."""
MeterState = Literal["active", "degraded", "pending", "off"]
"""The state of a domain's own meter. `active`: the guest reads its joules. `degraded`: it should, but runs without a
working helper. `pending`: it will from its next start on. `off`: it is not enabled."""

ChannelState = Literal["off", "waiting", "connected", "stalled"]
"""The state of a domain's energy channel. `connected`: the guest gets a line each second. `stalled`: it has opened the
port, and does not read. `waiting`: the channel is there, and nobody in the guest has opened the port, or the channel's
process cannot write. `off`: it has none, or does not run."""


class KeepHistory(NamedTuple):
    """How long history is kept by quarters of an hour, and then by the hour; what is older is by the day."""

    on: bool = True
    quarter_hours: int = 35
    """Days."""
    hours: int = 400
    """Days."""


KEEP_HISTORY = KeepHistory()
"""The default."""
