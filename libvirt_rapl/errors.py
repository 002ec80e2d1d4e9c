"""The one exception that a user may see, lines that he may, and what is logged of the others for who debugs."""

import contextlib
import os
import sys
from collections.abc import Callable

DEBUG = "VIRT_RAPL_DEBUG"
"""The environment variable that asks for tracebacks and for the commands that are run; empty is as if it were unset."""


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


def explain(error: BaseException) -> str:
    """Return an error as one line. Whoever catches what nobody has foreseen calls this: it logs the traceback."""
    if os.environ.get(DEBUG) and not isinstance(error, VirtRaplError):
        import traceback  # which the hook does not wait for

        debug("".join(traceback.format_exception(error)))
    return " ".join(str(error).split()) or type(error).__name__


def debug(text: str) -> None:
    """Write lines to stderr where DEBUG is set; also to the system's log where stderr is neither that nor a terminal.

    libvirt drops what a hook says on stderr unless the hook fails.
    """
    if not os.environ.get(DEBUG):
        return
    with contextlib.suppress(OSError, ValueError):  # it is closed
        print(text.rstrip(), file=sys.stderr, flush=True)
        if "JOURNAL_STREAM" not in os.environ and not sys.stderr.isatty():
            import syslog

            syslog.openlog("virt-rapl", syslog.LOG_PID)
            for line in text.splitlines():
                syslog.syslog(syslog.LOG_INFO, line)


def printable(line: str) -> str:
    """Return a line as a terminal may see it. What would control it, as a domain's name may, is written as `\\x1b`."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)
