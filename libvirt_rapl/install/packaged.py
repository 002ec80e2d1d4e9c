"""virt-rapl as a package of the distribution: where its files are, and whether that is so here.

usage: python -m libvirt_rapl.install.packaged (makes the running system use what the package has put in place, and
touches the wrappers of changed QEMUs; run by the package's postinst)
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from libvirt_rapl import paths, without_site
from libvirt_rapl.domains.names import DEFAULT_EMULATOR
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import activation, places, wrappers
from libvirt_rapl.install.manifest import parents
from libvirt_rapl.install.places import Item
from libvirt_rapl.tree import Tree

PLACES = {
    paths.UNITS: paths.PACKAGED_UNITS,
    "etc/tmpfiles.d": "usr/lib/tmpfiles.d",
    "etc/modules-load.d": "usr/lib/modules-load.d",
    "etc/sysusers.d": "usr/lib/sysusers.d",
    "usr/local/share/zsh/site-functions": "usr/share/zsh/vendor-completions",
    "usr/local/share": "usr/share",
}
"""Where a package has what `virt-rapl install` puts into the administrator's directories; the first match counts."""

QEMU_GROUP = "libvirt-qemu"
"""Debian's, of its package libvirt-daemon-system, which ours depends on."""

STARTER = "/usr/lib/python3/dist-packages/libvirt_rapl/without_site.py"
BEGINNING = "set -u\n"
GUARD = f"""{BEGINNING}
# The hook is configuration: it stays when the package is removed, and dpkg may put another version of it beside it for
# a while; libvirt runs every program in this directory.
[ -e /usr/bin/virt-rapl ] || exit 0
[ "${{0%.dpkg-*}}" = "$0" ] || exit 0
"""

REINSTALL = "reinstall the package (to renew files in /etc, remove them first): dpkg --force-confmiss --install FILE"
NOT_OURS = f"kept      what a package of this system has put in place; to repair it, {REINSTALL}"


def stage(root: Path, *, dry_run: bool = False) -> Iterator[str]:
    """Put the files of the package in place under `root`; yields a line for each. Raises VirtRaplError.

    Units are not enabled and no manifest is written: the package manager does that.
    """
    tree = Tree(root)
    for item in contents():
        path = root / item.target
        if dry_run:
            yield f"would be staged    {path}"
            continue
        try:
            root.mkdir(parents=True, exist_ok=True)
            tree.make_directories(parents([item.target]))
            tree.write(item.target, item.text, item.mode)
        except OSError as error:
            raise VirtRaplError(f"cannot write {path}: {error.strerror}", "stage it where you can write") from error
        yield f"staged    {path}"


def contents() -> Iterator[Item]:
    """Yield the files of the package."""
    for item in places.shipped_items([DEFAULT_EMULATOR], QEMU_GROUP):
        if item.link:
            continue
        text = item.text.replace(without_site.PATH, STARTER)  # not that of the tree that it is built in
        text = text.replace(BEGINNING, GUARD, 1) if item.target == paths.HOOK else text
        target = _place(item.target)
        yield replace(item, target=target, text=text, keep=target.startswith("etc/"))


def in_place(emulators: list[str]) -> list[Item]:
    """Return what must be there if the package is installed, except manuals, which it has compressed.

    Includes the wrappers that `virt-rapl install` puts beside emulators that the package does not know, and no file of
    the page for Cockpit, which is a package of its own.
    """
    others = [path for path in emulators if path != DEFAULT_EMULATOR]
    ours = [item for item in contents() if "/man/" not in item.target and not places.is_of_cockpit(item)]
    return ours + list(places.wrapper_items(others))


def owns(root: Path) -> bool:
    """Return whether a package has put virt-rapl's files in place under `root`."""
    return (root / paths.PACKAGED_UNITS / paths.DAEMON_UNIT).exists()


def _place(target: str) -> str:
    for directory, ours in PLACES.items():
        if target.startswith(f"{directory}/"):
            return f"{ours}{target.removeprefix(directory)}"
    return target


def main() -> int:
    """Make systemd, the kernel and libvirt use the package. Exit status: 0 done, 1 something failed."""
    status = 0
    for _, act in [*activation.after_install(), ("touched", lambda: list(wrappers.refresh(Path("/"))))]:
        try:
            act()
        except VirtRaplError as error:
            print(f"virt-rapl: warning: {error.message}\nhint: {error.hint}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
