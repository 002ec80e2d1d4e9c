"""Writing a file so that a reader, or a crash, finds the old text or the new one, never half of it."""

import os
from pathlib import Path


def replace(path: Path, text: str, mode: int) -> None:
    """Give `path` this text and mode. Raises OSError (no space, no permission); `path` is then as it was."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        aside.replace(path)
    except OSError as error:  # a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        aside.unlink(missing_ok=True)
