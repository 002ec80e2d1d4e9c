"""The format of --web.config.file: what is understood, and each mistake with its line and key."""

from pathlib import Path

import pytest

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.exporter.web_config import RateLimit, WebConfig, parse

FILE = Path("/etc/web.yml")
HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
TLS = "tls_server_config:\n  cert_file: a.pem\n  key_file: keys/a.key\n"
CA = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: /ca.pem\n"


def read(text: str) -> WebConfig:
    return parse(FILE, text.encode())


@pytest.mark.parametrize("text", ["{}", "# nothing\n{}\n", "tls_server_config:\n", "basic_auth_users: {}\n"])
def test_without_settings_everything_is_open(text: str) -> None:
    assert read(text) == WebConfig()


@pytest.mark.parametrize("text", ["", " \n", "# tls_server_config:\n", "---\n", "---\n# none\n...\n", "null", "\ufeff"])
def test_a_file_with_nothing_in_it_is_a_mistake(text: str) -> None:
    with pytest.raises(VirtRaplError) as caught:
        read(text)
    assert str(FILE) in caught.value.message
    assert "{}" in caught.value.hint


def test_paths_are_relative_to_the_file() -> None:
    config = read(TLS + CA)
    assert [str(file.path) for file in config.files] == ["/etc/a.pem", "/etc/keys/a.key", "/ca.pem"]
    assert [file.place for file in config.files] == [
        "/etc/web.yml:2: cert_file",
        "/etc/web.yml:3: key_file",
        "/etc/web.yml:5: client_ca_file",
    ]


def test_what_tls_is_without_further_settings() -> None:
    tls = read(TLS).tls
    assert tls
    assert (tls.min_version, tls.max_version, tls.client_auth_type) == ("TLS12", "TLS13", "NoClientCert")
    assert (tls.ciphers, tls.curve, tls.prefer_server_cipher_suites) == ((), None, True)


def test_all_settings_of_tls() -> None:
    more = """\
  client_allowed_sans: [prometheus.example, 10.0.0.1]
  min_version: TLS12
  max_version: TLS12
  cipher_suites:
    - TLS_AES_128_GCM_SHA256
    - TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    - TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
  curve_preferences: [CurveP384]
  prefer_server_cipher_suites: false
"""
    tls = read(TLS + CA + more).tls
    assert tls
    assert tls.client_auth_type == "RequireAndVerifyClientCert"
    assert tls.client_allowed_sans == {"prometheus.example", "10.0.0.1"}
    assert (tls.min_version, tls.max_version) == ("TLS12", "TLS12")
    assert tls.ciphers == ("ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES256-GCM-SHA384")
    assert (tls.curve, tls.prefer_server_cipher_suites) == ("secp384r1", False)


def test_headers_users_and_rate_limit() -> None:
    config = read(f"""\
http_server_config:
  http2: true
  headers:
    X-Frame-Options: deny
    X-XSS-Protection: 0
    Content-Security-Policy: ""
basic_auth_users:
  alice: {HASH}
  123: {HASH}
rate_limit: {{interval: 1m0.5s, burst: 3}}
""")
    assert config.headers == {"X-Frame-Options": "deny", "X-XSS-Protection": "0"}
    assert config.users == {"alice": HASH.encode(), "123": HASH.encode()}
    assert config.rate_limit == RateLimit(60.5, 3)


@pytest.mark.parametrize("interval", ["0", "0s"])
def test_an_interval_of_0_is_no_limit(interval: str) -> None:
    assert read(f"rate_limit: {{interval: {interval}}}").rate_limit is None


