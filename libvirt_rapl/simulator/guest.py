"""A guest that reads its own RAPL registers: 64 KiB of ROM (meter.S), a domain around it, and what it printed.

Each vCPU is busy for its share of every 100 ms, sleeps for the rest, and prints a line ten times a second. Where the
domain has an energy channel, the guest also prints each line that comes from it.
The guest powers off when its power button is pressed, so `virsh shutdown` and `virsh reboot` work.
"""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4
from xml.sax.saxutils import escape, quoteattr

ROM_SIZE = 1 << 16
MOST_VCPUS = 16
DUTIES = 4  # offset in the code: one byte for each vCPU, per cent
LINES_PER_SECOND = 10  # of each vCPU
DEBUG_PORT = 0x402
FROM_CHANNEL = ">"
"""Begins a line that came from the energy channel."""
EMULATOR = "/usr/bin/qemu-system-x86_64"
CPU = "host,arch-capabilities=off"
"""QEMU's name for the CPU of a guest under KVM: the host's, without a feature that some KVMs offer although they do not
let QEMU set its register, upon which QEMU aborts."""
EMULATED_CPU = "<cpu mode='maximum'/>"
KVM_CPU = """\
<cpu mode='host-passthrough'>
    <feature policy='disable' name='arch-capabilities'/>
  </cpu>"""
RESET_VECTOR = 0xFFF0
JUMP_TO_START = b"\xea\x00\x00\x00\xf0"  # to F000:0000


class Reading(NamedTuple):
    """What a vCPU read at one instant."""

    vcpu: int
    unit: int
    """MSR 0x606: bits 8 to 12 are the exponent of the energy unit, 2**-n joules."""
    energy: int
    """MSR 0x611: 32 bits, in energy units; it wraps."""


def rom(*duties: int) -> bytes:
    """Return the ROM of a guest whose vCPU n is busy for `duties[n]` per cent; the last duty holds for all others."""
    if not 0 < len(duties) <= MOST_VCPUS or not all(0 <= duty <= 100 for duty in duties):
        raise ValueError(f"1 to {MOST_VCPUS} duties of 0 to 100 per cent, not {duties}")
    image = bytearray(ROM_SIZE)
    code = (files(__package__) / "meter.rom").read_bytes()
    image[: len(code)] = code
    image[DUTIES : DUTIES + MOST_VCPUS] = bytes(duties).ljust(MOST_VCPUS, bytes(duties[-1:]))
    image[RESET_VECTOR : RESET_VECTOR + len(JUMP_TO_START)] = JUMP_TO_START
    return bytes(image)


def domain_xml(
    name: str, rom_path: str, log_path: str, *, vcpus: int = 1, uuid: str | None = None, kvm: bool = True
) -> str:
    """Return a plain domain that runs the ROM, as a user would write it. QEMU's user must be able to read `rom_path`.

    Without `kvm` QEMU emulates the CPU: slower, and it has no RAPL registers (they read 0).
    """
    return f"""\
<domain type='{"kvm" if kvm else "qemu"}'>
  <name>{escape(name)}</name>
  <uuid>{uuid or uuid4()}</uuid>
  <memory unit='MiB'>16</memory>
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <loader readonly='yes' type='rom'>{escape(rom_path)}</loader>
  </os>
  <features>
    <acpi/>
  </features>
  {KVM_CPU if kvm else EMULATED_CPU}
  <devices>
    <emulator>{EMULATOR}</emulator>
    <serial type='file'>
      <source path={quoteattr(log_path)} append='on'/>
      <target type='isa-debug' port='0'>
        <model name='isa-debugcon'/>
      </target>
      <address type='isa' iobase='{DEBUG_PORT:#x}'/>
    </serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def readings(log_path: Path) -> list[Reading]:
    """Return what the guest has read from its registers so far, in order; nothing when there is no file yet.

    A line that is still being written is left out, and so is one that was cut when QEMU was killed.
    """
    words = (line.split() for line in _printed(log_path) if FROM_CHANNEL not in line)
    return [Reading(*(int(word, 16) for word in found)) for found in words if len(found) == len(Reading._fields)]


def channel_lines(log_path: Path) -> list[str]:
    """Return the lines that the guest has read from its energy channel so far; nothing when there is no file yet."""
    printed = _printed(log_path)
    return [line.removeprefix(FROM_CHANNEL) for line in printed if line.startswith(FROM_CHANNEL)]


def _printed(log_path: Path) -> list[str]:
    try:
        return log_path.read_text(encoding="ascii", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []


def unmoved_seconds(history: Iterable[Reading]) -> float:
    """Return how many seconds ago a counter last moved, to the tenth of a second between two lines of a vCPU."""
    last: dict[int, int] = {}
    unmoved: dict[int, int] = {}
    for vcpu, _, energy in history:
        unmoved[vcpu] = unmoved.get(vcpu, 0) + 1 if last.get(vcpu) == energy else 0
        last[vcpu] = energy
    return min(unmoved.values(), default=0) / LINES_PER_SECOND


def joules(history: Iterable[Reading]) -> dict[int, float]:
    """Return for each vCPU the joules it counted since its first reading; handles a wrap between two readings."""
    last: dict[int, int] = {}
    total: dict[int, float] = {}
    for vcpu, unit, energy in history:
        grown = (energy - last.get(vcpu, energy)) % (1 << 32)
        total[vcpu] = total.get(vcpu, 0.0) + grown / (1 << (unit >> 8 & 31))
        last[vcpu] = energy
    return total
