"""Make a Unix socket to listen on."""

import contextlib
import os
import socket
from pathlib import Path


def listen(path: Path, mode: int = 0o600) -> socket.socket:
    """Listen on a Unix socket at `path`, owned by us and with this mode; it appears there only when it is ready.

    An old socket of that name is replaced. Raises OSError.
    """
    aside = f".{path.name[:8]}.{os.getpid()}"
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _unlink(aside, directory)  # left by a process that had our PID and was killed
        os.fchmod(listener.fileno(), mode)  # bind() takes the mode from here, less the umask
        # Through the descriptor: the name beside the final path may be too long for a socket address.
        listener.bind(f"/proc/self/fd/{directory}/{aside}")
        os.chmod(aside, mode, dir_fd=directory)
        listener.listen()
        os.replace(aside, path.name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        listener.close()
        _unlink(aside, directory)
        raise
    finally:
        os.close(directory)
    return listener


def _unlink(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
