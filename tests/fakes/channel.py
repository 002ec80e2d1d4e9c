"""Documents of virt-rapld's about domains with an energy channel, and the sockets that their QEMUs have."""

import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

BEGAN = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)


def domain(number: int, path: Path | str | None, **fields: object) -> dict[str, Any]:
    """Return the part of a document about a running domain, whose QEMU is this process."""
    made = {
        "name": f"guest-{number}",
        "uuid": f"11111111-2222-4333-8444-{number:012}",
        "pid": os.getpid(),
        "power_watts": 2.5,
        "energy_joules": 1000.0 + number,
        "zones": {kind: {"power_watts": 1.25, "energy_joules": 500.0} for kind in ("package", "dram")},
        "vcpus": [{"id": 0, "tid": 815, "power_watts": 2.5, "energy_joules": 1000.0 + number}],
        "channel": "connected",
        **fields,
    }
    return made if path is None else {**made, "channel_socket": str(path)}


def document(seconds: float, *domains: dict[str, Any]) -> dict[str, Any]:
    """Return a document whose sample is so many seconds after the first."""
    return {
        "schema": 1,
        "host": {
            "source": "powercap",
            "since": "2026-11-22T08:00:00+00:00",
            "sampled_at": (BEGAN + timedelta(seconds=seconds)).isoformat(timespec="milliseconds"),
            "interval_seconds": 1.0,
            "zones": [{"name": f"{kind}-0", "energy_joules": 5000.0} for kind in ("package", "dram")],
        },
        "domains": list(domains),
    }


class Qemu:
    """The socket of a channel, which takes one connection at a time, as QEMU's does."""

    def __init__(self, path: Path, backlog: int = 1) -> None:
        """Listen there, in this process."""
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(backlog)
        self.listener.setblocking(False)
        self.peer: socket.socket | None = None

    def accept(self) -> socket.socket:
        """Take the connection that waits."""
        self.peer, _ = self.listener.accept()
        self.peer.setblocking(False)
        return self.peer

    def read(self, most: int = 1 << 20) -> bytes:
        """Return what was sent and is not read yet."""
        peer = self.peer or self.accept()
        try:
            return peer.recv(most)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """End, and leave nothing at the path."""
        for each in (self.peer, self.listener):
            if each:
                each.close()
        self.path.unlink(missing_ok=True)
