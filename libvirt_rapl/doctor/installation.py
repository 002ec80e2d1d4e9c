"""Checks of what has to be in place: QEMU and its wrapper, the helper, the hook, all other files, security rules."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from libvirt_rapl import __version__, paths, systemd
from libvirt_rapl.doctor.finding import FAILED, HOST_METERING_ONLY, OK, SKIPPED, WARNING, Finding, State
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.domains import emulator, security_modules
from libvirt_rapl.domains.emulator import INSTALL
from libvirt_rapl.domains.names import WRAPPER_SUFFIX
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.confinement import seccomp
from libvirt_rapl.host.processes import read
from libvirt_rapl.host.requirements import qemu_helper
from libvirt_rapl.install import activation, default_emulator, packaged, places, wrappers
from libvirt_rapl.install.program import changeable_program
from libvirt_rapl.lifecycle import events

SHOWN = 3
"""At most this many names of files are in a line."""
WATCH = paths.WRAPPERS_PATH_UNIT
HOOK_PYTHON = re.compile(r"^python='(.*)'$", re.MULTILINE)


def installation(machine: Machine) -> Iterator[Finding]:
    """Whether virt-rapl was installed here at all; other checks report what is wrong with an installation."""
    if not machine.is_installed:
        yield Finding(FAILED, "virt-rapl is not installed: there is no hook, wrapper or unit of it", INSTALL)
    elif packaged.owns(machine.root):
        yield Finding(OK, "installed as a package")
    else:
        yield Finding(OK, "installed by `virt-rapl install`")


def helper(machine: Machine) -> Iterator[Finding]:
    """Whether the configured helper can run, and counts right."""
    if not machine.can_serve_guests:
        yield HOST_METERING_ONLY
        return
    if machine.config.helper == "qemu":
        program = qemu_helper()
        message = f"{program}: with it guests read QEMU's own arithmetic, which is wrong when a thread of QEMU ends"
        yield Finding(WARNING, message, "set `helper: native`")
        return
    seccomp()
    yield Finding(OK, "native")


def qemu(machine: Machine) -> Iterator[Finding]:
    """Whether each QEMU that is installed has RAPL."""
    if not machine.can_serve_guests:
        yield HOST_METERING_ONLY
        return
    if not machine.emulators:
        yield Finding(FAILED, "there is no QEMU", f"apt install qemu-system-x86, or similar; then {INSTALL}")
    for path in machine.emulators:
        try:
            yield Finding(OK, f"QEMU {emulator.check_rapl(str(path))} at {path} has RAPL")
        except VirtRaplError as error:
            yield Finding(_severity(machine, path), error.message, error.hint)


def _severity(machine: Machine, path: Path) -> State:
    """Return how bad it is that a QEMU is of no use; if it is not a usual one, `domains` reports who needs it."""
    return FAILED if _name(machine, path) in emulator.KNOWN else WARNING


def _name(machine: Machine, path: Path) -> str:
    """Return an emulator's path as domains have it."""
    return f"/{path.relative_to(machine.root)}"


def wrapper(machine: Machine) -> Iterator[Finding]:
    """Whether each QEMU has its wrapper, and libvirt has seen the present QEMU through it."""
    if not machine.emulators:
        yield Finding(SKIPPED, "there is no QEMU to wrap")
    for path in machine.emulators:
        yield _wrapper(machine, path)
        if Path(f"{path}{WRAPPER_SUFFIX}").exists():
            yield from (
                Finding(WARNING, missing.message, missing.hint)
                for missing in security_modules.missing_rules(_name(machine, path), machine.root)
            )
    if machine.emulators and systemd.runs() and systemd.unit_property(WATCH, "ActiveState") not in ("active", ""):
        message = f"{WATCH} does not run: no wrapper is touched when its QEMU is upgraded"
        yield Finding(WARNING, message, f"systemctl enable --now {WATCH}")


def _wrapper(machine: Machine, path: Path) -> Finding:
    target = Path(f"{path}{WRAPPER_SUFFIX}")
    name = _name(machine, path)
    try:
        emulator.check_place(name, machine.root)
        emulator.check_wrapper(str(path))
    except VirtRaplError as error:
        return Finding(_severity(machine, path), error.message, machine.remedy(error, name))
    item = machine.item(str(target.relative_to(machine.root)))
    if machine.tree.digest(item.target) != item.digest:
        message = f"{target} is not the wrapper of virt-rapl {__version__}"
        return Finding(WARNING, message, machine.to_install(name))
    if wrappers.stale(path):
        message = f"{target} is older than its QEMU: libvirt still uses what it knows of the previous QEMU"
        return Finding(WARNING, message, f"touch {target}")
    return Finding(OK, f"{target} is newer than its QEMU")


