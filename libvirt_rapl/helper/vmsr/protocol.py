"""The wire between QEMU and its vmsr helper: a request of three numbers, a reply of one, on a stream socket.

QEMU asks one thing at a time and waits for the answer. A reply of 0 means that the register could not be read.
"""

import struct
from _collections_abc import Callable  # collections.abc, without the memory that the rest of collections takes

ReadRegister = Callable[[int, int], int]
"""(register, cpu) -> value; raises OSError when it cannot be read."""

ReaderFor = Callable[[int], ReadRegister]
"""PID of a peer -> function that reads registers for it."""

REQUEST = struct.Struct("=3I")
"""Register address, CPU number, TID of the thread that asks; native byte order."""
REPLY = struct.Struct("=Q")
"""The register's 64 bits."""

POWER_UNIT = 0x606
"""MSR_RAPL_POWER_UNIT: bits 8 to 12 hold n, energy counts in units of 2**-n joules."""
POWER_LIMIT = 0x610
"""MSR_PKG_POWER_LIMIT."""
ENERGY = 0x611
"""MSR_PKG_ENERGY_STATUS: energy counted by the package, in units; 32 bits, wraps."""
POWER_INFO = 0x614
"""MSR_PKG_POWER_INFO."""

REGISTERS = frozenset({POWER_UNIT, POWER_LIMIT, ENERGY, POWER_INFO})
"""All registers that QEMU asks for; a helper answers no others."""
