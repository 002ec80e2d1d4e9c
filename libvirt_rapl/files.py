"""Write a file so that a reader, or a crash, finds the old text or the new one; lock it; find out who may write it."""

import contextlib
import fcntl
import os
import re
import stat
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.([1-9][0-9]{0,9})\.virt-rapl")
"""Names of files that are being written: `.NAME.PID.virt-rapl`."""


def replace(path: Path, text: str, mode: int) -> None:
    """Give `path` this text and mode. Raises OSError (no space, no permission); `path` is then as it was."""
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            replace_in(directory, path.name, text, mode)
        finally:
            os.close(directory)
    except OSError as error:  # the error of a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from error


def replace_in(directory: int, name: str, text: str, mode: int) -> None:
    """Give a file in an open directory this text and mode, as replace() does."""
    aside = temporary(name)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=directory)  # left by a process that had our PID and was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(aside, flags, 0o600, dir_fd=directory)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.rename(aside, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):  # where we cannot write, we cannot remove
            os.unlink(aside, dir_fd=directory)
        raise


def temporary(name: str) -> str:
    """Return the name under which this process writes a file before it is renamed to `name`."""
    return f".{name}.{os.getpid()}.virt-rapl"


def is_left_over(name: str) -> bool:
    """Return whether it is a temporary() name of a process that has ended. Call it while this process uses none."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and (int(found[1]) == os.getpid() or not Path("/proc", found[1]).exists())


def lock(path: Path) -> int:
    """Lock a directory, or a file of ours that is made if it is missing; return a descriptor, which holds the lock.

    Any user who can open it can hold it. Raises BlockingIOError if another process does; OSError.
    """
    kind = os.O_DIRECTORY if path.is_dir() else os.O_CREAT
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | kind, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def free_bytes(directory: Path) -> int:
    """Return how many bytes anybody may still write there. Raises OSError."""
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


def who_else_may_write(place: Path | int) -> str:
    """Return in a few words who may change a file or directory besides root and us; empty when nobody may.

    `place` is a path or a descriptor. Any group counts, because its members change. The group's bit is also set where
    an ACL lets a user or group write. In a directory with the sticky bit, such as /tmp, others may only add files.
    Raises OSError.
    """
    status = os.fstat(place) if isinstance(place, int) else place.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {status.st_uid}"
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return ""
    if status.st_mode & stat.S_IWOTH:
        return "everybody may write it"
    if status.st_mode & stat.S_IWGRP:
        return f"group {status.st_gid}, or those that its ACL names, may write it"
    return ""
