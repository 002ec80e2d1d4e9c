"""What virt-rapld gives out about domains with an energy channel, and the sockets that their QEMUs have."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

BEGAN = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)


def domain(number: int, path: Path | str | None, **fields: object) -> dict[str, Any]:
    """Return what is known of a running domain, whose QEMU is this process."""
    made = {
        "name": f"guest-{number}",
        "uuid": f"11111111-2222-4333-8444-{number:012}",
        "pid": os.getpid(),
        "energy_joules": 1000.0 + number,
        "vcpus": [{"id": 0, "energy_joules": 1000.0 + number}],
        **fields,
    }
    return made if path is None else {**made, "channel_socket": str(path)}


def lines(seconds: float, *domains: dict[str, Any]) -> dict[str, Any]:
    """Return the lines of a sample that is so many seconds after the first, as channel_line.render() has them."""
    return {
        "schema": 1,
        "sampled_at": (BEGAN + timedelta(seconds=seconds)).isoformat(timespec="milliseconds"),
        "guests": [
            [domain["uuid"], domain["name"], domain["pid"], domain["channel_socket"], _line(domain)]
            for domain in domains
            if "channel_socket" in domain
        ],
    }


def _line(domain: dict[str, Any]) -> str:
    return json.dumps({name: domain[name] for name in ("energy_joules", "vcpus")}) + "\n" if domain["vcpus"] else ""


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
