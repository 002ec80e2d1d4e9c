"""Check passwords of basic authentication, so that guessing costs time, but not ours.

bcrypt is slow on purpose. Whoever guesses must wait: one check at a time, and after a wrong one a pause, for everybody
and a longer one for his address. Answers are remembered, so a client that knows its password is never made to wait.
"""

import base64
import binascii
import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import bcrypt

Answer = Literal["right", "wrong", "later"]
"""`later`: too many have been wrong lately, ask again."""

REMEMBERED = 256
"""Answers of each kind: a stranger's wrong ones push out no right one."""
TURN_SECONDS = 2.0
"""How long to wait for a check that is under way."""
PAUSE = 4.0
"""After a wrong password nothing is checked for so many times as long as that took: at most a fifth of a CPU."""
ADDRESS_SECONDS = 1.0
"""After a wrong password from an address, its next one is checked after this time."""
ADDRESSES = 1024
BCRYPT_BYTES = 72
"""bcrypt has always left out what is longer; its newer versions refuse it instead."""


Key = TypeVar("Key")
Value = TypeVar("Value")


class _Recent(OrderedDict[Key, Value]):
    """Keeps the newest so many entries."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        if len(self) > self._most:
            self.popitem(last=False)


class Passwords:
    """Checks and remembers. The users are given each time, because their file may change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing remembered."""
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._right, self._wrong = _Recent[bytes, None](REMEMBERED), _Recent[bytes, None](REMEMBERED)
        self._resting = _Recent[str, float](ADDRESSES)
        """Until when nothing is checked for an address."""
        self._rest_ends = 0.0
        self._turn = threading.Lock()

    def check(self, users: Mapping[str, bytes], authorization: str, address: str) -> Answer:
        """Return whether the header names one of these users (with his bcrypt hash) and his password."""
        user, password = _credentials(authorization)
        if user is None:
            return "wrong"
        stored = users.get(user) or _nobody(users)
        key = self._fingerprint(user.encode(), stored, password)
        if key in self._right:
            return "right"
        if key in self._wrong:
            return "wrong"
        if not self._turn.acquire(timeout=TURN_SECONDS):
            return "later"
        try:
            began = self._clock()
            if began < max(self._rest_ends, self._resting.get(address, 0.0)):
                return "later"
            # Computed for unknown users, too: how long it takes does not show whether there is such a user.
            matches = _matches(password, stored) and user in users
            if matches:
                self._right[key] = None
                return "right"
            self._wrong[key] = None
            ended = self._clock()
            self._rest_ends = ended + PAUSE * (ended - began)
            self._resting[address] = ended + ADDRESS_SECONDS
            return "wrong"
        finally:
            self._turn.release()

    def _fingerprint(self, *parts: bytes) -> bytes:
        """Return a digest of the parts that no other parts have; the length goes before each of them."""
        digest = hashlib.blake2b(key=self._key)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()


def _credentials(authorization: str) -> tuple[str | None, bytes]:
    """Return user and password; no user if the header has none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None, b""
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode() if colon else None), password
    except (binascii.Error, ValueError):
        return None, b""


def _nobody(users: Mapping[str, bytes]) -> bytes:
    """Return a hash of no password, which takes as long as the dearest of the users'."""
    cost = max(stored.split(b"$")[2] for stored in users.values())
    return b"$2b$" + cost + b"$" + b"." * 53


def _matches(password: bytes, stored: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:BCRYPT_BYTES], stored)
    except ValueError:  # some versions take no NUL
        return False
