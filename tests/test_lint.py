"""The linters of .pre-commit-config.yaml, each over the whole tree."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
IGNORED = {".git", ".venv", "build", "dist"}
(LOCAL,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
HOOKS: dict[str, dict[str, Any]] = {hook["id"]: hook for hook in LOCAL["hooks"]}


def files() -> list[Path]:
    paths = [path for path in sorted(ROOT.rglob("*")) if not IGNORED & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def shell_scripts() -> list[str]:
    """Files that a shell reads: by their first line, or by the directive that a file without one begins with."""
    found = []
    for path in files():
        with path.open("rb") as file:
            first = file.readline()
        if first.startswith((b"#!/bin/sh", b"#!/bin/bash", b"# shellcheck shell=")):
            found.append(str(path.relative_to(ROOT)))
    return found


def of_hook(hook: dict[str, Any]) -> list[str]:
    """Return the files that a hook is given when all have changed."""
    if not hook.get("pass_filenames", True):
        return []
    names = [str(path.relative_to(ROOT)) for path in files()]
    return [name for name in names if re.search(hook["files"], name)]


def test_nothing_is_fetched() -> None:
    assert LOCAL["repo"] == "local"
    assert {hook["language"] for hook in HOOKS.values()} == {"system"}


def test_shell_scripts_are_found() -> None:
    assert {"etc/bootstrap", "etc/quickstart", "hooks/qemu", "tests/run", ".ci/run"} <= set(shell_scripts())
    assert of_hook(HOOKS["shellcheck"]) == shell_scripts()


def test_no_linter_is_lost() -> None:
    assert HOOKS.keys() == {"ruff", "format", "mypy", "shellcheck", "ansible"}


MARKS = {"shellcheck": pytest.mark.needs("shellcheck"), "ansible": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in HOOKS])
def test_linter(name: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(HOOKS[name]["entry"])
    if program.startswith(".venv/bin/"):
        program = str(Path(sys.executable).parent / Path(program).name)
    done = subprocess.run(
        [program, *arguments, *of_hook(HOOKS[name])],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
