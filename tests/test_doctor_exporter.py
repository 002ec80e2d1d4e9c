"""doctor's check of the exporter: systemd's answers are a table, what it asks over sockets and of files is real."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes.certificates import Certificates
from fakes.host import write

from libvirt_rapl.doctor import exporter
from libvirt_rapl.doctor.finding import Finding
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.exporter.options import LIBRARIES, TO_INSTALL, Address
from libvirt_rapl.exporter.server import Server
from libvirt_rapl.exporter.site import Site
from libvirt_rapl.exporter.web import Web

TLS = "tls_server_config:\n  cert_file: web.pem\n  key_file: web.key\n"
VERIFY = TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
RUNS = {"ActiveState": "active", "UnitFileState": "enabled", "MainPID": "77"}
NOT_STARTED = {"ActiveState": "inactive", "UnitFileState": "enabled", "MainPID": "0"}
OPTIONS = "etc/default/virt-rapl-exporter"


class Host:
    """A machine where systemd runs the exporter, or should."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.shown = root, dict(RUNS)
        monkeypatch.setattr("libvirt_rapl.systemd.runs", lambda: True)
        monkeypatch.setattr("libvirt_rapl.systemd.unit_property", lambda _unit, name: self.shown.get(name, ""))
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        self.scraped(minutes=1)

    def runs(self, *options: str) -> None:
        command = ["/usr/bin/python3", "-I", "-m", "libvirt_rapl", "exporter", *options, ""]
        write(self.root / "proc/77/cmdline", "\0".join(command))

    def scraped(self, minutes: float, what: str = "last scraped at") -> None:
        when = datetime.now(UTC) - timedelta(minutes=minutes)
        self.shown["StatusText"] = f"{what} {when.isoformat(timespec='seconds')}"

    def web_config(self, text: str, not_after: datetime | None = None) -> str:
        """Write it and what it names; return the option."""
        Certificates(self.root).issue("web", "127.0.0.1", not_after=not_after)
        write(self.root / "web.yml", text)
        return f"--web.config.file={self.root / 'web.yml'}"

    def examine(self) -> list[Finding]:
        return list(exporter.exporter(Machine("fake:///", root=self.root)))

    def finding(self) -> Finding:
        (finding,) = self.examine()
        return finding


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


@pytest.fixture
def listening() -> Iterator[str]:
    """An address where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"--web.listen-address=127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def served(file: Path | None) -> Iterator[str]:
    """The exporter's own server, with a web configuration. It logs clients that hang up, as doctor does."""
    site = Site(Web(file, pytest.fail), lambda *_: ("", {}, b""), pytest.fail)
    server = Server([Address("127.0.0.1", 0)], site, print)
    try:
        yield f"--web.listen-address={server.addresses[0]}"
    finally:
        server.close()


def test_where_it_is_not_enabled_nothing_is_checked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.shown = {"ActiveState": "inactive", "UnitFileState": "disabled"}
    monkeypatch.setattr(exporter, "find_spec", lambda _name: None)
    assert host.finding().state == "skipped"
    monkeypatch.setattr("libvirt_rapl.systemd.runs", lambda: False)
    assert host.finding().state == "skipped"


