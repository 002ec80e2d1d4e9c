"""The processes of a simulation, and their end: whichever dies, and however, no process stays behind.

    simulate         the process the user started; it passes signals on
      keeper         lives in the simulated machine and has two children:
        server       FUSE
        COMMAND

simulate and keeper adopt the orphans below them, and kill what is left when their child ends, such as daemons that
COMMAND started. The kernel sends the keeper a signal when simulate dies, and kills the server when the keeper dies.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import system

_FORWARDED = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
_WAITED_FOR = {*_FORWARDED, signal.SIGCHLD}


def run(command: list[str], prepare: Callable[[], None]) -> int:
    """Run a command in a process that `prepare` has set up, and return its exit status: 128 + n after signal n.

    This returns in two processes, simulate and the keeper: each must end with the status that it got, or with the error
    that was raised (VirtRaplError: the command cannot be run, or what `prepare` raises).
    """
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    system.adopt_orphans()
    simulate = os.getpid()
    keeper = os.fork()
    if keeper:
        return _attend(keeper)
    system.signal_at_death_of_parent(signal.SIGTERM, simulate)
    system.adopt_orphans()
    prepare()
    try:
        # Python itself ignores SIGPIPE and SIGXFSZ, and the command would inherit that.
        child = os.posix_spawnp(
            command[0], command, os.environ, setsigmask=signals, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ]
        )
    except OSError as error:
        raise VirtRaplError(f"cannot run {command[0]}: {error.strerror}", "the command comes after `--`") from error
    return _attend(child, parent=simulate)


def start_server(serve: Callable[[Callable[[], None]], None]) -> None:
    """Run `serve` in a child, which ends with this process. Return once it calls the function that it is given.

    Raises VirtRaplError if the child ends before that.
    """
    keeper = os.getpid()
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            system.signal_at_death_of_parent(signal.SIGKILL, keeper)
            _let_go_of_input_and_output()
            serve(lambda: _report_ready(writer))
        finally:
            os._exit(1)
    os.close(writer)
    ready = os.read(reader, 1)
    os.close(reader)
    if not ready:
        raise VirtRaplError("the simulated files cannot be mounted: the FUSE server ended", "see what it printed above")


def _report_ready(writer: int) -> None:
    os.write(writer, b".")
    os.close(writer)


def _attend(child: int, parent: int | None = None) -> int:
    """Pass signals on to `child` until it ends and return its exit status; then kill all other processes below us.

    The end of `parent`, which the kernel signals to us, ends the child, too.
    """
    _let_go_of_input_and_output()
    try:
        while True:
            received = signal.sigwaitinfo(_WAITED_FOR)
            if parent is not None and os.getppid() != parent:
                return 128 + signal.SIGKILL
            if received.si_signo == signal.SIGCHLD:
                if (status := _collect(child)) is not None:
                    return status
            elif received.si_code <= 0:
                # Sent by a process. The terminal sends its signals (Ctrl-C) to the child itself.
                os.kill(child, received.si_signo)
    finally:
        _kill_children()


def _collect(child: int) -> int | None:
    """Reap all children that have ended; return the exit status of `child` if it is one of them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if pid == 0:
            return None


def _kill_children() -> None:
    """Kill the children, then those that we adopt from them, until there is none."""
    while True:
        for pid in Path("/proc/thread-self/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _let_go_of_input_and_output() -> None:
    """Close standard input and output here, so that a reader of the command's output waits only for the command."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
