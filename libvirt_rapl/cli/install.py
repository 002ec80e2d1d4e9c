"""Put the libvirt hook, the emulator wrappers, the systemd units and the default configuration in place.

It can be run again at any time: what is there and right stays as it is, and so does the configuration.
"""

import argparse
from pathlib import Path

from libvirt_rapl.cli import say
from libvirt_rapl.installer import install


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "--prefix-root",
        metavar="DIR",
        type=_directory,
        default=Path("/"),
        help="stage everything under DIR instead of /",
    )


def _directory(text: str) -> Path:
    if not text:  # an empty variable of a script: not the current directory
        raise argparse.ArgumentTypeError("a directory is needed")
    return Path(text)


def run(options: argparse.Namespace) -> int:
    """Install and say what was done."""
    for line in install(options.prefix_root):
        say(line)
    return 0
