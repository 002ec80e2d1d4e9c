"""Serve the energy of domains to Prometheus over HTTP, at /metrics, until SIGTERM.

The figures are those of virt-rapld, which has to run. Options are named as node_exporter names them, and the file of
--web.config.file has the same format: it turns on TLS, client certificates and passwords (docs/prometheus.md).
"""

import argparse
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from libvirt_rapl import paths, systemd
from libvirt_rapl.config import load
from libvirt_rapl.errors import VirtRaplError, explain
from libvirt_rapl.exporter import options as exporter_options
from libvirt_rapl.log import log

if TYPE_CHECKING:
    from libvirt_rapl.exporter.scrape import Scrape

END = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    exporter_options.add_arguments(parser)


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
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # "read it again", which happens when the file changes
        serve(options, scrape)
    except ImportError as error:
        raise VirtRaplError(f"cannot run the exporter: {explain(error)}", exporter_options.TO_INSTALL) from error
    return 0


def _listen(options: argparse.Namespace, scrape: "Scrape") -> None:
    from libvirt_rapl.exporter.last_scrape import LastScrape
    from libvirt_rapl.exporter.server import Server
    from libvirt_rapl.exporter.site import Site
    from libvirt_rapl.exporter.web import Web

    addresses = exporter_options.addresses(options)
    web, last_scrape = Web(options.web_config, log), LastScrape(scrape.respond)
    server = Server(addresses, Site(web, last_scrape.respond, log), log)
    scheme = "https" if web.rules().context else "http"
    log(f"listening on {', '.join(f'{scheme}://{address}/metrics' for address in server.addresses)}")
    systemd.notify(f"READY=1\n{last_scrape.none_yet()}")
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
