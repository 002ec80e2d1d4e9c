"""What was found out at an earlier time, and is still true because no file that it depends on has changed since."""

import json
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from libvirt_rapl.directories import opened
from libvirt_rapl.files import replace_in

MOST = 64
"""Things that are remembered; the oldest is forgotten."""
MOST_BYTES = 1 << 20
SETTLED_SECONDS = 2.0
"""A file that was changed less than this ago may change again without a change of its times."""

Stamps = list[list[int] | None]


def stamps(files: Iterable[Path]) -> Stamps:
    """Return what changes when one of these files or directories does; take it before you read them."""
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> list[int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode]


class Memory:
    """A file in a directory that only root can change. What cannot be read or written there is not remembered."""

    def __init__(self, path: Path) -> None:
        """Take its path; where its directory is missing, nothing is remembered."""
        self.path = path

    def recall(self, what: str, seen: Stamps) -> Any:  # noqa: ANN401  what was kept, as JSON has it
        """Return what was kept of this when its files were as they are now; None if nothing was."""
        before, value = self._all().get(what, (None, None))
        return value if before == seen else None

    def keep(self, what: str, seen: Stamps, value: object) -> None:
        """Keep a value, as JSON can have it, which was found out after `seen`."""
        newest = max((stamp[3] for stamp in seen if stamp), default=0) / 1e9
        if time.time() - newest < SETTLED_SECONDS:
            return
        kept = self._all()
        kept.pop(what, None)
        kept = dict([*kept.items(), (what, (seen, value))][-MOST:])
        try:
            with opened(self.path.parent) as directory:
                replace_in(directory, self.path.name, json.dumps(kept), 0o600)
        except OSError:
            return

    def _all(self) -> dict[str, tuple[Stamps, Any]]:
        try:
            with opened(self.path.parent) as directory:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with open(os.open(self.path.name, flags, dir_fd=directory), "rb") as file:
                    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        return {}
                    kept = json.loads(file.read(MOST_BYTES))
            return {what: (seen, value) for what, (seen, value) in kept.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return {}
