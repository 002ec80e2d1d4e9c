"""A process that confines itself, tries what an attacker would want, and prints as JSON what came of each attempt.

test_confinement.py runs it: `python confined.py SCENARIO [ARGUMENT...]`, in a directory with a `file` of its own and a
file `theirs` of another user.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import termios
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from libvirt_rapl.helper import confinement

ALLOWED = "allowed"
SET_USER = 65534
Attempts = Mapping[str, Callable[[], object]]

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NAME = 4, 8, 15
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_OPEN, _CREAT, _PTRACE, _EXECVEAT, _OPENAT2, _CLONE3 = 2, 85, 101, 322, 437, 435
_libc = ctypes.CDLL(None, use_errno=True)


def main(scenario: str, *arguments: str) -> None:
    """Run a scenario."""
    print(json.dumps(SCENARIOS[scenario](*arguments)), flush=True)


def outcome(attempts: Attempts) -> dict[str, str]:
    """Try all; return the name of the error that each has raised, or ALLOWED."""
    found = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            found[name] = ALLOWED
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
        except (ValueError, RuntimeError):  # of a limit, of a thread
            found[name] = "refused"
    return found


def after_giving_up_privileges(registers: str, process: str) -> object:
    """Show what is held before and after, and what root can no longer do; `process` is another user's."""
    before = capabilities()
    _inherit(sum(1 << number for number in (0, confinement.CAP_SYS_RAWIO) if before["CapPrm"] >> number & 1))
    confinement.drop_privileges(registers=registers == "True")
    attempts = {
        "read another's file": lambda: os.open("theirs", os.O_RDONLY),
        "give a file away": lambda: os.chown("file", 4321, 4321),
        "take a file": lambda: os.chown("theirs", 0, 0),
        "signal another's process": lambda: os.kill(int(process), 0),
        "look into another's process": lambda: os.open(f"/proc/{process}/mem", os.O_RDONLY),
        "become another user": lambda: os.setuid(4321),
        "join a group": lambda: os.setgroups([4321]),
        "change the root": lambda: os.chroot("."),
        "make a device": lambda: os.mknod("device", 0o60600, os.makedev(7, 0)),
        "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_NICE, (40, 40)),
        "name the machine": lambda: socket.sethostname(socket.gethostname()),
    }
    return {"before": before, "after": capabilities(), "program": _shown_by_a_program(), "attempts": outcome(attempts)}


def as_nobody() -> object:
    """Show what happens to a process that may not give up what it has."""
    os.setgroups([])
    os.setresuid(SET_USER, SET_USER, SET_USER)
    return outcome({"give up": lambda: confinement.drop_privileges(registers=False)})


def a_daemon_and_its_programs(keep: str) -> object:
    """Show the capabilities of a program run by a daemon like virt-rapld, which is nobody with ambient ones."""
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(SET_USER, SET_USER, SET_USER)
    _inherit(1 << confinement.CAP_SYS_RAWIO)
    if keep == "True":
        confinement.keep_capabilities_from_programs()
    return {"ours": capabilities(), "program": _shown_by_a_program()}


def limits(*hard: str) -> object:
    """Lower these limits (NAME=NUMBER), then limit all; return soft and hard limits before and after."""
    for name, _, number in (each.partition("=") for each in hard):
        resource.setrlimit(getattr(resource, name), (int(number), int(number)))
    before = _limits()
    confinement.limit_resources()
    return {"before": before, "after": _limits()}


def program() -> object:
    """Return which descriptors are open and inherited once there is one of a program, and how many there can be."""
    opened, before = _open_descriptors(), _limits()
    found = confinement.open_program(sys.executable)
    return {
        "descriptor": found,
        "new": sorted(_open_descriptors() - opened),
        "inherited": os.get_inheritable(found),
        "before": before,
        "after": _limits(),
    }


