"""The run directory: the files of each domain in it, by its UUID, and what is locked there.

Root acts on what is there, so the directory is used only where nobody else can change it: see directories.

Of a domain with UUID u the run directory holds
  u.json   the record (root only), see records,
  u.state  a line for the emulator wrapper, which runs as QEMU's user: `ready`, `refuse`, or `degraded: REASON`;
           below it, for the helper, QEMU's PID once it is known,
  u.sock   the helper's socket: root's, and the domain's QEMU user may connect; see libvirt_rapl.helper.instances,
  u.alive  a file whose time of change tells when the native helper last served its QEMU for all it knows; its time of
           access is 0 while it knows that QEMU is not connected,
  u.log    what the helper said, where there is no systemd,
  u.lock   a file that the hook has locked while it changes these,
  u.live   while `enable --live` works on the domain, which has it locked: how the hook shall restore the domain, `with`
           its meter, whoever selects it, or `without`. Where nobody has it locked it means nothing.
"""

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

from libvirt_rapl import directories, paths
from libvirt_rapl.directories import NotOursError
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import is_left_over

Suffix = Literal["state", "sock", "alive", "log", "json", "lock", "live"]
HowToRestore = Literal["with", "without"]
"""Its meter."""
SUFFIXES: tuple[Suffix, ...] = ("state", "sock", "alive", "log", "json", "lock")
"""All files of a domain, but for u.live, which may be locked. The record goes after what it describes."""
LOCK_SECONDS = 5.0
"""How long to wait for whoever changes the same domain. Who takes longer hangs, and shall hold up nobody else."""
LIVE_SECONDS = 0.2
"""How long `enable --live` waits for another: no longer than a hook takes to look whether there is one."""
POLL_SECONDS = 0.02

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SHARED = (paths.DAEMON, paths.EVENTS, paths.OLDER_EVENTS)
"""What of ours is beside the domains' files: see daemon.status_socket and lifecycle.events."""
MODE = 0o711
"""Of the run directory: searchable by all, listed by root only."""


