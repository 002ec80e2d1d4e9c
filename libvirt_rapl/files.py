"""Writing a file so that a reader, or a crash, finds the old text or the new one; and who else may write one."""

import contextlib
import os
import stat
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
        with contextlib.suppress(OSError):  # where nothing can be written, nothing can be removed
            aside.unlink()


def who_else_may_write(path: Path) -> str:
    """Tell in a few words who may change a file or directory besides root and us; empty when nobody does.

    In a directory with the sticky bit, as /tmp has it, others may only add files. Raises OSError.
    """
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {status.st_uid}"
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return ""
    if status.st_mode & stat.S_IWOTH:
        return "everybody may write it"
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        return f"group {status.st_gid} may write it"
    return ""
