"""Which emulators get a wrapper, and keeping libvirt's memory of them fresh.

libvirt asks an emulator once what it can do and remembers that until the file that it runs changes. That file is the
wrapper, which does not change when QEMU beside it is upgraded: so it must be touched then.

usage: python -m libvirt_rapl.install.wrappers (touches those older than their QEMU; run by virt-rapl-wrappers.service)
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.emulator import KNOWN
from libvirt_rapl.domains.names import WRAPPER_SUFFIX
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install.manifest import Manifest
from libvirt_rapl.install.places import DEFAULT_EMULATOR_LINKS, is_wrapper
from libvirt_rapl.tree import Tree

QUIET_SECONDS = 3.0
"""An upgrade of an emulator is over this long after its last change."""


def emulators(root: Path, named: Iterable[str] = ()) -> list[str]:
    """Return the emulators under `root` that need a wrapper: the known ones that exist, and `named` ones.

    A known one that is only a link to another gets none; a named one does, because its domain runs it by that name.
    Names that cannot be in a unit are left out.
    """
    found: dict[Path, str] = {}
    for path in KNOWN:
        if (target := _resolve(root, path)).is_file():
            found.setdefault(target, path)
    normal = [path for path in named if path.isprintable() and path == os.path.normpath(path)]
    wanted = [path for path in normal if _is_program(root / path.lstrip("/"))]
    return list(dict.fromkeys([*found.values(), *sorted(wanted)]))


def refusal(root: Path, path: str) -> VirtRaplError | None:
    """Return why an emulator cannot have a wrapper; see emulator.check_place()."""
    try:
        emulator.check_place(path, root)
    except VirtRaplError as error:
        return error
    return None


def _is_program(path: Path) -> bool:
    return path.is_file() and bool(path.stat().st_mode & 0o111)


def _resolve(root: Path, path: str) -> Path:
    """Follow the links of an emulator, absolute ones within `root`."""
    here = root / path.lstrip("/")
    for _ in range(8):
        if not here.is_symlink():
            break
        link = here.readlink()
        here = root / str(link).lstrip("/") if link.is_absolute() else Path(os.path.normpath(here.parent / link))
    return here


def stale(path: Path) -> bool:
    """Return whether an emulator has changed since its wrapper was last touched. Raises OSError if one is missing."""
    # Equal times count as stale: which of two changes within one tick of the kernel's clock came first is unknown.
    return Path(f"{path}{WRAPPER_SUFFIX}").stat().st_ctime_ns <= path.stat().st_ctime_ns


def refresh(root: Path, *, dry_run: bool = False) -> Iterator[str]:
    """Touch the installed wrappers that are stale; yields a line for each. Raises VirtRaplError.

    A wrapper is skipped if others can change its directory: it may be any file.
    """
    tree = Tree(root)
    for path in _wrapped(root):
        wrapper = Path(f"{path}{WRAPPER_SUFFIX}")
        try:
            if not path.exists() or not wrapper.exists() or not stale(path):
                continue
            target = str(wrapper.relative_to(root))
            if others := tree.writable(target):
                yield f"kept      {wrapper} as it is: others can change {next(iter(others))}"
                continue
            if not dry_run:
                tree.touch(target)
        except OSError as error:
            raise VirtRaplError(f"cannot touch {wrapper}: {error.strerror}", "run it as root") from error
        touched = "would be touched" if dry_run else "touched  "
        yield f"{touched} {wrapper}: {path.name} has changed, and libvirt must ask it again"


def _wrapped(root: Path) -> list[Path]:
    """Return the emulators that have a wrapper of ours, whether they exist or not. Raises VirtRaplError."""
    names = [f"{path.lstrip('/')}{WRAPPER_SUFFIX}" for path in KNOWN]  # a package's are in no manifest
    installed = Manifest.load(root).files
    wrappers = [name for name in installed if is_wrapper(name) and name not in DEFAULT_EMULATOR_LINKS]
    return [root / name.removesuffix(WRAPPER_SUFFIX) for name in dict.fromkeys([*wrappers, *names])]


def _changes(emulators: Iterable[Path]) -> list[int | None]:
    return [path.stat().st_ctime_ns if path.exists() else None for path in emulators]


def main() -> int:
    """Touch stale wrappers until no emulator changes any more: systemd does not watch while we run.

    Exit status: 0 done, 1 failed.
    """
    try:
        wrapped = _wrapped(Path("/"))
        before = None
        while (now := _changes(wrapped)) != before:
            before = now
            for line in refresh(Path("/")):
                print(line, flush=True)
            time.sleep(QUIET_SECONDS)
    except VirtRaplError as error:
        print(f"virt-rapl: error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
