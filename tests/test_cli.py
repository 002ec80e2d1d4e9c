"""The command line as a whole: whose argument is whose, and how failures end."""

import subprocess
import sys
from pathlib import Path

import pytest

from libvirt_rapl import cli
from libvirt_rapl.cli import main
from libvirt_rapl.errors import printable


def virt_rapl(*arguments: str, output: str = "/dev/null") -> subprocess.CompletedProcess[str]:
    with open(output, "w") as stdout:
        return subprocess.run(
            [sys.executable, "-m", "libvirt_rapl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )


@pytest.mark.parametrize("name", ["--help", "-n", "--json"])
def test_after_two_dashes_everything_is_a_name(name: str) -> None:
    done = virt_rapl("--connect", "test:///default", "enable", "--", name)
    assert done.returncode == 1
    assert f"there is no domain {name!r}" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["--nonsense"],
        ["--connect"],
        ["status", "--nonsense"],
        ["enable"],
        ["install", "--prefix-root="],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: virt-rapl" in capsys.readouterr().err


def test_output_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    done = virt_rapl("install", "--prefix-root", str(tmp_path), output="/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "virt-rapl: error: [Errno 28] No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_what_would_control_a_terminal_is_written_out() -> None:
    assert printable("näher 2 (a)") == "näher 2 (a)"
    assert printable("a\x1b[31m\x9b\u202e\n\udc80") == r"a\x1b[31m\x9b\u202e\n\udc80"
    assert cli.aligned([("N", "A"), ("a\x9b", "b")], right=()) == ["N      A", r"a\x9b  b"]


def test_a_mistake_of_ours_is_no_traceback_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> list[str]:
        raise RuntimeError("a bug")

    monkeypatch.setattr("libvirt_rapl.cli.install.install", broken)
    assert main(["install", "--prefix-root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("virt-rapl: error: internal error: RuntimeError: a bug\nhint: ")
    monkeypatch.setenv("VIRT_RAPL_DEBUG", "1")
    assert main(["install", "--prefix-root", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-3:-1] == ["RuntimeError: a bug", "virt-rapl: error: internal error: RuntimeError: a bug"]
