"""The process of one native helper instance: what `virt-rapl helper` becomes when all is prepared and confined.

Whatever it ever needs is imported before it serves: QEMU never connects again, so an instance goes on while the package
below it is upgraded or removed.
"""

import marshal
import os
import sys
from _signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, signal  # type: ignore[import-not-found]  # signal takes half a megabyte
from _socket import socket

from libvirt_rapl.vmsr.readers import Readers
from libvirt_rapl.vmsr.server import Server

LAST_SECONDS = 60.0
"""How long a QEMU that still runs is served after SIGTERM; the unit's TimeoutStopSec is longer."""


def main(listener: str, life: str, state_file: str, owner_uid: str, found: str) -> None:
    """Serve until SIGTERM; exit with 1 when there is nothing to read.

    `listener` and `life` are descriptors that were inherited: a listening socket, and a file whose time of change is
    the instance's last sign of life. `state_file` may tell QEMU's PID; see libvirt_rapl.registry. `found`: where
    registers are found (libvirt_rapl.vmsr.registers) and whether answers are shaped, packed by marshal.
    """
    try:
        registers, shaping = marshal.loads(bytes.fromhex(found))  # noqa: S302 - from who started this
        readers = Readers(registers, shaping=shaping)
    except (OSError, ValueError) as error:
        print(f"virt-rapl: error: cannot read energy: {error}\nhint: it takes root", file=sys.stderr)
        sys.exit(1)
    life_descriptor = int(life)
    server = Server(
        socket(fileno=int(listener)),
        owner_uid=int(owner_uid),
        reader_for=readers.reader_for,
        qemu_pid=lambda: qemu_pid(state_file),
        tick=lambda: os.utime(life_descriptor),
    )
    for number in (SIGTERM, SIGINT):
        signal(number, lambda *_: server.stop(LAST_SECONDS))
    signal(SIGHUP, SIG_IGN)  # whoever started it may go
    server.serve()


def qemu_pid(state_file: str) -> int | None:
    """Return QEMU's process as the registry knows it; None as long as it does not."""
    try:
        with open(state_file, "rb") as file:
            return int(file.read().split(b"\n")[1])
    except (OSError, IndexError, ValueError):
        return None
