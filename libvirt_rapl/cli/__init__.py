"""The command `virt-rapl`: one module per command, each with add_arguments(parser) and run(options) -> exit status.

A command imports no other; what two share is in a module of its own beside them. May import every room.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Container, Sequence
from pathlib import Path

from libvirt_rapl import __version__
from libvirt_rapl.config import DEFAULT_PATH
from libvirt_rapl.display import fit, width
from libvirt_rapl.errors import DEBUG, VirtRaplError, explain, printable

DEFAULT_URI = "qemu:///system"

COMMANDS = {
    "status": "show the power and energy of every domain and vCPU",
    "top": "watch the power, energy and cost of all domains",
    "report": "show the energy, cost and CO2 of domains in a time",
    "events": "show what the hook did to domains, and how long it took",
    "doctor": "check everything that a meter depends on, and say what to do",
    "enable": "give a domain its own energy meter from its next start on, or now (--live)",
    "disable": "remove the meter and restore the domain's definition",
    "inject": "filter: add the meter to the domain XML on standard input",
    "strip": "filter: undo inject",
    "config": "check the configuration, or show what is in force and where it is set",
    "install": "put hook, wrapper, units and default configuration in place",
    "uninstall": "remove what install has put in place",
    "daemon": "meter all domains for as long as the machine runs (virt-rapld; started by systemd)",
    "exporter": "serve the energy of domains to Prometheus (started by systemd)",
    "channel": "give guests their energy by a channel (started by systemd)",
    "helper": "serve one domain's energy readings to QEMU (started by the hook)",
    "simulate": "run a command on a simulated machine with RAPL, Intel's or AMD's",
    "demo": "start two real guests in a private world and compare what they read with status",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 failed (with a message on stderr), 2 usage."""
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may have what the locale cannot express
    ours, rest = _split(sys.argv[1:] if arguments is None else arguments)
    options = _global_parser().parse_args(ours)
    try:
        command = importlib.import_module(f"libvirt_rapl.cli.{options.command}")
        parser = argparse.ArgumentParser(prog=f"virt-rapl {options.command}", description=command.__doc__)
        command.add_arguments(parser)
        options = parser.parse_args(rest, namespace=options)
        status = int(command.run(options))
        sys.stdout.flush()
        return status
    except VirtRaplError as error:
        return fail(error.message, error.hint)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _forget_output()  # the reader (`| head`) has gone; nothing is lost
        return 0
    except OSError as error:
        _forget_output()
        return fail(explain(error), "is there space, and permission?")
    except Exception as error:
        line = f"internal error: {type(error).__name__}: {explain(error)}"
        return fail(line, f"set {DEBUG}=1 for a traceback and report it")


def say(line: str) -> None:
    """Print a line of a command that acts. It continues if nobody reads that (`| true`): half of it helps nobody."""
    try:
        print(printable(line), flush=True)
    except BrokenPipeError:
        _forget_output()


def fail(message: str, hint: str) -> int:
    """Print what went wrong, and what to do about it; return the exit status."""
    _print("error", message, hint)
    return 1


def warn(message: str, hint: str) -> None:
    """Print what the user should know, and what to do about it; the command goes on."""
    _print("warning", message, hint)


def aligned(rows: Sequence[Sequence[str]], *, right: Container[int]) -> list[str]:
    """Return rows of cells as lines with aligned columns; the columns numbered in `right` are aligned to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            fit(cell, columns, right=number in right)
            for number, (cell, columns) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def count(text: str) -> int:
    """Turn an option's value into a number from 1 on. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found {text!r}")
    return int(text)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments after the command's name: the command's options may look like our own."""
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        position += 2 if arguments[position] in ("--connect", "--config") else 1
    return arguments[: position + 1], arguments[position + 1 :]


def _replace_closed_streams() -> None:
    """Put /dev/null where a script has closed a standard stream (`>&-`), which what is opened next would replace."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  it stays open


def _forget_output() -> None:
    """Keep the interpreter from writing the rest when it exits, where it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(kind: str, message: str, hint: str) -> None:
    print(printable(f"virt-rapl: {kind}: {message}"), file=sys.stderr)
    if hint:
        print(printable(f"hint: {hint}"), file=sys.stderr)


def _global_parser() -> argparse.ArgumentParser:
    longest = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="virt-rapl",
        usage="%(prog)s [-h] [--connect URI] [--config FILE] [--version] COMMAND ...",
        description="Energy meters for KVM guests under libvirt.",
        epilog="commands:\n" + "\n".join(f"  {name:{longest}}{text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--connect", metavar="URI", default=DEFAULT_URI, help="libvirt (default %(default)s)")
    parser.add_argument("--config", metavar="FILE", type=Path, default=DEFAULT_PATH, help="default %(default)s")
    parser.add_argument("--version", action="version", version=f"virt-rapl {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="see below; each has --help")
    return parser
