"""Whether a QEMU binary can give a guest RAPL, and has our wrapper beside it."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from libvirt_rapl import paths
from libvirt_rapl.commands import ask
from libvirt_rapl.domains.names import DEFAULT_EMULATOR, WRAPPER_SUFFIX
from libvirt_rapl.errors import NoRegistersError, VirtRaplError
from libvirt_rapl.host.requirements import check_processor
from libvirt_rapl.tree import Tree

KNOWN = (DEFAULT_EMULATOR, "/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm", "/usr/bin/kvm")
"""Where distributions have QEMU for x86_64, in the order in which libvirt looks there."""
DEFAULT_WRAPPER = Path("/", paths.DEFAULT_EMULATOR)
INSTALL = "run `virt-rapl install`"
ELSEWHERE = "make a link to QEMU in a directory on disk that only root writes, and name that in <emulator>"
OLDEST = (9, 1)
TIMEOUT = 10.0
"""Seconds a QEMU may take to answer; it needs about 0.03."""
SCRIPT = "if it is a script that chooses an accelerator (-enable-kvm, accel=), remove that: libvirt does it"
# Without a machine, and with TCG if QEMU has it, so that it works without KVM. TCG's code buffer is mapped twice, so
# that no memory is written and executed at one address: systemd's MemoryDenyWriteExecute= forbids that to virt-rapld.
ARGUMENTS = ["-no-user-config", "-nodefaults", "-display", "none", "-machine", "none", "-qmp", "stdio"]
ARGUMENTS += ["-accel", "tcg,split-wx=on", "-accel", "kvm"]
QUESTIONS = [
    {"execute": "qmp_capabilities"},
    {"execute": "qom-list-properties", "arguments": {"typename": "kvm-accel"}, "id": "properties"},
    {"execute": "quit"},
]


def installed() -> str:
    """Return the path of this machine's emulator: Debian's name, or another one if only that exists."""
    return next((path for path in KNOWN if Path(path).exists()), DEFAULT_EMULATOR)


def check(path: str) -> None:
    """Raise VirtRaplError unless the emulator at `path` (the real one, not the wrapper) can do RAPL through us here.

    That is: this host's processor can (or ProcessorError), check_rapl() passes, and the wrapper is beside it for good.
    """
    check_processor()
    check_rapl(path)
    check_place(path)
    check_wrapper(path)


def check_rapl(path: str) -> str:
    """Return the version of the emulator, such as `10.0.2`, if it can do RAPL; else raise VirtRaplError.

    That is: it runs, is QEMU 9.1 or newer, and has the property `rapl` of kvm-accel.
    """
    numbers, properties = _ask(path)
    name = ".".join(map(str, numbers))
    if numbers < OLDEST:
        raise NoRegistersError(
            f"QEMU {name} at {path} is too old for RAPL", "install QEMU 9.1 or newer (Debian 12: from backports)"
        )
    if "rapl" not in properties:
        raise NoRegistersError(f"QEMU {name} at {path} was built without RAPL for KVM", "install one built for x86 KVM")
    return name


def is_default_wrapper(path: str) -> bool:
    """Return whether this is the link to a wrapper that `virt-rapl install --default-emulator` has put in place."""
    return path == str(DEFAULT_WRAPPER) and wrapped_by_default() is not None


def wrapped_by_default(root: Path = Path("/")) -> str | None:
    """Return the emulator behind that link under `root`; None if there is no such link."""
    try:
        target = str((root / str(DEFAULT_WRAPPER).lstrip("/")).readlink())
    except OSError:
        return None
    return target.removesuffix(WRAPPER_SUFFIX) if target.endswith(WRAPPER_SUFFIX) else None


def check_wrapper(path: str) -> None:
    """Raise VirtRaplError unless the wrapper is beside the emulator and QEMU's user can run it."""
    wrapper = path + WRAPPER_SUFFIX
    try:
        mode = Path(wrapper).stat().st_mode
    except OSError as error:
        raise VirtRaplError(f"there is no emulator wrapper {wrapper}", INSTALL) from error
    if mode & 0o005 != 0o005:
        raise VirtRaplError(f"not every user may run the emulator wrapper {wrapper}", f"chmod 755 {wrapper}")