def filtered(as_qemu: str) -> object:
    """Show what the filter of system calls leaves, then execute the program, which tries to execute itself."""
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind("\0virt-rapl-confined" + str(os.getpid()))
    listener.listen()
    client.connect(listener.getsockname())
    client.sendall(b"question")
    file, parent, pidfd = os.open("file", os.O_RDONLY), os.getppid(), os.pidfd_open(os.getppid())
    program = confinement.open_program(sys.executable)
    confinement.drop_privileges(registers=True)
    confinement.filter_system_calls(program, as_qemu=as_qemu == "True")
    here, most = Path(), (resource.RLIM_INFINITY,) * 2

    def answer() -> None:
        peer, _ = listener.accept()
        peer.sendall(peer.recv(100))
        assert client.recv(100) == b"question"

    def process() -> None:
        if os.fork() == 0:
            os._exit(0)

    allowed = {
        "read": lambda: (here / "file").read_text(),
        "list": lambda: list(here.iterdir()),
        "answer": answer,
        "times of an open file": lambda: os.utime(file, (1, 2)),
        "own limit": lambda: resource.getrlimit(resource.RLIMIT_FSIZE),
    }
    of_qemu = {
        "thread": lambda: threading.Thread(target=len, args=[""]).start(),
        "name of a thread": lambda: _checked(_libc.prctl(_PR_SET_NAME, b"name", 0, 0, 0)),
        "not to wait": lambda: fcntl.fcntl(listener, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK),
    }
    forbidden = {
        "socket": lambda: socket.socket(socket.AF_UNIX),
        "connect": lambda: socket.socket(fileno=client.fileno()).connect("/nowhere"),
        "write": lambda: os.open("file", os.O_WRONLY),
        "append": lambda: os.open("file", os.O_WRONLY | os.O_APPEND),
        "update": lambda: os.open("file", os.O_RDWR),
        "empty": lambda: os.open("file", os.O_RDONLY | os.O_TRUNC),
        "create": lambda: os.open("other", os.O_RDONLY | os.O_CREAT),
        "write by open": lambda: _system_call(_OPEN, b"file", os.O_WRONLY),
        "empty by open": lambda: _system_call(_OPEN, b"file", os.O_RDONLY | os.O_TRUNC),
        "create by creat": lambda: _system_call(_CREAT, b"other", 0o600),
        "write by openat2": lambda: _system_call(_OPENAT2, -100, b"file", b"\1" + bytes(23), 24),
        "unlink": lambda: (here / "file").unlink(),
        "rename": lambda: (here / "file").rename("other"),
        "link": lambda: (here / "other").hardlink_to("file"),
        "symbolic link": lambda: (here / "other").symlink_to("file"),
        "directory": lambda: (here / "directory").mkdir(),
        "mode": lambda: (here / "file").chmod(0o777),
        "mode of an open file": lambda: os.fchmod(file, 0o777),
        "owner": lambda: os.chown("file", 0, 0),
        "times of a path": lambda: os.utime("file", (0, 0)),
        "process": process,
        "process by clone3": lambda: _system_call(_CLONE3, bytes(88), 88),
        "execute": lambda: os.execv("/bin/true", ["true"]),
        "execute another descriptor": lambda: os.execve(file, ["file"], {}),
        "execute a path": lambda: _system_call(_EXECVEAT, program, b"/bin/true", None, None, 0),
        "signal": lambda: os.kill(parent, 0),
        "signal by a descriptor": lambda: signal.pidfd_send_signal(pidfd, 0),
        "signal to itself": lambda: signal.raise_signal(signal.SIGCHLD),
        "trace": lambda: _system_call(_PTRACE, 16, parent, 0, 0),
        "limit of another": lambda: resource.prlimit(parent, resource.RLIMIT_CPU, most),
        "limit of another, read": lambda: resource.prlimit(parent, resource.RLIMIT_CPU),
        "limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, most),
        "owner of signals": lambda: fcntl.fcntl(listener, fcntl.F_SETOWN, parent),
        "which signal": lambda: fcntl.fcntl(listener, fcntl.F_SETSIG, 9),
        "signals": lambda: fcntl.fcntl(listener, fcntl.F_SETFL, os.O_ASYNC),
        "lease": lambda: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK),
        "signals by ioctl": lambda: fcntl.ioctl(listener, termios.FIOASYNC, struct.pack("i", 1)),
        "flags of a file": lambda: fcntl.ioctl(file, 0x40086602, struct.pack("l", 0x40)),
        "typing": lambda: fcntl.ioctl(file, termios.TIOCSTI, b"x"),
        "to be seen by others": lambda: _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)),
        "become another user": lambda: os.setuid(SET_USER),
        "change the root": lambda: os.chroot("."),
    }
    found = {
        "allowed": outcome(allowed),
        "of_qemu": outcome(of_qemu),
        "forbidden": outcome(forbidden),
    }
    print(json.dumps(found), flush=True)
    again = f"import os; os.execve({program}, ['again'], os.environ)"
    os.execve(program, [sys.executable, "-ISc", again], os.environ)


def _limits() -> dict[str, tuple[int, int]]:
    names = ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_DATA", "RLIMIT_FSIZE")
    return {name: resource.getrlimit(getattr(resource, name)) for name in names}


def capabilities() -> dict[str, int]:
    """Return our sets of capabilities, and whether programs can give us more."""
    return _capabilities(Path("/proc/self/status").read_text())


def _shown_by_a_program() -> dict[str, int]:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.dup2(writer, 1)
        os.execv("/bin/cat", ["cat", "/proc/self/status"])
    os.close(writer)
    with open(reader) as output:
        text = output.read()
    os.wait()
    return _capabilities(text)


def _capabilities(status: str) -> dict[str, int]:
    values = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs")))
    return {name: int(value, 16) for name, value in values.items()}


def _inherit(wanted: int) -> None:
    """Make these capabilities inheritable, and ambient: they survive exec."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    _checked(_libc.capget(header, sets))
    sets[0], sets[2] = sets[1], wanted
    _checked(_libc.capset(header, sets))
    for number in (number for number in range(32) if wanted >> number & 1):
        _checked(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0))


def _open_descriptors() -> set[int]:
    numbers = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return {number for number in numbers if os.path.lexists(f"/proc/self/fd/{number}")}  # not that of the directory


def _system_call(number: int, *arguments: object) -> None:
    _checked(_libc.syscall(ctypes.c_long(number), *arguments))


def _checked(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), "")


SCENARIOS: dict[str, Callable[..., object]] = {
    each.__name__: each
    for each in (after_giving_up_privileges, as_nobody, a_daemon_and_its_programs, limits, program, filtered)
}

if __name__ == "__main__":
    main(*sys.argv[1:])
