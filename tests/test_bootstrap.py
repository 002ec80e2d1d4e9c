"""What etc/quickstart and tests/run share: when .venv is made anew, and when it is left alone."""

import subprocess
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).parent.parent / "etc/bootstrap"
NEED = """
set -eu
. "$1"
install_project() {
    echo "clear: ${clear:-no}"
    echo "$state" | tee .venv/installed-simulator >.venv/installed-test
}
need_project simulator test
"""
WORKS = '[ "$1" = --version ] && exec /usr/bin/python3 --version'
INSTALLED, MADE_ANEW = (0, "clear: no"), (0, "clear: yes")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One with a .venv, all that is asked of which is that its programs end well."""
    for name in ("setup.cfg", "pyproject.toml"):
        (tmp_path / name).write_text("x\n")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/pyvenv.cfg").touch()
    program(tmp_path, "virt-rapl", "exit 0")
    program(tmp_path, "python", f"{WORKS}\nexit 0")
    return tmp_path


def program(checkout: Path, name: str, script: str) -> None:
    python = checkout / ".venv/bin" / name
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def need_project(checkout: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["sh", "-c", NEED, "sh", str(BOOTSTRAP)], cwd=checkout, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip() or done.stderr.strip()


def test_what_works_and_is_current_is_left_alone(checkout: Path) -> None:
    assert need_project(checkout) == INSTALLED
    assert need_project(checkout) == (0, "")


def test_a_changed_setup_is_installed_over_what_is_there(checkout: Path) -> None:
    need_project(checkout)
    (checkout / "setup.cfg").write_text("y\n")
    assert need_project(checkout) == INSTALLED


BROKEN = {
    "gone": ("python", "exit 127"),
    "another version": ("python", "echo Python 2.7.18"),
    "built for another processor": ("python", f"{WORKS}\nkill -ILL $$"),
    "without pip": ("python", f'{WORKS}\n[ "$2" != pip ]'),
    "without a library": ("python", f'{WORKS}\n[ "$1" != -c ]'),
    "without the program": ("virt-rapl", "exit 126"),
}


@pytest.mark.parametrize(("name", "script"), BROKEN.values(), ids=BROKEN)
def test_what_does_not_work_here_is_made_anew(checkout: Path, name: str, script: str) -> None:
    need_project(checkout)
    program(checkout, name, script)
    assert need_project(checkout) == MADE_ANEW


def test_what_was_interrupted_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv/virt-rapl").touch()
    program(checkout, "python", f'{WORKS}\n[ "$2" != pip ]')
    (checkout / ".venv/pyvenv.cfg").unlink()
    assert need_project(checkout) == MADE_ANEW


def test_what_is_not_ours_is_not_removed(checkout: Path) -> None:
    program(checkout, "python", f'{WORKS}\n[ "$2" != pip ]')  # as other tools make them
    status, said = need_project(checkout)
    assert status == 1
    assert f"{checkout}/.venv does not work here" in said
    assert "hint: remove it" in said
    (checkout / ".venv/pyvenv.cfg").unlink()
    assert f"{checkout}/.venv is no virtual environment of ours" in need_project(checkout)[1]
    (checkout / ".venv").rename(checkout / "elsewhere")
    (checkout / ".venv").symlink_to("elsewhere")
    assert need_project(checkout)[0] == 1
