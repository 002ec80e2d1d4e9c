"""Which vendor's processor the simulated machine has, whatever this machine's own is.

/proc/cpuinfo says so. QEMU and qemu-vmsr-helper ask the processor itself (CPUID) and compare its vendor with Intel's.
If the simulated vendor is not the real one, the simulated machine has copies of these programs, in which the name that
they compare with is replaced so that they come to the simulated machine's answer. Only they are deceived: all other
programs, and guests, get the real vendor from CPUID.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

Vendor = Literal["intel", "amd"]
NAMES: dict[Vendor, str] = {"intel": "Intel", "amd": "AMD"}


class Identity(NamedTuple):
    """What /proc/cpuinfo shows."""

    vendor_id: str
    family: int
    model: int


IDENTITIES: dict[Vendor, Identity] = {
    "intel": Identity("GenuineIntel", 6, 0x8E),  # Kaby Lake: all its energy counts in the unit of POWER_UNIT
    "amd": Identity("AuthenticAMD", 0x19, 0x11),  # Genoa
}

PROGRAMS = (
    Path("/usr/bin/qemu-system-x86_64"),
    Path("/usr/libexec/qemu-kvm"),
    Path("/usr/bin/qemu-vmsr-helper"),
    Path("/usr/libexec/qemu-vmsr-helper"),
)
"""Where distributions have the programs that ask for the vendor. They may be links, as their other names are."""

_TEXT = re.compile(rb"(Genu)()(ineI)()(ntel)")
"""QEMU compares with a string,"""
_NUMBERS = re.compile(rb"(Genu)(.{1,16}?)(ineI)(.{1,16}?)(ntel)", re.DOTALL)
"""and the helper with three numbers, one after the other, inside instructions."""
_FIELDS = re.compile(r"^(vendor_id|cpu family|model|model name)(\s*): (.*)$", re.MULTILINE)


def vendor_of(cpuinfo: str) -> str:
    """Return the vendor that the text of /proc/cpuinfo names: `GenuineIntel`, `AuthenticAMD`, ...; empty if none."""
    return next((found[3] for found in _FIELDS.finditer(cpuinfo) if found[1] == "vendor_id"), "")


def cpuinfo_of(cpuinfo: str, vendor: Vendor) -> str:
    """Return the text of /proc/cpuinfo for a machine of this vendor; a machine of this vendor keeps its own."""
    identity = IDENTITIES[vendor]
    if vendor_of(cpuinfo) == identity.vendor_id:
        return cpuinfo
    values = {"vendor_id": identity.vendor_id, "cpu family": identity.family, "model": identity.model}

    def line(found: re.Match[str]) -> str:
        key, space, value = found.groups()
        return f"{key}{space}: {values.get(key, f'simulated {NAMES[vendor]} processor on {value}')}"

    return _FIELDS.sub(line, cpuinfo)


def copies(real_vendor: str, vendor: Vendor, programs: tuple[Path, ...] = PROGRAMS) -> dict[Path, bytes | None]:
    """Return for each installed program the content that makes it take a processor of `real_vendor` for `vendor`'s.

    Empty if they are right as they are. None for a program that compares in an unknown way, such as a script.
    """
    if real_vendor == IDENTITIES[vendor].vendor_id:
        return {}
    # To look like Intel's, compare with what CPUID will return; not to, compare with anything else.
    instead = real_vendor if vendor == "intel" else IDENTITIES[vendor].vendor_id
    real = (path.resolve() for path in programs)
    return {program: _comparing(program, instead.encode()) for program in real if program.is_file()}


def _comparing(program: Path, vendor: bytes) -> bytes | None:
    """Return the program with another vendor of the same length in place of Intel's."""
    original = program.read_bytes()
    words = rb"%b\g<2>%b\g<4>%b" % (vendor[:4], vendor[4:8], vendor[8:])
    for form in (_TEXT, _NUMBERS):
        changed, count = form.subn(words, original)
        if count and len(changed) == len(original):
            return changed
    return None
