"""The exporter's HTTP server, over real sockets: what is answered to whom, and what a stranger cannot do."""

import base64
import contextlib
import gzip
import http.client
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import pytest
from fakes.certificates import Certificates
from walking import wait_until

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.exporter.options import Address
from libvirt_rapl.exporter.server import (
    HEADER_BYTES,
    IDLE_CONNECTIONS,
    REQUEST_SECONDS,
    THREADS,
    THREADS_OF_ONE,
    WAITING_CONNECTIONS,
    Server,
)
from libvirt_rapl.exporter.site import Site
from libvirt_rapl.exporter.web import Web

METRICS = b"virt_rapl_up 1\n" * 200_000
"""More than a socket holds."""
PATIENCE = 30.0
"""How long a test waits for what should happen at once."""
OTHER = "127.0.0.2"
"""Another client's address on this machine."""
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def respond(accept: str, accept_encoding: str) -> tuple[str, dict[str, str], bytes]:
    """Answer a scrape as asked for."""
    if accept == "broken":
        raise RuntimeError("no metrics")
    zipped = "gzip" in accept_encoding
    content_type = "application/openmetrics-text" if "openmetrics" in accept else "text/plain; version=0.0.4"
    headers = {"Content-Encoding": "gzip"} if zipped else {}
    return content_type, headers, gzip.compress(METRICS, 1) if zipped else METRICS


class Exporter:
    """A server on a free port, and its clients."""

    def __init__(self, file: Path | None = None, request_seconds: float = REQUEST_SECONDS) -> None:
        self.log: list[str] = []
        site = Site(Web(file, self.log.append), respond, self.log.append)
        self.server = Server([Address("127.0.0.1", 0)], site, self.log.append, request_seconds)
        (self.address,) = self.server.addresses

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((self.address.host, self.address.port), PATIENCE, (source, 0))

    def ask(
        self,
        path: str = "/metrics",
        method: str = "GET",
        headers: dict[str, str] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        source: str = "127.0.0.1",
        body: str | None = None,
    ) -> "Answer":
        host, port = self.address
        if tls:
            client: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, context=tls, timeout=PATIENCE, source_address=(source, 0)
            )
        else:
            client = http.client.HTTPConnection(host, port, timeout=PATIENCE, source_address=(source, 0))
        with contextlib.closing(client):
            client.request(method, path, body, headers or {})
            return Answer(client.getresponse())


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


