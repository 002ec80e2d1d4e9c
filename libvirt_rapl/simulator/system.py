"""Linux system calls that Python 3.11 does not offer. Each raises OSError."""

import ctypes
import os
from pathlib import Path

MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18

_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def unshare_mounts() -> None:
    """Give this process a copy of all mounts; its changes are not visible outside."""
    _call("unshare", _CLONE_NEWNS)
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)


def mount(source: Path | str, target: Path, kind: str | None = None, flags: int = 0, options: str = "") -> None:
    """Call mount(2)."""
    _call(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode(),
        path=target,
    )


def detach(target: Path) -> None:
    """Unmount a directory and all mounts in it; processes that use them keep them."""
    _call("umount2", os.fsencode(target), _MNT_DETACH, path=target)


def signal_at_death_of_parent(number: int, parent: int) -> None:
    """Have the kernel send this process a signal when its parent dies in any way, or if it has died already."""
    _call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(number))
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent dies."""
    _call("prctl", _PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def _call(name: str, *arguments: object, path: Path | None = None) -> None:
    if getattr(_libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *([str(path)] if path else []))
