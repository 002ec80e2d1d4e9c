"""Makes a Unix socket to listen on. Imports next to nothing: each domain has a helper, which costs what it imports."""

import os
from _socket import AF_UNIX, SOCK_STREAM, socket


def listen(path: str, mode: int) -> socket:
    """Listen on a Unix socket at `path`, owned by us and with this mode; it appears there only when it is ready.

    An old socket of that name is replaced. Raises OSError.
    """
    place, _, name = path.rpartition("/")
    aside = f".{name[:8]}.{os.getpid()}"
    directory = os.open(place or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket(AF_UNIX, SOCK_STREAM)
    try:
        _unlink(aside, directory)  # left by a process that had our PID and was killed
        os.fchmod(listener.fileno(), mode)  # bind() takes the mode from here, less the umask
        # Through the descriptor: the name beside the final path may be too long for a socket address.
        listener.bind(f"/proc/self/fd/{directory}/{aside}")
        os.chmod(aside, mode, dir_fd=directory)
        listener.listen()
        os.replace(aside, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        listener.close()
        _unlink(aside, directory)
        raise
    finally:
        os.close(directory)
    return listener


def _unlink(name: str, directory: int) -> None:
    try:  # noqa: SIM105  contextlib takes memory
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
