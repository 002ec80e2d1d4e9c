"""What a native helper instance does when libvirt_rapl.helper.process has made it ready and confined it.

Everything that it needs is imported before it serves: QEMU never connects again, so an instance goes on while its
package is upgraded or removed.
"""

from __future__ import annotations

import os
import sys
import time
from _signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, signal  # type: ignore[import-not-found]  # see server

from libvirt_rapl.helper.vmsr.readers import Readers
from libvirt_rapl.helper.vmsr.server import Server
from libvirt_rapl.host.machine_cgroup import machine_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from libvirt_rapl.helper.vmsr.registers import Registers

LAST_SECONDS = 2.0
"""How long a running QEMU is served after SIGTERM: it may be about to end, and a shutdown waits for us."""


def serve(listener: socket, life: int, state_file: str, owner_uid: int, machine: str, registers: Registers) -> None:
    """Serve until SIGTERM; exit with 1 when energy cannot be read.

    `life` is the descriptor of a file whose times are the instance's signs of life, and `state_file` may hold QEMU's
    PID: see libvirt_rapl.helper.run_directory for both. `machine` is libvirt's number of the domain, empty if unknown.
    """
    try:
        readers = Readers(registers)
    except (OSError, ValueError) as error:
        sys.exit(f"virt-rapl: error: cannot read energy: {error}")

    def is_of_domain(pid: int) -> bool | None:
        number = machine_number(pid)
        return str(number) == machine if machine and number is not None else None

    sign_of_life = SignOfLife(life)
    server = Server(
        listener,
        owner_uid=owner_uid,
        reader_for=readers.reader_for,
        qemu_pid=lambda: qemu_pid(state_file),
        is_of_domain=is_of_domain,
        tick=sign_of_life.give,
    )
    for number in (SIGTERM, SIGINT):
        signal(number, lambda *_: server.stop(LAST_SECONDS))
    signal(SIGHUP, SIG_IGN)  # the process that started it may end
    server.serve()


class SignOfLife:
    """The times of a file: the modification time says when QEMU was last served, the access time whether it is here."""

    def __init__(self, descriptor: int) -> None:
        """Take the descriptor of a file that we own; it need not be open for writing."""
        self._descriptor = descriptor
        self._served = time.time_ns()

    def give(self, connected: bool) -> None:
        """Record that we run, and whether QEMU is connected: if not, the access time is 0 and the other one stays."""
        if connected:
            self._served = time.time_ns()
        os.utime(self._descriptor, ns=(self._served if connected else 0, self._served))


def qemu_pid(state_file: str) -> int | None:
    """Return QEMU's PID as the hook recorded it; None as long as it has not."""
    try:
        with open(state_file, "rb") as file:
            return int(file.read().split(b"\n")[1])
    except (OSError, IndexError, ValueError):
        return None
