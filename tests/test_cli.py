"""The command line as a whole: whose argument is whose, and how failures end."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from libvirt_rapl import cli
from libvirt_rapl.cli import main
from libvirt_rapl.errors import VirtRaplError, printable


def virt_rapl(*arguments: str, output: str = "/dev/null") -> subprocess.CompletedProcess[str]:
    with open(output, "w") as stdout:
        return subprocess.run(
            [sys.executable, "-m", "libvirt_rapl", *arguments],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
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


@pytest.mark.parametrize("written", [["--config", "{}"], ["--config={}"], ["--connect", "x", "--config", "{}"]])
def test_global_options_come_before_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], written: list[str]
) -> None:
    path = tmp_path / "virt-rapl.yaml"
    path.write_text("interval: 2\n")
    assert main([*(word.format(path) for word in written), "config", "check"]) == 0
    assert str(path) in capsys.readouterr().out


def test_virt_rapld_gets_its_configuration_and_its_libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "virt-rapl.yaml"
    path.write_text("interval: 2\n")
    given: list[tuple[float, str]] = []
    monkeypatch.setattr("libvirt_rapl.daemon.loop.run", lambda config, uri: given.append((config.interval, uri)))
    assert main(["--connect", "test:///default", "--config", str(path), "daemon"]) == 0
    assert given == [(2.0, "test:///default")]


@pytest.mark.parametrize(
    ("result", "status", "said"),
    [
        (0, 0, ""),
        (7, 7, ""),
        (VirtRaplError("no luck", "try again"), 1, "virt-rapl: error: no luck\nhint: try again\n"),
        (VirtRaplError("no luck"), 1, "virt-rapl: error: no luck\n"),
        (VirtRaplError("no\x1b[31m", "\x07"), 1, "virt-rapl: error: no\\x1b[31m\nhint: \\x07\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 0, ""),
        (
            OSError(13, "Permission denied", "/x"),
            1,
            "virt-rapl: error: [Errno 13] Permission denied: '/x'\nhint: is there space, and permission?\n",
        ),
    ],
)
def test_how_a_command_ends(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    result: int | BaseException,
    status: int,
    said: str,
) -> None:
    def run(_: argparse.Namespace) -> int:
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr("libvirt_rapl.cli.config.run", run)
    monkeypatch.setattr(cli, "_forget_output", lambda: None)
    assert main(["config", "show"]) == status
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("command", ["install", "config"])
def test_output_that_cannot_be_written_is_reported(tmp_path: Path, command: str) -> None:
    """Whether a command writes each line at once or all at its end."""
    arguments = {"install": ["install", "--prefix-root", str(tmp_path)], "config": ["config", "show"]}[command]
    done = virt_rapl("--config", str(tmp_path / "none.yaml"), *arguments, output="/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "virt-rapl: error: [Errno 28] No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_what_the_locale_cannot_express_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    config, output = tmp_path / "virt-rapl.yaml", tmp_path / "output"
    config.write_text("state_directory: /var/lib/\N{GRINNING FACE}\n", encoding="utf-8")
    done = virt_rapl("--config", str(config), "config", "show", output=str(output))
    assert (done.returncode, done.stderr) == (0, "")
    assert r"/var/lib/\U0001f600" in output.read_text()


def test_a_reader_that_has_gone_is_no_failure(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = virt_rapl("--config", str(tmp_path / "none.yaml"), "config", "show", output=f"/dev/fd/{writer}")
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_standard_streams_may_be_closed(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "libvirt_rapl", "--config", str(tmp_path / "none.yaml"), "config", "show"]
    for closed in (">&-", "<&- >&- 2>&-"):
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *arguments]
        done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_columns() -> None:
    assert cli.aligned([("NAME", "WATTS", ""), ("a", "1.5", "x"), ("long", "100.25", "")], right={1}) == [
        "NAME   WATTS",
        "a        1.5  x",
        "long  100.25",
    ]


def test_columns_are_those_of_a_terminal() -> None:
    names = ["web", "\u4eee\u60f3\u6a5f", "na\u0308her", "\uff37", "\u20a9", "\U0001f600"]
    lines = cli.aligned([(name, "1", name, "|") for name in names], right={1, 2})
    assert lines == [
        "web     1     web  |",
        "\u4eee\u60f3\u6a5f  1  \u4eee\u60f3\u6a5f  |",
        "na\u0308her   1   na\u0308her  |",
        "\uff37      1      \uff37  |",
        "\u20a9       1       \u20a9  |",
        "\U0001f600      1      \U0001f600  |",
    ]


@pytest.mark.parametrize("text", ["0", "00", "-1", "1.5", "x", "", "²"])
def test_what_is_no_count(text: str) -> None:
    assert (cli.count("1"), cli.count("15")) == (1, 15)
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 on"):
        cli.count(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND is missing"),
        (["--"], "COMMAND is missing"),
        *((["--cpu-watts", watts, "true"], "expected watts") for watts in ("-1", "100001", "nan", "inf", "x")),
        (["--packages=0", "true"], "from 1 on"),
    ],
)
def test_what_simulate_does_not_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.setattr("libvirt_rapl.simulator.server.load_library", mounts)
    with pytest.raises(SystemExit) as caught:
        main(["simulate", *arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def mounts() -> None:
    raise AssertionError("it prepares to mount")


def test_only_root_can_simulate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("libvirt_rapl.simulator.server.load_library", mounts)
    assert main(["simulate", "--cpu-watts=0", "--idle-watts=100000", "--", "true"]) == 1
    assert "only root" in capsys.readouterr().err


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
