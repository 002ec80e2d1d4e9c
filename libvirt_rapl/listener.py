"""Making a Unix socket to listen on."""

import os
import socket
from pathlib import Path


def listen(path: Path, mode: int = 0o600) -> socket.socket:
    """Listen on a Unix socket at `path`, ours and with this mode, which appears there only when it is ready.

    An old socket of that name is replaced. Raises OSError.
    """
    # A relative name while it is made: the one beside the final path may be too long for a socket address.
    os.chdir(path.parent)
    aside = f".{path.name[:8]}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o777 & ~mode)
    try:
        listener.bind(aside)
        listener.listen()
        Path(aside).replace(path.name)
    except OSError:
        listener.close()
        Path(aside).unlink(missing_ok=True)
        raise
    finally:
        os.umask(umask)
    return listener
