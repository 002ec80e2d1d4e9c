"""The option --via of enable and inject: how a guest gets its energy."""

import argparse
from typing import get_args

from libvirt_rapl.choices import Via
from libvirt_rapl.config import Config


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the option."""
    parser.add_argument(
        "--via",
        choices=get_args(Via),
        help="how the guest gets its energy (default: `via` in the configuration, which is auto if it is not set)",
    )


def chosen(options: argparse.Namespace, config: Config) -> Via:
    """Return what the option says or, without it, the configuration."""
    via: Via = options.via or config.via
    return via
