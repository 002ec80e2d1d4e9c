"""What the exporter is started with: its options, an address to listen on, and the libraries that it needs.

doctor imports this where those libraries may be missing.
"""

import argparse
import re
import socket
from pathlib import Path
from typing import NamedTuple

from libvirt_rapl.errors import VirtRaplError

LIBRARIES = ("cheroot", "bcrypt", "prometheus_client")
TO_INSTALL = "apt install python3-cheroot python3-bcrypt python3-prometheus-client, or pip install virt-rapl[exporter]"
DEFAULT_ADDRESS = "127.0.0.1:9762"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--web.listen-address",
        dest="addresses",
        metavar="ADDRESS",
        action="append",
        help=f"HOST:PORT, [IPV6]:PORT or, for all addresses, :PORT; may be repeated (default {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--web.config.file",
        dest="web_config",
        metavar="FILE",
        type=Path,
        help="TLS and authentication, in the format of Prometheus' exporters; read again when it changes",
    )
    parser.add_argument("--vcpus", action="store_true", help="add the energy of each vCPU")
    parser.add_argument(
        "--textfile",
        metavar="FILE",
        type=Path,
        help="do not listen; write FILE every 10 seconds, for node_exporter's textfile collector",
    )


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `HOST:PORT`, `[IPV6]:PORT`, or `:PORT` for all addresses. Raises VirtRaplError."""
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):([0-9]{1,5})", text)
        if not found or int(found[3]) > 65535:
            hint = "write HOST:PORT, [IPV6]:PORT, or :PORT for all addresses"
            raise VirtRaplError(f"--web.listen-address {text}: not an address", hint)
        everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  it is asked for
        return cls(found[1] or found[2] or everywhere, int(found[3]))

    def __str__(self) -> str:
        """Return it as parse() reads it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses(options: argparse.Namespace) -> list[Address]:
    """Return where to listen. Raises VirtRaplError."""
    return [Address.parse(address) for address in options.addresses or [DEFAULT_ADDRESS]]
