"""Serve the energy of domains to Prometheus over HTTP, at /metrics, until SIGTERM.

The figures are those of virt-rapld, which has to run. Options are named as node_exporter names them, and the file of
--web.config.file has the same format: it turns on TLS, client certificates and passwords (docs/prometheus.md).
"""

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from libvirt_rapl import paths, systemd
from libvirt_rapl.config import load
from libvirt_rapl.errors import VirtRaplError, explain, printable

if TYPE_CHECKING:
    from libvirt_rapl.exporter.scrape import Scrape

DEFAULT_ADDRESS = "127.0.0.1:9762"
END = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
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


def run(options: argparse.Namespace) -> int:
    """Serve, or write the file, until SIGTERM."""
    if options.textfile and (options.addresses or options.web_config):
        raise VirtRaplError("--textfile and --web.* exclude each other", "run two exporters")
    config = load(options.config)
    try:
        from libvirt_rapl.daemon.exposition import Exposition
        from libvirt_rapl.exporter.feed import Feed
        from libvirt_rapl.exporter.scrape import Scrape

        serve = _write_file if options.textfile else _listen
        newest = Feed(config.run_directory / paths.STATUS_SOCKET, log).document
        scrape = Scrape(newest, Exposition(newest, vcpus=options.vcpus))
        signal.pthread_sigmask(signal.SIG_BLOCK, END)  # one thread waits for them; all others inherit this
        serve(options, scrape)
    except ImportError as error:
        hint = (
            "apt install python3-cheroot python3-bcrypt python3-prometheus-client, or pip install virt-rapl[exporter]"
        )
        raise VirtRaplError(f"cannot run the exporter: {explain(error)}", hint) from error
    return 0


def log(message: str) -> None:
    """Write one line for the journal."""
    print(f"virt-rapl: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)


def _listen(options: argparse.Namespace, scrape: "Scrape") -> None:
    from libvirt_rapl.exporter.server import Address, Server
    from libvirt_rapl.exporter.site import Site
    from libvirt_rapl.exporter.web import Web

    addresses = [Address.parse(address) for address in options.addresses or [DEFAULT_ADDRESS]]
    web = Web(options.web_config, log)
    server = Server(addresses, Site(web, scrape.respond, log), log)
    scheme = "https" if web.rules().context else "http"
    log(f"listening on {', '.join(f'{scheme}://{address}/metrics' for address in server.addresses)}")
    systemd.notify("READY=1")
    signal.sigwait(END)
    systemd.notify("STOPPING=1")
    server.close()


def _write_file(options: argparse.Namespace, scrape: "Scrape") -> None:
    from libvirt_rapl.exporter import textfile

    ended = threading.Event()
    threading.Thread(target=_set_at_end, args=(ended.set,), name="signals", daemon=True).start()
    textfile.write_until(ended, options.textfile, lambda: scrape.respond()[2], log, lambda: systemd.notify("READY=1"))


def _set_at_end(end: Callable[[], None]) -> None:
    signal.sigwait(END)
    end()
