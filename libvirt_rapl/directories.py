"""Directories that root acts in: only where nobody else can change what is in them, or put another in their place."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.tree import Tree


class NotOursError(VirtRaplError, OSError):
    """Others than root and we can change what a directory holds. To who only has to do without it: an OSError."""


@contextlib.contextmanager
def opened(path: Path, *, make: int | None = None) -> Iterator[int]:
    """Yield a descriptor (O_PATH) of a directory that only root and we can change, replace or make names in.

    Above it others may add names, as in /tmp, where the sticky bit keeps ours from them. What is not there is made
    where `make` gives a mode, which is for the directory itself. Raises NotOursError, and OSError where there is none,
    or a link in its place.
    """
    if not path.is_absolute():
        raise NotOursError(f"{path} is not used: it is no absolute path", "give one")
    with Tree(Path("/")).directory(str(path), make=make) as (descriptor, others):
        for place, who in others.items():
            raise _not_ours(path, f"{place}: {who}")
        if os.fstat(descriptor).st_mode & (stat.S_IWGRP | stat.S_IWOTH):  # the sticky bit is not enough here
            raise _not_ours(path, f"others can write to {path}")
        yield descriptor


def _not_ours(path: Path, why: str) -> NotOursError:
    hint = "use a directory that only root can change, as can those above it: one directly in /run"
    return NotOursError(f"{path} is not used: {why}", hint)
