"""Directories that root acts in: only if nobody else can change what is in them, or put another in their place."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.tree import Tree


class NotOursError(VirtRaplError, OSError):
    """Users other than root and ours can change a directory's content. An OSError, too, for callers that can go on."""


@contextlib.contextmanager
def opened(path: Path, *, make: int | None = None) -> Iterator[int]:
    """Yield a descriptor (O_PATH) of a directory that only root and we can change, replace or make names in.

    Above it others may add names, as in /tmp, where the sticky bit protects ours. If `make` gives a mode, for the
    directory itself, missing directories are made. Raises NotOursError, and OSError if there is none, or a link in its
    place.
    """
    if not path.is_absolute():
        raise NotOursError(f"{path} is not used: it is not an absolute path", "give one")
    with Tree(Path("/")).directory(str(path), make=make) as (descriptor, others):
        for place, who in others.items():
            raise _not_ours(path, f"{place}: {who}")
        if os.fstat(descriptor).st_mode & (stat.S_IWGRP | stat.S_IWOTH):  # the sticky bit is not enough here
            raise _not_ours(path, f"others can write to {path}")
        yield descriptor


def _not_ours(path: Path, why: str) -> NotOursError:
    hint = (
        "use a directory that only root can change, below directories that only root can change: one directly in /run"
    )
    return NotOursError(f"{path} is not used: {why}", hint)
