"""The web configuration in force: read again when a file changes, and what of its files cannot be used."""

import subprocess
from pathlib import Path

import pytest
from fakes.certificates import Certificates

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.exporter.web import Web

TLS = "tls_server_config:\n  cert_file: web.pem\n  key_file: web.key\n"
VERIFY = TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A web configuration, and beside it what it names."""
    Certificates(tmp_path).issue("web", "127.0.0.1")
    path = tmp_path / "web.yml"
    path.write_text(VERIFY)
    return path


def test_without_a_file_everything_is_open(log: list[str]) -> None:
    rules = Web(None, log.append).rules()
    assert (rules.context, rules.config.users, log) == (None, {}, [])


def test_nothing_is_read_again_that_has_not_changed(file: Path, log: list[str]) -> None:
    web = Web(file, log.append)
    before = web.rules()
    file.touch()
    assert web.rules() is before
    assert log == []


@pytest.mark.parametrize("name", ["web.yml", "web.pem", "web.key", "ca.pem"])
def test_what_has_changed_is_read_again(file: Path, log: list[str], name: str) -> None:
    web = Web(file, log.append)
    before = web.rules()
    with (file.parent / name).open("a") as changed:
        changed.write("\n")
    after = web.rules()
    assert after is not before
    assert after.context
    assert after.context is not before.context
    assert len(log) == 1


def test_a_certificate_may_be_replaced_before_its_key(file: Path, log: list[str]) -> None:
    web = Web(file, log.append)
    before = web.rules()
    key = (file.parent / "web.key").read_bytes()
    Certificates(file.parent, "new").issue("web", "127.0.0.1")
    new_key = (file.parent / "web.key").read_bytes()
    (file.parent / "web.key").write_bytes(key)
    assert web.rules() is before
    (file.parent / "web.key").write_bytes(new_key)
    assert web.rules() is not before
    assert len(log) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("web.yml", "tls: {}"),
        ("web.yml", ""),
        ("web.yml", "# only a comment\n"),
        ("web.yml", None),
        ("web.pem", "nonsense"),
        ("web.key", None),
        ("ca.pem", "nonsense"),
    ],
)
def test_a_mistake_is_logged_once_and_what_was_before_stays(
    file: Path, log: list[str], name: str, content: str | None
) -> None:
    web = Web(file, log.append)
    before = web.rules()
    good = (file.parent / name).read_text()
    if content is None:
        (file.parent / name).unlink()
    else:
        (file.parent / name).write_text(content)
    assert web.rules() is before
    assert web.rules() is before
    (line,) = log
    assert name in line
    assert "\n" not in line
    (file.parent / name).write_text(good)
    assert web.rules() is not before


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("web.yml", None, "web.yml"),
        ("web.yml", "", "web.yml"),
        ("web.yml", "# only a comment\n", "web.yml"),
        ("web.pem", None, "web.yml:2: cert_file"),
        ("web.pem", "nonsense", "web.yml:2: cert_file"),
        ("web.key", None, "web.yml:3: key_file"),
        ("web.key", "nonsense", "web.yml:2: cert_file"),
        ("ca.pem", None, "web.yml:5: client_ca_file"),
        ("ca.pem", "nonsense", "web.yml:5: client_ca_file"),
    ],
)
def test_nothing_begins_with_a_mistake(file: Path, log: list[str], name: str, content: str | None, place: str) -> None:
    (file.parent / name).unlink()
    if content is not None:
        (file.parent / name).write_text(content)
    with pytest.raises(VirtRaplError) as caught:
        Web(file, log.append)
    assert place in caught.value.message
    assert name in caught.value.message + caught.value.hint
    assert caught.value.hint


@pytest.mark.needs("openssl")
def test_nobody_is_asked_for_a_passphrase(file: Path, log: list[str]) -> None:
    key = file.parent / "web.key"
    command = ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", str(key), "-out", f"{key}.new"]
    subprocess.run(command, check=True, capture_output=True)
    Path(f"{key}.new").rename(key)
    with pytest.raises(VirtRaplError, match=r"web.yml:3: key_file: .*encrypted"):
        Web(file, log.append)


def test_all_settings_are_accepted_by_this_openssl(file: Path, log: list[str]) -> None:
    for curve in ("CurveP256", "CurveP384", "CurveP521"):
        file.write_text(f"""{VERIFY}
  min_version: TLS12
  max_version: TLS12
  cipher_suites: [TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]
  curve_preferences: [{curve}]
  prefer_server_cipher_suites: false
""")
        context = Web(file, log.append).rules().context
        assert context
        names = [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
        assert names == ["ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-SHA"]
