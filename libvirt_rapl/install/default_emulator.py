"""Whether libvirt takes our link for the emulator of domains that name none: the first in its daemon's PATH."""

from pathlib import Path
from typing import Any

from lxml import etree

from libvirt_rapl import paths
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.connection import LibvirtError
from libvirt_rapl.domains.emulator import DEFAULT_WRAPPER
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import activation
from libvirt_rapl.install.manifest import Manifest

DROP_IN = "`systemctl edit {}`: [Service] Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"


def is_installed(root: Path) -> bool:
    """Return whether it was asked for, and not taken out since. Raises VirtRaplError if the manifest cannot be read.

    The manifest may have been lost: nobody else makes such a link.
    """
    return paths.DEFAULT_EMULATOR in Manifest.load(root).files or emulator.wrapped_by_default(root) is not None


def check_path(root: Path = Path("/")) -> None:
    """Raise VirtRaplError unless libvirt's daemon runs, and looks for emulators where our link is, and there first."""
    running = {daemon: pid for daemon in activation.LIBVIRT_DAEMONS if (pid := activation.pid_of(daemon, root))}
    if not running:
        raise VirtRaplError("libvirt does not run: its PATH cannot be seen", "start libvirt, then run this again")
    for daemon, pid in running.items():
        _check_path_of(daemon, _path_of(pid, root), root)


def _path_of(pid: int, root: Path) -> list[str]:
    file = root / f"proc/{pid}/environ"
    try:
        environment = file.read_text(errors="replace").split("\0")
    except OSError as error:
        raise VirtRaplError(f"cannot read {file}: {error.strerror}", "run it as root") from error
    found = next((text for text in environment if text.startswith("PATH=")), "PATH=")
    return found.removeprefix("PATH=").split(":")


def _check_path_of(daemon: str, path: list[str], root: Path) -> None:
    place = str(DEFAULT_WRAPPER.parent)
    if place not in path:
        message = f"{daemon} looks for emulators in {':'.join(path)}, where {place} is not"
        raise VirtRaplError(message, f"{DROP_IN.format(daemon)}, and restart it")
    for directory in path[: path.index(place)]:
        other = root / directory.lstrip("/") / DEFAULT_WRAPPER.name
        if other.exists():
            message = f"{daemon} finds {other} before {DEFAULT_WRAPPER}"
            raise VirtRaplError(message, f"move it away, or {DROP_IN.format(daemon)}, and restart it")


def taken_by_libvirt(connection: Any) -> str:  # noqa: ANN401  libvirt-python has no types
    """Return the emulator that libvirt gives domains which name none. Raises VirtRaplError."""
    try:
        capabilities = etree.fromstring(connection.getCapabilities())
    except LibvirtError as error:
        raise VirtRaplError(
            f"cannot ask libvirt for its default emulator: {error}", "see `virsh capabilities`"
        ) from error
    return str(capabilities.findtext("guest/arch[@name='x86_64']/emulator", ""))


def check(connection: Any, root: Path = Path("/")) -> str:  # noqa: ANN401
    """Return in one line that libvirt has taken it. Raises VirtRaplError if it has not."""
    check_path(root)
    taken = taken_by_libvirt(connection)
    if taken != str(DEFAULT_WRAPPER):
        message = f"libvirt takes {taken} for the emulator of domains that name none, and not {DEFAULT_WRAPPER}"
        raise VirtRaplError(message, "restart libvirt's daemon, which affects no domain")
    return f"libvirt takes {taken}, the wrapper of {emulator.wrapped_by_default()}, for domains that name no emulator"
