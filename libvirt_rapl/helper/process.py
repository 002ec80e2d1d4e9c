"""The process of a helper: it makes the socket as root, gives up its privileges for good, and serves its domain.

Each domain costs the memory of one, so this imports next to nothing, and forgets what it needs only once.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
import time

from libvirt_rapl import listening, readiness
from libvirt_rapl.errors import VirtRaplError, explain, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import NoReturn

    from libvirt_rapl.helper.plans import Plan
    from libvirt_rapl.helper.vmsr.registers import Registers

OWNER = "VIRT_RAPL_HELPER_OF"
"""In the environment of a helper that is not a unit: the UUID of its domain."""
ONCE = ("ctypes", "_ctypes", "ctypes._endian", "fcntl", "resource", "libvirt_rapl.helper.confinement")
"""Modules that are only needed to give up privileges. What is imported after them takes their place in memory."""

PLAN_SECONDS = 2.0
"""A unit is started while the hook still writes its plan."""
POLL_SECONDS = 0.002


def run(path: str) -> None:
    """Become the helper whose plan is in the file at `path`, or end with a line that says why not."""
    try:
        plan = _read(path)
        listener = _listen(plan["socket"])
        if plan["program"]:
            _become_qemu_helper(plan, listener)
        life = os.open(plan["life"], os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        registers = _opened(plan["registers"])
        _confine()
    except (VirtRaplError, OSError) as error:
        hint = getattr(error, "hint", "") or "is there space, and permission?"
        sys.exit(printable(f"virt-rapl: error: {explain(error)}") + "\n" + printable(f"hint: {hint}"))
    from libvirt_rapl.helper.vmsr.serving import serve

    serve(listener, life, plan["state"], plan["owner_uid"], plan["machine"], registers)


def _read(path: str) -> Plan:
    """Return the plan, which nobody but root can have written: in a directory of root's, and a file of root's alone."""
    until = time.monotonic() + PLAN_SECONDS
    while not os.path.lexists(path) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        message = f"there is no plan for a helper at {path}: {error.strerror}"
        raise VirtRaplError(message, "helpers are started by the hook at `virsh start`") from error
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & 0o7777 != 0o600:
            raise VirtRaplError(f"{path} is not used: it is not root's alone", "remove it")
        plan: Plan = marshal.loads(bytes.fromhex(file.read().decode()))  # noqa: S302 - root has written it
    return plan


def _listen(path: str) -> socket:
    """Listen with access for ourselves alone: our starter admits the domain's user. Then systemd says that we run."""
    try:
        listener = listening.listen(path, 0o600)
    except OSError as error:
        raise VirtRaplError(f"cannot listen on {path}: {error}", "it needs root and free space") from error
    readiness.notify("READY=1")
    return listener


def _opened(registers: Registers) -> Registers:
    """Open the registers of the CPU, for which Linux asks for CAP_SYS_RAWIO: then they can be read without it."""
    constants, counters, cpus, unit = registers
    opened = [
        (package, os.open(str(file), os.O_RDONLY | os.O_CLOEXEC) if register else file, register, *rest)
        for package, file, register, *rest in counters
    ]
    return constants, opened, cpus, unit  # type: ignore[return-value]  # plain tuples, as the plan has them


def _confine() -> None:
    """Give up all that serving does not need. Raises OSError, VirtRaplError."""
    from libvirt_rapl import helper
    from libvirt_rapl.helper import confinement

    confinement.limit_resources()
    confinement.drop_privileges(registers=False)
    confinement.filter_system_calls(None)
    del helper.confinement
    for name in ONCE:  # ctypes has cycles that are kept alive from outside
        if module := sys.modules.pop(name, None):
            vars(module).clear()
    del confinement
    gc.collect()


def _become_qemu_helper(plan: Plan, listener: socket) -> NoReturn:
    """Become qemu-vmsr-helper, passing it the socket as systemd's socket activation would (sd_listen_fds(3)).

    By itself it would make a socket of root's with mode 0600, which the domain's QEMU cannot open. It does not drop its
    privileges, although it is meant to; so they are dropped here.
    """
    from libvirt_rapl.helper.confinement import drop_privileges, filter_system_calls, open_program

    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)  # also when it was 3 already and dup2 had nothing to do
    program = open_program(plan["program"])
    drop_privileges(registers=True)
    filter_system_calls(program, as_qemu=True)
    owner = {OWNER: os.environ[OWNER]} if OWNER in os.environ else {}
    os.execve(program, [plan["program"]], {**owner, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