def check_place(path: str, root: Path = Path("/")) -> None:
    """Raise VirtRaplError if the emulator at `path`, as seen under `root`, cannot have a wrapper beside it.

    That is: if users other than root could put something in its place, or it would not last.
    """
    tree, name = Tree(root), path.lstrip("/")
    for place, who in (tree.writable(name) | tree.changeable(name)).items():
        hint = f"chown root:root {place} && chmod go-w {place}, after you have checked what is there"
        raise VirtRaplError(f"{path} can have no wrapper: others than root can change {place}: {who}", hint)
    directory = (root / name).parent
    if is_volatile(directory, root):
        message = f"{path} can have no wrapper: {directory} is in memory (tmpfs), and empty after the next boot"
        raise VirtRaplError(message, ELSEWHERE)
    if os.statvfs(directory).f_flag & os.ST_RDONLY and not Path(f"{root / name}{WRAPPER_SUFFIX}").exists():
        raise VirtRaplError(f"{path} can have no wrapper: {directory} cannot be written to", ELSEWHERE)


def is_volatile(directory: Path, root: Path = Path("/"), mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Return whether a directory is in memory, and `root` is not."""
    device = directory.stat().st_dev
    if device == root.stat().st_dev:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, kind = line.partition(" - ")
        if fields.split()[2] == number:
            return kind.split()[0] in ("tmpfs", "ramfs")
    return False


def version(path: str) -> str:
    """Return the version of the emulator at `path`, such as `10.0.2`. Raises VirtRaplError when it does not answer."""
    return ".".join(map(str, _ask(path)[0]))


def _ask(path: str) -> tuple[tuple[int, int, int], set[str]]:
    """Return QEMU's version and the names of the properties of its KVM accelerator (none if it has no KVM)."""
    # The path comes from a domain's XML: libvirt does not run it as root just to ask, and neither do we.
    try:
        _check_program(path)
        question = "".join(json.dumps(each) + "\n" for each in QUESTIONS)
        qemu = ask(path, *ARGUMENTS, question=question, timeout=TIMEOUT)
    except TimeoutError as error:
        raise VirtRaplError(f"{path} did not answer within {TIMEOUT:.0f} s", "is it QEMU?") from error
    except OSError as error:
        closed = isinstance(error, PermissionError)
        hint = f"libvirt runs it as a user of its own: chmod a+rx {path}" if closed else "install QEMU 9.1 or newer"
        raise VirtRaplError(f"cannot run the emulator {path}: {error.strerror}", hint) from error
    try:
        return _understand(list(_messages(qemu.stdout)))
    except (AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
        last_words = " ".join(qemu.stderr.split())[-200:] or "it said nothing"
        hint = SCRIPT if "accel" in last_words else "is it QEMU?"
        raise VirtRaplError(f"{path} does not answer as QEMU does: {last_words}", hint) from error


def _check_program(path: str) -> None:
    """Raise VirtRaplError for a program that others can change, or that would get more rights than its caller."""
    for place, who in Tree(Path("/")).changeable(path).items():
        hint = f"give it to root: chown root:root {place} && chmod go-w {place}"
        raise VirtRaplError(f"{path} is not run to be asked: {place}: {who}", hint)
    if Path(path).stat().st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise VirtRaplError(
            f"{path} is not run to be asked: it is set-user-ID or set-group-ID", "name QEMU in <emulator>"
        )


def _messages(output: str) -> Iterator[dict[str, Any]]:
    """Yield what QEMU has answered; a script that starts it may have printed lines of its own."""
    for line in output.splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(message := json.loads(line), dict):
                yield message


def _understand(messages: list[dict[str, Any]]) -> tuple[tuple[int, int, int], set[str]]:
    numbers = next(message["QMP"] for message in messages if "QMP" in message)["version"]["qemu"]
    answer = next(message for message in messages if message.get("id") == "properties")
    # An unknown type is answered with "error".
    return (numbers["major"], numbers["minor"], numbers["micro"]), {item["name"] for item in answer.get("return", [])}
