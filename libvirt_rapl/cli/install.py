"""Put the libvirt hook, the emulator wrappers, the systemd units and the default configuration in place.

It can be run again at any time: files that are right stay as they are, and so does a configuration that was changed.
If a package of the distribution has put these files in place, only wrappers for other emulators are added.
With --default-emulator, domains that name no emulator run through the wrapper, so that the configuration's `domains`
can give them a meter without a change of their definition. This stays until --no-default-emulator.
It refuses if users other than root can change what root would run: see --force.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from libvirt_rapl.cli import say, warn
from libvirt_rapl.cli.installing import add_common_arguments, carry_out
from libvirt_rapl.domains import emulator, security_modules
from libvirt_rapl.domains.names import DEFAULT_EMULATOR
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import activation, default_emulator, packaged, wrappers
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
    parser.add_argument(
        "--default-emulator",
        action=argparse.BooleanOptionalAction,
        help="make the wrapper libvirt's default emulator, or no longer (default: as it is)",
    )


def run(options: argparse.Namespace) -> int:
    """Install and say what was done."""
    root, here = options.prefix_root, options.prefix_root == Path("/")
    if options.package:
        return _stage(root, dry_run=options.dry_run)
    if here and not options.force:
        _check_program()
    is_packaged = packaged.owns(root)
    default = _default_emulator(options, here=here)
    named = wrappers.emulators(root, _named_emulators(options.connect) if here else ())
    refusals = {path: wrappers.refusal(root, path) for path in named}
    emulators = [path for path, refusal in refusals.items() if refusal is None]
    if is_packaged:
        say(packaged.NOT_OURS)
        emulators = [path for path in emulators if path != DEFAULT_EMULATOR]
    for line in install(root, emulators, wrappers_only=is_packaged, default_emulator=default, dry_run=options.dry_run):
        say(line)
    for line in wrappers.refresh(root, dry_run=options.dry_run):
        say(line)
    if here:
        carry_out(activation.after_install(), dry_run=options.dry_run)
    if not named and not is_packaged:
        say("no emulator found: install QEMU and run `virt-rapl install` again")
    warnings = [refusal for refusal in refusals.values() if refusal]
    warnings += _of_this_system(emulators) if here else []
    if default and here and not options.dry_run:
        warnings += _check_default_emulator(options)
    for warning in warnings:
        warn(warning.message, warning.hint)
    return 0


def _default_emulator(options: argparse.Namespace, *, here: bool) -> str | None:
    """Return the emulator whose wrapper is to be libvirt's default emulator; None if none is. Raises VirtRaplError."""
    root, asked = options.prefix_root, options.default_emulator
    if asked is not None and not here:
        raise VirtRaplError("libvirt's default emulator is looked for on this machine", "leave --prefix-root out")
    is_installed = default_emulator.is_installed(root)
    if not (is_installed if asked is None else asked):
        if is_installed:
            _check_that_none_needs_it(options.connect)
        return None
    wrapped = emulator.wrapped_by_default(root) or emulator.installed()
    if not is_installed:
        emulator.check_rapl(wrapped)
        emulator.check_place(wrapped)
        _connect(options.connect)  # which starts libvirt's daemon, if systemd does that
        default_emulator.check_path()
    return wrapped


def _check_default_emulator(options: argparse.Namespace) -> list[VirtRaplError]:
    """Say that libvirt has taken it, or return why not. Raises VirtRaplError where it was asked for now."""
    try:
        say(f"checked   {default_emulator.check(_connect(options.connect))}")
    except VirtRaplError as error:
        if options.default_emulator:
            raise
        return [error]  # an upgrade needs no libvirt
    return []


def _check_that_none_needs_it(uri: str) -> None:
    from libvirt_rapl.install import still_needed

    connection = _connect(uri)
    if left := [each for each in still_needed.find(connection) if each.why in still_needed.BY_DEFAULT]:
        raise VirtRaplError(
            f"domains still have the default emulator: {', '.join(map(str, left))}",
            f"shut down those that run, then for each {still_needed.NAME_QEMU}",
        )
    for name in still_needed.old_snapshots(connection, still_needed.needs_default_emulator):
        warn(
            f"{name}: this snapshot has the default emulator in it, and can be restored only while that is there",
            "`virt-rapl install --default-emulator` before `virsh snapshot-revert`, or make a new snapshot now",
        )


def _connect(uri: str) -> Any:  # noqa: ANN401  libvirt-python has no types
    from libvirt_rapl.domains.connection import connect

    return connect(uri, read_only=True)


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
    from libvirt_rapl.domains.named_emulators import named_emulators

    try:
        return named_emulators(_connect(uri))
    except VirtRaplError:
        return []  # without libvirt only the usual ones are known
