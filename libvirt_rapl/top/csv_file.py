"""What is shown, as rows of a CSV file: one for each domain and frame."""

import contextlib
import csv
import io
import os
from pathlib import Path

from libvirt_rapl.daemon.document import Document
from libvirt_rapl.errors import VirtRaplError, spreadsheet_text
from libvirt_rapl.top.figures import Today, meter

HEADING = (
    "time",
    "domain",
    "uuid",
    "state",
    "meter",
    "vcpus",
    "cpu_percent",
    "power_watts",
    "energy_joules",
    "kwh_today",
    "cost_per_hour",
    "currency",
    "simulated",
)
MODE = 0o600
"""Fine readings of energy reveal something of what a guest computes."""


class CsvFile:
    """A file that rows are added to, whole frames only."""

    def __init__(self, path: Path) -> None:
        """Begin the file, in place of one that is there. Raises VirtRaplError."""
        self._path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
        except OSError as error:
            raise self._failed(error) from error
        self._write([HEADING])

    def add(self, document: Document, today: Today) -> None:
        """Add a row for each domain. Raises VirtRaplError, with nothing of the frame written."""
        self._write(rows(document, today))

    def _write(self, lines: list[tuple[object, ...]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        rest, written = memoryview(text.getvalue().encode()), 0
        try:
            while rest:
                written += (step := os.write(self._file, rest))
                rest = rest[step:]
        except OSError as error:
            with contextlib.suppress(OSError):  # it is no file
                os.ftruncate(self._file, os.lseek(self._file, -written, os.SEEK_CUR))
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> VirtRaplError:
        return VirtRaplError(
            f"cannot write {self._path}: {error.strerror}", "give --csv a file in a directory that you may write"
        )


def rows(document: Document, today: Today) -> list[tuple[object, ...]]:
    """Return a row for each domain; what is not known is empty."""
    host = document.host
    return [
        (
            host.sampled_at or "",
            spreadsheet_text(domain.name),
            domain.uuid,
            domain.state,
            meter(domain),
            len(domain.vcpus),
            "" if domain.unread else domain.cpu_percent,
            "" if domain.unread else domain.power_watts,
            domain.energy_joules,
            today.kwh_of(domain.uuid),
            None if domain.unread else today.cost_of(domain.power_watts),
            today.currency,
            int(host.source == "simulated"),
        )
        for domain in document.domains
    ]
