"""AppArmor and SELinux: whether they confine libvirt's QEMU here, and whether their rules allow a wrapper elsewhere.

The rules that come with virt-rapl name the wrappers of the emulators that distributions have. For another emulator its
owner has had to add rules to AppArmor or SELinux, and must add some for the wrapper.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from libvirt_rapl import paths
from libvirt_rapl.domains.emulator import KNOWN, is_default_wrapper
from libvirt_rapl.domains.names import WRAPPER_SUFFIX
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host.processes import read

APPARMOR = Path(paths.APPARMOR)
LIBVIRT_PROFILES = re.compile(r"(?:\S*/)?(?:libvirtd|virtqemud|libvirt-\S+) \(enforce\)")
DAEMONS = ("usr.sbin.libvirtd", "usr.sbin.virtqemud")
"""Files with the profiles of libvirt's daemons, which run an emulator to ask what it can do."""
OF_DOMAINS = "abstractions/libvirt-qemu"
"""What the profiles of all domains include."""
EXECUTES = re.compile(r'^\s*(?:(?:audit|allow)\s+)*"?(/[^"\s]*)"?\s+[a-zA-Z]*[xX]\b', re.MULTILINE)
"""A rule that allows a program to be executed: its path, which may be a pattern."""
QEMU_TYPE = "qemu_exec_t"


def apparmor_confines_libvirt(root: Path) -> bool | None:
    """Return whether AppArmor confines libvirt or its domains; None if it is not on. Raises OSError."""
    if (read(root / "sys/module/apparmor/parameters/enabled") or "").strip() != "Y":
        return None
    profiles = (root / "sys/kernel/security/apparmor/profiles").read_text(encoding="utf-8")
    return any(LIBVIRT_PROFILES.fullmatch(line) for line in profiles.splitlines())


def selinux_enforces(root: Path) -> bool | None:
    """Return whether SELinux enforces its policy; None if it is not on."""
    enforce = read(root / paths.SELINUX)
    return None if enforce is None else enforce.strip() == "1"


def missing_rules(emulator: str, root: Path = Path("/")) -> Iterator[VirtRaplError]:
    """Yield the rules for the wrapper of an emulator that this machine's security modules lack, and how to add them.

    `emulator` is its path as seen under `root`. A user who may not read whether AppArmor is on gets nothing for it.
    """
    if emulator in KNOWN or is_default_wrapper(emulator):  # that is a link to the wrapper of a known one
        return
    wrapper = emulator + WRAPPER_SUFFIX
    confined = False
    with contextlib.suppress(OSError):
        confined = bool(apparmor_confines_libvirt(root))
    if confined:
        for file, rule in _apparmor_rules(wrapper, root):
            message = f"AppArmor lets nobody run {wrapper}: a domain with a meter there does not start"
            yield VirtRaplError(message, f"add `{rule}` to /{file}, then `systemctl reload apparmor`")
    if selinux_enforces(root) is not None and (label := _type_of(root / wrapper.lstrip("/"))) != QEMU_TYPE:
        pattern = re.escape(wrapper).replace(r"\-", "-")
        message = f"SELinux labels {wrapper} {label}, not {QEMU_TYPE}: a domain with a meter there does not start"
        yield VirtRaplError(message, f"semanage fcontext -a -t {QEMU_TYPE} '{pattern}' && restorecon {wrapper}")


def _apparmor_rules(wrapper: str, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the missing rules: a file for the administrator's additions, and the line."""
    directory = root / APPARMOR
    if not _lets_run(wrapper, [directory / OF_DOMAINS, *sorted((directory / f"{OF_DOMAINS}.d").glob("*"))], directory):
        yield APPARMOR / f"{OF_DOMAINS}.d/local", f"{wrapper} rix,"
    for name in DAEMONS:
        if (directory / name).exists() and not _lets_run(wrapper, [directory / name], directory):
            yield APPARMOR / "local" / name, f"{wrapper} PUx,"


def _lets_run(wrapper: str, profiles: list[Path], directory: Path) -> bool:
    """Return whether one of these files, or the administrator's addition to it, allows a file to be executed."""
    files = [*profiles, *(directory / "local" / path.relative_to(directory) for path in profiles)]
    rules = (rule for path in files for rule in EXECUTES.findall(read(path) or ""))
    return any(_matches(rule, wrapper) for rule in rules)


def _matches(pattern: str, path: str) -> bool:
    """Return whether a path matches a pattern of AppArmor; one with variables, or other syntax, matches nothing."""
    parts = {"**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
    tokens = re.findall(r"\*\*|.", pattern)
    try:
        return re.fullmatch("".join(parts.get(token, re.escape(token)) for token in tokens), path) is not None
    except re.error:
        return False


def _type_of(path: Path) -> str:
    try:
        label = os.getxattr(path, "security.selinux").decode(errors="replace").rstrip("\0")
    except OSError:
        return "not at all"
    return (label.split(":") + [""] * 3)[2]
