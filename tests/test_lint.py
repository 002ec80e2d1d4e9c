"""The linters, over the whole tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IGNORED = {".git", ".venv", "build", "dist"}


def shell_scripts() -> list[str]:
    """Files that a shell reads: by their first line, or by the directive that a file without one begins with."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not path.is_symlink() and not IGNORED & set(parts):
            with path.open("rb") as file:
                first = file.readline()
            if first.startswith((b"#!/bin/sh", b"#!/bin/bash", b"# shellcheck shell=")):
                found.append(str(path.relative_to(ROOT)))
    return found


def test_shell_scripts_are_found() -> None:
    assert {"etc/bootstrap", "etc/quickstart", "hooks/qemu", "tests/run", ".ci/run"} <= set(shell_scripts())


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["shellcheck", "--external-sources", *shell_scripts()],
        ["ansible-lint", "--offline", "--strict", "--profile=production", "etc/ansible"],
    ],
    ids=["ruff", "format", "mypy", "shellcheck", "ansible"],
)
def test_linter(command: list[str], tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    program = scripts / command[0]
    done = subprocess.run(
        [str(program) if program.exists() else command[0], *command[1:]],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
