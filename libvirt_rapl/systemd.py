"""Talking to systemd, where it runs."""

import contextlib
import os
import socket
from pathlib import Path

from libvirt_rapl.programs import run

NOTIFY_SECONDS = 0.2
"""A systemd that does not listen holds nobody up for longer."""


def runs() -> bool:
    """Tell whether systemd is this machine's init (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def notify(state: str) -> None:
    """Tell the systemd that started us, if any, how we are: `READY=1`, `WATCHDOG=1` (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(NOTIFY_SECONDS)
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send(state.encode())


def systemctl(*arguments: str, timeout: float) -> str:
    """Run `systemctl ARGUMENTS` for at most `timeout` seconds and return what it prints; VirtRaplError if it fails."""
    return run("systemctl", *arguments, timeout=timeout, hint="`virt-rapl install` puts the units in place")
