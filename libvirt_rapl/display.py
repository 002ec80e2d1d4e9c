"""How many columns of a terminal a text takes, and texts of a given width."""

import unicodedata


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese signs take two, accents of their own none."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def cut(text: str, columns: int, ellipsis: str = "…") -> str:
    """Return a text that takes at most so many columns; where some of it is left out, it ends with the ellipsis."""
    if width(text) <= columns:
        return text
    room = columns - width(ellipsis)
    kept = []
    for sign in text:
        room -= _columns(sign)
        if room < 0:
            break
        kept.append(sign)
    return "".join(kept) + ellipsis if columns >= width(ellipsis) else ""


def fit(text: str, columns: int, *, right: bool = False, ellipsis: str = "…") -> str:
    """Return a text of exactly so many columns: cut, or filled up with spaces behind it, or before it if `right`."""
    text = cut(text, columns, ellipsis)
    space = " " * (columns - width(text))
    return space + text if right else text + space


def _columns(sign: str) -> int:
    if unicodedata.category(sign) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in ("W", "F") else 1
