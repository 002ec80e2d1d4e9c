"""What is logged: one line that is safe to print, and not too many of those that others can cause."""

import pytest

from libvirt_rapl.log import SparingLog, log
from libvirt_rapl.token_bucket import TokenBucket


def test_a_message_is_one_line_and_safe_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log("two\nlines \x1b[31m and\ttabs")
    assert capsys.readouterr().err == "virt-rapl: two lines \\x1b[31m and tabs\n"


def test_what_others_can_cause_is_logged_sparingly_and_counted() -> None:
    now, lines = [100.0], list[str]()
    sparing = SparingLog(lines.append, TokenBucket(2, 10.0, lambda: now[0]))
    for number in range(5):
        sparing(f"line {number}")
    assert lines == ["line 0", "line 1"]
    now[0] += 10.0
    sparing("line 5")
    sparing("line 6")
    assert lines[2:] == ["line 5 (3 lines like this were left out before it)"]
    now[0] += 3600.0
    for number in range(7, 12):
        sparing(f"line {number}")
    assert lines[3:] == ["line 7 (1 lines like this were left out before it)", "line 8"]
