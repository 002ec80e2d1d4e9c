"""What the configuration lets an operator choose between, as types: a word that is none of them does not pass mypy."""

from typing import Literal

Backend = Literal["native", "qemu"]
"""Of a helper instance: ours, or qemu-vmsr-helper."""
OnFailure = Literal["degrade", "refuse"]
"""What to do with a domain whose meter cannot be set up."""
EnergySource = Literal["auto", "powercap", "msr"]
"""Where energy is read; `auto` is powercap where it has zones, else MSR."""
Model = Literal["capacity", "active", "baseline"]
"""How energy is shared out to domains; see libvirt_rapl.energy.attribution."""
