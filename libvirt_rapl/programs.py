"""Running a program of the system's for what it does or prints."""

import subprocess

from libvirt_rapl.errors import VirtRaplError


def run(*command: str, timeout: float, hint: str = "run this again once that is mended") -> str:
    """Run it for at most `timeout` seconds and return what it prints. Raises VirtRaplError if it fails."""
    shown = f"`{' '.join(command)}`"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=max(timeout, 0.1), check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VirtRaplError(f"{shown}: {error}", hint) from error
    if done.returncode:
        raise VirtRaplError(f"{shown} failed: {' '.join(done.stderr.split())}", hint)
    return done.stdout
