"""Remove what `virt-rapl install` has put in place, except what was changed since.

Nothing is removed while domains need it: those that are enabled can be disabled first with --disable-domains.
The ledger stays where it is. What a package of the distribution has put in place stays until the package is removed,
which makes the same checks.
"""

import argparse
import contextlib
import os
from pathlib import Path

from libvirt_rapl import paths
from libvirt_rapl.cli import say, warn
from libvirt_rapl.cli.installing import add_common_arguments, carry_out
from libvirt_rapl.config import Config, load
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import activation, manifest, packaged
from libvirt_rapl.install.installer import forget, uninstall
from libvirt_rapl.install.manifest import sweep
from libvirt_rapl.tree import Tree


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(parser)
    parser.add_argument("--disable-domains", action="store_true", help="disable every domain that is enabled first")
    parser.add_argument("--force", action="store_true", help="even if domains need it: they will not start any more")


def run(options: argparse.Namespace) -> int:
    """Uninstall and say what was done."""
    root, dry_run = options.prefix_root, options.dry_run
    manifest.Manifest.load(root)  # one that cannot be read is told before anything is stopped or disabled
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
        forget(root)  # at last: until then a second run knows all of it
    return 0


def _leave_domains(options: argparse.Namespace) -> None:
    """See to it that no domain needs us any more, then stop virt-rapld. Raises VirtRaplError where one does."""
    from libvirt_rapl.domains.connection import connect
    from libvirt_rapl.install import still_needed

    try:
        connection = connect(options.connect)
        found, snapshots = still_needed.find(connection), still_needed.old_snapshots(connection)
    except VirtRaplError as error:
        if not options.force:
            raise VirtRaplError(
                f"cannot tell whether domains still need virt-rapl: {error.message}",
                f"{error.hint}; with --force it goes all the same",
            ) from error
        found, snapshots = [], []
    not_ours_to_change = (still_needed.Reason.RUNS, still_needed.Reason.UNMARKED)
    disabled = [each for each in found if options.disable_domains and each.why not in not_ours_to_change]
    left = [dependent for dependent in found if dependent not in disabled]
    if left and not options.force:
        whys = {dependent.why for dependent in left}
        if still_needed.Reason.RUNS in whys:
            hint = "shut down those that run, their helpers must stay till then"
        elif still_needed.Reason.UNMARKED in whys:
            hint = "name the emulator itself in <emulator> of those without mark: `virsh edit`"
        else:
            hint = "`virt-rapl uninstall --disable-domains` takes their meters out first"
        raise VirtRaplError(f"domains still need virt-rapl: {', '.join(map(str, left))}", hint)
    for dependent in left:
        warn(
            f"{dependent}: it will not start with the emulator wrapper gone",
            f"`virt-rapl disable {dependent.domain.name}` where virt-rapl is installed again",
        )
    for name in snapshots:
        warn(
            f"{name}: it was made with the meter, and can be gone back to where virt-rapl is",
            "run `virt-rapl install` before `virsh snapshot-revert`, or make it anew now",
        )
    carry_out(activation.before_uninstall(), dry_run=options.dry_run)  # virt-rapld would enable them again
    for dependent in disabled:
        if not options.dry_run:
            still_needed.disable(dependent)
        say(
            f"{'would be disabled ' if options.dry_run else 'disabled  '}{dependent.domain.name}, which {dependent.why}"
        )
