"""Put the libvirt hook, the emulator wrappers, the systemd units and the default configuration in place.

It can be run again at any time: files that are right stay as they are, and so does a configuration that was changed.
If a package of the distribution has put these files in place, only wrappers for other emulators are added.
It refuses if users other than root can change what root would run: see --force.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from libvirt_rapl.cli import say, warn
from libvirt_rapl.cli.installing import add_common_arguments, carry_out
from libvirt_rapl.domains import security_modules
from libvirt_rapl.domains.domxml import DEFAULT_EMULATOR
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import activation, packaged, wrappers
from libvirt_rapl.install.installer import install
from libvirt_rapl.install.program import PROGRAM, changeable_program, closed_directory, to_open


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(parser)
    parser.add_argument(
        "--package", action="store_true", help="stage the files under DIR as those of a distribution's package"
    )
    parser.add_argument(
        "--force", action="store_true", help="install even if other users can change this program, which root then runs"
    )


def run(options: argparse.Namespace) -> int:
    """Install and say what was done."""
    root, here = options.prefix_root, options.prefix_root == Path("/")
    if options.package:
        return _stage(root, dry_run=options.dry_run)
    if here and not options.force:
        _check_program()
    is_packaged = packaged.owns(root)
    named = wrappers.emulators(root, _named_emulators(options.connect) if here else ())
    refusals = {path: wrappers.refusal(root, path) for path in named}
    emulators = [path for path, refusal in refusals.items() if refusal is None]
    if is_packaged:
        say(packaged.NOT_OURS)
        emulators = [path for path in emulators if path != DEFAULT_EMULATOR]
    for line in install(root, emulators, wrappers_only=is_packaged, dry_run=options.dry_run):
        say(line)
    for line in wrappers.refresh(root, dry_run=options.dry_run):
        say(line)
    if here:
        carry_out(activation.after_install(), dry_run=options.dry_run)
    if not named and not is_packaged:
        say("no emulator found: install QEMU and run `virt-rapl install` again")
    warnings = [refusal for refusal in refusals.values() if refusal]
    warnings += _of_this_system(emulators) if here else []
    for warning in warnings:
        warn(warning.message, warning.hint)
    return 0


def _of_this_system(emulators: Iterable[str]) -> list[VirtRaplError]:
    """Return what may keep wrappers or virt-rapld from running here."""
    found = [missing for path in emulators for missing in security_modules.missing_rules(path)]
    if closed := closed_directory(*PROGRAM):
        message = f"{closed} is not open to all users: virt-rapld, which is not root, may not run from there"
        found.append(VirtRaplError(message, to_open(closed)))
    return found


def _check_program() -> None:
    """Raise VirtRaplError if others can change the program: libvirt's hook and the units run it as root."""
    for place, who in changeable_program().items():
        raise VirtRaplError(
            f"others than root can change {place}, which root would run: {who}",
            "install virt-rapl where only root can write, as in /opt/virt-rapl; or use --force",
        )


def _stage(root: Path, *, dry_run: bool) -> int:
    if root == Path("/"):
        raise VirtRaplError("a package is not staged in /", "give --prefix-root, a directory to make the package from")
    for line in packaged.stage(root, dry_run=dry_run):
        say(line)
    return 0


def _named_emulators(uri: str) -> list[str]:
    from libvirt_rapl.domains.connection import connect
    from libvirt_rapl.domains.named_emulators import named_emulators

    try:
        return named_emulators(connect(uri, read_only=True))
    except VirtRaplError:
        return []  # without libvirt only the usual ones are known
