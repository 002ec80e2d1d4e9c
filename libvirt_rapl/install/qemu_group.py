"""The group of QEMU's user: whoever is in it may connect to the sockets that QEMU has for channels."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from libvirt_rapl import paths

USUAL = ("libvirt-qemu", "qemu", "kvm")
"""Debian's, Red Hat's, and that of others."""
SET = re.compile(r'^\s*group\s*=\s*"\+?([^"]+)"', re.MULTILINE)
DEFAULT = re.compile(r'^\s*#\s*group\s*=\s*"\+?([^"]+)"', re.MULTILINE)
"""A comment of qemu.conf's names the default that libvirt was built with; in older ones it is always root."""

NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def qemu_group(root: Path) -> str:
    """Return the name of a group that exists: a unit with another one does not start. Empty if none is found."""
    groups = _groups(root)
    return next((groups[name] for name in _candidates(root) if name in groups), "")


def _candidates(root: Path) -> Iterator[str]:
    """Yield names or numbers of the group, the likeliest first."""
    text = _read(root / paths.QEMU_CONFIGURATION)
    yield from reversed(SET.findall(text))  # the last one is in force
    yield from (name for name in DEFAULT.findall(text) if name != "root")
    yield from USUAL


def _groups(root: Path) -> dict[str, str]:
    """Return the names of the system's groups, by name and by number."""
    found: dict[str, str] = {}
    for place in reversed(paths.GROUPS):
        for line in _read(root / place).splitlines():
            name, _, rest = line.partition(":")
            number = rest.partition(":")[2].partition(":")[0]
            if NAME.fullmatch(name) and number:
                found |= {number: name, name: name}
    return found


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
