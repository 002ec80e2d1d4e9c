"""The text of a scrape, in the format that the client understands."""

import gzip
import re
import threading
from collections.abc import Callable
from typing import Any, cast

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from libvirt_rapl.daemon.document import Document

OPENMETRICS = "application/openmetrics-text"
GZIP_LEVEL = 1
"""Prometheus is near: what a higher level saves on the way, it costs here."""


class Scrape:
    """Makes the text once for all who ask for the same document in the same format."""

    def __init__(self, document: Callable[[], Document | None], metrics: Collector) -> None:
        """Take what returns the newest document, the same object until there is a newer one; and its metrics."""
        self._newest = document
        self._metrics = metrics
        self._lock = threading.Lock()
        self._document: Document | None = None
        self._made: dict[tuple[str, bool], tuple[str, bytes]] = {}

    def respond(self, accept: str = "", accept_encoding: str = "") -> tuple[str, dict[str, str], bytes]:
        """Return content type, further headers and body for the request headers Accept and Accept-Encoding."""
        wanted, zipped = OPENMETRICS if OPENMETRICS in accept else "", takes_gzip(accept_encoding)
        with self._lock:
            document = self._newest()
            if document is not self._document:
                self._document = document
                self._made.clear()
            if (wanted, zipped) not in self._made:
                encode, content_type = choose_encoder(wanted)
                body = encode(cast("Any", self._metrics))  # prometheus_client 0.16 declares a registry, and takes any
                self._made[wanted, zipped] = content_type, gzip.compress(body, GZIP_LEVEL) if zipped else body
            content_type, body = self._made[wanted, zipped]
        return content_type, {"Content-Encoding": "gzip"} if zipped else {}, body


def takes_gzip(accept_encoding: str) -> bool:
    """Return whether a client that sends this Accept-Encoding takes gzip; with a weight of 0 it does not."""
    for encoding in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in encoding.split(";"))
        if name == "gzip":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False