class RunDirectory:
    """The directory that the configuration calls `run_directory`. What is not ours in it is left alone."""

    def __init__(self, run_directory: Path) -> None:
        """Take its path; it need not exist until create_directory()."""
        self.run_directory = run_directory

    def path(self, uuid: str, suffix: Suffix) -> Path:
        """Path of a domain's file. Raises ValueError if `uuid` is none."""
        if not UUID.fullmatch(uuid):
            raise ValueError(f"not a UUID: {uuid!r}")
        return self.run_directory / f"{uuid}.{suffix}"

    def socket(self, uuid: str) -> str:
        """Path of the socket that a domain's helper listens on, as its XML has it. Raises ValueError as path()."""
        return str(self.path(uuid, "sock"))

    def check_directory(self) -> None:
        """Raise NotOursError where others than root and we can change what is in the run directory; else OSError."""
        with directories.opened(self.run_directory):
            pass

    def create_directory(self) -> None:
        """Make the run directory as it must be: nobody else's, with MODE. Raises NotOursError, OSError.

        One that somebody else uses, too, has his mode: it is left as it is, and is not ours.
        """
        with directories.opened(self.run_directory, make=MODE) as place:
            if stat.S_IMODE(os.fstat(place).st_mode) == MODE:
                return
            if stranger := _stranger(place):
                message = f"{self.run_directory} is not used: {stranger} in it is not virt-rapl's"
                raise NotOursError(message, "set `run_directory` to one that nobody else uses")
            _place(place).chmod(MODE)

    def is_made_by_us(self) -> bool:
        """Tell whether the run directory is there as create_directory() makes it, and holds nothing but ours."""
        try:
            with directories.opened(self.run_directory) as place:
                return stat.S_IMODE(os.fstat(place).st_mode) == MODE and not _stranger(place)
        except OSError:
            return False

    def stranger(self) -> str | None:
        """Return the name of something in the run directory that is not ours; None where there is nothing. OSError."""
        with directories.opened(self.run_directory) as place:
            return _stranger(place)

    @contextlib.contextmanager
    def locked(self, uuid: str) -> Iterator[None]:
        """Change the domain one after another: hooks of one domain meet where libvirt was killed during one of them.

        Goes on without the lock after LOCK_SECONDS, and where the disk has no room for it.
        """
        descriptor = None
        try:
            with contextlib.suppress(OSError):
                descriptor = self._lock(uuid, "lock", LOCK_SECONDS)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _lock(self, uuid: str, suffix: Suffix, seconds: float) -> int | None:
        self.create_directory()
        path, until = self.path(uuid, suffix), time.monotonic() + seconds
        while time.monotonic() < until:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    return descriptor
            except OSError:
                time.sleep(POLL_SECONDS)  # another has it, or had it and has forgotten the domain since
            os.close(descriptor)
        return None

    @contextlib.contextmanager
    def switching_on(self, uuid: str) -> Iterator[Callable[[HowToRestore], None]]:
        """Keep the domain to one `enable --live` for as long as this lasts; however our process ends, it is over then.

        Yields a function that tells the hook how to restore it meanwhile: `with` or `without`; it decides until then.
        Raises VirtRaplError when another works on the domain, or the run directory cannot be written.
        """
        path = self.path(uuid, "live")
        descriptor = None
        try:
            try:
                descriptor = self._lock(uuid, "live", LIVE_SECONDS)
                if descriptor is None:
                    raise VirtRaplError("another `enable --live` works on it", "wait until that is done")
                os.pwrite(descriptor, b"       ", 0)
            except OSError as error:
                raise VirtRaplError(f"cannot write {path}: {error}", "is there space?") from error

            def tell(how: HowToRestore) -> None:
                assert descriptor is not None
                os.pwrite(descriptor, how.encode().ljust(7), 0)  # as long as the text before: a full disk takes it

            yield tell
        finally:
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    path.unlink()
                os.close(descriptor)

    def how_to_restore(self, uuid: str) -> HowToRestore | Literal[""]:
        """Return `with`, `without`, or nothing where nobody says; what an `enable --live` that was killed left goes."""
        path = self.path(uuid, "live")
        try:
            self.check_directory()
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):
                path.unlink()
            return ""
        except OSError:  # somebody has it locked
            text = os.read(descriptor, 7).decode("ascii", "replace").strip()
            hows: tuple[HowToRestore, ...] = get_args(HowToRestore)
            return next((how for how in hows if how == text), "")
        finally:
            os.close(descriptor)

    def remove(self, uuid: str) -> None:
        """Forget the domain: its record, its line for the wrapper, its socket and all that was left for or by it.

        Raises NotOursError, OSError.
        """
        self.how_to_restore(uuid)  # which also takes away what an `enable --live` that was killed has left
        self.discard(uuid, *SUFFIXES)

    def discard(self, uuid: str, *suffixes: Suffix) -> None:
        """Remove these files of the domain, where they are there. Raises NotOursError, OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.check_directory()
            for suffix in suffixes:
                self.path(uuid, suffix).unlink(missing_ok=True)

    def holds_no_record(self) -> bool:
        """Tell whether it is there, nobody else's, and without any domain's record."""
        try:
            self.check_directory()
        except OSError:
            return False
        return not any(self.run_directory.glob("*.json"))

    def clear(self) -> None:
        """Remove it with all that we leave in it; with anything else in it, it stays. Raises OSError."""
        for path in self.run_directory.iterdir():
            if UUID.fullmatch(path.stem) or is_left_over(path.name) or (path.name in SHARED and path.is_file()):
                path.unlink()
        for directory in (self.run_directory / paths.DAEMON, self.run_directory):
            with contextlib.suppress(OSError):
                directory.rmdir()


def _stranger(place: int) -> str | None:
    names = sorted(path.name for path in _place(place).iterdir())
    return next((name for name in names if name not in SHARED and not UUID.search(name)), None)


def _place(descriptor: int) -> Path:
    """Return a path that leads to what is open here, and nowhere else."""
    return Path(f"/proc/self/fd/{descriptor}")
