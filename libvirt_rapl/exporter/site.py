"""What is answered to whom: rate limit, user and password, path and method."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from libvirt_rapl.errors import explain
from libvirt_rapl.exporter.passwords import Passwords
from libvirt_rapl.exporter.rate import RateLimiter
from libvirt_rapl.exporter.web import Rules, Web

CHUNK_BYTES = 64 * 1024
"""An answer is written in pieces: cheroot copies a piece again for each part that the kernel takes of it."""

PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>virt-rapl</title></head>
<body><h1>virt-rapl</h1><p>Energy of KVM guests, for Prometheus: <a href="/metrics">metrics</a></p></body></html>
"""
TEXT, HTML = "text/plain; charset=utf-8", "text/html; charset=utf-8"

Respond = Callable[[str, str], tuple[str, dict[str, str], bytes]]
"""Takes the request's Accept and Accept-Encoding; returns content type, further headers and body."""
Log = Callable[[str], None]


class Reply(NamedTuple):
    """An answer to a request."""

    status: str
    content_type: str = TEXT
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Site:
    """What is answered to whom: a WSGI application, the same for all listening addresses."""

    def __init__(self, web: Web, respond: Respond, log: Log) -> None:
        """Take the rules, and what makes the answer to a scrape."""
        self.web = web
        self._respond = respond
        self._log = log
        self._passwords = Passwords()
        self._limiter = RateLimiter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        rules = self.web.rules()
        reply = self._reply(environ, rules)
        headers = [("Content-Type", reply.content_type), ("Content-Length", str(len(reply.body))), *reply.headers]
        start_response(reply.status, [*headers, *rules.config.headers.items()])
        if environ["REQUEST_METHOD"] == "HEAD":
            return ()
        return (reply.body[at : at + CHUNK_BYTES] for at in range(0, len(reply.body), CHUNK_BYTES))

    def _reply(self, environ: dict[str, Any], rules: Rules) -> Reply:
        config = rules.config
        # With this status cheroot closes the connection. With any other it would first read the body, however large.
        if environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ:
            return Reply("413 Content Too Large", body=b"a request has no body here\n")
        if config.rate_limit and not self._limiter.allows(config.rate_limit):
            return _later("too many requests")
        if config.users:
            given, address = environ.get("HTTP_AUTHORIZATION", ""), environ["REMOTE_ADDR"]
            answer = self._passwords.check(config.users, given, address)
            if answer == "later":
                return _later("too many wrong passwords")
            if answer == "wrong":
                challenge = ("WWW-Authenticate", 'Basic realm="virt-rapl", charset="UTF-8"')
                return Reply("401 Unauthorized", body=b"user and password, please\n", headers=(challenge,))
        if environ["PATH_INFO"] not in ("/", "/metrics"):
            return Reply("404 Not Found", body=b"there are / and /metrics\n")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return Reply("405 Method Not Allowed", body=b"GET or HEAD, please\n", headers=(("Allow", "GET, HEAD"),))
        if environ["PATH_INFO"] == "/":
            return Reply("200 OK", HTML, PAGE)
        try:
            content_type, headers, body = self._respond(
                environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", "")
            )
        except Exception as error:
            self._log(f"cannot answer a scrape: {type(error).__name__}: {explain(error)}")
            return Reply("500 Internal Server Error", body=b"the exporter's log says what is wrong\n")
        return Reply("200 OK", content_type, body, (*headers.items(), ("Vary", "Accept, Accept-Encoding")))


def _later(why: str) -> Reply:
    return Reply("429 Too Many Requests", body=f"{why}\n".encode(), headers=(("Retry-After", "1"),))
