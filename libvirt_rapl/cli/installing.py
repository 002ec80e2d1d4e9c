"""What install and uninstall share: where they work, and the steps that they take on the running system."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from libvirt_rapl.cli import say
from libvirt_rapl.install import activation


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what both take."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and write nothing")
    parser.add_argument(
        "--prefix-root",
        metavar="DIR",
        type=_directory,
        default=Path("/"),
        help="work on the files under DIR instead of /, and notify no service",
    )


def _directory(text: str) -> Path:
    if not text:  # an empty variable of a script: not the current directory
        raise argparse.ArgumentTypeError("a directory is needed")
    return Path(text)


def carry_out(steps: Iterable[activation.Step], *, dry_run: bool) -> None:
    """Do the steps one after the other, and print a line for each."""
    for line, act in steps:
        if not dry_run:
            act()
        say(f"would be {line}" if dry_run and not line.startswith("kept") else line)
