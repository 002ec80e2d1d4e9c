"""What the user has chosen to see."""

from dataclasses import dataclass
from typing import Literal

from libvirt_rapl.top.figures import Unit

Page = Literal["domains", "domain", "help"]
Column = Literal["name", "state", "meter", "vcpus", "cpu", "figure", "today", "cost", "total"]
"""What domains can be sorted by."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is being typed in the last line."""

    what: Literal["filter", "interval"]
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class State:
    """All of it. Keys make a new one."""

    page: Page = "domains"
    selected: str = ""
    """UUID of the domain under the cursor; empty: whichever is first."""
    scroll: int = 0
    """How many lines of a page other than `domains` are above the screen."""
    sort: Column = "figure"
    is_reversed: bool = False
    filter: str = ""
    unit: Unit = "W"
    interval: float = 0.0
    """Seconds between two frames; 0: each document is one."""
    is_paused: bool = False
    entry: Entry | None = None
    message: str = ""
    """Shown in the last line until the next key."""
    has_ended: bool = False
