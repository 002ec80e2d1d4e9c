"""Meter all domains until SIGTERM, keep their totals, and serve them to `virt-rapl status`.

systemd starts it as virt-rapld. It asks libvirt which domains there are, over a read-only connection; only if
`domains` in the configuration chooses some, it also enables these. Totals are kept in /var/lib/virt-rapl/ledger.db,
written every 10 seconds and at the end.
"""

import argparse

from libvirt_rapl.config import load
from libvirt_rapl.daemon import loop


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: all choices are in the configuration."""


def run(options: argparse.Namespace) -> int:
    """Meter until SIGTERM."""
    loop.run(load(options.config), options.connect)
    return 0
