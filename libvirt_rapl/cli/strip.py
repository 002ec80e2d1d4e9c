"""Undo `inject`: take the energy meter out of the domain XML on standard input and print it."""

import argparse

from libvirt_rapl.cli.xml_filter import read_xml, write_xml
from libvirt_rapl.domains.definition import Definition


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: nothing."""


def run(_options: argparse.Namespace) -> int:
    """Filter the XML; without the mark it is printed as it was read."""
    xml, encoding = read_xml()
    write_xml(Definition.parse(xml).strip().xml, encoding)
    return 0
