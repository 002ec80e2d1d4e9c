"""Files under a root directory, reached through directories that are held open: no name is looked up twice.

Root also works where others may write, for example beside an emulator. A user who can change a directory may put a
link, a pipe or another file in the place of one that was checked. So a link on the way is followed only if nobody but
root and us can have made it, and one at the end never; only regular files are opened; and what is changed is what was
opened.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from libvirt_rapl.files import is_left_over, replace_in, temporary, who_else_may_write

MOST_LINKS = 40
"""The kernel's limit."""
MOST_BYTES = 1 << 20
"""No file of ours is larger."""
NO_FILE = "no regular file of a size that ours have"
"""What digest() returns for anything else."""

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Others = dict[Path, str]
"""Places on the way to a file that others than root and we can change, outermost first, and who can."""


class _Step(NamedTuple):
    descriptor: int
    path: Path


class Tree:
    """What is under `root`. Names are relative to it, and so are absolute links; all methods raise OSError."""

    def __init__(self, root: Path) -> None:
        """Take the root, which need not exist yet; links on the way to it are its owner's."""
        self.root = root

    def changeable(self, name: str) -> Others:
        """Return who else can change this file or directory, or anything on the way to it, through all links."""
        others: Others = {}
        with contextlib.ExitStack() as opened, contextlib.suppress(_ForeignLinkError):
            self._walk(name, opened, others)
        return others

    def writable(self, name: str) -> Others:
        """Return who else can change the directory that a file is in or will be in, or add one to it."""
        others: Others = {}
        for directory in Path(name).parents:
            with contextlib.ExitStack() as opened:
                with contextlib.suppress(FileNotFoundError, _ForeignLinkError):
                    last = self._walk(str(directory), opened, others)
                    if not others and os.fstat(last.descriptor).st_mode & (stat.S_IWOTH | stat.S_IWGRP):
                        others[last.path] = "everybody may add files"
                    return others
                if others:
                    return others
        return others

    def text(self, name: str) -> str:
        """Return the text of a regular file, through links; bytes that are not UTF-8 are replaced."""
        with contextlib.ExitStack() as opened:
            path = self._walk(name, opened, {}).path
        with self._file(str(path.relative_to(self.root))) as descriptor:
            return _content(descriptor).decode(errors="replace")

    def digest(self, name: str) -> str | None:
        """Return a text that changes when what is at `name` changes; None when nothing is there."""
        try:
            with self._parent(name) as directory, _named(self.root / name):
                status = os.stat(_last(name), dir_fd=directory, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    return f"link to {os.readlink(_last(name), dir_fd=directory)}"
            if not stat.S_ISREG(status.st_mode):
                return NO_FILE
            with self._file(name) as descriptor:
                content = _content(descriptor)
                return digest_of(content) if len(content) <= MOST_BYTES else NO_FILE
        except (FileNotFoundError, NotADirectoryError):
            return None
        except _ForeignLinkError:
            return NO_FILE

    def is_ours(self, name: str) -> bool:
        """Return whether a file belongs to root or us."""
        with self._parent(name) as directory, _named(self.root / name):
            return os.stat(_last(name), dir_fd=directory, follow_symlinks=False).st_uid in (0, os.geteuid())

    def write(self, name: str, text: str, mode: int) -> None:
        """Give a file this text and mode, in one step."""
        with self._parent(name) as directory, _named(self.root / name):
            replace_in(directory, _last(name), text, mode)

    def link(self, name: str, text: str) -> None:
        """Make `name` a link to `text`, in one step."""
        with self._parent(name) as directory, _named(self.root / name):
            aside = temporary(_last(name))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=directory)
            os.symlink(text, aside, dir_fd=directory)
            os.rename(aside, _last(name), src_dir_fd=directory, dst_dir_fd=directory)

    def set_mode(self, name: str, mode: int, digest: str) -> None:
        """Give a regular file this mode if its content has this digest."""
        with self._file(name) as descriptor:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode and digest_of(_content(descriptor)) == digest:
                os.fchmod(descriptor, mode)

    def touch(self, name: str) -> None:
        """Set the times of a regular file to now."""
        with self._file(name) as descriptor:
            os.utime(descriptor)

    def rename(self, name: str, new: str) -> None:
        """Move a file to another directory of the same file system."""
        with self._parent(name) as old_directory, self._parent(new) as directory, _named(self.root / name):
            os.rename(_last(name), _last(new), src_dir_fd=old_directory, dst_dir_fd=directory)

    def remove(self, name: str) -> None:
        """Remove a file or link, if it is there."""
        missing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with missing, self._parent(name) as directory, _named(self.root / name):
            os.unlink(_last(name), dir_fd=directory)

    def is_directory(self, name: str) -> bool:
        """Return whether it is a directory, through links."""
        try:
            with contextlib.ExitStack() as opened:
                return stat.S_ISDIR(os.fstat(self._walk(name, opened, {}).descriptor).st_mode)
        except FileNotFoundError:
            return False

    def make_directories(self, names: Iterable[str]) -> None:
        """Make directories that everybody may read, whatever the umask is, parents first; existing ones stay."""
        before = os.umask(0o022)
        try:
            for name in names:
                with self._parent(name) as directory, _named(self.root / name), contextlib.suppress(FileExistsError):
                    os.mkdir(_last(name), 0o755, dir_fd=directory)
        finally:
            os.umask(before)

    def remove_directory(self, name: str) -> None:
        """Remove a directory if it is there; raises OSError if it is not empty."""
        missing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with missing, self._parent(name) as directory, _named(self.root / name):
            os.rmdir(_last(name), dir_fd=directory)

    def left_over(self, directory: str) -> list[str]:
        """Return the files in a directory that a process of ours was writing when it was killed."""
        with contextlib.ExitStack() as opened, contextlib.suppress(FileNotFoundError, NotADirectoryError):
            step = self._walk(directory, opened, {})
            readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=step.descriptor)
            opened.callback(os.close, readable)
            with os.scandir(readable) as entries:
                names = sorted(entry.name for entry in entries if is_left_over(entry.name))
            return [name for name in (str(Path(directory, name)) for name in names) if self.is_ours(name)]
        return []

    @contextlib.contextmanager
    def directory(self, name: str, *, make: int | None = None) -> Iterator[tuple[int, Others]]:
        """Open a directory, not a link to one, and return who else can change it or what is on the way to it.

        If `make` gives a mode, missing directories are made, the last one with that mode; but none in directories that
        others can change.
        """
        others: Others = {}
        with contextlib.ExitStack() as opened:
            with _named(self.root / name):
                if make is not None:
                    self._make(name, make)
                parent = self._walk(str(Path(name).parent), opened, others)
                descriptor = _open(_last(name), _DIRECTORY | os.O_NOFOLLOW, parent.descriptor, opened)
                self._enter(descriptor, parent.path / _last(name), others)
            yield descriptor, others

    def _make(self, name: str, mode: int) -> None:
        *above, _root = Path(name).parents
        for directory in (*reversed(above), Path(name)):
            with contextlib.ExitStack() as opened:
                others: Others = {}
                parent = self._walk(str(directory.parent), opened, others)
                if others:
                    return
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory.name, mode if directory == Path(name) else 0o755, dir_fd=parent.descriptor)

    @contextlib.contextmanager
    def _parent(self, name: str) -> Iterator[int]:
        """Open the directory that a file is in."""
        with contextlib.ExitStack() as opened:
            step = self._walk(str(Path(name).parent), opened, {})
            if not stat.S_ISDIR(os.fstat(step.descriptor).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(step.path))
            yield step.descriptor

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[int]:
        """Open a regular file; for a pipe, do not wait for the other end."""
        with self._parent(name) as directory, _named(self.root / name):
            descriptor = os.open(_last(name), _REGULAR, dir_fd=directory)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file", str(self.root / name))
                yield descriptor
            finally:
                os.close(descriptor)

    def _walk(self, name: str, opened: contextlib.ExitStack, others: Others) -> _Step:
        """Open what `name` leads to, step by step, and note in `others` who else can change what is on the way."""
        way = [self._enter(_open(str(self.root), _DIRECTORY, None, opened), self.root, others)]
        names, links = _parts(name)[::-1], 0
        while names:
            if (part := names.pop()) == "..":
                way = way[:-1] or way
                continue
            directory, path = way[-1].descriptor, way[-1].path / part
            with _named(path):
                found = _open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, directory, opened)
                status = os.fstat(found)
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    if status.st_uid not in (0, os.geteuid()):
                        others[path] = f"it is a link of user {status.st_uid}"
                    if others or links > MOST_LINKS:
                        raise _ForeignLinkError(errno.ELOOP, "others can change where it leads to", str(path))
                    text = os.readlink("", dir_fd=found)
                    way = way[:1] if text.startswith("/") else way
                    names += _parts(text)[::-1]
                    continue
                if names and not stat.S_ISDIR(status.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
            way.append(self._enter(found, path, others))
        return way[-1]

    @staticmethod
    def _enter(descriptor: int, path: Path, others: Others) -> _Step:
        if who := who_else_may_write(descriptor):
            others[path] = who
        return _Step(descriptor, path)


class _ForeignLinkError(OSError):
    """Others can change where this link leads."""


def digest_of(content: bytes) -> str:
    """Return what Tree.digest() returns for a file with this content."""
    import hashlib  # here, so that the hook need not wait for it

    return hashlib.sha256(content).hexdigest()


def _open(name: str, flags: int, directory: int | None, opened: contextlib.ExitStack) -> int:
    descriptor = os.open(name, flags, dir_fd=directory)
    opened.callback(os.close, descriptor)
    return descriptor


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _last(name: str) -> str:
    return Path(name).name


def _content(descriptor: int) -> bytes:
    """Return a whole file of at most MOST_BYTES, and one byte more of a larger one."""
    with open(os.dup(descriptor), "rb") as file:
        return file.read(MOST_BYTES + 1)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the whole path into errors that have only a part of it, or none, as when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename != str(path) and isinstance(error.filename, str) and error.filename.startswith("/"):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error
