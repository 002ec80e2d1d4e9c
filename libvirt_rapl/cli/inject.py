"""Add the energy meter to the domain XML on standard input and print it. Nothing is printed on failure."""

import argparse
from pathlib import Path

from libvirt_rapl.cli import warn
from libvirt_rapl.cli.xml_filter import read_xml, write_xml
from libvirt_rapl.config import load
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.requirements import ProcessorError
from libvirt_rapl.lifecycle.enabling import enabled


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: nothing."""


def run(options: argparse.Namespace) -> int:
    """Filter the XML. The emulator is asked only if it exists: the domain may be meant for another machine.

    For the same reason there is only a warning if the emulator exists and no guest of this host can have a meter.
    """
    registry = Registry(load(options.config).run_directory)
    xml, encoding = read_xml()
    definition = Definition.parse(xml)
    definition.check_kind()
    write_xml(enabled(definition, registry, _check_where_it_is, emulator.installed()).xml, encoding)
    return 0


def _check_where_it_is(path: str) -> None:
    if Path(path).exists():
        try:
            emulator.check(path)
        except ProcessorError as error:
            emulator.check_wrapper(path)
            warn(f"on this host the domain gets no meter: {error.message}", error.hint)
