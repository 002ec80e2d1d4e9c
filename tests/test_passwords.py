"""Basic authentication: who is let in, and what guessing costs."""

import base64
import threading
from collections.abc import Iterator

import bcrypt
import pytest

from libvirt_rapl.exporter import passwords
from libvirt_rapl.exporter.passwords import ADDRESS_SECONDS, REMEMBERED, Passwords

LONG = "x" * 80


def hashed(password: str) -> bytes:
    return bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4))


USERS = {"alice": hashed("right"), "bärbel": hashed("grün:gelb"), "long": hashed(LONG), "b": hashed("c")}


def header(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Clock:
    """One that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hashes that were compared with."""
    seen: list[bytes] = []
    real = bcrypt.checkpw

    def checkpw(password: bytes, stored: bytes) -> bool:
        seen.append(stored)
        return real(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    return seen


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (header("alice", "right"), "right"),
        (header("alice", "right").replace("Basic", "basic"), "right"),
        (header("bärbel", "grün:gelb"), "right"),
        (header("long", LONG), "right"),
        (header("alice", "wrong"), "wrong"),
        (header("alice", ""), "wrong"),
        (header("alice", "right\0"), "wrong"),
        (header("Alice", "right"), "wrong"),
        (header("", ""), "wrong"),
        (header("nobody", "right"), "wrong"),
        ("", "wrong"),
        ("Bearer YWxpY2U6cmlnaHQ=", "wrong"),
        ("Basic", "wrong"),
        ("Basic %%%", "wrong"),
        ("Basic YWxpY2U=", "wrong"),
        ("Basic /zpy", "wrong"),
    ],
)
def test_who_is_let_in(given: str, answer: str) -> None:
    assert Passwords().check(USERS, given, "::1") == answer


def test_an_unknown_user_costs_what_the_dearest_known_one_does(computed: list[bytes]) -> None:
    users = {"cheap": hashed("a"), "dear": bcrypt.hashpw(b"b", bcrypt.gensalt(6))}
    assert Passwords().check(users, header("nobody", "a"), "::1") == "wrong"
    assert [stored.split(b"$")[2] for stored in computed] == [b"06"]


def test_an_answer_is_remembered(computed: list[bytes]) -> None:
    checked = Passwords()
    for _ in range(3):
        assert checked.check(USERS, header("alice", "right"), "::1") == "right"
        assert checked.check(USERS, header("alice", "wrong"), "::1") == "wrong"
    assert len(computed) == 2


def test_a_changed_password_is_not_remembered() -> None:
    checked = Passwords()
    assert checked.check(USERS, header("alice", "right"), "::1") == "right"
    assert checked.check({"alice": hashed("new")}, header("alice", "right"), "::1") == "wrong"
    assert checked.check({"b": hashed("c")}, header("alice", "right"), "::2") != "right"


def test_no_user_and_password_look_like_another_pair() -> None:
    """exporter-toolkit once joined user, hash and password without a separator (CVE-2022-46146)."""
    clock = Clock()
    checked = Passwords(clock)
    assert checked.check(USERS, header("b", "c"), "::1") == "right"
    stored = USERS["b"].decode()
    nobody = "$2b$04$" + "." * 53
    for user, password in [("b" + stored, "c"), ("b", stored + "c"), ("b" + stored + "c" + nobody, ""), ("", "bc")]:
        clock.now += 60
        assert checked.check(USERS, header(user, password), "::1") == "wrong"
    assert checked.check(USERS, header("b", "c"), "::1") == "right"

    odd = {"b": hashed("x" + nobody + "y")}
    assert checked.check(odd, header("b", "x" + nobody + "y"), "::2") == "right"
    assert checked.check(odd, header("b" + odd["b"].decode() + "x", "y"), "::2") == "wrong"


def test_an_unknown_user_is_not_let_in_whatever_bcrypt_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: True)
    assert Passwords().check(USERS, header("nobody", "x"), "::1") == "wrong"


def test_who_has_guessed_wrong_waits(computed: list[bytes]) -> None:
    clock = Clock()
    checked = Passwords(clock)
    assert checked.check(USERS, header("alice", "1"), "192.0.2.1") == "wrong"
    assert checked.check(USERS, header("alice", "2"), "192.0.2.1") == "later"
    assert checked.check(USERS, header("alice", "right"), "192.0.2.1") == "later"
    assert len(computed) == 1
    assert checked.check(USERS, header("alice", "right"), "192.0.2.2") == "right"
    assert checked.check(USERS, header("alice", "right"), "192.0.2.1") == "right"  # it is remembered
    clock.now += ADDRESS_SECONDS
    assert checked.check(USERS, header("alice", "2"), "192.0.2.1") == "wrong"


def test_guesses_from_many_addresses_take_a_fifth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    checked = Passwords(clock)
    spent = []

    def checkpw(_password: bytes, _stored: bytes) -> bool:
        clock.now += 0.1
        spent.append(0.1)
        return False

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    began = clock.now
    for guess in range(1000):
        checked.check(USERS, header("alice", str(guess)), f"192.0.2.{guess}")
        clock.now += 0.01
    assert 0 < sum(spent) <= (clock.now - began) / 4.9


def test_wrong_ones_push_out_no_right_one(computed: list[bytes]) -> None:
    clock = Clock()
    checked = Passwords(clock)
    assert checked.check(USERS, header("alice", "right"), "::1") == "right"
    for guess in range(2 * REMEMBERED):
        clock.now += 60
        assert checked.check({"alice": USERS["alice"]}, header("x", str(guess)), "::1") == "wrong"
    before = len(computed)
    assert checked.check(USERS, header("alice", "right"), "::1") == "right"
    assert len(computed) == before


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A check that has begun and does not end before the test does."""
    begun, ended = threading.Event(), threading.Event()

    def checkpw(_password: bytes, _stored: bytes) -> bool:
        begun.set()
        return not ended.wait(30)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    yield begun
    ended.set()


def test_one_check_at_a_time(stuck: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "TURN_SECONDS", 0.01)
    checked = Passwords()
    threading.Thread(target=checked.check, args=(USERS, header("alice", "1"), "::1"), daemon=True).start()
    assert stuck.wait(30)
    assert checked.check(USERS, header("alice", "2"), "::2") == "later"
