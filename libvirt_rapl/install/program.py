"""What root and virt-rapld run (Python, this package, its libraries): who can change it, and who can reach it."""

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
    """Return who, except root and us, can change what root runs: PROGRAM, this package and the directories above.

    Python runs files that are added to a directory where it looks for modules, so adding files there counts as well.
    """
    tree, others = Tree(Path("/")), Others()
    for path in (*PROGRAM, *sorted(PROGRAM[1].parent.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):  # compiled files come and go
            others |= tree.changeable(str(path))
    for directory in {above for path in PROGRAM for above in path.parents if str(above) in sys.path}:
        others |= tree.writable(f"{directory}/another.pth")
    return others


def closed_directory(*paths: Path) -> Path | None:
    """Return the outermost directory above these files that is not open to all: virt-rapld is not root."""
    directories = dict.fromkeys(directory for path in paths for directory in reversed(path.parents))
    return next((directory for directory in directories if not directory.stat().st_mode & 0o001), None)


def to_open(closed: Path) -> str:
    """Return what to do about closed_directory(): it was made by pip with a strict umask, or is somebody's home."""
    if closed.is_relative_to(sys.prefix):
        return f"chmod -R o+rX {sys.prefix}"
    return f"chmod o+x {closed}, or install virt-rapl where every user can read it, as in /opt/virt-rapl"
