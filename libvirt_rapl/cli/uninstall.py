"""Remove what `virt-rapl install` has put in place, except what was changed since.

Nothing is removed while domains need it: --disable-domains first disables those that are enabled.
The ledger stays where it is. What a package of the distribution has put in place stays until the package is removed,
which makes the same checks.
"""

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from libvirt_rapl import paths
from libvirt_rapl.cli import say, warn
from libvirt_rapl.cli.installing import add_common_arguments, carry_out
from libvirt_rapl.config import Config, load
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import activation, manifest, packaged
from libvirt_rapl.install.installer import forget, uninstall
from libvirt_rapl.install.manifest import sweep
from libvirt_rapl.tree import Tree

if TYPE_CHECKING:
    from libvirt_rapl.install import still_needed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(parser)
    parser.add_argument("--disable-domains", action="store_true", help="first disable every domain that is enabled")
    parser.add_argument("--force", action="store_true", help="even if domains need it: they will not start any more")


def run(options: argparse.Namespace) -> int:
    """Uninstall and say what was done."""
    root, dry_run = options.prefix_root, options.dry_run
    manifest.Manifest.load(root)  # if it cannot be read, fail before anything is stopped or disabled
    is_packaged, is_installed = packaged.owns(root), (root / paths.MANIFEST).exists()
    here = root == Path("/") and (is_packaged or is_installed)
    config = Config()
    if here:
        with contextlib.suppress(VirtRaplError):
            config = load(options.config)
        _leave_domains(options)
    if is_installed or not is_packaged:
        for line in uninstall(root, dry_run=dry_run):
            say(line)
    elif not dry_run:
        sweep(Tree(root))
    if is_packaged:
        if "DPKG_MAINTSCRIPT_PACKAGE" not in os.environ:  # dpkg, which sets it, is about to remove them
            say(packaged.NOT_OURS)
    elif here:
        carry_out(activation.after_uninstall(config), dry_run=dry_run)
    if is_installed and not dry_run:
        forget(root)  # last: until then a second run still knows all files
    return 0


def _leave_domains(options: argparse.Namespace) -> None:
    """Make sure that no domain needs us any more, then stop virt-rapld. Raises VirtRaplError if one does."""
    from libvirt_rapl.domains.connection import connect
    from libvirt_rapl.install import still_needed

    try:
        connection = connect(options.connect)
        found, snapshots = still_needed.find(connection), still_needed.old_snapshots(connection)
    except VirtRaplError as error:
        if not options.force:
            raise VirtRaplError(
                f"cannot find out whether domains still need virt-rapl: {error.message}",
                f"{error.hint}; --force removes it all the same",
            ) from error
        found, snapshots = [], []
    not_ours_to_change = (
        still_needed.Reason.RUNS,
        still_needed.Reason.RUNS_BY_DEFAULT,
        still_needed.Reason.UNMARKED,
    )
    disabled = [each for each in found if options.disable_domains and each.why not in not_ours_to_change]
    left = [dependent for dependent in found if dependent not in disabled]
    if left and not options.force:
        raise VirtRaplError(
            f"domains still need virt-rapl: {', '.join(map(str, left))}", _hint({each.why for each in left})
        )
    for dependent in left:
        by_default = dependent.why in still_needed.BY_DEFAULT
        warn(
            f"{dependent}: it will not start without the emulator wrapper",
            still_needed.NAME_QEMU
            if by_default
            else f"install virt-rapl again, then `virt-rapl disable {dependent.domain.name}`",
        )
    for name in snapshots:
        warn(
            f"{name}: this snapshot has the meter in it, and can be restored only where virt-rapl is installed",
            "run `virt-rapl install` before `virsh snapshot-revert`, or make a new snapshot now",
        )
    carry_out(activation.before_uninstall(), dry_run=options.dry_run)  # virt-rapld would enable them again
    for dependent in disabled:
        if not options.dry_run:
            still_needed.disable(dependent)
        say(
            f"{'would be disabled ' if options.dry_run else 'disabled  '}{dependent.domain.name}, which {dependent.why}"
        )


def _hint(whys: set["still_needed.Reason"]) -> str:
    """Return what to do about domains that need us for these reasons."""
    from libvirt_rapl.install import still_needed

    if still_needed.Reason.RUNS in whys:
        return "shut down those that run: they need their helpers until then"
    if still_needed.Reason.RUNS_BY_DEFAULT in whys:
        return still_needed.HOW_TO_LEAVE
    if still_needed.Reason.UNMARKED in whys:
        return "name the emulator itself in <emulator> of those without a mark: `virsh edit`"
    return "`virt-rapl uninstall --disable-domains` removes their meters first"
