"""The process of one native helper instance: what `virt-rapl helper` becomes when all is prepared and confined.

Whatever it ever needs is imported before it serves: QEMU never connects again, so an instance goes on while the package
below it is upgraded or removed.
"""

import os
import sys
import time
from _signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, signal  # type: ignore[import-not-found]  # signal takes half a megabyte
from _socket import socket

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.vmsr.pace import Fresh, Windows
from libvirt_rapl.vmsr.protocol import ENERGY, ReadRegister
from libvirt_rapl.vmsr.registers import registers
from libvirt_rapl.vmsr.server import Server

LAST_SECONDS = 60.0
"""How long a QEMU that still runs is served after SIGTERM; the unit's TimeoutStopSec is longer."""


def main(listener: str, life: str, state_file: str, owner_uid: str, source: str) -> None:
    """Serve until SIGTERM; exit with 1 when there is nothing to read.

    `listener` and `life` are descriptors that were inherited: a listening socket, and a file whose time of change is
    the instance's last sign of life. `state_file` may tell QEMU's PID; see libvirt_rapl.registry.
    """
    try:
        plain = Fresh(registers(source), package_of, time.monotonic)
    except VirtRaplError as error:
        print(f"virt-rapl: error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(1)

    def reader_for(_pid: int) -> ReadRegister:
        windows = Windows(plain.read, package_of, time.monotonic)
        return lambda register, cpu: (windows if register == ENERGY else plain).read(register, cpu)

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


def package_of(cpu: int) -> int:
    """Return the physical package of a CPU. Raises OSError where there is no such CPU, or it is not online."""
    with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", "rb") as file:
        return int(file.read())


def qemu_pid(state_file: str) -> int | None:
    """Return QEMU's process as the registry knows it; None as long as it does not."""
    try:
        with open(state_file, "rb") as file:
            return int(file.read().split(b"\n")[1])
    except (OSError, IndexError, ValueError):
        return None
