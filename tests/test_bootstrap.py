"""What etc/quickstart and tests/run share: when .venv is made anew, and when it is left alone."""

import subprocess
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).parent.parent / "etc/bootstrap"
NEED = """
set -eu
. "$1"
install_project() {
    echo "stale: $stale, clear: $clear"
    echo "$state" | tee .venv/installed-simulator >.venv/installed-test
}
need_project simulator test
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One with a .venv, all that is asked of which is that it can import everything."""
    for name in ("setup.cfg", "pyproject.toml"):
        (tmp_path / name).write_text("x\n")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").touch()
    interpreter(tmp_path, '[ "$1" = --version ] && exec /usr/bin/python3 --version\nexit 0')
    return tmp_path


def interpreter(checkout: Path, script: str) -> None:
    python = checkout / ".venv/bin/python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def need_project(checkout: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", "-c", NEED, "sh", str(BOOTSTRAP)], cwd=checkout, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr


def test_what_works_and_is_current_is_left_alone(checkout: Path) -> None:
    assert need_project(checkout) == (0, "stale: simulator,test, clear:", "")
    assert need_project(checkout) == (0, "", "")


def test_a_changed_setup_is_installed_over_what_is_there(checkout: Path) -> None:
    need_project(checkout)
    (checkout / "setup.cfg").write_text("y\n")
    assert need_project(checkout) == (0, "stale: simulator,test, clear:", "")


@pytest.mark.parametrize(
    "python",
    [
        "exit 127",
        "echo Python 2.7.18",
        '[ "$1" = --version ] && exec /usr/bin/python3 --version\nkill -ILL $$',
        '[ "$1" = --version ] && exec /usr/bin/python3 --version\nexit 1',
    ],
    ids=["gone", "another version", "built for another processor", "cannot import"],
)
def test_what_does_not_work_here_is_made_anew(checkout: Path, python: str) -> None:
    need_project(checkout)
    interpreter(checkout, python)
    assert need_project(checkout)[:2] == (0, "stale: simulator,test, clear: --clear")


def test_what_is_not_ours_is_not_cleared(checkout: Path) -> None:
    (checkout / ".venv/pyvenv.cfg").unlink()
    status, _, said = need_project(checkout)
    assert status == 1
    assert f"{checkout}/.venv is no virtual environment of ours\nhint: remove it" in said
    (checkout / ".venv").rename(checkout / "elsewhere")
    (checkout / ".venv").symlink_to("elsewhere")
    assert need_project(checkout)[0] == 1
