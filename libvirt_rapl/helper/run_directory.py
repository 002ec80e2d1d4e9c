"""The run directory: the files of each domain, named by its UUID, and their locks.

Root acts on what is there, so the directory is used only if nobody else can change it: see directories.

For a domain with UUID u the run directory holds
  u.json   the record (root only), see records,
  u.state  the word for the emulator wrapper, which runs as QEMU's user: `ready`, `refuse`, or `degraded: REASON`; below
           it QEMU's PID, for the helper too, empty until QEMU runs and `-` until the PID is known; below that the path
           of the helper's socket. The wrapper reads it in the default run directory: where the configuration names
           another one, a copy is there,
  u.sock   the helper's socket: root's, and the domain's QEMU user may connect; see libvirt_rapl.helper.instances,
  u.alive  a file whose modification time is when the native helper last served its QEMU, as far as it knows; its access
           time is 0 while the helper knows that QEMU is not connected,
  u.log    the helper's output, where there is no systemd,
  u.plan   until the helper answers: what its process is to do (root only), see plans; of a unit in the default one,
  u.lock   a file that the hook locks while it changes these,
  u.live   while `enable --live` works on the domain and has it locked: how the hook is to restore the domain, `with`
           its meter, whatever the configuration selects, or `without`. It means nothing when no process has it locked.
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

Suffix = Literal["state", "sock", "alive", "log", "plan", "json", "lock", "live"]
HowToRestore = Literal["with", "without"]
"""Its meter."""
SUFFIXES: tuple[Suffix, ...] = ("state", "sock", "alive", "log", "plan", "json", "lock")
"""All files of a domain, except u.live, which may be locked. The record is removed after what it describes."""
LOCK_SECONDS = 5.0
"""How long to wait for another process that changes the same domain; one that takes longer hangs."""
LIVE_SECONDS = 0.2
"""How long `enable --live` waits for the lock: a hook, which only checks it, holds it for less."""
POLL_SECONDS = 0.02

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SHARED = (paths.DAEMON, paths.CHANNEL, paths.EVENTS, paths.OLDER_EVENTS, paths.CHOSEN, paths.REMEMBERED)
"""Our other files, beside the domains': see daemon.status_socket, daemon.channel_report, lifecycle.events,
lifecycle.chosen and libvirt_rapl.remembered."""
MODE = 0o711
"""Of the run directory: all users can reach files in it, only root can list it."""


class RunDirectory:
    """The directory that the configuration calls `run_directory`. Files in it that are not ours are left alone."""

    def __init__(self, run_directory: Path) -> None:
        """Take its path; it need not exist until create_directory()."""
        self.run_directory = run_directory

    def path(self, uuid: str, suffix: Suffix) -> Path:
        """Return the path of a domain's file. Raises ValueError if `uuid` is not a UUID."""
        return Path(self.name(uuid, suffix))

    def name(self, uuid: str, suffix: Suffix) -> str:
        """Return the same as path(), which takes longer, as a text."""
        if not UUID.fullmatch(uuid):
            raise ValueError(f"not a UUID: {uuid!r}")
        return f"{self.run_directory}/{uuid}.{suffix}"

    def socket(self, uuid: str) -> str:
        """Return the path of the socket of a domain's helper, as in the domain's XML. Raises ValueError as path()."""
        return self.name(uuid, "sock")

    def check_directory(self) -> None:
        """Raise NotOursError if users other than root and ours can change what is in the run directory; OSError."""
        with directories.opened(self.run_directory):
            pass

    def create_directory(self) -> None:
        """Make the run directory as it must be: nobody else's, with MODE. Raises NotOursError, OSError.

        If somebody else uses it too, its mode is left as it is, and it is not ours.
        """
        with directories.opened(self.run_directory, make=MODE) as place:
            if stat.S_IMODE(os.fstat(place).st_mode) == MODE:
                return
            if stranger := _stranger(place):
                message = f"{self.run_directory} is not used: {stranger} in it is not virt-rapl's"
                raise NotOursError(message, "set `run_directory` to one that nobody else uses")
            _place(place).chmod(MODE)

    def is_made_by_us(self) -> bool:
        """Return whether the run directory is as create_directory() makes it, and holds only files of ours."""
        try:
            with directories.opened(self.run_directory) as place:
                return stat.S_IMODE(os.fstat(place).st_mode) == MODE and not _stranger(place)
        except OSError:
            return False

    def stranger(self) -> str | None:
        """Return the name of a file in the run directory that is not ours; None if there is none. Raises OSError."""
        with directories.opened(self.run_directory) as place:
            return _stranger(place)

    @contextlib.contextmanager
    def locked(self, uuid: str) -> Iterator[None]:
        """Let only one process at a time change the domain: if libvirt is killed during a hook, two can run at once.

        Continues without the lock after LOCK_SECONDS, and if the disk has no room for it.
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
                time.sleep(POLL_SECONDS)  # another process has it, or has removed it since
            os.close(descriptor)
        return None

    @contextlib.contextmanager
    def switching_on(self, uuid: str) -> Iterator[Callable[[HowToRestore], None]]:
        """Allow only one `enable --live` of the domain meanwhile; the lock ends with our process, however that ends.

        Yields a function that sets how the hook restores it: `with` or `without`; before that the hook decides.
        Raises VirtRaplError when another one works on the domain, or the run directory cannot be written.
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

            def instruct(how: HowToRestore) -> None:
                assert descriptor is not None
                os.pwrite(descriptor, how.encode().ljust(7), 0)  # as long as the text before: works on a full disk

            yield instruct
        finally:
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    path.unlink()
                os.close(descriptor)

    def how_to_restore(self, uuid: str) -> HowToRestore | Literal[""]:
        """Return `with`, `without`, or nothing if no `enable --live` says; remove what a killed one has left."""
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
        except OSError:  # another process has it locked
            text = os.read(descriptor, 7).decode("ascii", "replace").strip()
            hows: tuple[HowToRestore, ...] = get_args(HowToRestore)
            return next((how for how in hows if how == text), "")
        finally:
            os.close(descriptor)

    def remove(self, uuid: str) -> None:
        """Forget the domain: remove its record, its line for the wrapper, its socket and all other files of it.

        Raises NotOursError, OSError.
        """
        self.how_to_restore(uuid)  # which also removes what a killed `enable --live` has left
        self.discard(uuid, *SUFFIXES)

    def discard(self, uuid: str, *suffixes: Suffix) -> None:
        """Remove these files of the domain, if they exist. Raises NotOursError, OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.check_directory()
            for suffix in suffixes:
                self.path(uuid, suffix).unlink(missing_ok=True)

    def holds_no_record(self) -> bool:
        """Return whether it exists, is nobody else's, and has no domain's record."""
        try:
            self.check_directory()
        except OSError:
            return False
        return not any(self.run_directory.glob("*.json"))

    def clear(self) -> None:
        """Remove what we have left in it, and the directory itself if nothing else is in it. Raises OSError."""
        for path in self.run_directory.iterdir():
            if UUID.fullmatch(path.stem) or is_left_over(path.name) or (path.name in SHARED and path.is_file()):
                path.unlink()
        for name in (paths.CHANNEL_REPORT, paths.CHANNEL_LOCK):
            with contextlib.suppress(OSError):
                (self.run_directory / name).unlink()
        for name in (paths.DAEMON, paths.CHANNEL, "."):
            with contextlib.suppress(OSError):
                self.run_directory.joinpath(name).rmdir()


def _stranger(place: int) -> str | None:
    names = sorted(path.name for path in _place(place).iterdir())
    return next((name for name in names if name not in SHARED and not UUID.search(name)), None)


def _place(descriptor: int) -> Path:
    """Return a path that leads to what is open here, and only there."""
    return Path(f"/proc/self/fd/{descriptor}")