@pytest.mark.parametrize("missing", LIBRARIES)
def test_a_library_is_missing(host: Host, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(exporter, "find_spec", lambda name: None if name == missing else name)
    finding = host.finding()
    assert (finding.state, finding.hint) == ("failed", TO_INSTALL)
    assert missing in finding.message


def test_in_order(host: Host, listening: str) -> None:
    host.runs(listening)
    finding = host.finding()
    assert (finding.state, finding.hint) == ("ok", "")
    assert f"http://{listening.partition('=')[2]}/metrics" in finding.message


@pytest.mark.parametrize(
    ("shown", "remedy"),
    [
        (NOT_STARTED, "systemctl start"),
        ({**NOT_STARTED, "ActiveState": "failed"}, "journalctl"),
        ({**RUNS, "ActiveState": "activating"}, "journalctl"),
        ({"ActiveState": "failed", "UnitFileState": "disabled"}, "journalctl"),
    ],
)
def test_it_does_not_run(host: Host, shown: dict[str, str], remedy: str) -> None:
    host.shown = shown
    finding = host.finding()
    assert finding.state == "failed"
    assert remedy in finding.hint


def test_nobody_listens_at_one_of_its_addresses(host: Host, listening: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    host.runs(listening, f"--web.listen-address={free}")
    finding = host.finding()
    assert finding.state == "failed"
    assert free in finding.message
    assert listening.partition("=")[2] not in finding.message


def test_every_address_is_asked_at_this_machines_own(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host.runs(f"--web.listen-address=0.0.0.0:{server.getsockname()[1]}")
        assert host.finding().state == "ok"


def test_tls_is_spoken_where_it_should_be(host: Host) -> None:
    option = host.web_config(TLS)
    with served(host.root / "web.yml") as address:
        host.runs(address, option)
        assert host.finding().state == "ok"
        assert "https://" in host.finding().message


def test_no_tls_where_it_should_be(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "CONNECT_SECONDS", 30.0)
    option = host.web_config(TLS)
    with served(None) as address:
        host.runs(address, option)
        finding = host.finding()
    assert finding.state == "failed"
    assert "does not answer" in finding.message


def test_who_asks_for_certificates_is_not_bothered_with_a_client_that_has_none(host: Host) -> None:
    option = host.web_config(VERIFY)
    with served(host.root / "web.yml") as address:
        host.runs(address, option)
        assert host.finding().state == "ok"


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("days", "state", "word"), [(-2, "failed", "expired"), (13, "warning", "in 13 days"), (15, "ok", "https://")]
)
def test_a_certificate_expires(host: Host, listening: str, days: int, state: str, word: str) -> None:
    # A minute more, so that it is the same number of days when it is read.
    ends = datetime.now(UTC) + timedelta(days=days, minutes=1)
    host.runs(listening, host.web_config(VERIFY, ends))
    finding = host.finding()
    assert finding.state == state
    assert word in finding.message


def test_without_openssl_a_certificate_is_not_read(host: Host, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    host.runs(listening, host.web_config(VERIFY))
    assert host.finding().state == "skipped"


@pytest.mark.parametrize(
    ("shown", "written"),
    [
        (RUNS, "the process"),
        (NOT_STARTED, "ARGS='--vcpus {}'\n"),
        ({**NOT_STARTED, "ActiveState": "activating"}, '# no secrets\nOTHER=1\nARGS="{}" # why\n'),
    ],
)
def test_a_mistake_in_the_web_configuration_is_named_with_its_line(
    host: Host, shown: dict[str, str], written: str
) -> None:
    host.shown |= shown
    option = host.web_config(TLS + "  client_auth: x\n")
    if written == "the process":
        host.runs(option)
    else:
        write(host.root / OPTIONS, written.format(option))
    with pytest.raises(VirtRaplError, match=r"web\.yml:4: client_auth"):
        host.examine()


@pytest.mark.parametrize(("line", "word"), [("ARGS='--vcpus\n", OPTIONS), ("ARGS=--web.config.file\n", "config.file")])
def test_options_that_cannot_be_read(host: Host, line: str, word: str) -> None:
    host.shown |= NOT_STARTED
    write(host.root / OPTIONS, line)
    with pytest.raises(VirtRaplError, match=word):
        host.examine()


def test_keys_that_this_user_may_not_read_are_no_mistake(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.runs(host.web_config(TLS))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host.finding().state == "skipped"


@pytest.mark.parametrize(
    ("minutes", "what", "state"),
    [
        (9, "last scraped at", "ok"),
        (11, "last scraped at", "warning"),
        (9, "not scraped since", "ok"),
        (11, "not scraped since", "warning"),
        (11, "of another version", "ok"),
    ],
)
def test_nobody_has_scraped_lately(host: Host, listening: str, minutes: int, what: str, state: str) -> None:
    host.runs(listening)
    host.scraped(minutes, what)
    finding = host.finding()
    assert finding.state == state
    assert state == "ok" or "11 minutes ago" in finding.message


@pytest.mark.parametrize(("age", "state"), [(5, "ok"), (90, "warning"), (None, "failed")])
def test_the_file_for_node_exporter(host: Host, age: float | None, state: str) -> None:
    file = host.root / "virt-rapl.prom"
    if age is not None:
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    host.runs(f"--textfile={file}")
    finding = host.finding()
    assert finding.state == state
    assert str(file) in finding.message
