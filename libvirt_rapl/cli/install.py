"""Put the libvirt hook, the emulator wrappers, the systemd units and the default configuration in place.

It can be run again at any time: what is there and right stays as it is, and so does a configuration that was changed.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from libvirt_rapl import activation, wrappers
from libvirt_rapl.cli import say
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.installer import DISPATCHER, HOOK, NAME, PROGRAM, closed_directory, install


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `uninstall` takes as well."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and write nothing")
    parser.add_argument(
        "--prefix-root",
        metavar="DIR",
        type=_directory,
        default=Path("/"),
        help="work on the files under DIR instead of /, and tell nobody",
    )


def _directory(text: str) -> Path:
    if not text:  # an empty variable of a script: not the current directory
        raise argparse.ArgumentTypeError("a directory is needed")
    return Path(text)


def run(options: argparse.Namespace) -> int:
    """Install and say what was done."""
    root, here = options.prefix_root, options.prefix_root == Path("/")
    emulators = wrappers.emulators(root, _named_emulators(options.connect) if here else ())
    old_libvirt = here and (activation.libvirt_version() or (99, 0)) < activation.FIRST_WITH_DIRECTORIES
    foreign_hook = old_libvirt and _is_foreign(root / DISPATCHER)
    for line in install(root, emulators, dispatcher=old_libvirt and not foreign_hook, dry_run=options.dry_run):
        say(line)
    for line in wrappers.refresh(root, dry_run=options.dry_run):
        say(line)
    if here:
        carry_out(activation.after_install(), dry_run=options.dry_run)
    if not emulators:
        say("no emulator found: install QEMU and run `virt-rapl install` again")
    if here and (closed := closed_directory(*PROGRAM)):
        print(
            f"virt-rapl: warning: {closed} is not open to all: virt-rapld, which is not root, cannot run from there\n"
            "hint: install virt-rapl elsewhere, as in /opt/virt-rapl",
            file=sys.stderr,
        )
    if foreign_hook:
        print(
            f"virt-rapl: warning: this libvirt runs {root / DISPATCHER} alone, which is not virt-rapl's\n"
            f'hint: let it run `/{HOOK} "$@"` with the XML that it gets on standard input, and pass on its output',
            file=sys.stderr,
        )
    return 0


def carry_out(steps: Iterable[activation.Step], *, dry_run: bool) -> None:
    """Do one step after the other and say so."""
    for line, act in steps:
        if not dry_run:
            act()
        say(f"would be {line}" if dry_run and not line.startswith("kept") else line)


def _named_emulators(uri: str) -> list[str]:
    from libvirt_rapl import dependents
    from libvirt_rapl.domains import connect

    try:
        return dependents.emulators(connect(uri, read_only=True))
    except VirtRaplError:
        return []  # without libvirt there are the usual ones


def _is_foreign(path: Path) -> bool:
    return path.exists() and NAME not in path.read_bytes()
