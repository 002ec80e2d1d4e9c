"""Words of which there is a fixed set, as types, so that mypy finds any other: choices of the configuration, states."""

from typing import Literal

Backend = Literal["native", "qemu"]
"""A domain's helper: ours, or qemu-vmsr-helper."""
OnFailure = Literal["degrade", "refuse"]
"""What to do with a domain whose meter cannot be set up."""
EnergySource = Literal["auto", "powercap", "msr"]
"""Where energy is read; `auto` is powercap if it has zones, else MSR."""
Model = Literal["capacity", "active", "baseline"]
"""How energy is given out to domains; see libvirt_rapl.energy.attribution."""
MeterState = Literal["active", "degraded", "pending", "off"]
"""The state of a domain's own meter. `active`: the guest reads its joules. `degraded`: it should, but runs without a
working helper. `pending`: it will from its next start on. `off`: it is not enabled."""
