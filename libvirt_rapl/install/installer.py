"""Putting what libvirt, QEMU and systemd look for in place, and taking it out again: files only, under any root.

What is put where is the table PLACES. libvirt_rapl.install.activation tells the running system of it.
"""

import contextlib
import errno
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

import libvirt_rapl
from libvirt_rapl import paths
from libvirt_rapl.domains.domxml import WRAPPER_SUFFIX
from libvirt_rapl.domains.emulator import KNOWN
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install.manifest import Manifest, sweep
from libvirt_rapl.tree import Others, Tree, digest_of

WRAPPER = "hooks/qemu-system-rapl"
CONFIGURATION = "etc/virt-rapl/virt-rapl.yaml"
UNITS = "etc/systemd/system"

PLACES = {
    "hooks/qemu": paths.HOOK,
    "etc/virt-rapl.yaml": CONFIGURATION,
    "etc/systemd": UNITS,
    "etc/tmpfiles.d": "etc/tmpfiles.d",
    "etc/modules-load.d": "etc/modules-load.d",
    "etc/sysusers.d": "etc/sysusers.d",
    "etc/polkit-1/rules.d": "etc/polkit-1/rules.d",
    "etc/apparmor.d": "etc/apparmor.d",
    "etc/selinux": "usr/share/selinux/packages/virt-rapl",
    "etc/completions/virt-rapl.bash": "usr/local/share/bash-completion/completions/virt-rapl",
    "etc/completions/_virt-rapl": "usr/local/share/zsh/site-functions/_virt-rapl",
    "etc/man/virt-rapl.1": "usr/local/share/man/man1/virt-rapl.1",
    "etc/man/virt-rapl.yaml.5": "usr/local/share/man/man5/virt-rapl.yaml.5",
    "etc/man/virt-rapld.8": "usr/local/share/man/man8/virt-rapld.8",
}
"""A file, or a directory with all that is in it, of those that are shipped, and where it goes (relative to the root).

@PYTHON@ in a file becomes the path of this Python, @WATCHED@ a line PathChanged= for each directory with emulators.
"""
KEPT = ("etc/virt-rapl.yaml", "etc/polkit-1/rules.d/60-virt-rapl.rules")
"""The operator's from the day they are put in place: what was changed stays."""
SHARED = ("etc/polkit-1/rules.d/", "usr/local/share/")
"""What may belong to others, to polkitd and to Debian's group staff: root runs nothing of ours there."""
ENABLED = ("virt-rapl-wrappers.path", "virt-rapl-wrappers.service")
BY_HAND = f"{UNITS}/virt-rapl-wrappers.service"
"""What is there where `virt-rapl install` was run; a package has its units elsewhere."""
LINKS = {f"{UNITS}/multi-user.target.wants/{unit}": f"../{unit}" for unit in ENABLED}
"""How units are enabled that need no decision of the operator's, and what these links hold."""
PLAIN_PATH = re.compile(r"[\w/.+@:-]+", re.ASCII)
"""What needs no quoting in sh and in a command of a systemd unit."""
HINTS = {
    errno.EACCES: "run it as root",
    errno.EPERM: "run it as root",
    errno.EROFS: "make it writable and run this again",
    errno.ENOSPC: "make room and run this again",
    errno.EDQUOT: "make room and run this again",
    errno.EISDIR: "move that directory away",
    errno.ENOTDIR: "move away what stands where a directory is needed",
}
LIBRARIES = [importlib.util.find_spec(name) for name in ("os", "lxml", "yaml", "libvirt")]
PROGRAM = (
    Path(sys.executable),
    Path(libvirt_rapl.__file__),
    *(Path(library.origin) for library in LIBRARIES if library and library.has_location and library.origin),
)
"""What root and virt-rapld run: Python, this package by its first file, one file of each library."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file of ours: where it goes (relative to the root), what it says and its mode. Or a link to `text`."""

    target: str
    text: str
    mode: int = 0o644
    keep: bool = False
    """The operator's from then on: what was changed stays."""
    link: bool = False

    @property
    def digest(self) -> str:
        """What Tree.digest() tells of it once it is in place."""
        return f"link to {self.text}" if self.link else digest_of(self.text.encode())


