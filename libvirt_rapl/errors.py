"""The one exception that a user may see, and lines that he may."""

from collections.abc import Callable


class VirtRaplError(Exception):
    """A failure told to the user: one line of what went wrong and one of what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep both lines; neither ends in a full stop or holds a newline."""
        super().__init__(message)
        self.message = message
        self.hint = hint


def message_of(check: Callable[[], object]) -> str:
    """Return the message of the VirtRaplError that `check` raises; empty where it raises none."""
    try:
        check()
    except VirtRaplError as error:
        return error.message
    return ""


def printable(line: str) -> str:
    """Return a line as a terminal may see it. What would control it, as a domain's name may, is written as `\\x1b`."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)
