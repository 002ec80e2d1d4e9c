"""A real terminal, tmux's, in which a command runs: keys go in, the screen comes out."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from walking import wait_until

SCRIPT = """
trap : INT
"$@"
echo "ended with $?"
stty -a | tr ' ;' '\\n\\n' | grep -x -e echo -e icanon
exec sleep 1000
"""
"""Shows how a command has ended, and whether it has left the terminal as it was: `echo` and `icanon` are on then."""


class Terminal:
    """Runs a command, and when it has ended a shell, until close()."""

    def __init__(
        self, directory: Path, command: Sequence[str], size: tuple[int, int] = (80, 24), **environment: str
    ) -> None:
        """Begin, on a terminal of this size in columns and lines; tmux has its socket in the directory."""
        self._environment = {**os.environ, "TMUX_TMPDIR": str(directory), "LC_ALL": "C.UTF-8"}
        self._environment.pop("TMUX", None)
        columns, lines = map(str, size)
        set_ = [f"{name}={value}" for name, value in environment.items()]
        words = ["env", *set_, "sh", "-c", SCRIPT, "sh", *command]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", lines, *words)

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", "test", *words], env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def keys(self, *keys: str) -> None:
        """Press these, as tmux calls them: `j`, `Enter`, `Escape`, `Down`."""
        self._tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type a text."""
        self._tmux("send-keys", "-l", text)

    def lines(self, *options: str) -> list[str]:
        """Return the screen; with the option -e, with the sequences that set colours."""
        return self._tmux("capture-pane", "-p", *options).split("\n")[:-1]

    def shows(self, text: str) -> bool:
        """Return whether a line of the screen has this."""
        return any(text in line for line in self.lines())

    def wait_for(self, text: str, *, gone: bool = False) -> list[str]:
        """Wait until the screen has this, or has it no more; return the screen."""
        what = "is gone" if gone else "is there"
        wait_until(lambda: self.shows(text) != gone, 30, f"{text!r} {what} on the screen:\n" + "\n".join(self.lines()))
        return self.lines()

    def resize(self, columns: int, lines: int) -> None:
        """Make the terminal another size."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def pid(self) -> int:
        """Return the process of the command's shell."""
        return int(self._tmux("display-message", "-p", "#{pane_pid}"))

    def tty(self) -> str:
        """Return the path of the terminal, to which others may write."""
        return self._tmux("display-message", "-p", "#{pane_tty}").strip()

    def title(self) -> str:
        """Return the title that the terminal was given."""
        return self._tmux("display-message", "-p", "#{pane_title}")

    def close(self) -> None:
        """End everything."""
        self._tmux("kill-server")
