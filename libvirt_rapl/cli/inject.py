"""Add the energy meter to the domain XML on standard input and print it. Nothing is printed on failure."""

import argparse
from pathlib import Path

from libvirt_rapl.cli import warn
from libvirt_rapl.cli.xml_filter import read_xml, write_xml
from libvirt_rapl.config import load
from libvirt_rapl.domains import domxml, emulator
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.requirements import ProcessorError


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: nothing."""


def run(options: argparse.Namespace) -> int:
    """Filter the XML; the emulator is asked too where it exists, as the domain may be meant for another machine.

    So may one whose emulator exists where no guest has a meter: that is a warning.
    """
    registry = Registry(load(options.config).run_directory)
    xml, encoding = read_xml()
    domxml.check_kind(xml)
    _, uuid = domxml.identity(xml)
    injected = domxml.inject(xml, socket=registry.socket(uuid), default_emulator=emulator.installed())
    path = domxml.original_emulator(injected)
    if Path(path).exists():
        try:
            emulator.check(path)
        except ProcessorError as error:
            emulator.check_wrapper(path)
            warn(f"on this host the domain gets no meter: {error.message}", error.hint)
    write_xml(injected, encoding)
    return 0
