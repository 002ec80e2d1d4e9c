"""What root and virt-rapld run of ours, Python, this package and its libraries: who can change it, and get to it."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import libvirt_rapl
from libvirt_rapl.tree import Others, Tree

LIBRARIES = [importlib.util.find_spec(name) for name in ("os", "lxml", "yaml", "libvirt")]
PROGRAM = (
    Path(sys.executable),
    Path(libvirt_rapl.__file__),
    *(Path(library.origin) for library in LIBRARIES if library and library.has_location and library.origin),
)
"""What root and virt-rapld run: Python, this package by its first file, one file of each library."""


def changeable_program() -> Others:
    """Tell who else than root and we can change what root runs: all of PROGRAM, this package, what is above them.

    Python runs what is added to a directory that it looks for modules in, so there that counts as well.
    """
    tree, others = Tree(Path("/")), Others()
    for path in (*PROGRAM, *sorted(PROGRAM[1].parent.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):  # compiled files come and go
            others |= tree.changeable(str(path))
    for directory in {above for path in PROGRAM for above in path.parents if str(above) in sys.path}:
        others |= tree.writable(f"{directory}/another.pth")
    return others


def closed_directory(*paths: Path) -> Path | None:
    """Return the outermost directory on the way to these files that is not open to all: virt-rapld is no root."""
    directories = dict.fromkeys(directory for path in paths for directory in reversed(path.parents))
    return next((directory for directory in directories if not directory.stat().st_mode & 0o001), None)


def to_open(closed: Path) -> str:
    """Return what to do about the closed_directory(): what pip made with a strict umask, or somebody's home."""
    if closed.is_relative_to(sys.prefix):
        return f"chmod -R o+rX {sys.prefix}"
    return f"chmod o+x {closed}, or install virt-rapl where every user gets, as in /opt/virt-rapl"
