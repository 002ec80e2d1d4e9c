"""Putting what libvirt, QEMU and systemd look for in place: hook, emulator wrappers, units, default configuration."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from libvirt_rapl import systemd
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import replace

HOOK = "etc/libvirt/hooks/qemu.d/virt-rapl"
EMULATORS = ("usr/bin/qemu-system-x86_64", "usr/libexec/qemu-kvm")
LIBVIRT_DAEMONS = ("libvirtd", "virtqemud")
PLAIN_PATH = re.compile(r"[\w/.+@:-]+", re.ASCII)
"""What needs no quoting in sh or in a systemd unit."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file of ours: where it goes (relative to the root), what it says and its mode."""

    target: str
    text: str
    mode: int
    keep: bool = False
    """The operator's from then on: what is there already stays."""


def install(root: Path) -> list[str]:
    """Put everything in place under `root` and return a line for each thing done or found done.

    On the running system (root is /) systemd and libvirt are told as well. Raises VirtRaplError when a file cannot
    be written; what was written before that stays, and a second run completes it.
    """
    if not PLAIN_PATH.fullmatch(sys.executable):
        raise VirtRaplError(f"{sys.executable} cannot be named in scripts", "install virt-rapl under a plainer path")
    lines = []
    for item in items(root):
        try:
            lines.append(_place(root, item))
        except OSError as error:
            raise VirtRaplError(f"cannot write {root / item.target}: {error}", "run it as root") from error
    if not any((root / emulator).exists() for emulator in EMULATORS):
        lines.append("no emulator found: install QEMU and run `virt-rapl install` again")
    if root == Path("/"):
        lines += _tell_running_daemons()
    return lines


def items(root: Path) -> Iterator[Item]:
    """Yield what install() puts in place under `root`."""
    shipped = resources.files("libvirt_rapl") / "shipped"

    def text(source: Traversable) -> str:
        return source.read_text(encoding="utf-8").replace("@PYTHON@", sys.executable)

    yield Item(target=HOOK, text=text(shipped / "hooks/qemu"), mode=0o755)
    for emulator in EMULATORS:
        if (root / emulator).exists():
            yield Item(target=f"{emulator}-rapl", text=text(shipped / "hooks/qemu-system-rapl"), mode=0o755)
    for unit in sorted((shipped / "etc/systemd").iterdir(), key=lambda unit: unit.name):
        yield Item(target=f"etc/systemd/system/{unit.name}", text=text(unit), mode=0o644)
    yield Item(target="etc/virt-rapl/virt-rapl.yaml", text=text(shipped / "etc/virt-rapl.yaml"), mode=0o644, keep=True)


def _place(root: Path, item: Item) -> str:
    target = root / item.target
    if target.is_file() and item.keep:
        return f"kept      {target}"
    if target.is_file() and target.read_text(encoding="utf-8", errors="replace") == item.text:
        target.chmod(item.mode)
        return f"unchanged {target}"
    verb = "updated  " if target.exists() else "installed"
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    replace(target, item.text, item.mode)
    return f"{verb} {target}"


def _tell_running_daemons() -> Iterator[str]:
    if systemd.runs():
        systemd.systemctl("daemon-reload", timeout=30)
        yield "reloaded  systemd's units"
    for daemon in LIBVIRT_DAEMONS:
        if pid := pid_of(daemon):
            # libvirt remembers whether there are hooks; SIGHUP makes it look again and touches no domain.
            os.kill(pid, signal.SIGHUP)
            yield f"reloaded  {daemon}, which now sees the hook"


def pid_of(daemon: str, root: Path = Path("/")) -> int | None:
    """Return the PID of a running system daemon, by its PID file and checked against its name."""
    try:
        pid = int((root / f"run/{daemon}.pid").read_text())
        return pid if (root / f"proc/{pid}/comm").read_text().strip() == daemon else None
    except (OSError, ValueError):
        return None
