"""Making systemd, libvirt, kernel and SELinux use what was put in place, or no longer use what is to be removed."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from libvirt_rapl import paths, systemd
from libvirt_rapl.commands import run
from libvirt_rapl.config import Config
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.run_directory import RunDirectory
from libvirt_rapl.install.manifest import Manifest

LIBVIRT_DAEMONS = ("libvirtd", "virtqemud")
SERVICES = (paths.EXPORTER_UNIT, paths.DAEMON_UNIT, paths.CHANNEL_UNIT)
UNIT_NAMES = (*SERVICES, paths.WRAPPERS_PATH_UNIT, paths.WRAPPERS_UNIT)
SECONDS = 120.0
"""The most that one program may take; SELinux rebuilds its whole policy."""
MSR = paths.DEV / "cpu/0/msr"
SELINUX = Path("/", paths.SELINUX)
MODULE = Path("/", paths.SELINUX_MODULE, "virt_rapl.te")
SELINUX_HINT = "install checkpolicy and policycoreutils, then run this again"
RUN_DIRECTORY = Path("/", paths.RUN_DIRECTORY)

Step = tuple[str, Callable[[], object]]
"""The line that is printed once it is done, and the function that does it, which may raise VirtRaplError."""


def after_install() -> Iterator[Step]:
    """Yield the steps that make the running system use what was installed."""
    if systemd.runs():
        yield "ensured   the user virt-rapl", partial(_run, "systemd-sysusers", "virt-rapl.conf")
        yield f"ensured   {RUN_DIRECTORY}", partial(_run, "systemd-tmpfiles", "--create", "virt-rapl.conf")
    if (RUN_DIRECTORY / paths.CHOSEN).exists():
        yield "forgot    the patterns that the hook has noted", _forget_patterns
    if not MSR.exists():
        yield "loaded    the kernel module msr, if there is one", _load_msr
    if SELINUX.exists() and MODULE.exists():
        yield "loaded    SELinux's module virt_rapl", _load_selinux_module
    if SELINUX.exists():
        yield "labelled  what was installed", _label
    if systemd.runs():
        yield "reloaded  systemd's units", partial(_systemctl, "daemon-reload")
        yield f"restarted {paths.WRAPPERS_PATH_UNIT}", partial(_systemctl, "restart", paths.WRAPPERS_PATH_UNIT)
    yield from _reload_libvirt("sees")


def before_uninstall() -> Iterator[Step]:
    """Yield the steps that end the use of what is about to be removed."""
    for unit in UNIT_NAMES:
        if not systemd.runs():
            break
        if Path("/", paths.UNITS, unit).exists():
            yield f"stopped   {unit}", partial(_systemctl, "disable", "--now", unit)
        elif Path("/", paths.PACKAGED_UNITS, unit).exists():  # its package enables and disables it
            yield f"stopped   {unit}", partial(_systemctl, "stop", unit)
    if SELINUX.exists() and "virt_rapl" in _run("semodule", "--list-modules").split():
        yield "unloaded  SELinux's module virt_rapl", partial(_run, "semodule", "--remove=virt_rapl")


def after_uninstall(config: Config) -> Iterator[Step]:
    """Yield the steps that make the running system forget what is gone, and remove its leftovers. The ledger stays."""
    run_directory, state_directory = RunDirectory(config.run_directory), config.state_directory
    if systemd.runs():
        yield "reloaded  systemd's units", partial(_systemctl, "daemon-reload")
    yield from _reload_libvirt("does without")
    if run_directory.holds_no_record():  # with --force, a domain may still run
        yield f"removed   {run_directory.run_directory}", run_directory.clear
    if state_directory.is_dir() and any(state_directory.iterdir()):
        yield f"kept      {state_directory}, the energy that was counted", lambda: None
    elif state_directory.is_dir() and not state_directory.is_mount():
        yield f"removed   {state_directory}", state_directory.rmdir


def _run(*command: str) -> str:
    return run(*command, timeout=SECONDS)


def _systemctl(*arguments: str) -> None:
    systemd.systemctl(*arguments, timeout=SECONDS)


def _forget_patterns() -> None:
    """Make the hook read the configuration again: another version may understand it in another way."""
    with contextlib.suppress(OSError):
        RunDirectory(RUN_DIRECTORY).check_directory()
        (RUN_DIRECTORY / paths.CHOSEN).unlink()


def _load_msr() -> None:
    with contextlib.suppress(VirtRaplError):  # powercap may be enough
        _run("modprobe", "msr")


def _load_selinux_module() -> None:
    with tempfile.TemporaryDirectory(prefix="virt-rapl-") as name:
        compiled, package = f"{name}/virt_rapl.mod", f"{name}/virt_rapl.pp"
        contexts = str(MODULE.with_suffix(".fc"))
        run("checkmodule", "-M", "-m", "-o", compiled, str(MODULE), timeout=SECONDS, hint=SELINUX_HINT)
        run("semodule_package", "-o", package, "-m", compiled, "-f", contexts, timeout=SECONDS, hint=SELINUX_HINT)
        _run("semodule", f"--install={package}")


def _label() -> None:
    """Label what was installed as SELinux's policy says for these paths: else libvirt cannot run the wrapper."""
    files = [f"/{target}" for target in Manifest.load(Path("/")).files]
    _run("restorecon", "-R", "-i", str(RUN_DIRECTORY), *files)


def _reload_libvirt(verb: str) -> Iterator[Step]:
    for daemon in LIBVIRT_DAEMONS:
        if pid := pid_of(daemon):
            # libvirt remembers whether there are hooks; SIGHUP makes it look again and affects no domain.
            yield f"reloaded  {daemon}, which now {verb} the hook", partial(_hang_up, pid)


def _hang_up(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP)


def pid_file(daemon: str) -> str:
    """Return the path of the PID file of a daemon of libvirt, relative to the root."""
    return f"run/{daemon}.pid"


def pid_of(daemon: str, root: Path = Path("/")) -> int | None:
    """Return the PID of a running system daemon, from its PID file and checked against its name."""
    try:
        pid = int((root / pid_file(daemon)).read_text())
        return pid if (root / f"proc/{pid}/comm").read_text().strip() == daemon else None
    except (OSError, ValueError):
        return None