def install(
    root: Path,
    emulators: Iterable[str],
    *,
    dispatcher: bool = False,
    wrappers_only: bool = False,
    dry_run: bool = False,
) -> Iterator[str]:
    """Put everything in place under `root`; yields a line for each thing when it is done, or found done.

    `emulators` get a wrapper each (absolute paths, as seen under the root); with `dispatcher` there is one for a
    libvirt that knows no qemu.d. With `wrappers_only` the rest is there already, as files of a package. With `dry_run`
    nothing is written. Raises VirtRaplError: before anything is written where a file of somebody else's is in the way,
    or others can change a directory that something goes into; else what was written before stays, and a second run
    completes it.
    """
    if not PLAIN_PATH.fullmatch(sys.executable):
        raise VirtRaplError(f"{sys.executable} cannot be named in scripts", "install virt-rapl under a plainer path")
    tree, emulators = Tree(root), list(emulators)
    every = wrapper_items(emulators) if wrappers_only else shipped_items(emulators, dispatcher)
    items = {item.target: item for item in every}
    with _explained():
        if not dry_run:
            sweep(tree)
        installed = Manifest.load(root)
        for target in (paths.MANIFEST, *items):
            _check_directory(tree, target)
        before = {target: tree.digest(target) for target in items}
        for target, item in items.items():
            if not (item.keep or item.link or target in installed.files or before[target] in (None, item.digest)):
                raise VirtRaplError(f"{root / target} is there already and not virt-rapl's", "move it away")
        verbs = {target: _verb(tree, item, before[target], installed) for target, item in items.items()}
        if not dry_run:
            _begin(tree, items, verbs, installed)
        for target, verb in verbs.items():
            if not dry_run:
                _place(tree, items[target], verb)
            yield _line(verb, root / target, dry_run)
        # A wrapper stays: its emulator may be away for as long as a package is being replaced.
        gone = [target for target in installed.files if target not in items and not is_wrapper(target)]
        yield from _remove(tree, gone, installed, dry_run)
        if not dry_run:
            installed.files |= installed.updates
            installed.updates = {}
            installed.save(tree)


def uninstall(root: Path, *, dry_run: bool = False) -> Iterator[str]:
    """Take out what install() has put in place and nobody has changed; yields a line for each thing.

    forget() is what remains to be done then. Raises VirtRaplError when something cannot be removed; a second run goes
    on from there.
    """
    with _explained():
        if not dry_run:
            sweep(Tree(root))
        installed = Manifest.load(root)
        if not (root / paths.MANIFEST).exists():
            if (root / BY_HAND).exists():
                raise VirtRaplError(
                    f"{root / paths.MANIFEST} is lost, which tells what is virt-rapl's",
                    "`virt-rapl install` writes it anew; then uninstall",
                )
            yield f"nothing is installed under {root}"
            return
        yield from _remove(Tree(root), list(reversed(installed.files)), installed, dry_run)


def forget(root: Path) -> None:
    """Remove the directories that install() has made, as far as they are empty, and at last the manifest."""
    with _explained():
        Manifest.load(root).end(Tree(root))


