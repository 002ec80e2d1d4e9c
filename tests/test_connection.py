"""The connection to libvirt: errors when it is opened, what is registered for its events, and what is undone."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest
from fakes.libvirt import failure

from libvirt_rapl.domains import connection
from libvirt_rapl.errors import VirtRaplError

CHANGES = {libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE}


UNSUPPORTED, BROKEN = failure("refused", libvirt.VIR_ERR_NO_SUPPORT), failure("refused", libvirt.VIR_ERR_INTERNAL_ERROR)


class Connection:
    """One that records calls; a call whose name is in `fails` raises that error."""

    def __init__(self, **fails: libvirt.libvirtError) -> None:
        self.fails, self.calls = fails, list[str]()
        self.callbacks: dict[int, Callable[..., None]] = {}
        self.on_close: Callable[..., None] | None = None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def setKeepAlive(self, seconds: int, count: int) -> None:  # noqa: N802
        self._call("setKeepAlive")
        assert 0 < seconds * count <= 60

    def domainEventRegisterAny(self, _: None, event: int, callback: Callable[..., None], __: None) -> int:  # noqa: N802
        self._call("domainEventRegisterAny")
        self.callbacks[event] = callback
        return event

    def domainEventDeregisterAny(self, number: int) -> None:  # noqa: N802
        del self.callbacks[number]
        self._call("domainEventDeregisterAny")

    def registerCloseCallback(self, callback: Callable[..., None], _: None) -> None:  # noqa: N802
        self._call("registerCloseCallback")
        self.on_close = callback

    def unregisterCloseCallback(self) -> None:  # noqa: N802
        self.on_close = None
        self._call("unregisterCloseCallback")

    def close(self) -> None:
        self._call("close")


class Domain:
    def UUIDString(self) -> str:  # noqa: N802
        return "its UUID"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How libvirt was opened."""
    opened: list[str] = []

    def way(name: str) -> Callable[[str], Any]:
        def open_it(uri: str) -> Connection:
            opened.append(f"{name} {uri}")
            return Connection()

        return open_it

    for name in ("open", "openReadOnly"):
        monkeypatch.setattr(libvirt, name, way(name))
    return opened


@pytest.mark.parametrize(("read_only", "way"), [(True, "openReadOnly"), (False, "open")])
def test_it_is_opened_for_writing_only_where_that_is_asked_for(opened: list[str], read_only: bool, way: str) -> None:
    for _ in range(2):
        assert connection.connect("fake:///", read_only=read_only).calls == ["setKeepAlive"]
    assert opened == [f"{way} fake:///"] * 2


@pytest.mark.parametrize(("trouble", "lost"), [(UNSUPPORTED, False), (BROKEN, True)])
def test_only_a_driver_in_our_own_process_needs_no_keep_alive(
    monkeypatch: pytest.MonkeyPatch, trouble: libvirt.libvirtError, lost: bool
) -> None:
    fake = Connection(setKeepAlive=trouble)
    monkeypatch.setattr(libvirt, "open", lambda _: fake)
    if not lost:
        assert connection.connect("fake:///") is fake
        return
    with pytest.raises(VirtRaplError, match="cannot connect") as caught:
        connection.connect("fake:///")
    assert caught.value.hint


def test_an_error_is_raised_and_printed_by_nobody() -> None:
    """libvirt-python prints each on stderr where no handler takes it."""
    printed: list[object] = []
    libvirt.registerErrorHandler(lambda _, error: printed.append(error), None)
    for _ in range(2):  # and the next attempt is not held up by it
        with pytest.raises(VirtRaplError, match="cannot connect to libvirt at nonsense:///"):
            connection.connect("nonsense:///")
    assert printed == []


@pytest.fixture
def subscribed() -> Iterator[tuple[Connection, list[str]]]:
    fake, reported = Connection(), list[str]()
    with connection.subscribed(fake, changed=reported.append, lost=lambda: reported.append("lost")):
        yield fake, reported


def test_changes_of_state_and_metadata_and_the_end_of_libvirt_are_reported(
    subscribed: tuple[Connection, list[str]],
) -> None:
    fake, reported = subscribed
    assert fake.callbacks.keys() == CHANGES
    for callback in fake.callbacks.values():
        callback(fake, Domain(), 0, 0, None)
    assert fake.on_close
    fake.on_close(fake, 0, None)
    assert reported == ["its UUID", "its UUID", "lost"]


@pytest.mark.parametrize("trouble", ["domainEventDeregisterAny", "unregisterCloseCallback", "close", "none"])
def test_all_is_undone_at_the_end_whatever_fails_and_the_connection_is_closed_last(trouble: str) -> None:
    fake = Connection(**{trouble: BROKEN})
    with (
        pytest.raises(ZeroDivisionError),
        connection.subscribed(fake, changed=lambda _: None, lost=lambda: None),
    ):
        raise ZeroDivisionError
    assert (fake.callbacks, fake.on_close) == ({}, None)
    assert (fake.calls[-1], fake.calls.count("close")) == ("close", 1)


@pytest.mark.parametrize("name", ["domainEventRegisterAny", "registerCloseCallback"])
def test_a_libvirt_that_reports_nothing_is_closed_again(name: str) -> None:
    fake = Connection(**{name: BROKEN})
    with (
        pytest.raises(VirtRaplError, match="does not report changes"),
        connection.subscribed(fake, changed=lambda _: None, lost=lambda: None),
    ):
        pass
    assert (fake.callbacks, fake.calls[-1]) == ({}, "close")
    supported = Connection(**{name: UNSUPPORTED})
    with connection.subscribed(supported, changed=lambda _: None, lost=lambda: None):
        pass


def test_the_thread_that_opens_it_keeps_no_process_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def open_it(_: str) -> Connection:
        threads.append(threading.current_thread().daemon)
        return Connection()

    monkeypatch.setattr(libvirt, "open", open_it)
    connection.connect("fake:///")
    assert threads == [True]
