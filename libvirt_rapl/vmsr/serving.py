"""The process of one native helper instance: what `virt-rapl helper` becomes when all is prepared and confined.

Whatever it ever needs is imported before it serves: QEMU never connects again, so an instance goes on while the package
below it is upgraded or removed.
"""

import marshal
import os
import sys
import time
from _signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, signal  # type: ignore[import-not-found]  # see server
from _socket import socket

from libvirt_rapl.vmsr.pace import Windows
from libvirt_rapl.vmsr.protocol import ENERGY, ReadRegister
from libvirt_rapl.vmsr.readers import Readers
from libvirt_rapl.vmsr.server import Server

LAST_SECONDS = 2.0
"""How long a QEMU that still runs is served after SIGTERM: it may be about to end, and a shutdown waits for us."""


def main(listener: str, life: str, state_file: str, owner_uid: str, shaping: str, registers: str) -> None:
    """Serve until SIGTERM; exit with 1 when energy cannot be read.

    `listener` and `life` are descriptors that were inherited: a listening socket, and a file whose time of change is
    the instance's last sign of life. `state_file` may tell QEMU's PID; see libvirt_rapl.registry. `registers` are those
    of libvirt_rapl.vmsr.registers, as marshal has them, in hexadecimal digits.
    """
    found = marshal.loads(bytes.fromhex(registers))  # noqa: S302 - from the same program before its exec
    try:
        readers = Readers(found, shaping=shaping == "on")
    except (OSError, ValueError) as error:
        sys.exit(f"virt-rapl: error: cannot read energy: {error}")

    def reader_for(pid: int) -> ReadRegister:
        read = readers.reader_for(pid)
        windows = Windows(read, readers.package_of, time.monotonic)
        return lambda register, cpu: (windows.read if register == ENERGY else read)(register, cpu)

    life_descriptor = int(life)
    server = Server(
        socket(fileno=int(listener)),
        owner_uid=int(owner_uid),
        reader_for=reader_for,
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
