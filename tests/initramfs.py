"""The files of a small Linux guest: busybox, python3 and node_exporter as this machine has them, in an initramfs."""

import ast
import re
import stat
import subprocess
from pathlib import Path

PYTHON = "/usr/bin/python3"
BUSYBOX = "/usr/bin/busybox"
LINKS = ("bin", "sbin", "lib", "lib64")
"""Directories that are links into /usr, as on Debian."""

LATER = ("_strptime", "gettext", "shutil", "textwrap", "traceback")
"""Modules of the standard library that others of it import only when they need them."""

IMPORTED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for module in list(sys.modules.values()):
    for path in (getattr(module, "__cached__", None), getattr(module, "__file__", None)):
        if path:
            print(path)
"""


class Initramfs:
    """An archive in the format that the kernel unpacks: cpio's `newc`, not compressed, which takes less time."""

    def __init__(self) -> None:
        """Begin with the directories that are links."""
        self._archive = bytearray()
        self._names: set[str] = set()
        for name in LINKS:
            self.add(f"/{name}", f"usr/{name}".encode(), mode=stat.S_IFLNK | 0o777)

    def add(self, path: str, content: bytes, mode: int = stat.S_IFREG | 0o755, mtime: int = 0) -> None:
        """Add one file, and the directories above it; nothing if it is there."""
        name = path.lstrip("/")
        if name.partition("/")[0] in LINKS and "/" in name:
            name = f"usr/{name}"
        if name in self._names:
            return
        if "/" in name:
            self.add(name.rpartition("/")[0], b"", mode=stat.S_IFDIR | 0o755)
        self._names.add(name)
        self._append(name, content, mode, mtime)

    def add_program(self, path: str) -> None:
        """Add a program or library of this machine, and the libraries that it is linked with."""
        self._copy(path)
        linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", linked):
            self._copy(library)

    def add_python(self, *scripts: str) -> None:
        """Add python3 and what these scripts import of its standard library, compiled where it is."""
        self.add_program(PYTHON)
        command = [PYTHON, "-I", "-c", IMPORTED, *LATER, *{name for script in scripts for name in imported(script)}]
        for path in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            if path.endswith(".so"):
                self.add_program(path)
            elif Path(path).is_file():
                self._copy(path)

    def add_modules(self, kernel: Path, *names: str) -> None:
        """Add those of the named modules that are not built into the kernel, whose package this was, as /modules/N."""
        (built_in,) = kernel.rglob("modules.builtin")
        for number, name in enumerate(names):
            if f"/{name}.ko\n" not in built_in.read_text():
                (module,) = kernel.rglob(f"{name}.ko")
                self.add(f"/modules/{number}", module.read_bytes())

    def finish(self) -> bytes:
        """Return the archive."""
        self._append("TRAILER!!!", b"", 0, 0)
        return bytes(self._archive)

    def _copy(self, path: str) -> None:
        """Add a file of this machine; Python takes what was compiled of a module only if its time is the same."""
        state = Path(path).stat()
        self.add(path, Path(path).read_bytes(), stat.S_IFREG | stat.S_IMODE(state.st_mode), int(state.st_mtime))

    def _append(self, name: str, content: bytes, mode: int, mtime: int) -> None:
        encoded = name.encode() + b"\0"
        fields = (len(self._names), mode, 0, 0, 1, mtime, len(content), 0, 0, 0, 0, len(encoded), 0)
        for part in (b"070701" + b"".join(b"%08X" % field for field in fields) + encoded, content):
            self._archive += part + b"\0" * (-len(part) % 4)


def imported(script: str) -> set[str]:
    """Return the names of the modules that a script imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names
