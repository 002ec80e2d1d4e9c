"""Names in the XML of domains that are ours or QEMU's. Imports nothing that a start would wait for."""

from libvirt_rapl.errors import VirtRaplError

MARK = "urn:libvirt-rapl:mark:1"
"""Namespace of the mark."""
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
DEFAULT_EMULATOR = "/usr/bin/qemu-system-x86_64"
WRAPPER_SUFFIX = "-rapl"
ACCELERATOR = "kvm,rapl=true,rapl-helper-socket="
SOCKET_PATH_LIMIT = 107
"""Bytes of a path that fit into sockaddr_un.sun_path, without the closing zero."""


def check_socket(socket: str) -> None:
    """Raise VirtRaplError when QEMU cannot use a socket with this path."""
    if len(socket.encode()) > SOCKET_PATH_LIMIT:
        raise VirtRaplError(
            f"the socket path is longer than {SOCKET_PATH_LIMIT} bytes: {socket}", "choose a shorter run_directory"
        )
    if not socket.startswith("/") or "," in socket or not socket.isprintable():
        raise VirtRaplError(
            f"not a socket path that QEMU can use: {socket!r}", "choose an absolute run_directory without a comma"
        )
