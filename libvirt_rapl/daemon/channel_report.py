"""RUN_DIRECTORY/channel/report.json: what virt-rapl-channel reports of each guest, for virt-rapld and `status`.

Its directory is virt-rapl-channel's, which talks to guests: readers believe it the state of channels, and nothing else.
"""

import contextlib
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError, explain, printable
from libvirt_rapl.files import lock, replace, temporary
from libvirt_rapl.lifecycle.channel_state import Delivery, DeliveryState

SCHEMA = 1
MODE, DIRECTORY_MODE = 0o644, 0o755
CHANGED_SECONDS = 1.0
"""A change is written when the last report is so old."""
ALIVE_SECONDS = 5.0
"""Without a change it is written anew after this time, as a sign of life."""
OLD_SECONDS = 15.0
"""A report that is older is of a process that does not run any more, or hangs."""
LIMIT = 1 << 20
"""The most bytes of a report; it has about 120 for each guest."""
REASON_LENGTH = 200
STATES: tuple[DeliveryState, ...] = get_args(DeliveryState)


class Report:
    """Writes the report, as often as it is needed."""

    def __init__(self, run_directory: Path, log: Callable[[str], None]) -> None:
        """Take the run directory, where systemd has made our own, and `log`, which takes a line."""
        self._path = run_directory / paths.CHANNEL_REPORT
        self._lock_path = run_directory / paths.CHANNEL_LOCK
        self._lock: int | None = None
        self._log = log
        self._guests: Mapping[str, Delivery] | None = None
        self._at = 0.0
        self._trouble = ""

    def claim(self) -> None:
        """Let no other process write it, from now until the end of ours, if its directory can be used already.

        Raises VirtRaplError if another process does.
        """
        if self._lock is not None:
            return
        with contextlib.suppress(OSError):  # write() logs what is wrong with the directory
            self._make_directory()
            try:
                self._lock = lock(self._lock_path)
            except BlockingIOError as error:
                raise VirtRaplError(
                    f"another virt-rapl channel already uses {self._path.parent}",
                    "`systemctl status virt-rapl-channel` may show it",
                ) from error

    def _make_directory(self) -> None:
        self._path.parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)

    def write(self, guests: Mapping[str, Delivery]) -> None:
        """Write what holds of the guests now, by UUID, if that is due. A failure is logged once, and its end."""
        now = time.monotonic()
        age = now - self._at if self._guests is not None else ALIVE_SECONDS
        if age < (ALIVE_SECONDS if guests == self._guests else CHANGED_SECONDS):
            return
        self._guests, self._at = dict(guests), now
        text = json.dumps(
            {
                "schema": SCHEMA,
                "written": time.time(),
                "guests": {uuid: each._asdict() for uuid, each in guests.items()},
            }
        )
        before, self._trouble = self._trouble, ""
        try:
            self._make_directory()
            replace(self._path, text, MODE)
        except OSError as error:
            self._trouble = f"cannot write {self._path}: {explain(error)}; `virt-rapl status` does not know of channels"
        if self._trouble != before:
            self._log(self._trouble or f"{self._path} is written again")

    def remove(self) -> None:
        """Remove the report, when nobody writes it any more."""
        for path in (self._path, self._path.with_name(temporary(self._path.name))):
            with contextlib.suppress(OSError):
                path.unlink()


def read(run_directory: Path) -> dict[str, Delivery] | None:
    """Return what is reported of each guest, by UUID; None if there is no report, or none that can be right."""
    try:
        content = json.loads(_content(run_directory / paths.CHANNEL_REPORT))
        if content["schema"] != SCHEMA or not abs(time.time() - content["written"]) <= OLD_SECONDS:
            return None
        guests = content["guests"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    found = ((uuid, _delivery(values)) for uuid, values in guests)
    return {uuid: delivery for uuid, delivery in found if delivery}


def _content(path: Path) -> bytes:
    """Return what is in a regular file, of too much the beginning; of anything else nothing. Never waits.

    Raises OSError.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return b""
        return file.read(LIMIT)


def _delivery(values: Any) -> Delivery | None:  # noqa: ANN401  any JSON
    """Return what is reported of one guest; None if it cannot be right."""
    try:
        pid, state, reason = values["pid"], values["state"], values["reason"]
    except (TypeError, KeyError):
        return None
    if type(pid) is not int or state not in STATES or not isinstance(reason, str):
        return None
    return Delivery(pid, state, printable(reason[:REASON_LENGTH]))
