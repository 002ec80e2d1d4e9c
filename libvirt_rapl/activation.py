"""Telling the running system what was put in place or is to be taken out: systemd, libvirt, kernel, SELinux."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from libvirt_rapl import systemd
from libvirt_rapl.errors import VirtRaplError

LIBVIRT_DAEMONS = ("libvirtd", "virtqemud")
FIRST_WITH_DIRECTORIES = (6, 5)
"""The libvirt that looks into hooks/qemu.d."""
SYSTEMD_SECONDS = 60.0

Step = tuple[str, Callable[[], object]]
"""What is told of it once it is done, and how it is done; it may raise VirtRaplError."""


def after_install() -> Iterator[Step]:
    """Yield what makes the running system use what was installed."""
    if systemd.runs():
        yield "reloaded  systemd's units", lambda: _systemctl("daemon-reload")
        yield "made      /run/virt-rapl", lambda: run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/virt-rapl.conf")
        yield "started   virt-rapl-wrappers.path", lambda: _systemctl("restart", "virt-rapl-wrappers.path")
    yield from _tell_libvirt("sees")


def before_uninstall() -> Iterator[Step]:
    """Yield what ends the use of what is about to go."""
    if systemd.runs():
        for unit in ("virt-rapld.service", "virt-rapl-wrappers.path"):
            if Path("/etc/systemd/system", unit).exists():
                yield f"stopped   {unit}", lambda unit=unit: _systemctl("disable", "--now", unit)  # type: ignore[misc]


def after_uninstall() -> Iterator[Step]:
    """Yield what makes the running system forget what is gone."""
    if systemd.runs():
        yield "reloaded  systemd's units", lambda: _systemctl("daemon-reload")
    yield from _tell_libvirt("does without")


def libvirt_version() -> tuple[int, int] | None:
    """Return the version of libvirt that is installed; None where there is none."""
    for daemon in LIBVIRT_DAEMONS:
        with contextlib.suppress(VirtRaplError):
            if numbers := re.search(r"(\d+)\.(\d+)\.\d+", run(daemon, "--version")):
                return int(numbers[1]), int(numbers[2])
    return None


def run(*command: str) -> str:
    """Run a command and return what it prints. Raises VirtRaplError when it fails."""
    shown = f"`{' '.join(command)}`"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SYSTEMD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VirtRaplError(f"{shown}: {error}", "run this again once that is mended") from error
    if done.returncode:
        raise VirtRaplError(f"{shown} failed: {' '.join(done.stderr.split())}", "run this again once that is mended")
    return done.stdout


def _systemctl(*arguments: str) -> None:
    systemd.systemctl(*arguments, timeout=SYSTEMD_SECONDS)


def _tell_libvirt(verb: str) -> Iterator[Step]:
    for daemon in LIBVIRT_DAEMONS:
        if pid := pid_of(daemon):
            # libvirt remembers whether there are hooks; SIGHUP makes it look again and touches no domain.
            yield f"reloaded  {daemon}, which now {verb} the hook", lambda pid=pid: os.kill(pid, signal.SIGHUP)  # type: ignore[misc]


def pid_of(daemon: str, root: Path = Path("/")) -> int | None:
    """Return the PID of a running system daemon, by its PID file and checked against its name."""
    try:
        pid = int((root / f"run/{daemon}.pid").read_text())
        return pid if (root / f"proc/{pid}/comm").read_text().strip() == daemon else None
    except (OSError, ValueError):
        return None
