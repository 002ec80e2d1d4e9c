"""Putting what libvirt, QEMU and systemd look for in place, and removing it: only files, under any root.

libvirt_rapl.install.places has what is put where; libvirt_rapl.install.activation makes the running system use it.
"""

import contextlib
import errno
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from libvirt_rapl import paths, without_site
from libvirt_rapl.domains.names import WRAPPER_SUFFIX
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import places
from libvirt_rapl.install.manifest import Manifest, sweep
from libvirt_rapl.install.places import BY_HAND, DEFAULT_EMULATOR_LINKS, Item, is_wrapper
from libvirt_rapl.install.qemu_group import qemu_group
from libvirt_rapl.tree import Tree

PLAIN_PATH = re.compile(r"[\w/.+@:-]+", re.ASCII)
"""A path that needs no quoting in sh or in a command of a systemd unit."""
Verb = Literal["installed", "updated", "kept", "unchanged"]
"""What is done to an item."""
KEEP = "; or leave it there: `virt-rapl install --no-default-emulator`"
"""For what is where a link of ours was."""
HINTS = {
    errno.EACCES: "run it as root",
    errno.EPERM: "run it as root",
    errno.EROFS: "make it writable and run this again",
    errno.ENOSPC: "make room and run this again",
    errno.EDQUOT: "make room and run this again",
    errno.EISDIR: "move that directory away",
    errno.ENOTDIR: "move away the file that is where a directory is needed",
}


def install(
    root: Path,
    emulators: Iterable[str],
    *,
    wrappers_only: bool = False,
    default_emulator: str | None = None,
    dry_run: bool = False,
) -> Iterator[str]:
    """Put everything in place under `root`; yields a line for each file when it is done, or found done.

    Each of `emulators` gets a wrapper (absolute paths, as seen under the root). With `wrappers_only` the rest is there
    already, as files of a package. The wrapper of `default_emulator` becomes libvirt's default emulator. With `dry_run`
    nothing is written. Raises VirtRaplError: before anything is written if a file of somebody else is in the way, or
    others can change a directory that a file goes into; else what was written before stays, and a second run
    completes it.
    """
    if odd := [path for path in (sys.executable, without_site.PATH) if not PLAIN_PATH.fullmatch(path)]:
        raise VirtRaplError(f"{odd[0]} cannot be named in scripts", "install virt-rapl under a plainer path")
    tree, emulators = Tree(root), list(emulators)
    every = places.wrapper_items(emulators) if wrappers_only else places.shipped_items(emulators, qemu_group(root))
    default = places.default_emulator_items(default_emulator) if default_emulator else ()
    items = {item.target: item for item in (*places.items_for(root, every), *default)}
    with _explained():
        if not dry_run:
            sweep(tree)
        installed = Manifest.load(root)
        installed.files = {**_links_of_a_lost_manifest(tree), **installed.files}
        for target in (paths.MANIFEST, *items):
            _check_directory(tree, target)
        before = {target: tree.digest(target) for target in items}
        for target, item in items.items():
            if _is_somebody_elses(item, before[target], installed):
                hint = f"move it away{KEEP if target in installed.files else ''}"
                raise VirtRaplError(f"{root / target} is there already and not virt-rapl's", hint)
        verbs = {target: _verb(tree, item, before[target], installed) for target, item in items.items()}
        if not dry_run:
            _begin(tree, items, verbs, installed)
        for target, verb in verbs.items():
            if not dry_run:
                _place(tree, items[target], verb)
            yield _line(verb, root / target, dry_run)
        # A wrapper stays: its emulator may be missing while a package is being replaced.
        may_go = [target for target in installed.files if target in DEFAULT_EMULATOR_LINKS or not is_wrapper(target)]
        gone = [target for target in may_go if target not in items]
        yield from _remove(tree, gone, installed, dry_run)
        if not dry_run:
            installed.files |= installed.updates
            installed.updates = {}
            installed.save(tree)


