"""The file of `--web.config.file`, in the format of Prometheus' exporter-toolkit, which other exporters take, too.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md describes it. Where Python's ssl
or our server cannot do what a key asks for, the file is rejected: nobody is less protected than the file says.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, get_args

import yaml

from libvirt_rapl.errors import VirtRaplError

ClientAuth = Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"]
"""The modes that Python's ssl has; it cannot ask for a certificate and not verify it."""
UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
TlsVersion = Literal["TLS12", "TLS13"]
"""OpenSSL of today's distributions accepts no older one."""

CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1"}
"""Python's ssl can be restricted to one of these; not to X25519, which OpenSSL offers first if nothing is set."""
CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
"""OpenSSL's names of the suites of TLS 1.2 that Go has."""
ALWAYS = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
"""The suites of TLS 1.3: neither exporter-toolkit nor Python chooses among them."""

HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
"""The headers that may be added, and the values of those that have only some."""

HASH = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
LEAST_COST, MOST_COST = 4, 15
"""bcrypt's cost: one more doubles the work. 15 takes seconds, longer than a scrape may."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?)(ns|us|µs|ms|s|m|h)")


class File(NamedTuple):
    """A file that the configuration names."""

    path: Path
    place: str
    """FILE:LINE: key, where it is named."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """`tls_server_config`."""

    cert_file: File
    key_file: File
    client_auth_type: ClientAuth
    client_ca_file: File | None
    client_allowed_sans: frozenset[str]
    """If there are any, a client's certificate must have one of these subject alternative names."""
    min_version: TlsVersion
    max_version: TlsVersion
    ciphers: tuple[str, ...]
    """OpenSSL's names for TLS 1.2; OpenSSL's default if empty."""
    curve: str | None
    prefer_server_cipher_suites: bool


class RateLimit(NamedTuple):
    """`rate_limit`: one request in `interval` seconds, or `burst` at once after a pause."""

    interval: float
    burst: int


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """The whole file. What it does not name is off."""

    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, bytes] = field(default_factory=dict)
    """The bcrypt hash of each user's password; without any, everybody may scrape."""
    rate_limit: RateLimit | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """Return the files that it names."""
        if self.tls is None:
            return ()
        named = (self.tls.cert_file, self.tls.key_file, self.tls.client_ca_file)
        return tuple(file for file in named if file)


