"""Errors as lines, for users and for who debugs."""

import io
import sys

import pytest

from libvirt_rapl import errors
from libvirt_rapl.errors import DEBUG, VirtRaplError, debug, explain, message_of


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("a bug"), "a bug"),
        (RuntimeError("two\n  lines\t"), "two lines"),
        (RuntimeError(), "RuntimeError"),
        (AssertionError("\n"), "AssertionError"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (VirtRaplError("no helper", "start one"), "no helper"),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str) -> None:
    assert explain(error) == line


@pytest.mark.parametrize(
    ("setting", "error", "logged"),
    [
        (None, RuntimeError("a bug"), False),
        ("", RuntimeError("a bug"), False),
        ("1", RuntimeError("a bug"), True),
        ("1", VirtRaplError("no helper"), False),
    ],
)
def test_a_traceback_is_for_who_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str | None,
    error: Exception,
    *,
    logged: bool,
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    monkeypatch.delenv(DEBUG, raising=False)
    if setting is not None:
        monkeypatch.setenv(DEBUG, setting)
    explain(error)
    assert capsys.readouterr().err == ("RuntimeError: a bug\n" if logged else "")


@pytest.mark.parametrize(
    ("journal", "terminal", "logged"), [(None, False, True), ("8:1", False, False), (None, True, False)]
)
def test_the_systems_log_gets_what_nobody_would_see_on_stderr(
    monkeypatch: pytest.MonkeyPatch, journal: str | None, *, terminal: bool, logged: bool
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda _, line: lines.append(line))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv(DEBUG, "1")
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if journal:
        monkeypatch.setenv("JOURNAL_STREAM", journal)
    debug("one\ntwo\n")
    assert lines == (["one", "two"] if logged else [])


class Full(io.StringIO):
    """Written to a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_who_has_closed_stderr_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "1")
    closed = io.StringIO()
    closed.close()
    for stderr in (closed, Full()):
        monkeypatch.setattr(sys, "stderr", stderr)
        debug("nobody reads this")


def test_the_message_of_a_check() -> None:
    def fails() -> None:
        raise VirtRaplError("no helper", "start one")

    def breaks() -> None:
        raise RuntimeError("a bug")

    assert (message_of(fails), message_of(lambda: None)) == ("no helper", "")
    with pytest.raises(RuntimeError):
        message_of(breaks)


def test_hints_are_kept() -> None:
    assert (errors.VirtRaplError("a", "b").hint, errors.VirtRaplError("a").hint) == ("b", "")
