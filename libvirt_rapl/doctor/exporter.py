"""The check of the exporter for Prometheus, where it is enabled or runs."""

import argparse
import os
import shlex
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from libvirt_rapl import paths, systemd
from libvirt_rapl.commands import run
from libvirt_rapl.doctor.finding import FAILED, OK, SKIPPED, WARNING, Finding
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.errors import VirtRaplError, explain
from libvirt_rapl.exporter import last_scrape
from libvirt_rapl.exporter import options as exporter_options
from libvirt_rapl.exporter.options import Address
from libvirt_rapl.exporter.web import Web
from libvirt_rapl.exporter.web_config import Tls

UNIT = paths.EXPORTER_UNIT
NAME = UNIT.removesuffix(".service")
JOURNAL = f"`journalctl -u {NAME}` says why"
LATELY_SECONDS = 600.0
"""Prometheus takes a value for gone that is five minutes old, so all who use the exporter ask more often than this."""
WRITTEN_SECONDS = 60.0
"""How old the file for node_exporter may be: it is written every ten seconds."""
DAY_SECONDS = 86400.0
DAYS_BEFORE_EXPIRY = 14
CONNECT_SECONDS = 3.0
OPENSSL_SECONDS = 10.0
EVERY_ADDRESS = {"::": "::1", "0.0.0.0": "127.0.0.1"}  # noqa: S104  to connect to, not to listen on


def exporter(machine: Machine) -> Iterator[Finding]:
    """Whether it runs, as its options say, and somebody scrapes it; and how long its certificate is valid."""
    asked = ("ActiveState", "UnitFileState")
    state, enabled = (systemd.unit_property(UNIT, name) if systemd.runs() else "" for name in asked)
    if state in ("inactive", "") and enabled not in ("enabled", "enabled-runtime"):
        yield Finding(SKIPPED, f"{NAME} is not enabled")
        return
    if missing := [name for name in exporter_options.LIBRARIES if find_spec(name) is None]:
        yield Finding(FAILED, f"{NAME} cannot run without {', '.join(missing)}", exporter_options.TO_INSTALL)
        return
    options = _options(machine)
    if options.web_config and os.geteuid():  # its keys are not for everybody
        yield Finding(SKIPPED, f"this user may not read all that {options.web_config} names", "run as root")
        return
    tls = Web(options.web_config, lambda _: None).rules().config.tls
    if state != "active":
        hint = f"systemctl start {NAME}" if state == "inactive" else JOURNAL
        yield Finding(FAILED, f"{NAME} does not run", hint)
        return
    found = list(_textfile(options.textfile) if options.textfile else _served(exporter_options.addresses(options), tls))
    yield from found or [Finding(OK, _in_order(options, tls))]


def _options(machine: Machine) -> argparse.Namespace:
    """Return the options that it runs with, or if it does not run, those that it would be started with."""
    try:
        pid = systemd.unit_property(UNIT, "MainPID")
        words = (machine.proc / pid / "cmdline").read_text().rstrip("\0").split("\0")
        return _parsed(words[words.index("exporter") + 1 :])
    except (OSError, ValueError):  # it does not run
        return _parsed(_configured(machine))


def _configured(machine: Machine) -> list[str]:
    file = machine.root / paths.EXPORTER_OPTIONS
    try:
        settings = shlex.split(file.read_text(), comments=True) if file.exists() else []
    except ValueError as error:
        raise VirtRaplError(f"{file}: {error}", f"correct {file}") from error
    values = [setting.removeprefix("ARGS=") for setting in settings if setting.startswith("ARGS=")]
    return values[-1].split() if values else []


def _parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    exporter_options.add_arguments(parser)
    try:
        return parser.parse_known_args(words)[0]
    except argparse.ArgumentError as error:
        raise VirtRaplError(f"{NAME} cannot run with its options: {error}", f"correct ARGS= of {NAME}") from error


def _served(addresses: list[Address], tls: Tls | None) -> Iterator[Finding]:
    for address in addresses:
        if trouble := _trouble(address, tls):
            yield Finding(FAILED, f"{NAME} does not answer at {address}: {trouble}", f"systemctl restart {NAME}")
    if tls:
        yield from _certificate(tls.cert_file.path)
    when, was_scraped = last_scrape.parse(systemd.unit_property(UNIT, "StatusText")) or (time.time(), True)
    if when < time.time() - LATELY_SECONDS:
        what = "was scraped last" if was_scraped else "has not been scraped since it was started"
        message = f"{NAME} {what} {_ago(when)}"
        yield Finding(WARNING, message, "does Prometheus have it as a target? docs/prometheus.md shows how")


def _trouble(address: Address, tls: Tls | None) -> str:
    """Return what keeps a client from connecting; empty if nothing does."""
    host = EVERY_ADDRESS.get(address.host, address.host)
    try:
        with socket.create_connection((host, address.port), CONNECT_SECONDS) as client:
            # Where it asks for a certificate of the client's, we have none.
            if tls and tls.client_auth_type != "RequireAndVerifyClientCert":
                _context().wrap_socket(client).close()
    except OSError as error:  # also ssl.SSLError
        return explain(error)
    return ""


def _context() -> ssl.SSLContext:
    """Return one that takes any certificate: clients may know another name of this machine, and other CAs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _certificate(path: Path) -> Iterator[Finding]:
    if not shutil.which("openssl"):  # Python reads no certificates, but those that a server shows
        yield Finding(SKIPPED, f"until when {path} is valid cannot be read without openssl", "apt install openssl")
        return
    printed = run("openssl", "x509", "-noout", "-enddate", "-in", str(path), timeout=OPENSSL_SECONDS)
    try:
        ends = ssl.cert_time_to_seconds(printed.strip().removeprefix("notAfter="))
    except ValueError as error:
        raise VirtRaplError(f"{path}: cannot understand when it expires: {printed.strip()}", "renew it") from error
    renew = "renew it; the exporter reads it again by itself"
    if ends < time.time():
        yield Finding(FAILED, f"{path} expired {_ago(ends)}: no client trusts it", renew)
    elif ends < time.time() + DAYS_BEFORE_EXPIRY * DAY_SECONDS:
        yield Finding(WARNING, f"{path} expires in {(ends - time.time()) / DAY_SECONDS:.0f} days", renew)


def _textfile(file: Path) -> Iterator[Finding]:
    try:
        written = file.stat().st_mtime
    except FileNotFoundError:
        yield Finding(FAILED, f"{NAME} runs, and there is no {file}", JOURNAL)
        return
    if written < time.time() - WRITTEN_SECONDS:
        yield Finding(WARNING, f"{file} was written last {_ago(written)}", JOURNAL)


def _in_order(options: argparse.Namespace, tls: Tls | None) -> str:
    if options.textfile:
        return f"{NAME} writes {options.textfile}"
    scheme = "https" if tls else "http"
    urls = ", ".join(f"{scheme}://{address}/metrics" for address in exporter_options.addresses(options))
    return f"{NAME} serves {urls}"


def _ago(when: float) -> str:
    hours = (time.time() - when) / 3600
    return f"{hours * 60:.0f} minutes ago" if hours < 2 else f"{hours:.0f} hours ago"
