"""What a check tells."""

from typing import NamedTuple

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"


class Finding(NamedTuple):
    """One line of what was found, and one of what to do where it is not as it should be."""

    state: str
    message: str
    hint: str = ""