def default(machine: Machine) -> Iterator[Finding]:
    """Whether libvirt runs domains that name no emulator through the wrapper, if that was asked for."""
    link = machine.root / paths.DEFAULT_EMULATOR
    if not default_emulator.is_installed(machine.root):
        yield Finding(SKIPPED, "not asked for (`virt-rapl install --default-emulator`)")
        return
    if not (machine.root / str(link.readlink()).lstrip("/") if link.is_symlink() else link).exists():
        message = f"{link} is gone or leads nowhere: domains that were defined with it do not start"
        yield Finding(FAILED, message, INSTALL)
        return
    if not emulator.wrapped_by_default(machine.root):
        message = f"{link} is not virt-rapl's link any more: domains that name no emulator get no meter"
        yield Finding(FAILED, message, f"move it away, then {INSTALL}; or keep it: --no-default-emulator")
        return
    yield Finding(OK, default_emulator.check(machine.connect(), machine.root))


def hook(machine: Machine) -> Iterator[Finding]:
    """Whether the hook is there and can run."""
    path, to_install = machine.root / paths.HOOK, machine.to_install()
    if not path.is_file():
        yield Finding(FAILED, f"there is no hook {path}: domains start without their meter", to_install)
        return
    if not os.access(path, os.X_OK):
        yield Finding(FAILED, f"{path} is not executable: libvirt ignores it", f"chmod 755 {path}")
        return
    text = machine.tree.text(paths.HOOK)
    python = HOOK_PYTHON.search(text)
    if "libvirt_rapl.lifecycle.hook" not in text or python is None:
        yield Finding(FAILED, f"{path} is not the hook of virt-rapl", f"move it away, then {to_install}")
    elif not _is_there(python[1]):
        yield Finding(FAILED, f"{path} needs {python[1]}, which is gone", to_install)
    elif text != machine.item(paths.HOOK).text:
        yield Finding(WARNING, f"{path} is not the hook of this virt-rapl {__version__}", to_install)
    else:
        yield Finding(OK, f"{path} is in place")


def _is_there(program: str) -> bool:
    """Return whether it can be run. Raises PermissionError if we may not see that."""
    with contextlib.suppress(FileNotFoundError):
        return bool(Path(program).stat() and os.access(program, os.X_OK))
    return False


def hook_seen(machine: Machine) -> Iterator[Finding]:
    """Whether libvirt knows that there are hooks: it looks when it starts, and when it gets SIGHUP.

    It looks for any hook of QEMU, not for ours. It cannot be asked what it found, so this compares times.
    """
    hooks = [machine.root / paths.LIBVIRT_HOOK, *(machine.root / paths.HOOK).parent.glob("*")]
    placed = [path.stat().st_ctime for path in hooks if path.is_file() and os.access(path, os.X_OK)]
    daemons = {daemon: began for daemon in activation.LIBVIRT_DAEMONS if (began := _last_look(machine, daemon))}
    if not placed:
        yield Finding(SKIPPED, "there is no hook that libvirt could see")
    elif not daemons:
        yield Finding(OK, "no libvirtd or virtqemud runs now; it looks when it starts")
    for daemon, began in daemons.items() if placed else ():
        hang_up = f"kill -HUP $(cat /{activation.pid_file(daemon)})"
        reload = f"systemctl reload {daemon}" if systemd.runs() else hang_up
        if min(placed) < began:
            yield Finding(OK, f"{daemon} was started or reloaded after the hook was installed")
        elif any(event.time > began for event in events.read(machine.config.run_directory)):
            yield Finding(OK, f"{daemon} has called the hook")
        else:
            yield Finding(
                WARNING,
                f"{daemon} was started before the hook was installed and has not called it: it may not know it",
                f"{reload}, which affects no domain; `virt-rapl install` has done so if it ran here",
            )


