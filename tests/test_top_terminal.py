"""`virt-rapl top` in a real terminal: keys go in, the screen comes out."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.documents import Daemon, document, domain, many
from terminal import Terminal
from walking import wait_until

from libvirt_rapl.daemon.document import Document
from libvirt_rapl.display import width
from libvirt_rapl.top.figures import OLD_SECONDS

pytestmark = pytest.mark.needs("tmux")
TWO = document(
    [domain(1, "web", 12.5, 70, vrapl="active"), domain(2, "db", 30, 90, reason="no space", vrapl="degraded")]
)

Start = Callable[..., Terminal]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, TWO, "tariff: {currency: EUR, price: 0.5}\n")
    yield daemon
    daemon.stop()


@pytest.fixture
def start(tmp_path: Path, daemon: Daemon) -> Iterator[Start]:
    """A function that starts top with some options, and variables of its environment."""
    terminals: list[Terminal] = []

    def start(*options: str, size: tuple[int, int] = (80, 24), **environment: str) -> Terminal:
        command = [sys.executable, "-m", "libvirt_rapl", "--config", str(daemon.config), "top", *options]
        terminals.append(Terminal(tmp_path, command, size, **environment))
        return terminals[-1]

    yield start
    for each in terminals:
        each.close()


def ended(terminal: Terminal, status: int) -> None:
    """Wait for the end; the terminal is as it was."""
    terminal.wait_for("icanon")
    lines = terminal.wait_for("echo")
    assert f"ended with {status}" in lines
    assert not any(line.startswith("DOMAIN") for line in lines), "what was on the screen before is there again"


def show(daemon: Daemon, shown: Document) -> None:
    """Show another document to top, once it is there to see it."""
    wait_until(lambda: daemon.clients(), 30, "top follows")
    daemon.show(shown)


def row(terminal: Terminal, name: str) -> str:
    return next(line for line in terminal.lines() if line.startswith(name))


def names(terminal: Terminal) -> list[str]:
    lines = terminal.lines()
    first = next(number for number, line in enumerate(lines) if line.startswith("DOMAIN"))
    return [line.split()[0] for line in lines[first + 1 : -1] if line]


def test_a_look_at_domains(start: Start, daemon: Daemon) -> None:
    terminal = start()
    lines = terminal.wait_for("12.50")
    assert lines[1].startswith("packages 62.50 W  ████")
    assert names(terminal) == ["db", "web"]
    terminal.wait_for("0.0063")
    cells = row(terminal, "web").split()
    assert (cells[:6], cells[-2:]) == (["web", "running", "active", "2", "25.0", "12.50"], ["-", "0.0063"])
    terminal.keys("n", "R")
    wait_until(lambda: names(terminal) == ["web", "db"], 20, "the order is another")
    terminal.keys("Down", "Enter")
    assert terminal.wait_for("VCPU")[1] == "db"
    assert terminal.shows("db runs without its meter: no space")
    terminal.keys("Escape")
    terminal.wait_for("VCPU", gone=True)
    terminal.keys("?")
    terminal.wait_for("seconds between two frames")
    terminal.keys("q", "u")
    terminal.wait_for("packages 2160 J")
    show(daemon, document([domain(3, "new", 1, 5)]))
    terminal.wait_for("1 domain, 1 running")
    assert names(terminal) == ["new"]
    terminal.keys("q")
    ended(terminal, 0)


def test_typing(start: Start, daemon: Daemon) -> None:
    daemon.show(document([domain(1, "été-数据库", 1), domain(2, "web", 2)]))
    terminal = start()
    terminal.wait_for("web")
    terminal.keys("/")
    terminal.type("É-数x")
    terminal.wait_for("/É-数x_")
    terminal.wait_for("no domain matches")
    terminal.keys("BSpace")
    wait_until(lambda: names(terminal) == ["été-数据库"], 20, "the filter holds")
    terminal.keys("Enter")
    terminal.wait_for("/É-数_", gone=True)
    terminal.keys("Escape")
    wait_until(lambda: names(terminal) == ["web", "été-数据库"], 20, "there is no filter")
    terminal.keys("d")
    terminal.type("0")
    terminal.keys("Enter")
    terminal.wait_for("expected seconds from 0.1 to 3600, found '0'")
    terminal.keys("C-c")
    ended(terminal, 130)


def test_a_pause(start: Start, daemon: Daemon) -> None:
    terminal = start()
    terminal.wait_for("web")
    terminal.keys("Space")
    terminal.wait_for("PAUSED")
    show(daemon, document([domain(1, "other")]))
    terminal.keys("h")
    terminal.wait_for("seconds between two frames")
    terminal.keys("q")
    terminal.wait_for("h help")
    assert names(terminal) == ["db", "web"]
    terminal.keys("Space")
    terminal.wait_for("other")


def test_any_size(start: Start, daemon: Daemon) -> None:
    daemon.show(many(500, 1))
    terminal = start(size=(100, 30))
    for columns, height in ((100, 30), (40, 10), (200, 50), (80, 24), (7, 3), (80, 24)):
        terminal.resize(columns, height)

        def is_drawn(columns: int = columns, height: int = height) -> bool:
            lines = terminal.lines()
            whole = height < 10 or lines[-1].startswith("h help")
            return len(lines) == height and whole and lines[0].startswith("virt-rapl top"[: columns - 1])

        wait_until(is_drawn, 60, f"the screen is drawn anew for {columns} x {height}")
    terminal.keys("n", "End")
    terminal.wait_for("instance-0499")
    assert len(names(terminal)) > 10
    terminal.keys("Home")
    terminal.wait_for("instance-0000")
    terminal.keys("q")
    ended(terminal, 0)


def test_names_do_nothing_to_the_terminal(start: Start, daemon: Daemon) -> None:
    hostile = [
        "\x1b]2;owned\x07",
        "\x1b[2J\x1b[H",
        "数据库服务器" * 5,
        "e\u0301" * 20,
        "\u202eevil",
        "שלום",
        "a\nb",
        "👩\u200d💻",
    ]
    daemon.show(document(domain(number, name, 99 - number) for number, name in enumerate(hostile)))
    terminal = start()
    lines = terminal.wait_for("h help")
    assert "owned" not in terminal.title()
    begin = next(number for number, line in enumerate(lines) if line.startswith("DOMAIN"))
    table = lines[begin + 1 : begin + 9]
    assert [line.partition("running")[1] for line in table] == ["running"] * 8
    assert len({width(line.partition("running")[0]) for line in table}) == 1, "columns are where they should be"
    assert table[0].startswith("\\x1b]2;owned\\x07")
    terminal.keys("Down", "Enter")
    assert "\\x1b[2J\\x1b[H" in terminal.wait_for("VCPU")[1]


def test_what_others_write_on_the_screen_goes(start: Start) -> None:
    terminal = start()
    terminal.wait_for("web")
    Path(terminal.tty()).write_text("\x1b[15;1Hkernel: oops")
    terminal.wait_for("kernel: oops")
    terminal.keys("C-l")
    terminal.wait_for("kernel: oops", gone=True)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours(start: Start, daemon: Daemon, no_color: str) -> None:
    daemon.show(replace(TWO, host=replace(TWO.host, source="simulated")))
    terminal = start(NO_COLOR=no_color)
    terminal.wait_for("SIMULATED")
    yellow = [line for line in terminal.lines("-e") if "\x1b[33m" in line or ";33m" in line]
    assert bool(yellow) != bool(no_color)
    (loud,) = (line for line in terminal.lines("-e") if "SIMULATED" in line)
    assert loud.startswith("\x1b[1;7m"), "bold and reverse, whatever the colours"


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("TERM", "no-such-terminal")])
def test_a_terminal_that_cannot_be_drawn_on_gets_plain_frames(start: Start, variable: str, value: str) -> None:
    terminal = start("-n", "1", **{variable: value})
    lines = terminal.wait_for("icanon")
    text = "\n".join(lines)
    assert f"the terminal '{value}'" in text
    assert "frames are plain text, as with --batch" in " ".join(text.split())
    assert "ended with 0" in lines
    assert any(line.startswith("web ") for line in lines)


def test_a_terminal_with_a_single_screen_has_room_for_what_comes_next(start: Start) -> None:
    terminal = start(TERM="linux")
    terminal.wait_for("h help")
    terminal.keys("q")
    assert "ended with 0" in terminal.wait_for("icanon")


def test_a_locale_without_block_elements(start: Start, daemon: Daemon) -> None:
    daemon.show(document([domain(1, "数", 10)]))
    terminal = start(LC_ALL="C", PYTHONUTF8="0")
    lines = terminal.wait_for("\\u6570")
    assert all(line.isascii() for line in lines)
    assert "####" in lines[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_ends_it_gets_the_terminal_back(start: Start, number: int) -> None:
    terminal = start()
    terminal.wait_for("web")
    (child,) = Path(f"/proc/{terminal.pid()}/task/{terminal.pid()}/children").read_text().split()
    os.kill(int(child), number)
    ended(terminal, 128 + number)


def test_so_many_frames(start: Start, daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "energy.csv"
    terminal = start("-n", "2", "--csv", str(file))
    terminal.wait_for("web")
    show(daemon, document([domain(1, "web", 1)]))
    ended(terminal, 0)
    assert [line.split(",")[1] for line in file.read_text().splitlines()] == ["domain", "db", "web", "web"]


def test_a_csv_file_that_cannot_be_written(start: Start) -> None:
    terminal = start("--csv", "/dev/full")
    lines = terminal.wait_for("icanon")
    assert "virt-rapl: error: cannot write /dev/full: No space left on device" in lines
    assert "ended with 1" in lines


@pytest.mark.slow
def test_virt_rapld_hangs_goes_and_comes_back(start: Start, daemon: Daemon) -> None:
    terminal = start()
    assert OLD_SECONDS == 5
    terminal.wait_for("figures are OLD")
    show(daemon, document([domain(1, "web", 7)]))
    terminal.wait_for("OLD", gone=True)
    daemon.stop()
    lines = terminal.wait_for("virt-rapld is AWAY")
    assert any(line.startswith("web") for line in lines), "the last figures are still there"
    daemon.start()
    show(daemon, document([domain(1, "back", 7)]))
    terminal.wait_for("back")
    terminal.wait_for("AWAY", gone=True)
