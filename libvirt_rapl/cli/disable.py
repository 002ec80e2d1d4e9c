"""Take the energy meter out of domains again: their definitions are then as they were before `enable`."""

import argparse

from libvirt_rapl import domxml
from libvirt_rapl.cli.enable import add_common_arguments, change_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_common_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Define every domain anew, without the meter."""
    change_all(options, lambda _domain, xml: domxml.strip(xml), done="disabled", nothing_to_do="not enabled")
    return 0