def uninstall(root: Path, *, dry_run: bool = False) -> Iterator[str]:
    """Remove what install() has put in place and nobody has changed; yields a line for each file.

    Call forget() afterwards. Raises VirtRaplError when something cannot be removed; a second run continues there.
    """
    with _explained():
        if not dry_run:
            sweep(Tree(root))
        installed = Manifest.load(root)
        if not (root / paths.MANIFEST).exists():
            if (root / BY_HAND).exists():
                raise VirtRaplError(
                    f"{root / paths.MANIFEST} is lost, which lists the files of virt-rapl",
                    "`virt-rapl install` writes it again; then uninstall",
                )
            yield f"nothing is installed under {root}"
            return
        yield from _remove(Tree(root), list(reversed(installed.files)), installed, dry_run)


def forget(root: Path) -> None:
    """Remove the directories that install() has made, as far as they are empty, and finally the manifest."""
    with _explained():
        Manifest.load(root).end(Tree(root))


def _links_of_a_lost_manifest(tree: Tree) -> dict[str, str]:
    """Return the links to a wrapper that make it the default emulator, and their digests: nobody else makes such."""
    found = {target: tree.digest(target) or "" for target in DEFAULT_EMULATOR_LINKS}
    ours = f"link to /.*{WRAPPER_SUFFIX}"
    return {target: digest for target, digest in found.items() if re.fullmatch(ours, digest)}


def _is_somebody_elses(item: Item, before: str | None, installed: Manifest) -> bool:
    """Return whether something is where the item goes that we must not replace. `before` is the digest of it."""
    if item.keep or item.target in places.LINKS or before in (None, item.digest):
        return False
    if item.target in DEFAULT_EMULATOR_LINKS:  # a QEMU that was put in place of our link; one to ours may be replaced
        return not installed.has_written(item.target, before) and before != item.digest.removesuffix(WRAPPER_SUFFIX)
    return item.target not in installed.files


def _check_directory(tree: Tree, target: str) -> None:
    """Raise VirtRaplError if others can change the directory of a file that root runs or reads."""
    if target.startswith(places.SHARED):
        return
    for place, who in tree.writable(target).items():
        hint = f"chown root:root {place} && chmod go-w {place}, after you have checked what is there"
        raise VirtRaplError(f"others than root can change {place}: {who}", hint)


def _verb(tree: Tree, item: Item, before: str | None, installed: Manifest) -> Verb:
    """Return what is to be done. `before` is the digest of what is there."""
    if before is None:
        return "installed"
    if before == item.digest and tree.is_ours(item.target):
        return "unchanged"
    if item.keep and before != item.digest and not installed.has_written(item.target, before):
        return "kept"
    return "updated"


def _place(tree: Tree, item: Item, verb: Verb) -> None:
    if verb == "unchanged" and not item.link:
        tree.set_mode(item.target, item.mode, item.digest)
    elif verb in ("installed", "updated") and item.link:
        tree.link(item.target, item.text)
    elif verb in ("installed", "updated"):
        tree.write(item.target, item.text, item.mode)


def _begin(tree: Tree, items: dict[str, Item], verbs: dict[str, Verb], installed: Manifest) -> None:
    """First record all that is going to be ours, so that half an installation can be removed, too."""
    installed.updates = {target: items[target].digest for target, verb in verbs.items() if verb == "updated"}
    installed.files = {
        **installed.files,
        **{target: installed.files.get(target, digest) for target, digest in installed.updates.items()},
        **{target: items[target].digest for target, verb in verbs.items() if verb in ("installed", "unchanged")},
    }
    installed.begin(tree, items)


def _remove(tree: Tree, targets: list[str], installed: Manifest, dry_run: bool) -> Iterator[str]:
    """Remove files of ours, except those that were changed, and forget them; yields a line for each."""
    for target in targets:
        path, now = tree.root / target, tree.digest(target)
        if now is not None and not installed.has_written(target, now):
            yield f"{_line('kept', path, dry_run)}, which was changed"
        elif now is not None:
            if not dry_run:
                tree.remove(target)
            yield _line("removed", path, dry_run)
        if not dry_run:
            del installed.files[target]


def _line(verb: Verb | Literal["removed"], path: Path, dry_run: bool) -> str:
    if dry_run and verb in ("installed", "updated", "removed"):
        return f"would be {verb:9} {path}"
    return f"{verb:9} {path}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn an error of the file system into a line for the user."""
    try:
        yield
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "run this again")
        raise VirtRaplError(f"cannot change {error.filename}: {error.strerror}", hint) from error