Start = Callable[..., Exporter]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start exporters, which end all at once after the last test: each takes half a second for that."""
    exporters: list[Exporter] = []

    def start(*arguments: object, **options: object) -> Exporter:
        exporters.append(Exporter(*arguments, **options))  # type: ignore[arg-type]
        return exporters[-1]

    yield start
    closing = [threading.Thread(target=exporter.server.close) for exporter in exporters]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()


@pytest.fixture(scope="module")
def shared() -> Iterator[Exporter]:
    """One for all who ask politely."""
    exporter = Exporter()
    yield exporter
    exporter.server.close()


def test_a_scrape(shared: Exporter) -> None:
    answer = shared.ask()
    assert (answer.status, answer.body) == (200, METRICS)
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"
    assert answer.headers["Content-Length"] == str(len(METRICS))
    assert "Transfer-Encoding" not in answer.headers


def test_the_client_chooses_format_and_compression(shared: Exporter) -> None:
    answer = shared.ask(headers={"Accept": "application/openmetrics-text", "Accept-Encoding": "gzip"})
    assert answer.headers["Content-Type"] == "application/openmetrics-text"
    assert answer.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(answer.body) == METRICS
    assert "Accept-Encoding" in answer.headers["Vary"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/metrics?name[]=x", 200),
        ("GET", "/metrics/", 404),
        ("GET", "/%2e%2e/etc/passwd", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/", 405),
        ("TRACE", "/", 405),
        ("GET", "//[", 500),
    ],
)
def test_paths_and_methods(shared: Exporter, method: str, path: str, status: int) -> None:
    answer = shared.ask(path, method)
    assert answer.status == status
    assert b"Traceback" not in answer.body
    assert answer.headers["Server"] != "" or status == 500


def test_the_page_leads_to_the_metrics(shared: Exporter) -> None:
    answer = shared.ask("/")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert b'href="/metrics"' in answer.body


def test_head_is_get_without_a_body(shared: Exporter) -> None:
    answer = shared.ask(method="HEAD")
    assert (answer.body, answer.headers["Content-Length"]) == (b"", str(len(METRICS)))


def test_what_is_allowed_is_named(shared: Exporter) -> None:
    assert shared.ask(method="PUT").headers["Allow"] == "GET, HEAD"


def test_a_connection_serves_many_scrapes(shared: Exporter) -> None:
    client = http.client.HTTPConnection(*shared.address, timeout=PATIENCE)
    with contextlib.closing(client):
        sockets = set()
        for _ in range(3):
            client.request("GET", "/metrics")
            sockets.add(client.sock)
            assert client.getresponse().read() == METRICS
        assert len(sockets) == 1


def test_an_error_of_ours_is_a_line_for_us_and_nothing_for_the_client(start: Start) -> None:
    exporter = start()
    answer = exporter.ask(headers={"Accept": "broken"})
    assert answer.status == 500
    assert b"no metrics" not in answer.body
    (line,) = exporter.log
    assert "RuntimeError" in line
    assert exporter.ask().status == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /metrics HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\n",
        b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 2 * HEADER_BYTES,
        b"GET /" + b"x" * 2 * HEADER_BYTES,
        b"X: y\r\n" * HEADER_BYTES,
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x00\xf5\x01\x00\x00\r\n",
        b"\0" * 100 + b"\r\n\r\n",
    ],
)
def test_what_is_too_large_or_no_request_ends_the_connection(shared: Exporter, request_: bytes) -> None:
    with shared.connect() as client:
        client.sendall(request_)
        answer = everything(client)
    assert answer.startswith(b"HTTP/1.") or answer == b""
    assert b" 200 " not in answer.partition(b"\r\n")[0]
    assert answer.count(b"HTTP/1.") <= 1
    assert b"Traceback" not in answer
    assert shared.ask().status == 200


def everything(client: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while block := client.recv(1 << 16):
            received += block
    return received


def test_who_is_slow_is_disconnected_however_often_he_sends_a_byte(start: Start) -> None:
    exporter = start(request_seconds=0.3)
    with exporter.connect() as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.02):
                    client.sendall(b"X: y\r\n")

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert b" 200 " not in everything(client)
        stop.set()
        dripping.join()


def test_who_does_not_read_is_disconnected(start: Start) -> None:
    exporter = start(request_seconds=0.3)
    with exporter.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(GET)
        waiting = threading.Event()
        while not waiting.wait(0.05):
            with exporter.connect(OTHER) as other:  # the server goes on with others meanwhile
                other.sendall(GET.replace(b"GET", b"HEAD"))
                assert b" 200 " in other.recv(100)
            try:
                client.send(b"x")
            except ConnectionError:
                waiting.set()


@pytest.mark.parametrize("sent", [b"G", b""])
def test_one_address_does_not_take_all_threads(start: Start, sent: bytes) -> None:
    exporter = start(request_seconds=2 * PATIENCE)  # none comes free meanwhile
    with contextlib.ExitStack() as stack:
        for _ in range(2 * THREADS):
            stack.enter_context(exporter.connect()).sendall(sent)
        assert exporter.ask(source=OTHER).status == 200


def test_silent_connections_take_no_thread(start: Start) -> None:
    exporter = start(request_seconds=2 * PATIENCE)
    with contextlib.ExitStack() as stack:
        for number in range(IDLE_CONNECTIONS):
            stack.enter_context(exporter.connect(f"127.0.1.{1 + number}"))
        assert exporter.ask().status == 200


def test_many_at_once_are_all_answered(start: Start) -> None:
    exporter = start()
    answers: list[int] = []
    clients = [
        threading.Thread(target=lambda source=f"127.0.1.{n}": answers.append(exporter.ask(source=source).status))
        for n in range(1, 3 * THREADS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert answers == [200] * len(clients)


def test_an_address_may_have_some_threads_at_once(start: Start) -> None:
    exporter = start()
    with contextlib.ExitStack() as stack:
        for _ in range(THREADS_OF_ONE - 1):
            stack.enter_context(exporter.connect()).sendall(b"G")
        assert exporter.ask().status == 200


def test_who_has_all_his_threads_waits_for_one_of_them(start: Start) -> None:
    exporter = start(request_seconds=2 * PATIENCE)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(exporter.connect()) for _ in range(THREADS_OF_ONE)]
        for client in slow:
            client.sendall(b"GET /m")
        waiting = stack.enter_context(exporter.connect())
        waiting.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        assert exporter.ask("/", source=OTHER).status == 200  # by now those before have been looked at
        slow[0].close()
        assert everything(waiting).startswith(b"HTTP/1.1 200")


def test_no_more_than_some_wait_for_their_own_threads(start: Start) -> None:
    exporter = start(request_seconds=2 * PATIENCE)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(exporter.connect()) for _ in range(THREADS_OF_ONE + WAITING_CONNECTIONS + 1)]
        for client in clients:
            client.sendall(b"G")
        (closed,), _, _ = select.select(clients, [], [], PATIENCE)
        assert everything(closed) == b""
        assert exporter.ask("/", source=OTHER).status == 200


# The web configuration.


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the certificates of the server and of its clients; those of `stranger` are of another CA."""
    directory = tmp_path_factory.mktemp("pki")
    ours = Certificates(directory)
    ours.issue("web", "127.0.0.1")
    ours.issue("prometheus", "prometheus.example", "10.0.0.1")
    ours.issue("other", "other.example", "2001:db8::1")
    Certificates(directory, "other-ca").issue("stranger", "prometheus.example")
    return directory


