"""The terminal, by curses: draws the screen and reads keys until the user ends it."""

import contextlib
import curses
import os
import signal
import sys
import time
from collections.abc import Iterator

from libvirt_rapl.top.keys import press
from libvirt_rapl.top.screen import Screen, Style, screen
from libvirt_rapl.top.session import Session
from libvirt_rapl.top.signs import Signs
from libvirt_rapl.top.state import State

TICK_MILLISECONDS = 100
"""How long a key is waited for before what has come is looked at."""
REDRAW_SECONDS = 1.5
"""How long a screen is left alone if nothing comes: how old figures are may have to be said."""
ESCAPE_MILLISECONDS = 25
"""How long after Esc the rest of a longer key is waited for."""

REDRAW = "redraw"
"""Ctrl-L, for a screen that something else has written on."""

KEYS = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_RIGHT: "right",
    curses.KEY_PPAGE: "page up",
    curses.KEY_NPAGE: "page down",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_ENTER: "enter",
    curses.KEY_BACKSPACE: "backspace",
    curses.KEY_LEFT: "left",
    curses.KEY_RESIZE: "",
    "\n": "enter",
    "\r": "enter",
    "\x1b": "escape",
    "\x7f": "backspace",
    "\b": "backspace",
    "\f": REDRAW,
}
"""What press() calls them."""

STYLES: dict[Style, int] = {
    "plain": curses.A_NORMAL,
    "title": curses.A_BOLD,
    "alarm": curses.A_BOLD | curses.A_REVERSE,
    "note": curses.A_BOLD,
    "heading": curses.A_BOLD | curses.A_UNDERLINE,
    "selected": curses.A_REVERSE,
    "warning": curses.A_BOLD,
    "faint": curses.A_DIM,
}
COLOURED: tuple[Style, ...] = ("alarm", "warning")
"""Yellow, where there are colours; everything is seen without them, too."""


def trouble() -> str:
    """Return why no screen can be drawn; empty if one can."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "this is no terminal"
    name = os.environ.get("TERM", "")
    try:
        curses.setupterm()
    except curses.error:
        return f"the terminal {name!r} is not known"
    return "" if curses.tigetstr("cup") else f"the terminal {name!r} cannot place a cursor"


def run(session: Session, state: State, signs: Signs, frames: int | None) -> None:
    """Show the session until the user ends it, or so many frames have been. Raises VirtRaplError."""
    with _opened() as window:
        styles = _styles()
        seen = _draw(window, session, state, signs, styles)
        drawn = time.monotonic()
        while not state.has_ended and (frames is None or session.frames < frames):
            key = _key(window)
            if key == REDRAW:
                window.clearok(True)
            elif key:
                state = press(state, key, seen)
            is_new = session.advance(state.interval, is_paused=state.is_paused)
            if key is not None or is_new or time.monotonic() > drawn + REDRAW_SECONDS:
                seen = _draw(window, session, state, signs, styles)
                drawn = time.monotonic()


@contextlib.contextmanager
def _opened() -> Iterator[curses.window]:
    """Give the terminal as a window, and give it back as it was, also where a signal ends us."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    curses.set_escdelay(ESCAPE_MILLISECONDS)
    window = curses.initscr()
    try:
        curses.noecho()
        curses.cbreak()
        window.keypad(True)
        window.timeout(TICK_MILLISECONDS)
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        yield window
    finally:
        # Where a terminal does not bring back what was there before, as Linux's console, this line is written on next.
        with contextlib.suppress(curses.error):
            window.move(window.getmaxyx()[0] - 1, 0)
            window.clrtoeol()
            window.refresh()
        curses.endwin()


def _styles() -> dict[Style, int]:
    styles = dict(STYLES)
    if curses.has_colors() and not os.environ.get("NO_COLOR"):
        curses.start_color()
        curses.use_default_colors()
        curses.init_pair(1, curses.COLOR_YELLOW, -1)
        for style in COLOURED:
            styles[style] |= curses.color_pair(1)
    return styles


def _key(window: curses.window) -> str | None:
    """Wait for a key; return what press() calls it, empty for one that it does not know, None if none came."""
    try:
        key = window.get_wch()
    except curses.error:
        return None
    return KEYS.get(key, key if isinstance(key, str) else "")


def _draw(window: curses.window, session: Session, state: State, signs: Signs, styles: dict[Style, int]) -> Screen:
    actual = os.get_terminal_size(sys.stdout.fileno())
    if curses.is_term_resized(actual.lines, actual.columns):  # curses misses a change while it begins
        curses.resizeterm(actual.lines, actual.columns)
    height, width = window.getmaxyx()
    seen = screen(session.figures(), state, signs, (width, height))
    window.erase()
    for number, (text, style) in enumerate(seen.lines):
        with contextlib.suppress(curses.error):  # it is raised behind the last column of the last line
            window.addstr(number, 0, text, styles[style])
    window.refresh()
    return seen
