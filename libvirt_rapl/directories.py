"""Directories that root acts in: opened name by name, so that nobody else can have put another one in their place."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from libvirt_rapl.errors import VirtRaplError

MOST_LINKS = 40
"""So many symbolic links the kernel follows in one path, too."""


class NotOursError(VirtRaplError, OSError):
    """Others than root and we can change what a directory holds. To who only has to do without it: an OSError."""


@contextlib.contextmanager
def opened(path: Path, *, make: int | None = None) -> Iterator[int]:
    """Yield a descriptor (O_PATH) of a directory that only root and we can change, replace or make names in.

    That is looked at on the open descriptor of each directory on the way. Above it others may add names, as in /tmp,
    where the sticky bit keeps ours from them. What is not there is made where `make` gives a mode, which is for the
    directory itself. Raises NotOursError, and OSError where there is none, or a link in its place.
    """
    try:
        descriptor = _walk(path, make)
    except NotOursError:
        raise
    except OSError as error:  # it names a part of the path
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _walk(path: Path, make: int | None) -> int:
    if not path.is_absolute():
        raise NotOursError(f"{path} is not used: it is no absolute path", "give one")
    names, links = list(path.parts[:0:-1]), 0  # the next one is the last
    current = _open("/", None)
    try:
        while names:
            _check(current, path, last=False)
            name = names.pop()
            if make is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755 if names else make, dir_fd=current)
            below = _open(name, current)
            if stat.S_ISLNK(os.fstat(below).st_mode):
                links += 1
                target = _target(below) if names and links <= MOST_LINKS else None
                os.close(below)
                if target is None:
                    raise OSError(errno.ELOOP, "this symbolic link is not followed")
                names += target.parts[::-1]
                if not target.is_absolute():
                    continue
                below = _open(names.pop(), None)
            os.close(current)
            current = below
        _check(current, path, last=True)
    except BaseException:
        os.close(current)
        raise
    return current


def _open(name: str, directory: int | None) -> int:
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _target(link: int) -> Path | None:
    """Return where a symbolic link leads that is root's or ours."""
    if os.fstat(link).st_uid in (0, os.geteuid()):
        return Path(os.readlink("", dir_fd=link))
    return None


def _check(descriptor: int, path: Path, *, last: bool) -> None:
    """Raise NotOursError where others can change the directory; `last`: it is the one that is asked for."""
    status = os.fstat(descriptor)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if status.st_uid not in (0, os.geteuid()):
        raise _not_ours(path, f"{_place(descriptor)} belongs to user {status.st_uid}")
    # With an ACL the bits of the group tell the most that any of those named there may do.
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and (last or not status.st_mode & stat.S_ISVTX):
        raise _not_ours(path, f"others can write to {_place(descriptor)}")


def _place(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _not_ours(path: Path, why: str) -> NotOursError:
    hint = "use a directory that only root can change, as can those above it: one directly in /run"
    return NotOursError(f"{path} is not used: {why}", hint)
