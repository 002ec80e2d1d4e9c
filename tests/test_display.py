"""How wide texts are on a terminal, and how they are made to fit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libvirt_rapl.display import cut, fit, width


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("web", 3), ("数据库", 6), ("e\u0301", 1), ("\uff37eb", 4), ("a\N{MAN}b", 4)]
)
def test_columns(text: str, columns: int) -> None:
    assert width(text) == columns


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("web", 3, "web"),
        ("webs", 3, "we…"),
        ("数据库", 5, "数据…"),
        ("数据库", 4, "数…"),
        ("e\u0301clair", 3, "e\u0301c…"),
        ("web", 1, "…"),
        ("web", 0, ""),
    ],
)
def test_what_is_cut_off(text: str, columns: int, expected: str) -> None:
    assert cut(text, columns) == expected


def test_an_ellipsis_that_takes_more() -> None:
    assert [cut("webserver", columns, "...") for columns in (9, 8, 3, 2)] == ["webserver", "webse...", "...", ""]


@settings(deadline=None)
@given(st.text(), st.integers(0, 40), st.booleans())
def test_every_text_fits(text: str, columns: int, right: bool) -> None:
    made = fit(text, columns, right=right)
    assert width(made) == columns
    if width(text) <= columns:
        assert made.strip(" ") == text.strip(" ")
        assert made.endswith(text) if right else made.startswith(text), "spaces are on the other side"
