"""Commands and messages to systemd, where it runs."""

import contextlib
from pathlib import Path

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.readiness import notify as notify  # to be called as systemd.notify()

SHOW_SECONDS = 10.0
"""A question to systemd may take this long at most."""


def runs() -> bool:
    """Return whether systemd is this machine's init (sd_booted(3))."""
    return Path("/", paths.SYSTEMD).is_dir()


def unit_property(unit: str, name: str) -> str:
    """Return a property of a unit, as `systemctl show` prints it; empty if systemd does not answer."""
    with contextlib.suppress(VirtRaplError):
        return systemctl("show", f"--property={name}", "--value", unit, timeout=SHOW_SECONDS).strip()
    return ""


def systemctl(*arguments: str, timeout: float) -> str:
    """Run `systemctl ARGUMENTS` for at most `timeout` seconds and return what it prints; VirtRaplError if it fails."""
    from libvirt_rapl.commands import run  # here, so that the process of a helper does not wait for it

    return run("systemctl", *arguments, timeout=timeout, hint="`virt-rapl install` puts the units in place")