def changeable_program() -> Others:
    """Tell who else than root and we can change what root runs: all of PROGRAM, this package, what is above them.

    Python runs what is added to a directory that it looks for modules in, so there that counts as well.
    """
    tree, others = Tree(Path("/")), Others()
    for path in (*PROGRAM, *sorted(PROGRAM[1].parent.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):  # compiled files come and go
            others |= tree.changeable(str(path))
    for directory in {above for path in PROGRAM for above in path.parents if str(above) in sys.path}:
        others |= tree.writable(f"{directory}/another.pth")
    return others


def changeable_files(tree: Tree, items: Iterable[Item]) -> Others:
    """Tell who else can change what is installed, as far as root runs or reads it.

    A unit that is masked, a link to /dev/null, is no file, and everybody may write there.
    """
    others = Others()
    for item in items:
        if not (item.link or item.target.startswith(SHARED)) and (tree.root / item.target).is_file():
            others |= tree.changeable(item.target)
    return others


def is_wrapper(target: str) -> bool:
    """Tell a wrapper by its name; several of our other files are called virt-rapl."""
    return target.endswith(WRAPPER_SUFFIX) and not target.endswith("/virt-rapl")


def closed_directory(*paths: Path) -> Path | None:
    """Return the outermost directory on the way to these files that is not open to all: virt-rapld is no root."""
    directories = dict.fromkeys(directory for path in paths for directory in reversed(path.parents))
    return next((directory for directory in directories if not directory.stat().st_mode & 0o001), None)


def to_open(closed: Path) -> str:
    """Return what to do about the closed_directory(): what pip made with a strict umask, or somebody's home."""
    if closed.is_relative_to(sys.prefix):
        return f"chmod -R o+rX {sys.prefix}"
    return f"chmod o+x {closed}, or install virt-rapl where every user gets, as in /opt/virt-rapl"


def shipped_items(emulators: list[str], dispatcher: bool) -> Iterator[Item]:
    """Yield what install() puts in place."""
    directories = dict.fromkeys(map(os.path.dirname, [*KNOWN, *emulators]))
    watched = "\n".join(f"PathChanged={path.replace('%', '%%')}" for path in directories)
    for source, target in PLACES.items():
        for name in _files(_shipped() / source):
            yield _item(str(PurePosixPath(source, name)), str(PurePosixPath(target, name)), watched)
    yield from wrapper_items(emulators)
    if dispatcher:
        yield _item("hooks/dispatcher", paths.DISPATCHER)
    for link, text in LINKS.items():
        yield Item(target=link, text=text, link=True)


def wrapper_items(emulators: list[str]) -> Iterator[Item]:
    """Yield what install() puts beside emulators."""
    for emulator in emulators:
        yield _item(WRAPPER, f"{emulator.lstrip('/')}{WRAPPER_SUFFIX}")


def _check_directory(tree: Tree, target: str) -> None:
    """Raise VirtRaplError where others can change the directory of what root runs or reads."""
    if target.startswith(SHARED):
        return
    for place, who in tree.writable(target).items():
        hint = f"chown root:root {place} && chmod go-w {place}, when you have looked what is there"
        raise VirtRaplError(f"others than root can change {place}: {who}", hint)


def _item(source: str, target: str, watched: str = "") -> Item:
    text = (_shipped() / source).read_text(encoding="utf-8")
    return Item(
        target=target,
        text=text.replace("@PYTHON@", sys.executable).replace("@WATCHED@", watched),
        mode=0o755 if source.startswith("hooks/") else 0o644,
        keep=source in KEPT,
    )


def _shipped() -> Traversable:
    return resources.files("libvirt_rapl") / "shipped"


def _files(source: Traversable) -> Iterator[str]:
    """Yield the paths below a shipped directory, in the order of their names; of a file the empty one, "."."""
    if source.is_file():
        yield "."
        return
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name):
        for name in _files(entry):
            yield str(PurePosixPath(entry.name, name))


def _verb(tree: Tree, item: Item, before: str | None, installed: Manifest) -> str:
    """Tell what is to be done. `before` is the digest of what is there."""
    if before is None:
        return "installed"
    if before == item.digest and tree.is_ours(item.target):
        return "unchanged"
    if item.keep and before != item.digest and not installed.has_written(item.target, before):
        return "kept"
    return "updated"


def _place(tree: Tree, item: Item, verb: str) -> None:
    if verb == "unchanged" and not item.link:
        tree.set_mode(item.target, item.mode, item.digest)
    elif verb in ("installed", "updated") and item.link:
        tree.link(item.target, item.text)
    elif verb in ("installed", "updated"):
        tree.write(item.target, item.text, item.mode)


def _begin(tree: Tree, items: dict[str, Item], verbs: dict[str, str], installed: Manifest) -> None:
    """Write down all that is going to be ours, first: half an installation can be taken out, too."""
    installed.updates = {target: items[target].digest for target, verb in verbs.items() if verb == "updated"}
    installed.files = {
        **installed.files,
        **{target: installed.files.get(target, digest) for target, digest in installed.updates.items()},
        **{target: items[target].digest for target, verb in verbs.items() if verb in ("installed", "unchanged")},
    }
    installed.begin(tree, items)


def _remove(tree: Tree, targets: list[str], installed: Manifest, dry_run: bool) -> Iterator[str]:
    """Remove files of ours, but for those that were changed, and forget them; yields a line for each."""
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


def _line(verb: str, path: Path, dry_run: bool) -> str:
    if dry_run and verb in ("installed", "updated", "removed"):
        return f"would be {verb:9} {path}"
    return f"{verb:9} {path}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what the file system refuses into a line for the user."""
    try:
        yield
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "run this again")
        raise VirtRaplError(f"cannot change {error.filename}: {error.strerror}", hint) from error
