"""Serve one domain's energy readings to its QEMU.

The libvirt hook starts it; there is no reason to run it by hand.
"""

import argparse
from typing import NoReturn

from libvirt_rapl.config import load
from libvirt_rapl.helper.plans import become_helper


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("uuid", metavar="UUID", help="the domain, as recorded by the hook")


def run(options: argparse.Namespace) -> NoReturn:
    """Become the domain's helper."""
    config = load(options.config)
    become_helper(options.uuid, config.run_directory, config.source)
