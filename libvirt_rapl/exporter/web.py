"""The web configuration in force. Its files are compared for each request, and used when they have changed."""

import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from libvirt_rapl.errors import VirtRaplError, explain
from libvirt_rapl.exporter import web_config
from libvirt_rapl.exporter.web_config import File, Tls, WebConfig

VERIFY = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}


class Rules(NamedTuple):
    """What the files say, ready for use; compare it with `is`."""

    config: WebConfig
    context: ssl.SSLContext | None
    """None without TLS."""


class Web:
    """Holds the rules. A mistake in files that have changed is logged once; the rules of before stay in force."""

    def __init__(self, file: Path | None, log: Callable[[str], None]) -> None:
        """Read the files. Raises VirtRaplError if anything is wrong with them; without a file everything is open."""
        self._file = file
        self._log = log
        self._lock = threading.Lock()
        self._watched: tuple[Path, ...] = (file,) if file else ()
        self._seen: tuple[bytes | str, ...] = ()
        self._rules = self._read(file) if file else Rules(WebConfig(), None)

    def rules(self) -> Rules:
        """Return what the files say now, or said when they were last right."""
        with self._lock:
            if self._file and tuple(map(_content, self._watched)) != self._seen:
                try:
                    self._rules = self._read(self._file)
                    self._log(f"read {self._file}, or what it names, again")
                except VirtRaplError as error:
                    hint = f" ({error.hint})" if error.hint else ""
                    self._log(f"{error.message}{hint}; the settings of before stay in force")
            return self._rules

    def _read(self, file: Path) -> Rules:
        self._seen = tuple(map(_content, self._watched))
        content = _content(file)
        if isinstance(content, str):
            raise VirtRaplError(f"cannot read {file}: {content}", "the exporter's user or group must be able to")
        config = web_config.parse(file, content)
        self._watched = (file, *(named.path for named in config.files))
        self._seen = tuple(map(_content, self._watched))
        return Rules(config, context(config.tls) if config.tls else None)


def context(tls: Tls) -> ssl.SSLContext:
    """Return what makes a connection one of TLS. Raises VirtRaplError with the place that names an unusable file."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version, made.maximum_version = VERSIONS[tls.min_version], VERSIONS[tls.max_version]
    made.verify_mode = VERIFY[tls.client_auth_type]
    for file in (tls.cert_file, tls.key_file, tls.client_ca_file):
        if file and isinstance(content := _content(file.path), str):
            raise VirtRaplError(f"{file.place}: {content}", "the exporter's user or group must be able to read it")
    try:
        made.load_cert_chain(tls.cert_file.path, tls.key_file.path, password=lambda: _encrypted(tls.key_file))
    except (OSError, ValueError) as error:  # also ssl.SSLError
        hint = f"is it a certificate in PEM, and that of {tls.key_file.path}?"
        raise VirtRaplError(
            f"{tls.cert_file.place}: cannot use {tls.cert_file.path}: {explain(error)}", hint
        ) from error
    if file := tls.client_ca_file:
        try:
            made.load_verify_locations(file.path)
        except (OSError, ValueError) as error:
            raise VirtRaplError(f"{file.place}: cannot use {file.path}: {explain(error)}", "is it in PEM?") from error
    if tls.ciphers:
        made.set_ciphers(":".join(tls.ciphers))
    if tls.curve:
        made.set_ecdh_curve(tls.curve)
    if not tls.prefer_server_cipher_suites:
        made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    return made


def _encrypted(key: File) -> str:
    raise VirtRaplError(f"{key.place}: {key.path} is encrypted", "store it without a passphrase")


def _content(path: Path) -> bytes | str:
    """Return the bytes of a file, or in words why it cannot be read."""
    try:
        if not path.is_file():  # reading a pipe would not end
            return f"{path} is not a file" if path.exists() else f"{path} does not exist"
        return path.read_bytes()
    except OSError as error:
        return explain(error)
