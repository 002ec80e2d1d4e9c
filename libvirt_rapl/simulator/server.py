"""Serve the simulated files through FUSE."""

import errno
import importlib
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator.files import Entry, Link, Registers, Text

DEV = Path("/dev")


def load_library(dev: Path = DEV) -> Any:  # noqa: ANN401 (the library has no types)
    """Return the FUSE library. Raises VirtRaplError that says what is missing."""
    if not (dev / "fuse").exists():
        raise VirtRaplError(f"this kernel offers no FUSE: {dev / 'fuse'} does not exist", "modprobe fuse")
    try:
        return importlib.import_module("mfusepy")
    except ImportError as error:
        raise VirtRaplError("the Python package mfusepy is missing", "pip install mfusepy") from error
    except OSError as error:
        raise VirtRaplError(f"cannot load libfuse: {error}", "install libfuse: apt-get install fuse3") from error


def serve(library: Any, entries: Mapping[str, Entry], mountpoint: Path, ready: Callable[[], None]) -> None:  # noqa: ANN401
    """Mount `entries` on `mountpoint` and serve them until unmounted; call `ready` when they can be read.

    Modes apply to every user. Nothing is cached: each read comes here.
    """
    library.FUSE(
        Operations(entries, ready),
        str(mountpoint),
        foreground=True,
        nothreads=True,
        ro=True,
        allow_other=True,
        default_permissions=True,
        direct_io=True,
        fsname="virt-rapl-simulator",
    )


class Operations:
    """FUSE operations on entries; the library calls them by their names. They raise OSError as the real files do."""

    use_ns = True
    """Times are whole nanoseconds; the library asks for this."""

    def __init__(self, entries: Mapping[str, Entry], ready: Callable[[], None]) -> None:
        """Serve `entries`, by path; the paths imply the directories."""
        self._entries = entries
        self._ready = ready
        self._directories: dict[str, list[str]] = {"/": []}
        for path in map(PurePosixPath, entries):
            for child in (path, *path.parents[:-1]):
                names = self._directories.setdefault(str(child.parent), [])
                if child.name not in names:
                    names.append(child.name)
        self._open_texts: dict[int, bytes] = {}
        self._last_handle = 0

    def init(self, _path: str) -> None:
        """Report that the file system is mounted."""
        self._ready()

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        """Return what stat(2) returns."""
        if path in self._directories:
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        match self._entries.get(path):
            case Text(mode=mode):
                return {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": 4096}
            case Registers():
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1}
            case Link(target=target):
                return {"st_mode": stat.S_IFLNK | 0o777, "st_nlink": 1, "st_size": len(target)}
        raise OSError(errno.ENOENT, path)

    def readdir(self, path: str, _handle: int) -> list[str]:
        """Return the names in a directory."""
        return [".", "..", *self._directories[path]]

    def readlink(self, path: str) -> str:
        """Return the target of a link."""
        entry = self._entries[path]
        if not isinstance(entry, Link):
            raise OSError(errno.EINVAL, path)
        return entry.target

    def open(self, _path: str, _flags: int) -> int:
        """Return a new handle."""
        self._last_handle += 1
        return self._last_handle

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        """Read a register (8 bytes at its address), or a part of a text.

        A read at its beginning makes the text; it stays the same for reads further on, as in sysfs: a new value with
        more digits must not lengthen what was read already.
        """
        entry = self._entries[path]
        if isinstance(entry, Registers):
            return _read_register(entry, size, offset)
        if isinstance(entry, Text) and (offset == 0 or handle not in self._open_texts):
            self._open_texts[handle] = f"{entry.content()}\n".encode()
        return self._open_texts[handle][offset : offset + size]

    def release(self, _path: str, handle: int) -> int:
        """Forget a handle."""
        self._open_texts.pop(handle, None)
        return 0


def _read_register(registers: Registers, size: int, address: int) -> bytes:
    if size != 8:
        raise OSError(errno.EINVAL, "a register is 8 bytes")
    value = registers.value(address)
    if value is None:
        raise OSError(errno.EIO, f"no register {address:#x}")
    return struct.pack("=Q", value)
