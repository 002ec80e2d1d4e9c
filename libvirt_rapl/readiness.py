"""Reports our state to systemd. Imports next to nothing, as libvirt_rapl.listening."""

import os
from _socket import AF_UNIX, SOCK_DGRAM, socket

NOTIFY_SECONDS = 0.2
"""A systemd that does not listen delays us for no longer."""


def notify(state: str) -> None:
    """Report our state to the systemd that started us, if any: `READY=1`, `WATCHDOG=1` (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    sender = socket(AF_UNIX, SOCK_DGRAM)
    try:
        sender.settimeout(NOTIFY_SECONDS)
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send(state.encode())
    except OSError:
        pass
    finally:
        sender.close()