def tls(pki: Path, client: str = "", **settings: object) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    if client:
        context.load_cert_chain(pki / f"{client}.pem", pki / f"{client}.key")
    for name, value in settings.items():
        setattr(context, name, value)
    return context


def configuration(pki: Path, *lines: str, rest: str = "") -> Path:
    text = [f"  cert_file: {pki}/web.pem", f"  key_file: {pki}/web.key", *(f"  {line}" for line in lines)]
    file = pki / "web.yml"
    file.write_text("\n".join(["tls_server_config:", *text, rest]))
    return file


def test_https(start: Start, pki: Path) -> None:
    exporter = start(configuration(pki))
    assert exporter.ask(tls=tls(pki)).body == METRICS
    with exporter.connect() as client:
        client.sendall(GET)
        assert b"HTTPS" in everything(client)


def test_clients_that_fail_do_not_fill_the_log(start: Start, pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libvirt_rapl.exporter.server.LOG_SECONDS", 600.0)
    exporter = start(configuration(pki))
    for _ in range(3):
        with exporter.connect() as client:
            client.sendall(GET)
            everything(client)
    assert len(exporter.log) == 1


def test_a_version_that_is_too_old_is_refused(start: Start, pki: Path) -> None:
    exporter = start(configuration(pki, "min_version: TLS13"))
    assert exporter.ask(tls=tls(pki)).status == 200
    with pytest.raises(ssl.SSLError):
        exporter.ask(tls=tls(pki, maximum_version=ssl.TLSVersion.TLSv1_2))
    wait_until(lambda: len(exporter.log) == 1, PATIENCE, "it is logged")


CLIENTS = {
    "NoClientCert": {"": True, "stranger": True},
    "VerifyClientCertIfGiven": {"": True, "prometheus": True, "stranger": False},
    "RequireAndVerifyClientCert": {"": False, "prometheus": True, "other": True, "stranger": False},
}


@pytest.mark.parametrize("mode", CLIENTS)
def test_client_certificates(start: Start, pki: Path, mode: str) -> None:
    ca = [] if mode == "NoClientCert" else [f"client_ca_file: {pki}/ca.pem"]
    exporter = start(configuration(pki, f"client_auth_type: {mode}", *ca))
    for client, allowed in CLIENTS[mode].items():
        assert is_served(exporter, tls(pki, client)) == allowed, client


@pytest.mark.parametrize("san", ["prometheus.example", "10.0.0.1", "2001:db8::1"])
def test_only_clients_of_some_names(start: Start, pki: Path, san: str) -> None:
    settings = ("client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {pki}/ca.pem")
    exporter = start(configuration(pki, *settings, f"client_allowed_sans: ['{san}', nobody.example]"))
    served = [client for client in ("prometheus", "other") if is_served(exporter, tls(pki, client))]
    assert served == (["other"] if ":" in san else ["prometheus"])


def is_served(exporter: Exporter, context: ssl.SSLContext) -> bool:
    try:
        return exporter.ask(tls=context).status == 200
    except (ssl.SSLError, ConnectionError, http.client.HTTPException):
        return False


def test_a_slow_handshake_keeps_out_nobody_and_ends(start: Start, pki: Path) -> None:
    exporter = start(configuration(pki), request_seconds=1.0)
    with exporter.connect() as slow:
        slow.sendall(b"\x16\x03\x01")
        assert exporter.ask(tls=tls(pki)).status == 200
        assert everything(slow) == b""


def test_a_new_certificate_is_used_for_the_next_connection(start: Start, tmp_path: Path) -> None:
    Certificates(tmp_path).issue("web", "127.0.0.1")
    exporter = start(configuration(tmp_path))
    before = tls(tmp_path)
    kept = http.client.HTTPSConnection(*exporter.address, context=before, timeout=PATIENCE)
    with contextlib.closing(kept):
        kept.request("HEAD", "/")
        assert kept.getresponse().read() == b""
        Certificates(tmp_path).issue("web", "127.0.0.1")
        assert exporter.ask(tls=tls(tmp_path)).status == 200
        assert not is_served(exporter, before)
        with contextlib.suppress(ConnectionError):
            kept.request("HEAD", "/")
        with pytest.raises((ConnectionError, http.client.HTTPException)):  # it was made under the old rules
            kept.getresponse()


USERS = f"basic_auth_users:\n  alice: {bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n"


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"alice:{password}".encode()).decode()}


