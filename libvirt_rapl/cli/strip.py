"""Undo `inject`: take the energy meter out of the domain XML on standard input and print it."""

import argparse

from libvirt_rapl.cli.inject import add_arguments, read_xml, write_xml
from libvirt_rapl.domains import domxml

__all__ = ["add_arguments", "run"]


def run(_options: argparse.Namespace) -> int:
    """Filter the XML; without the mark it comes out as it went in."""
    xml, encoding = read_xml()
    write_xml(domxml.strip(xml), encoding)
    return 0
