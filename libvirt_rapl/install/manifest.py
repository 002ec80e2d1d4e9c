"""The record of what `virt-rapl install` has put in place, so that `uninstall` removes that and nothing else.

It is in /etc, where only root can write: the state directory may belong to virt-rapld's own user. A file is recorded
before it is put in place, because an install or uninstall may be killed at any moment.
"""

import contextlib
import errno
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import temporary
from libvirt_rapl.tree import Tree, digest_of

_NAME = Path(paths.MANIFEST).name


@dataclass
class Manifest:
    """All paths are relative to the root that was installed under."""

    files: dict[str, str] = field(default_factory=dict)
    """Files and links that are ours, and the digest of what we wrote; see Tree.digest()."""
    directories: list[str] = field(default_factory=list)
    """Directories that were not there before, parents first."""
    updates: dict[str, str] = field(default_factory=dict)
    """For files that are being replaced, the digest of the new ones."""

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """Read it; return an empty one if nothing is installed. Raises VirtRaplError when it cannot be parsed."""
        return cls.read(Tree(root), paths.MANIFEST)

    @classmethod
    def read(cls, tree: Tree, path: str) -> "Manifest":
        """Read it from another file, as load() does."""
        try:
            manifest = cls(**json.loads(tree.text(path)))
            inside = [Path(name) for name in (*manifest.files, *manifest.directories, *manifest.updates)]
            if any(name.is_absolute() or ".." in name.parts for name in inside):
                raise ValueError("it names a path outside of the root")
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            where = tree.root / path
            raise VirtRaplError(
                f"cannot read {where}: {error}", "remove it and run `virt-rapl install` again"
            ) from error
        return manifest

    def save(self, tree: Tree, path: str = paths.MANIFEST) -> None:
        """Write it, unless it is there already. Raises OSError."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        if tree.digest(path) != digest_of(text.encode()):
            tree.write(path, text, 0o644)

    def has_written(self, target: str, digest: str | None) -> bool:
        """Return whether what is at `target`, by its digest, is what we have put there."""
        return digest is not None and digest in (self.files.get(target), self.updates.get(target))

    def begin(self, tree: Tree, targets: Iterable[str]) -> None:
        """Add to it all directories that it and `targets` need, save it, and make them.

        Raises OSError; then none of its own directories is left.
        """
        above = [name for name in parents([paths.MANIFEST]) if not tree.is_directory(name)]
        missing = [name for name in parents(targets) if not tree.is_directory(name)]
        self.directories = list(dict.fromkeys([*self.directories, *above, *missing]))
        tree.root.mkdir(parents=True, exist_ok=True)
        if above:
            aside = _aside(above[0])
            try:
                self.save(tree, aside)
                tree.make_directories(above)
                tree.rename(aside, paths.MANIFEST)
            except OSError:
                with contextlib.suppress(OSError):  # the next sweep() removes what is left
                    _withdraw(tree, aside)
                raise
        else:
            self.save(tree)
        tree.make_directories(missing)

    def end(self, tree: Tree) -> None:
        """Remove the directories in it, as far as they are empty, and finally itself. Raises OSError."""
        above = parents([paths.MANIFEST])
        _remove_directories(tree, [name for name in self.directories if name not in above])
        if own := [name for name in above if name in self.directories]:
            aside = _aside(own[0])
            with contextlib.suppress(FileNotFoundError):  # another process has just done so
                tree.rename(paths.MANIFEST, aside)
                _withdraw(tree, aside)
        else:
            tree.remove(paths.MANIFEST)


def sweep(tree: Tree) -> None:
    """Remove what a killed install or uninstall has left under temporary names. Raises OSError."""
    above = ["", *parents([paths.MANIFEST])]
    for directory in dict.fromkeys([*above, *parents(Manifest.load(tree.root).files)]):
        for name in tree.left_over(directory):
            if directory in above[:-1] and Path(name).name.startswith(f".{_NAME}."):
                _withdraw(tree, name)
            else:
                tree.remove(name)


def _aside(directory: str) -> str:
    """Return where the manifest is while the directory of its proper place is being made or removed."""
    return str(Path(directory).parent / temporary(_NAME))


def _withdraw(tree: Tree, aside: str) -> None:
    """Remove a manifest that is not in its place, and before it all directories that it names and that are empty."""
    with contextlib.suppress(VirtRaplError):  # it is incomplete: there are no directories yet
        _remove_directories(tree, Manifest.read(tree, aside).directories)
    tree.remove(aside)


def _remove_directories(tree: Tree, names: list[str]) -> None:
    for name in reversed(names):
        try:
            tree.remove_directory(name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise


def parents(targets: Iterable[str]) -> list[str]:
    """Return the directories that targets are in, each once, outermost first."""
    return list(dict.fromkeys(str(path) for target in targets for path in reversed(Path(target).parents[:-1])))
