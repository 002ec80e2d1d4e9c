"""What is installed where: the shipped files, their places, and the links that enable units."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from libvirt_rapl import paths, without_site
from libvirt_rapl.domains.emulator import KNOWN
from libvirt_rapl.domains.names import WRAPPER_SUFFIX
from libvirt_rapl.tree import Others, Tree, digest_of

WRAPPER = "hooks/qemu-system-rapl"

PLACES = {
    "hooks/qemu": paths.HOOK,
    "etc/virt-rapl.yaml": paths.CONFIGURATION,
    "etc/systemd": paths.UNITS,
    "etc/tmpfiles.d": "etc/tmpfiles.d",
    "etc/modules-load.d": "etc/modules-load.d",
    "etc/sysusers.d": "etc/sysusers.d",
    "etc/polkit-1/rules.d": paths.POLKIT_RULES,
    "etc/apparmor.d": paths.APPARMOR,
    "etc/selinux": paths.SELINUX_MODULE,
    "etc/completions/virt-rapl.bash": "usr/local/share/bash-completion/completions/virt-rapl",
    "etc/completions/_virt-rapl": "usr/local/share/zsh/site-functions/_virt-rapl",
    "etc/man/virt-rapl.1": "usr/local/share/man/man1/virt-rapl.1",
    "etc/man/virt-rapl.yaml.5": "usr/local/share/man/man5/virt-rapl.yaml.5",
    "etc/man/virt-rapld.8": "usr/local/share/man/man8/virt-rapld.8",
    "etc/prometheus": "usr/local/share/virt-rapl/prometheus",
    "etc/grafana": "usr/local/share/virt-rapl/grafana",
    "etc/guest": "usr/local/share/virt-rapl/guest",
    "etc/cockpit/virt-rapl": paths.COCKPIT_PAGE,
    "etc/cockpit/org.virt_rapl.cockpit.metainfo.xml": paths.COCKPIT_METAINFO,
}
"""Each shipped file, or directory with all that is in it, and where it goes (relative to the root).

@PYTHON@ in a file becomes the path of this Python, @STARTER@ that of without_site.py, @WATCHED@ a line PathChanged= for
each directory with emulators,
@QEMU_GROUP@ the group of QEMU's user.
"""
KEPT = ("etc/virt-rapl.yaml", "etc/polkit-1/rules.d/60-virt-rapl.rules")
"""The operator's once they are in place: what was changed stays."""
PROGRAMS = ("hooks/qemu", WRAPPER, "etc/guest/virt-rapl-guest")
"""These can be executed."""
SHARED = (f"{paths.POLKIT_RULES}/", "usr/local/share/")
"""These may belong to others (polkitd, Debian's group staff): root runs nothing of ours there."""
ENABLED = (paths.WRAPPERS_PATH_UNIT, paths.WRAPPERS_UNIT)
BY_HAND = f"{paths.UNITS}/{paths.WRAPPERS_UNIT}"
"""It exists only after `virt-rapl install`; a package has its units elsewhere."""
LINKS = {f"{paths.UNITS}/multi-user.target.wants/{unit}": f"../{unit}" for unit in ENABLED}
"""The links, and their text, that enable the units which need no decision of the operator."""


DEFAULT_EMULATOR_LINKS = (paths.DEFAULT_EMULATOR, f"{paths.DEFAULT_EMULATOR}{WRAPPER_SUFFIX}")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file of ours: where it goes (relative to the root), its text and mode. Or a link to `text`."""

    target: str
    text: str
    mode: int = 0o644
    keep: bool = False
    """The operator's once it is in place: what was changed stays."""
    link: bool = False

    @property
    def digest(self) -> str:
        """What Tree.digest() returns for it once it is in place."""
        return f"link to {self.text}" if self.link else digest_of(self.text.encode())


def shipped_items(emulators: list[str], qemu_group: str) -> Iterator[Item]:
    """Yield what install() puts in place; `qemu_group` is the group of QEMU's user, empty if unknown."""
    directories = dict.fromkeys(map(os.path.dirname, [*KNOWN, *emulators]))
    watched = "\n".join(f"PathChanged={path.replace('%', '%%')}" for path in directories)
    values = {"@WATCHED@": watched, "@QEMU_GROUP@": qemu_group}
    for source, target in PLACES.items():
        for name in _files(_shipped() / source):
            yield _item(str(PurePosixPath(source, name)), str(PurePosixPath(target, name)), values)
    yield from wrapper_items(emulators)
    for link, text in LINKS.items():
        yield Item(target=link, text=text, link=True)


def is_of_cockpit(item: Item) -> bool:
    """Return whether it is a file of Cockpit's page."""
    return item.target == paths.COCKPIT_METAINFO or item.target.startswith(f"{paths.COCKPIT_PAGE}/")


def items_for(root: Path, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items that are of use under `root`: without Cockpit, none of its page."""
    has_cockpit = (root / paths.COCKPIT).is_dir()
    yield from (item for item in items if has_cockpit or not is_of_cockpit(item))


def wrapper_items(emulators: list[str]) -> Iterator[Item]:
    """Yield what install() puts beside emulators."""
    for emulator in emulators:
        yield _item(WRAPPER, f"{emulator.lstrip('/')}{WRAPPER_SUFFIX}", {})


def default_emulator_items(emulator: str) -> Iterator[Item]:
    """Yield the links that make the wrapper of this emulator libvirt's default emulator.

    AppArmor and SELinux look at what a link leads to. The second one is the wrapper's for a domain that is enabled.
    """
    for target in DEFAULT_EMULATOR_LINKS:
        yield Item(target=target, text=f"{emulator}{WRAPPER_SUFFIX}", link=True)


def is_wrapper(target: str) -> bool:
    """Return whether it is a wrapper, by its name; several of our other files are called virt-rapl or _virt-rapl."""
    return target.endswith(WRAPPER_SUFFIX) and PurePosixPath(target).name not in ("virt-rapl", "_virt-rapl")


def changeable_files(tree: Tree, items: Iterable[Item]) -> Others:
    """Return who else can change what is installed, as far as root runs or reads it.

    A masked unit is left out: it is a link to /dev/null, where everybody may write.
    """
    others = Others()
    for item in items:
        if not (item.link or item.target.startswith(SHARED)) and (tree.root / item.target).is_file():
            others |= tree.changeable(item.target)
    return others


def _item(source: str, target: str, values: Mapping[str, str]) -> Item:
    text = (_shipped() / source).read_text(encoding="utf-8").replace("@PYTHON@", sys.executable)
    text = text.replace("@STARTER@", without_site.PATH)
    for name, value in values.items():
        text = text.replace(name, value)
    return Item(
        target=target,
        text=text,
        mode=0o755 if source in PROGRAMS else 0o644,
        keep=source in KEPT,
    )


def _shipped() -> Traversable:
    return resources.files("libvirt_rapl") / "shipped"


def _files(source: Traversable) -> Iterator[str]:
    """Yield the paths below a shipped directory, in the order of their names; for a file the empty one, ".".

    What is not there has none.
    """
    if source.is_file():
        yield "."
        return
    if not source.is_dir():
        return
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name):
        for name in _files(entry):
            yield str(PurePosixPath(entry.name, name))
