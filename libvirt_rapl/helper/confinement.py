"""Giving up, for good, whatever a helper does not need: capabilities, privileges of programs, system calls, resources.

All of it also holds for the programs that the process becomes by exec.
"""

import ctypes
import fcntl
import os
import resource

from libvirt_rapl.errors import VirtRaplError

CAP_SYS_RAWIO = 17
"""Needed to read model-specific registers."""
DESCRIPTORS = 4096
DATA_BYTES = 256 << 20
FILE_BYTES = 64 << 10
"""How long a file may become by writing: a log."""

READING = """
    access arch_prctl brk clock_getres clock_gettime clock_nanosleep close close_range dup epoll_create1 epoll_ctl
    epoll_pwait epoll_wait eventfd2 exit exit_group faccessat faccessat2 fadvise64 fstat fstatfs futex
    getcwd getdents64 getegid geteuid getgid getpid getppid getrandom getrlimit gettid getuid lseek lstat madvise
    mmap mprotect mremap munmap newfstatat poll ppoll pread64 read readlink readlinkat restart_syscall rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield set_robust_list
    set_tid_address sigaltstack stat statfs statx sysinfo uname write
"""
"""What an interpreter needs to start, read files and wait; see also filter_system_calls()."""
ANSWERING = "accept accept4 getpeername getsockname getsockopt recvfrom recvmsg sendmsg sendto shutdown"
"""What a server needs if its socket already listens."""
CONTROLS = (0x5401, 0x5451, 0x5450, 0x5421)
"""What an interpreter does with descriptors: is it a terminal, is it inherited, does it block.

TCGETS, FIOCLEX, FIONCLEX and FIONBIO of termios, which would stay in the memory of each helper.
"""
COMMANDS = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL)
"""The others could send a signal to any process, or break a lease."""

_LIBSECCOMP = "libseccomp.so.2"
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_ALLOW = 0x7FFF0000
_AS_IF_NOT_THERE = 0x00050000 | 38
"""SCMP_ACT_ERRNO(ENOSYS): libraries then try an older system call, which may be allowed."""
_CLONE_THREAD = 0x10000
_PR_OF_QEMU = (_PR_CAPBSET_READ, 27, 39, 15, 29)
"""Reading what can be given up (PR_GET_SECUREBITS, PR_GET_NO_NEW_PRIVS), PR_SET_NAME and PR_SET_TIMERSLACK."""
_EQUAL, _MASKED_EQUAL = 4, 7
_AT_EMPTY_PATH = 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


def drop_privileges(*, registers: bool) -> None:
    """Keep CAP_SYS_RAWIO if `registers` are to be read, no other capability, and no way to get any. Raises OSError."""
    capability = 0
    while (held := _prctl(_PR_CAPBSET_READ, capability, fails=False)) >= 0:
        if held and capability != CAP_SYS_RAWIO:
            _prctl(_PR_CAPBSET_DROP, capability)
        capability += 1
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    _check(_libc.capget(header, sets))
    # The first words of the effective, permitted and inheritable sets; then the second words.
    kept = sets[1] & 1 << CAP_SYS_RAWIO if registers else 0
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept)))


def keep_capabilities_from_programs() -> None:
    """Keep our capabilities from programs that we execute, unless as root; in this thread and those that it starts."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def limit_resources() -> None:
    """Allow no core dump, and limit memory and descriptors to well above what is needed."""
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_DATA, DATA_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def open_program(path: str) -> int:
    """Limit resources, and return a program's descriptor, whose number no other file can get: it is above the limit.

    It is closed when the program is executed. Raises OSError.
    """
    limit_resources()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.dup2(descriptor, most - 1, inheritable=False)
    os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most - 1, most - 1))
    return most - 1


def filter_system_calls(program: int | None, *, as_qemu: bool = False) -> None:
    """Allow the system calls of READING and ANSWERING; any other fails as if the kernel did not have it.

    Files can be opened for reading only; no socket, process or thread can be made, no file created or removed; the
    times of an open file of ours can be set. No other process can be reached by a signal or a limit. Only the
    descriptor `program` from open_program() can be executed, and that program can execute nothing; None: nothing can.
    A program made of QEMU's parts (`as_qemu`) can also make threads, and receive signals by a descriptor. Raises
    VirtRaplError if the library is missing, OSError if the kernel has no filters.
    """
    library = seccomp()
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_AS_IF_NOT_THERE))
    for name in (READING + ANSWERING).split():
        _allow(library, context, name)
    for command in COMMANDS:
        _allow(library, context, "fcntl", _Comparison(1, _MASKED_EQUAL, 0xFFFFFFFF, command))
    for control in CONTROLS:
        _allow(library, context, "ioctl", _Comparison(1, _MASKED_EQUAL, 0xFFFFFFFF, control))
    _allow(library, context, "prlimit64", _Comparison(0, _EQUAL, 0), _Comparison(2, _EQUAL, 0))  # our own are read
    _allow(library, context, "utimensat", _Comparison(1, _EQUAL, 0))  # of a descriptor, not of a path
    if program is not None:
        _allow(library, context, "execveat", _Comparison(0, _EQUAL, program), _Comparison(4, _EQUAL, _AT_EMPTY_PATH))
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    _allow(library, context, "open", _Comparison(1, _MASKED_EQUAL, writing, 0))
    _allow(library, context, "openat", _Comparison(2, _MASKED_EQUAL, writing, 0))
    if as_qemu:
        _allow(library, context, "clone", _Comparison(0, _MASKED_EQUAL, _CLONE_THREAD, _CLONE_THREAD))
        for name in ("signalfd4", "capget", "membarrier"):
            _allow(library, context, name)
        for option in _PR_OF_QEMU:
            _allow(library, context, "prctl", _Comparison(0, _EQUAL, option))
        other_flags = 0xFFFFFFFF & ~(os.O_RDWR | os.O_NONBLOCK)
        waits = _Comparison(2, _MASKED_EQUAL, other_flags, 0)
        _allow(library, context, "fcntl", _Comparison(1, _MASKED_EQUAL, 0xFFFFFFFF, fcntl.F_SETFL), waits)
    _check_seccomp(library.seccomp_load(context))
    library.seccomp_release(context)


def seccomp() -> ctypes.CDLL:
    """Load the library that makes the filters. Raises VirtRaplError if it is missing."""
    try:
        return ctypes.CDLL(_LIBSECCOMP)
    except OSError as error:
        raise VirtRaplError(
            f"{_LIBSECCOMP} is missing", "install libseccomp; on Debian: apt install libseccomp2"
        ) from error


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp: argument, operator, two operands: mask and value, or a value alone."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _allow(library: ctypes.CDLL, context: ctypes.c_void_p, name: str, *comparisons: _Comparison) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == -1:  # this library is older than the system call
        return
    array = (_Comparison * len(comparisons))(*comparisons)
    _check_seccomp(library.seccomp_rule_add_array(context, _ALLOW, number, len(comparisons), array))


def _check_seccomp(result: int) -> None:
    if result < 0:
        raise OSError(-result, f"seccomp: {os.strerror(-result)}")


def _prctl(option: int, argument: int, *, fails: bool = True) -> int:
    result = int(_libc.prctl(option, *(ctypes.c_ulong(value) for value in (argument, 0, 0, 0))))
    return _check(result) if fails else result


def _check(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"confinement: {os.strerror(number)}")
    return result
