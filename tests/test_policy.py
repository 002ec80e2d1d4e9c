"""What conftest.py promises: no silent skip where CI=true, and nothing that a test leaves behind goes unnoticed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_test(directory: Path, body: str, **environment: str) -> str:
    """Run one test function under our conftest.py and return the last line pytest prints."""
    file = directory / "test_inner.py"
    file.write_text(f"import pathlib, subprocess, tempfile, pytest, conftest\n{body}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-c", HERE.parent / "setup.cfg", file],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(HERE), "CI": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_an_end_to_end_test_that_cannot_run_is_skipped_but_fails_in_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    body = "conftest.missing = lambda: 'no KVM'\n@pytest.mark.e2e\ndef test(): pass\n"
    assert outcome in run_test(tmp_path, body, CI=ci)


LEAVE_A_CHILD = "subprocess.Popen(['sleep', '2'], env={})"
LEAVE_AN_ORPHAN = "subprocess.run(['sh', '-c', 'sleep 2 >/dev/null 2>&1 &'])"
LEAVE_A_FILE = "pathlib.Path(tempfile.gettempdir(), 'virt-rapl-left-by-a-test').touch()"


@pytest.mark.parametrize("mistake", [LEAVE_A_CHILD, LEAVE_AN_ORPHAN, LEAVE_A_FILE])
def test_what_is_left_behind_is_an_error(tmp_path: Path, mistake: str) -> None:
    body = f"conftest.GRACE_SECONDS = 0.1\ndef test(): {mistake}\n"
    assert "1 passed, 1 error" in run_test(tmp_path, body)


SOMEBODY_ELSES = "subprocess.run(['sh', '-c', 'env -i sleep 2 >/dev/null 2>&1 &'])"
"""No child of ours, and without our mark."""


@pytest.mark.parametrize("tidy", ["subprocess.run(['true'])", SOMEBODY_ELSES])
def test_a_tidy_test_passes(tmp_path: Path, tidy: str) -> None:
    output = run_test(tmp_path, f"conftest.GRACE_SECONDS = 0.1\ndef test(): {tidy}\n")
    assert "1 passed" in output
    assert "error" not in output