def _last_look(machine: Machine, daemon: str) -> float | None:
    """Return when libvirt's daemon started, or was reloaded by systemd if later; None when it does not run."""
    if activation.pid_of(daemon, machine.root) is None:
        return None
    started = (machine.root / activation.pid_file(daemon)).stat().st_mtime
    if machine.root != Path("/") or not systemd.runs():
        return started
    try:
        # Microseconds of the monotonic clock. A reload changes the unit's state twice.
        changed = int(systemd.unit_property(daemon, "StateChangeTimestampMonotonic"))
        return max(started, time.time() - time.monotonic() + changed / 1_000_000)
    except ValueError:
        return started


def files(machine: Machine) -> Iterator[Finding]:
    """Whether all other files are as `virt-rapl install` puts them in place, and only root can change them."""
    wrong = []
    for item in machine.items:
        now = machine.tree.digest(item.target)
        if now != item.digest and not (now and item.keep) and not _has_a_check_of_its_own(item):
            wrong.append(str(machine.root / item.target))
    others = changeable_program() | places.changeable_files(machine.tree, machine.items)
    if unsafe := list(map(str, others)):
        names = " ".join(unsafe[:SHOWN])
        more = f" and {len(unsafe) - SHOWN} more" if unsafe[SHOWN:] else ""
        hint = f"chown root:root {names} && chmod go-w {names}; then install virt-rapl anew: others may have changed it"
        yield Finding(FAILED, f"others than root can change {names}{more}", hint)
    elif wrong:
        message = f"not as virt-rapl {__version__} installs them: {', '.join(wrong)}"
        yield Finding(WARNING, message, machine.to_install())
    elif shadows := _shadows(machine):
        message = f"systemd reads {', '.join(shadows)} and not the package's"
        yield Finding(WARNING, message, f"unless it is yours: rm {' '.join(shadows)}; systemctl daemon-reload")
    else:
        yield Finding(OK, f"all {len(machine.items)} files are in place")


def _shadows(machine: Machine) -> list[str]:
    """Return the administrator's units that systemd reads instead of the package's; not masked ones (links)."""
    packages = [Path(item.target) for item in machine.items if item.target.startswith(paths.PACKAGED_UNITS)]
    units = [machine.root / paths.UNITS / path.name for path in packages]
    return [str(path) for path in units if path.is_file()]


def _has_a_check_of_its_own(item: places.Item) -> bool:
    return item.target == paths.HOOK or places.is_wrapper(item.target)


def apparmor(machine: Machine) -> Iterator[Finding]:
    """Whether AppArmor lets a confined QEMU reach its helper."""
    confines = security_modules.apparmor_confines_libvirt(machine.root)
    if confines is None:
        yield Finding(SKIPPED, "AppArmor is not on")
        return
    if not confines:
        yield Finding(OK, "AppArmor is on and does not confine libvirt")
        return
    rules = [item for item in machine.items if item.target.startswith(f"{paths.APPARMOR}/")]
    missing = [item.target for item in rules if not (machine.root / item.target).exists()]
    abstraction = machine.root / paths.APPARMOR / "abstractions/libvirt-qemu"
    if missing:
        message = f"AppArmor confines libvirt, and rules are missing: {', '.join(missing)}"
        yield Finding(FAILED, message, machine.to_install())
    elif "libvirt-qemu.d" not in (read(abstraction) or ""):
        line = "include if exists <abstractions/libvirt-qemu.d>"
        yield Finding(FAILED, f"{abstraction} does not include our rules", f"add the line `{line}` to it")
    else:
        yield Finding(OK, "AppArmor confines libvirt, and our rules are in place")


def selinux(machine: Machine) -> Iterator[Finding]:
    """Whether SELinux lets a confined QEMU reach its helper."""
    enforces = security_modules.selinux_enforces(machine.root)
    if enforces is None:
        yield Finding(SKIPPED, "SELinux is not on")
        return
    modules: set[str] = set()
    for store in (machine.root / "var/lib/selinux").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for priority in (store / "active/modules").iterdir():
                modules |= {module.name for module in priority.iterdir()}
    if "virt_rapl" in modules:
        yield Finding(OK, "SELinux has our module")
    elif enforces:
        yield Finding(FAILED, "SELinux is enforcing and has not got our module: QEMU cannot reach its helper", INSTALL)
    else:
        yield Finding(
            WARNING, "SELinux is permissive and has not got our module: enforcing, it would block QEMU", INSTALL
        )