MISTAKES = {
    "a: [": (1, "", "YAML"),
    "x: \x00": (1, "", "YAML"),
    "- a": (1, "", "key"),
    "\n\nbasic_auth_user: {}": (3, "basic_auth_user", "basic_auth_users"),
    "rate_limit: {}\nrate_limit: {}": (2, "rate_limit", "line 1"),
    "[a]: b": (1, "?", "unknown"),
    "<<: {}": (1, "<<", "unknown"),
    "tls_server_config: yes": (1, "tls_server_config", "yes"),
    "tls_server_config: {min_version: TLS12}": (1, "tls_server_config", "cert_file"),
    "tls_server_config:\n  cert_file: a": (1, "tls_server_config", "key_file"),
    "tls_server_config:\n  key_file: a": (1, "tls_server_config", "cert_file"),
    "tls_server_config:\n  cert: |\n    -----BEGIN": (2, "cert", "cert_file"),
    "tls_server_config:\n  key: |\n    -----BEGIN": (2, "key", "key_file"),
    TLS + "  client_ca: x": (4, "client_ca", "client_ca_file"),
    TLS + "  keyfile: x": (4, "keyfile", "key_file"),
    TLS.replace("a.pem", "''"): (2, "cert_file", "path"),
    TLS.replace("a.pem", "[]"): (2, "cert_file", "text"),
    TLS + "  min_version: TLS10": (4, "min_version", "TLS12 or TLS13"),
    TLS + "  min_version: TLS13\n  max_version: TLS12": (4, "min_version", "max_version"),
    TLS + "  max_version: 1.2": (4, "max_version", "TLS12"),
    TLS + "  client_auth_type: RequestClientCert": (4, "client_auth_type", "verifies"),
    TLS + "  client_auth_type: RequireAnyClientCert": (4, "client_auth_type", "verifies"),
    TLS + "  client_auth_type: RequireAndVerify": (4, "client_auth_type", "did you mean RequireAndVerifyClientCert"),
    TLS + "  client_auth_type: RequireAndVerifyClientCert": (4, "client_auth_type", "client_ca_file"),
    TLS + "  client_ca_file: ca.pem": (4, "client_ca_file", "client_auth_type"),
    TLS + "  client_allowed_sans: [x]": (4, "client_allowed_sans", "client_auth_type"),
    TLS + CA + "  client_allowed_sans: x": (6, "client_allowed_sans", "list"),
    TLS + "  cipher_suites:\n    - TLS_AES_128_GCM_SHA256": (4, "cipher_suites", "TLS13"),
    TLS + "  cipher_suites:\n    - TLS_RSA_WITH_RC4_128_SHA": (5, "cipher_suites", "TLS_RSA_WITH_RC4_128_SHA"),
    TLS + "  curve_preferences: [CurveP521,\n    X25519]": (5, "curve_preferences", "one"),
    TLS + "  curve_preferences: [X25519]": (4, "curve_preferences", "X25519"),
    TLS + "  curve_preferences: [P256]": (4, "curve_preferences", "CurveP256"),
    TLS + "  prefer_server_cipher_suites: 1": (4, "prefer_server_cipher_suites", "true"),
    "http_server_config: {http2: maybe}": (1, "http2", "true or false"),
    "http_server_config:\n  headers:\n    Server: x": (3, "Server", "X-Frame-Options"),
    "http_server_config:\n  headers:\n    X-Frame-Options: never": (3, "X-Frame-Options", "sameorigin"),
    'http_server_config:\n  headers:\n    X-XSS-Protection: "a\\r\\nb"': (3, "X-XSS-Protection", "ASCII"),
    "basic_auth_users:\n  alice: secret": (2, "alice", "htpasswd"),
    f"basic_auth_users:\n  a:b: {HASH}": (2, "a:b", "colon"),
    f"basic_auth_users:\n  a: {HASH}\n  a: {HASH}": (3, "a", "line 2"),
    f"basic_auth_users:\n  a: {HASH.replace('$10$', '$31$')}": (2, "a", "31"),
    "basic_auth_users:\n  a:": (2, "a", "htpasswd"),
    "rate_limit:\n  interval: 1": (2, "interval", "500ms"),
    "rate_limit:\n  interval: 1s": (1, "rate_limit", "burst"),
    "rate_limit:\n  interval: 1s\n  burst: 0": (3, "burst", "burst"),
}


@pytest.mark.parametrize(("text", "place"), MISTAKES.items())
def test_a_mistake_is_reported_with_its_line_and_key(text: str, place: tuple[int, str, str]) -> None:
    line, key, word = place
    with pytest.raises(VirtRaplError) as caught:
        read(text)
    assert caught.value.message.startswith(f"/etc/web.yml:{line}: {key}")
    assert word in caught.value.message + caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint


def test_what_is_not_utf8() -> None:
    with pytest.raises(VirtRaplError, match=r"web.yml:2: .*UTF-8"):
        parse(FILE, b"a: b\n\xff")


def test_a_password_is_not_shown() -> None:
    with pytest.raises(VirtRaplError) as caught:
        read("basic_auth_users: {alice: secret}")
    assert "secret" not in caught.value.message + caught.value.hint
