"""The difference of two readings of an energy counter that wraps. Imports nothing: a helper's memory is counted."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from libvirt_rapl.host.zones import Zone

SLACK_NS = 1_000_000_000
"""Counters move in steps of up to a joule, so this much time is added to the interval."""


def reading(zone: Zone) -> int:
    """Return the microjoules that a zone shows. Raises OSError, or ValueError if no counter can show that."""
    microjoules = zone.read()
    if zone.wrap < 2 or not 0 <= microjoules < zone.wrap:
        most = f"at most {zone.wrap - 1} uJ" if zone.wrap > 1 else "an unknown range"
        raise ValueError(f"its counter shows {microjoules} uJ, of {most}")
    return microjoules


class EnergyCounter:
    """Turns the readings of a zone into what was counted between them."""

    def __init__(self, zone: Zone) -> None:
        """Take the zone; nothing is read yet."""
        self.zone = zone
        self.lost = 0
        """How often the count was broken; what was counted then is unknown."""
        self.trouble = ""
        """Why the zone could not be read at the last call; empty when it could."""
        self._last: tuple[int, int] | None = None

    def advance(self, time: int) -> int | None:
        """Return the microjoules counted since the previous call; `time` is now, in nanoseconds that count suspend.

        None when there is nothing to compare: at the first call, when the zone cannot be read, and at the call after
        that. What was counted meanwhile is left out, so that it is not added to the wrong interval.

        None, too, when the difference proves nothing. In T ns a zone counts most = most_watts x (T + 1 s) at most.
        When that reaches a whole wrap, as after a suspend or in a process that was stopped, a wrap may be hidden. When
        more than that was counted, the counter was set back, as a suspend does on some machines.
        """
        last = self._last
        try:
            self._last, self.trouble = (time, reading(self.zone)), ""
        except (OSError, ValueError) as error:
            self._last, self.trouble = None, str(error)
        if last is None:
            return None
        if self._last is not None:
            counted = (self._last[1] - last[1]) % self.zone.wrap
            most = self.zone.most_watts * (time - last[0] + SLACK_NS) // 1000  # W x ns are nanojoules
            if counted <= most < self.zone.wrap:
                return counted
        self.lost += 1
        return None