def parse(file: Path, content: bytes) -> WebConfig:
    """Return what the file's content says. Raises VirtRaplError with FILE:LINE: key for the first mistake."""
    root = _root(file, content)
    if root is None or root.is_null:  # as it is for a moment while somebody writes it
        raise VirtRaplError(f"{file}: is empty", "write {} into it if everybody may scrape")
    keys = root.keys("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
    http = keys["http_server_config"].keys("http2", "headers") if "http_server_config" in keys else {}
    if "http2" in http:
        http["http2"].flag()  # Clients choose the protocol; ours is HTTP/1.1, which all of them speak.
    return WebConfig(
        tls=_tls(keys["tls_server_config"]) if "tls_server_config" in keys else None,
        headers=_headers(http["headers"]) if "headers" in http else {},
        users=_users(keys["basic_auth_users"]) if "basic_auth_users" in keys else {},
        rate_limit=_rate_limit(keys["rate_limit"]) if "rate_limit" in keys else None,
    )


class _Item(NamedTuple):
    """A key with its value, as YAML has it."""

    file: Path
    name: str
    line: int
    node: yaml.Node

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}: {self.name}".removesuffix(": ")

    @property
    def is_null(self) -> bool:
        return bool(self.node.tag == "tag:yaml.org,2002:null")

    def reject(self, problem: str, hint: str = "") -> NoReturn:
        raise VirtRaplError(f"{self.place}: {problem}", hint or f"correct {self.file}:{self.line}")

    def expect(self, expected: str, words: Iterable[str] = ()) -> NoReturn:
        """Reject the value, which is not what is expected."""
        scalar = isinstance(self.node, yaml.ScalarNode)
        found = repr(str(self.node.value)) if scalar else "a list or mapping"
        near = get_close_matches(str(self.node.value), words, 1) if scalar else []
        self.reject(f"expected {expected}, found {found}", f"did you mean {near[0]}?" if near else "")

    def members(self) -> Iterator["_Item"]:
        """Yield the keys of a mapping; none if there is nothing. Rejects one that is there twice."""
        if self.is_null:
            return
        if not isinstance(self.node, yaml.MappingNode):
            self.expect("`key: value` lines")
        lines: dict[str, int] = {}
        for key, value in self.node.value:
            line = key.start_mark.line + 1
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            item = _Item(self.file, name, line, value)
            if name in lines:
                item.reject("is there a second time", f"keep one of the two; the first is in line {lines[name]}")
            lines[name] = line
            yield item

    def keys(self, *known: str) -> dict[str, "_Item"]:
        """Return the keys of a mapping that are set. Rejects unknown ones."""
        found = {}
        for item in self.members():
            if item.name not in known:
                near = get_close_matches(item.name, known, 1)
                item.reject("unknown key", f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}")
            found[item.name] = item
        return found

    def text(self) -> str:
        """Return a scalar as it is written; numbers and the like, too. Empty if there is nothing."""
        if not isinstance(self.node, yaml.ScalarNode):
            self.expect("a text")
        return "" if self.is_null else str(self.node.value)

    def flag(self) -> bool:
        if self.node.tag != "tag:yaml.org,2002:bool":
            self.expect("true or false")
        return str(self.node.value).lower() in ("true", "yes", "on")

    def word(self, words: tuple[str, ...]) -> str:
        if self.text() not in words:
            self.expect(f"one of {', '.join(words)}", words)
        return self.text()

    def each(self) -> list["_Item"]:
        """Return the items of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.expect("a list")
        return [_Item(self.file, self.name, node.start_mark.line + 1, node) for node in self.node.value]

    def named_file(self) -> File:
        path = self.text()
        if not path or "\0" in path:
            self.expect("the path of a file")
        return File(self.file.parent / path, self.place)


def _root(file: Path, content: bytes) -> _Item | None:
    """Return all that is in the file; None if there is nothing but comments. Raises VirtRaplError if it is not YAML."""
    try:
        node = yaml.compose(content.decode(), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise _not_yaml(file, content.count(b"\n", 0, error.start), f"not UTF-8: {error.reason}") from error
    except yaml.reader.ReaderError as error:
        raise _not_yaml(file, content.decode().count("\n", 0, error.position), error.reason) from error
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(file, error.problem_mark.line if error.problem_mark else 0, error.problem or "") from error
    except RecursionError as error:
        raise _not_yaml(file, 0, "nested too deeply") from error
    return _Item(file, "", node.start_mark.line + 1, node) if node else None


def _not_yaml(file: Path, line: int, problem: str) -> VirtRaplError:
    place = f"{file}:{line + 1}"
    return VirtRaplError(f"{place}: not valid YAML: {' '.join(problem.split())}", f"correct {place}")


INLINE = {"cert": "cert_file", "key": "key_file", "client_ca": "client_ca_file"}


def _tls(item: _Item) -> Tls | None:
    keys = item.keys(
        *("cert_file", "key_file", "client_auth_type", "client_ca_file", "client_allowed_sans", "min_version"),
        *("max_version", "cipher_suites", "curve_preferences", "prefer_server_cipher_suites", *INLINE),
    )
    if not keys:
        return None
    for inline, instead in INLINE.items():
        if inline in keys:
            keys[inline].reject("Python's ssl reads certificates and keys from files only", f"use {instead}")
    for needed in ("cert_file", "key_file"):
        if needed not in keys:
            item.reject(f"{needed} is missing", "without certificate and key there is no TLS")

    least = _version(keys["min_version"]) if "min_version" in keys else "TLS12"
    most = _version(keys["max_version"]) if "max_version" in keys else "TLS13"
    if least > most:
        keys["min_version"].reject("is above max_version")
    clients = _client_auth(keys)
    curves = keys["curve_preferences"].each() if "curve_preferences" in keys else []
    if len(curves) > 1:
        curves[1].reject("Python's ssl can only be restricted to one curve", "keep one, or leave out curve_preferences")
    if curves and curves[0].text() == "X25519":
        curves[0].reject("Python's ssl cannot be restricted to X25519", "leave it out: it is offered first anyway")
    return Tls(
        cert_file=keys["cert_file"].named_file(),
        key_file=keys["key_file"].named_file(),
        client_auth_type=clients,
        client_ca_file=keys["client_ca_file"].named_file() if "client_ca_file" in keys else None,
        client_allowed_sans=frozenset(
            name.text() for name in (keys["client_allowed_sans"].each() if "client_allowed_sans" in keys else [])
        ),
        min_version=least,
        max_version=most,
        ciphers=_ciphers(keys["cipher_suites"], least) if "cipher_suites" in keys else (),
        curve=CURVES[curves[0].word(tuple(CURVES))] if curves else None,
        prefer_server_cipher_suites=keys["prefer_server_cipher_suites"].flag()
        if "prefer_server_cipher_suites" in keys
        else True,
    )


def _version(item: _Item) -> TlsVersion:
    versions: tuple[TlsVersion, ...] = get_args(TlsVersion)
    named = [version for version in versions if version == item.text()]
    if not named:
        item.reject(f"expected a version of TLS from 1.2 on, found {item.text()!r}", f"use {' or '.join(versions)}")
    return named[0]


def _client_auth(keys: Mapping[str, _Item]) -> ClientAuth:
    modes: tuple[ClientAuth, ...] = get_args(ClientAuth)
    mode: ClientAuth = "NoClientCert"
    if "client_auth_type" in keys:
        item = keys["client_auth_type"]
        if item.text() in UNVERIFIED:
            hint = "use RequireAndVerifyClientCert, or NoClientCert: what is not verified keeps nobody out"
            item.reject(f"{item.text()}: Python's ssl verifies each certificate that it asks for", hint)
        mode = next(mode for mode in modes if mode == item.word(modes))
        if mode != "NoClientCert" and "client_ca_file" not in keys:
            item.reject("client_ca_file is missing", "name the CA of your clients; any public one would be too many")
    for key in ("client_ca_file", "client_allowed_sans"):
        if key in keys and mode == "NoClientCert":
            keys[key].reject("no certificate is asked for", "set client_auth_type: RequireAndVerifyClientCert")
    return mode


def _ciphers(item: _Item, least: TlsVersion) -> tuple[str, ...]:
    names = [each.word((*CIPHERS, *ALWAYS)) for each in item.each()]
    ciphers = tuple(CIPHERS[name] for name in names if name in CIPHERS)
    if names and not ciphers and least == "TLS12":
        item.reject("none of these is of TLS 1.2", "set min_version: TLS13")
    return ciphers


def _headers(item: _Item) -> dict[str, str]:
    headers = {name: each.text() for name, each in item.keys(*HEADERS).items()}
    for name, each in item.keys(*HEADERS).items():
        if HEADERS[name] and headers[name]:
            each.word(HEADERS[name])
        if not (headers[name].isascii() and headers[name].isprintable()) and headers[name]:
            each.reject("expected printable ASCII")
    return {name: value for name, value in headers.items() if value}


def _users(item: _Item) -> dict[str, bytes]:
    users = {}
    for user in item.members():
        found = HASH.fullmatch(user.text())
        if not user.name or ":" in user.name:
            user.reject("a user's name is not empty and has no colon")
        if not found:
            user.reject("expected a bcrypt hash", "make one with: htpasswd -nBC 10 USER")  # the value is a secret
        if not LEAST_COST <= int(found[1]) <= MOST_COST:
            user.reject(f"expected a bcrypt hash of cost {LEAST_COST} to {MOST_COST}, found {found[1]}")
        users[user.name] = found[0].encode()
    return users


def _rate_limit(item: _Item) -> RateLimit | None:
    keys = item.keys("interval", "burst")
    interval = _seconds(keys["interval"]) if "interval" in keys else 0.0
    if interval == 0.0:
        return None
    burst = keys["burst"].text() if "burst" in keys else ""
    if not (burst.isascii() and burst.isdecimal() and int(burst) > 0):
        keys.get("burst", item).reject("expected a burst from 1 on: with none, nobody could ask")
    return RateLimit(interval, int(burst))


def _seconds(item: _Item) -> float:
    """Return a duration as Go writes it, `1m30s`, in seconds."""
    text = item.text()
    parts = _DURATION.findall(text)
    if text != "0" and "".join(number + unit for number, unit in parts) != text:
        item.expect("a duration such as 500ms or 1s")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
