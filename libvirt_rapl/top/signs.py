"""What a terminal can show: block elements where its encoding has them, else ASCII."""

from collections.abc import Sequence
from dataclasses import dataclass

from libvirt_rapl.display import cut, fit
from libvirt_rapl.errors import printable


@dataclass(frozen=True)
class Signs:
    """The signs of one kind of terminal."""

    steps: str
    """Of a trend, from the lowest to the highest."""
    parts: tuple[str, str, str]
    """Of a bar: domains, other, idle."""
    ellipsis: str
    descending: str
    ascending: str
    only_ascii: bool

    def text(self, text: str) -> str:
        """Return a text that is safe to show, whatever somebody has put into it."""
        text = printable(text)
        return text.encode("ascii", "backslashreplace").decode() if self.only_ascii else text

    def cut(self, text: str, columns: int) -> str:
        """Return a text that takes at most so many columns."""
        return cut(text, columns, self.ellipsis)

    def fit(self, text: str, columns: int, *, right: bool = False) -> str:
        """Return a text of exactly so many columns, with spaces behind it, or before it if `right`."""
        return fit(text, columns, right=right, ellipsis=self.ellipsis)

    def trend(self, values: Sequence[float | None]) -> str:
        """Return a sign for each value, from 0 to the highest of them; a space where it is None."""
        highest = max((value for value in values if value), default=0.0)
        last = len(self.steps) - 1

        def sign(value: float | None) -> str:
            return " " if value is None else self.steps[round(last * value / highest) if value > 0 else 0]

        return "".join(map(sign, values))

    def bar(self, shares: Sequence[float], columns: int) -> str:
        """Return a bar of so many columns, divided in proportion to the shares; empty if all are 0."""
        whole, begin, bar = sum(shares), 0.0, ""
        for share, part in zip(shares, self.parts, strict=True):
            begin += share
            bar += part * (round(columns * (begin / whole)) - len(bar) if whole > 0 else 0)
        return bar


BLOCKS = Signs("▁▂▃▄▅▆▇█", ("█", "▒", "░"), "…", "▼", "▲", only_ascii=False)
ASCII = Signs("_.-~=+*#", ("#", "+", "."), "~", "v", "^", only_ascii=True)


def signs_for(encoding: str) -> Signs:
    """Return the signs for a terminal, or a file, of this encoding."""
    try:
        "".join([BLOCKS.steps, *BLOCKS.parts, BLOCKS.ellipsis, BLOCKS.descending, BLOCKS.ascending]).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS
