"""The one exception that users see, lines that are safe to print, and what is logged of other errors for debugging."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself is not imported: a helper, of which each domain has one, costs what it imports
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEBUG = "VIRT_RAPL_DEBUG"
"""The environment variable that turns on logging of tracebacks and of the commands that are run; empty means unset."""


class VirtRaplError(Exception):
    """A failure that is shown to the user: one line with what went wrong and one with what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep both lines; neither ends in a full stop or contains a newline."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class NoRegistersError(VirtRaplError):
    """QEMU does not give this domain RAPL registers on this host."""


class UnreadableError(VirtRaplError):
    """This is not the XML of a domain, or not XML."""

    def __init__(self, xml: str, message: str, hint: str) -> None:
        """Keep the text, for callers that check whether anything in it looks like ours."""
        super().__init__(message, hint)
        self.xml = xml


class WrongPartError(Exception):
    """A part of a value in the configuration is wrong."""

    def __init__(self, where: Sequence[str | int], problem: str) -> None:
        """Take the keys and numbers that lead from the value to its part, and what is wrong with that."""
        super().__init__(problem)
        self.where = list(where)
        self.problem = problem


def message_of(check: Callable[[], object]) -> str:
    """Return the message of the VirtRaplError that `check` raises; empty if it raises none."""
    try:
        check()
    except VirtRaplError as error:
        return error.message
    return ""


def explain(error: BaseException) -> str:
    """Return an error as one line. Call this for unforeseen errors: it logs the traceback if DEBUG is set."""
    if os.environ.get(DEBUG) and not isinstance(error, VirtRaplError):
        import traceback  # here, so that the hook does not wait for it

        debug("".join(traceback.format_exception(error)))
    return " ".join(str(error).split()) or type(error).__name__


def debug(text: str) -> None:
    """Write lines to stderr if DEBUG is set; also to the system's log, if stderr is neither that nor a terminal.

    libvirt drops what a hook writes to stderr unless the hook fails.
    """
    if not os.environ.get(DEBUG):
        return
    try:
        print(text.rstrip(), file=sys.stderr, flush=True)
        if "JOURNAL_STREAM" not in os.environ and not sys.stderr.isatty():
            import syslog

            syslog.openlog("virt-rapl", syslog.LOG_PID)
            for line in text.splitlines():
                syslog.syslog(syslog.LOG_INFO, line)
    except (OSError, ValueError):
        pass  # it is closed


def printable(line: str) -> str:
    """Return a line that is safe for a terminal: control characters, as in a domain's name, are written as `\\x1b`."""
    if line.isprintable():
        return line
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


def spreadsheet_text(name: str) -> str:
    """Return a name that a spreadsheet takes for text, neither for a formula nor for a comment."""
    return f"'{printable(name)}" if name.startswith(("=", "+", "-", "@", "#")) else printable(name)