def test_passwords(start: Start, tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text(USERS)
    exporter = start(tmp_path / "web.yml")
    for path in ("/", "/metrics", "/nothing"):
        answer = exporter.ask(path)
        assert (answer.status, answer.headers["WWW-Authenticate"].split()[0]) == (401, "Basic")
    assert exporter.ask(headers=basic("right")).body == METRICS
    assert exporter.ask(headers=basic("wrong")).status == 401
    answer = exporter.ask(headers=basic("another"))
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    (tmp_path / "web.yml").write_text("{}")
    assert exporter.ask().status == 200


def test_headers_are_added_to_each_answer(start: Start, tmp_path: Path) -> None:
    text = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n    Strict-Transport-Security: max-age=1\n"
    (tmp_path / "web.yml").write_text(text + USERS)
    exporter = start(tmp_path / "web.yml")
    for answer in (exporter.ask(), exporter.ask(headers=basic("right"))):
        assert answer.headers["X-Frame-Options"] == "deny"
        assert answer.headers["Strict-Transport-Security"] == "max-age=1"


def test_the_rate_is_limited(start: Start, tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text("rate_limit: {interval: 1h, burst: 2}")
    exporter = start(tmp_path / "web.yml")
    assert [exporter.ask("/").status for _ in range(3)] == [200, 200, 429]


def test_an_address_that_is_taken(shared: Exporter) -> None:
    log: list[str] = []
    site = Site(Web(None, log.append), respond, log.append)
    with pytest.raises(VirtRaplError, match=f"^cannot listen on {shared.address}: Address already in use$"):
        Server([Address("127.0.0.1", 0), shared.address], site, log.append)
    with pytest.raises(VirtRaplError, match=r"^cannot listen on 192\.0\.2\.1:0: Cannot assign requested address$"):
        Server([Address("192.0.2.1", 0)], site, log.append)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
def test_several_addresses() -> None:
    log: list[str] = []
    site = Site(Web(None, log.append), respond, log.append)
    server = Server([Address("127.0.0.1", 0), Address("::1", 0)], site, log.append)
    try:
        for host, port in server.addresses:
            with socket.create_connection((host, port), PATIENCE) as client:
                client.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                assert everything(client).startswith(b"HTTP/1.1 200")
    finally:
        server.close()
