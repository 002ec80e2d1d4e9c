"""What conftest.py promises: which tests run, no silent skip where CI=true, and nothing left behind goes unnoticed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each runs a pytest of its own

HERE = Path(__file__).parent
CONFIGURATION = HERE.parent / "setup.cfg"
PLUGINS = ("-p", "conftest", "-p", "no:hypothesispytest")
"""Ours, and not hypothesis, which takes longer to begin than all else."""


def run_test(directory: Path, body: str, *arguments: str, **environment: str) -> str:
    """Run test functions under our conftest.py and return the last line pytest prints."""
    file = directory / "test_inner.py"
    file.write_text(f"import pathlib, subprocess, tempfile, pytest, conftest\n{body}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *PLUGINS, "-c", CONFIGURATION, *(arguments or [file.name])],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(HERE), "CI": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1]


CANNOT_RUN = """conftest.missing = lambda: "no KVM"
@pytest.mark.e2e
def test_end_to_end(): pass
@pytest.mark.needs("sh", "no-such-program")
def test_that_needs_a_program(): pass
@pytest.mark.needs("sh")
def test_that_can_run(): pass
"""


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 passed, 2 skipped"), ("true", "1 passed, 2 errors")])
def test_what_the_machine_cannot_run_is_skipped_but_fails_in_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    assert outcome in run_test(tmp_path, CANNOT_RUN, CI=ci)


LEAVE_A_CHILD = "subprocess.Popen(['sleep', '2'], env={})"
LEAVE_AN_ORPHAN = "subprocess.run(['sh', '-c', 'sleep 2 >/dev/null 2>&1 &'])"
LEAVE_A_FILE = "pathlib.Path(tempfile.gettempdir(), 'virt-rapl-left-by-a-test').touch()"
SOMEBODY_ELSES = "subprocess.run(['sh', '-c', 'env -i sleep 2 >/dev/null 2>&1 &'])"
"""No child of ours, and without our mark."""


def functions(*bodies: str) -> str:
    """Return a test for each of these bodies; what is left is not waited for."""
    tests = [f"def test_{number}(): {body}" for number, body in enumerate(bodies)]
    return "\n".join(["conftest.GRACE_SECONDS = 0.1", *tests, ""])


def test_what_is_left_behind_is_an_error(tmp_path: Path) -> None:
    assert "3 passed, 3 errors" in run_test(tmp_path, functions(LEAVE_A_CHILD, LEAVE_AN_ORPHAN, LEAVE_A_FILE))


def test_tidy_tests_pass(tmp_path: Path) -> None:
    output = run_test(tmp_path, functions("subprocess.run(['true'])", SOMEBODY_ELSES))
    assert "2 passed" in output
    assert "error" not in output


OF_EACH_KIND = """conftest.missing = lambda: ""
def test_fast(): pass
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.e2e
def test_end_to_end(): pass
"""


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [(["-n0", "."], "1 passed, 2 deselected"), (["-m", "e2e or not e2e"], "3 passed"), (["test_inner.py"], "3 passed")],
)
def test_what_is_not_fast_is_left_out_where_nothing_is_chosen(
    tmp_path: Path, arguments: list[str], outcome: str
) -> None:
    assert outcome in run_test(tmp_path, OF_EACH_KIND, *arguments)
