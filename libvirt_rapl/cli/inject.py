"""Add the energy meter to the domain XML on standard input and print it. Nothing is printed on failure."""

import argparse
from pathlib import Path

from libvirt_rapl.cli import via_option, warn
from libvirt_rapl.cli.xml_filter import read_xml, write_xml
from libvirt_rapl.config import load
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.requirements import ProcessorError
from libvirt_rapl.lifecycle.enabling import enabled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    via_option.add_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Filter the XML. The emulator is asked only if it exists: the domain may be meant for another machine.

    For the same reason there is only a warning if the emulator exists and no guest of this host can have registers,
    though they are asked for.
    """
    config = load(options.config)
    xml, encoding = read_xml()
    definition, default = Definition.parse(xml), emulator.installed()
    registry, via = Registry(config.run_directory), via_option.chosen(options, config)
    here = Path(definition.emulator(default)).exists()
    changed, reason = enabled(definition, registry, via, _check_where_it_is, default, here=here)
    if reason:
        warn(f"the domain gets its energy by the channel: {reason}", "--via registers for a host where QEMU gives them")
    write_xml(changed.xml, encoding)
    return 0


def _check_where_it_is(path: str) -> None:
    if Path(path).exists():
        try:
            emulator.check(path)
        except ProcessorError as error:
            emulator.check_wrapper(path)
            warn(f"on this host the domain gets no meter: {error.message}", error.hint)
