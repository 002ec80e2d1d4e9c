"""What each key does to the state."""

from dataclasses import replace

from libvirt_rapl.top.figures import Unit
from libvirt_rapl.top.screen import Screen
from libvirt_rapl.top.state import Entry, State
from libvirt_rapl.top.table import LETTERS

LEAST_SECONDS, MOST_SECONDS = 0.1, 3600.0
"""Between two frames."""
LONGEST_ENTRY = 64
NEXT_UNIT: dict[Unit, Unit] = {"W": "J", "J": "kWh", "kWh": "W"}
MOVES = {"up": -1, "k": -1, "down": 1, "j": 1}
PAGES = {"page up": -1, "page down": 1}
ENDS = {"home": -1, "g": -1, "end": 1, "G": 1}


def press(state: State, key: str, seen: Screen) -> State:
    """Return the state after a key, of which `seen` was the screen.

    A key is the character that it types, or one of: up, down, page up, page down, home, end, left, right, enter,
    escape, backspace. Others do nothing.
    """
    state = replace(state, message="")
    if state.entry:
        return _type(state, state.entry, key)
    if key in MOVES or key in PAGES or key in ENDS:
        steps = MOVES.get(key, 0) + seen.page * PAGES.get(key, 0) + 10**6 * ENDS.get(key, 0)
        return _move(state, steps, seen)
    match key:
        case "q" | "escape" | "backspace" | "left" if state.page != "domains":
            return replace(state, page="domains", scroll=0)
        case "q":
            return replace(state, has_ended=True)
        case "h" | "?":
            return replace(state, page="help", scroll=0)
        case " ":
            return replace(state, is_paused=not state.is_paused)
        case "u":
            return replace(state, unit=NEXT_UNIT[state.unit])
        case "d":
            return replace(state, entry=Entry(what="interval"))
    return _in_the_table(state, key, seen) if state.page == "domains" else state


def _in_the_table(state: State, key: str, seen: Screen) -> State:
    match key:
        case "enter" | "right" if seen.uuids:
            return replace(state, page="domain", scroll=0, selected=_selected(state, seen))
        case "/":
            return replace(state, entry=Entry(what="filter", text=state.filter))
        case "escape":
            return replace(state, filter="")
        case "R":
            return replace(state, is_reversed=not state.is_reversed)
        case "<" | ">" if seen.sortable:
            at = seen.sortable.index(state.sort) if state.sort in seen.sortable else 0
            to = min(max(0, at + (1 if key == ">" else -1)), len(seen.sortable) - 1)
            return replace(state, sort=seen.sortable[to])
    if key.lower() in LETTERS:
        return replace(state, sort=LETTERS[key.lower()], is_reversed=False)
    return state


def _selected(state: State, seen: Screen) -> str:
    """Return the UUID of the domain under the cursor."""
    return state.selected if state.selected in seen.uuids else seen.uuids[0]


def _move(state: State, steps: int, seen: Screen) -> State:
    """Move the cursor down, or on another page, the text up."""
    if state.page != "domains":
        return replace(state, scroll=min(max(0, state.scroll + steps), seen.most_scroll))
    if not seen.uuids:
        return state
    at = seen.uuids.index(_selected(state, seen))
    return replace(state, selected=seen.uuids[min(max(0, at + steps), len(seen.uuids) - 1)])


def _type(state: State, entry: Entry, key: str) -> State:
    """Return the state after a key in the last line. A filter holds as it is typed."""
    match key:
        case "escape":
            return replace(state, entry=None, filter="" if entry.what == "filter" else state.filter)
        case "enter":
            return replace(state, entry=None) if entry.what == "filter" else _set_interval(state, entry.text)
        case "backspace":
            text = entry.text[:-1]
        case _ if len(key) == 1 and key.isprintable() and len(entry.text) < LONGEST_ENTRY:
            text = entry.text + key
        case _:
            return state
    filter_ = text if entry.what == "filter" else state.filter
    return replace(state, entry=replace(entry, text=text), filter=filter_)


def _set_interval(state: State, text: str) -> State:
    if not text:
        return replace(state, entry=None)
    try:
        return replace(state, entry=None, interval=seconds(text))
    except ValueError as error:
        return replace(state, entry=None, message=str(error))


def seconds(text: str) -> float:
    """Return how far apart frames are to be. Raises ValueError with a message for people."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not LEAST_SECONDS <= value <= MOST_SECONDS:
        raise ValueError(f"expected seconds from {LEAST_SECONDS:g} to {MOST_SECONDS:g}, found {text!r}")
    return value
