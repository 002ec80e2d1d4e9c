"""Ask a helper what QEMU will ask it."""

import os
import socket
from pathlib import Path

from libvirt_rapl.helper.vmsr.protocol import POWER_INFO, POWER_LIMIT, POWER_UNIT, REPLY, REQUEST
from libvirt_rapl.sockets import peer_of


def probe(path: Path, timeout: float) -> int:
    """Ask the helper on `path` for the three registers that QEMU reads when it starts; QEMU gives up if one is 0.

    Returns the PID of the process that listens. Raises OSError when a step takes longer than `timeout` seconds,
    ValueError when a register reads 0.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as helper:
        helper.settimeout(timeout)
        helper.connect(str(path))
        for register in (POWER_UNIT, POWER_LIMIT, POWER_INFO):
            # As with QEMU, the thread that asks must be one of the process at the other end of the socket.
            helper.sendall(REQUEST.pack(register, 0, os.getpid()))
            reply = helper.recv(REPLY.size, socket.MSG_WAITALL)
            if len(reply) < REPLY.size:
                raise ConnectionError(f"the helper hung up when asked for register {register:#x}")
            if REPLY.unpack(reply)[0] == 0:
                raise ValueError(f"register {register:#x} reads 0")
        return peer_of(helper).pid
