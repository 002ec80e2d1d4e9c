"""The metrics as a file, for node_exporter's textfile collector."""

import threading
from collections.abc import Callable
from pathlib import Path

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import replace

MODE = 0o644
"""node_exporter runs as another user."""
SECONDS = 10.0
"""Between two writings, each of which waits for the disk; nobody reads the file more often."""


def write_until(
    ended: threading.Event, file: Path, text: Callable[[], bytes], log: Callable[[str], None], ready: Callable[[], None]
) -> None:
    """Write the file at once, call `ready`, and write it again every few seconds; remove it in the end.

    Raises VirtRaplError if it cannot be written at once; later, that is logged once.
    """
    if file.suffix != ".prom":
        raise VirtRaplError(f"--textfile {file}: node_exporter does not read it", "give it a name that ends in .prom")
    trouble = _write(file, text())
    if trouble:
        raise VirtRaplError(f"cannot write {trouble}", "its directory has to be there, and ours to write")
    ready()
    while not ended.wait(SECONDS):
        before, trouble = trouble, _write(file, text())
        if trouble and not before:
            log(f"cannot write {trouble}")
    file.unlink(missing_ok=True)  # or node_exporter would go on exporting the last figures


def _write(file: Path, text: bytes) -> str:
    """Give the file this text; return in words what prevents that."""
    try:
        replace(file, text.decode(), MODE)
    except OSError as error:
        return f"{file}: {error.strerror}"
    return ""
