"""What each key of `virt-rapl top` does."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import pytest
from fakes.documents import document, domain, uuid
from hypothesis import given, settings
from hypothesis import strategies as st

from libvirt_rapl.top.figures import Figures
from libvirt_rapl.top.help_page import HELP
from libvirt_rapl.top.keys import press as press_
from libvirt_rapl.top.keys import seconds
from libvirt_rapl.top.screen import KEYS, Screen, screen
from libvirt_rapl.top.signs import BLOCKS
from libvirt_rapl.top.state import Entry, State
from libvirt_rapl.top.table import LETTERS

COUNT = 40
FIGURES = Figures(document=document(domain(number, f"vm-{number:02}", COUNT - number) for number in range(COUNT)))
"""The first uses most."""
KEY = st.sampled_from([*"jkgGqh?R/ud<> nwx9.", "up", "down", "page up", "page down", "home", "end"])
KEY |= st.sampled_from(["enter", "right", "escape", "backspace", ""])


def see(state: State) -> Screen:
    return screen(FIGURES, state, BLOCKS, (80, 24))


def press(state: State, *keys: str) -> State:
    return reduce(lambda state, key: press_(state, key, see(state)), keys, state)


def at(number: int) -> State:
    return State(selected=uuid(number))


@pytest.mark.parametrize(
    ("before", "keys", "after"),
    [
        (State(), ["down"], at(1)),
        (State(), ["j", "j", "k"], at(1)),
        (State(), ["up"], at(0)),
        (at(7), ["page down"], at(7 + 17)),
        (at(30), ["page down"], at(39)),
        (at(30), ["page up"], at(13)),
        (at(3), ["end", "up"], at(38)),
        (at(30), ["home"], at(0)),
        (at(30), ["g", "G"], at(39)),
        (State(selected="gone"), ["down"], at(1)),
        (State(), ["enter"], replace(at(0), page="domain")),
        (at(3), ["right"], replace(at(3), page="domain")),
        (replace(at(3), page="domain"), ["q"], at(3)),
        (replace(at(3), page="domain", scroll=2), ["backspace"], at(3)),
        (replace(at(3), page="domain"), ["left"], at(3)),
        (State(page="help"), ["escape"], State()),
        (State(page="help"), ["R", "<", "n", "/"], State(page="help")),
        (State(), ["h"], State(page="help")),
        (State(), ["?"], State(page="help")),
        (State(), ["q"], State(has_ended=True)),
        (State(page="help"), ["q", "q"], State(has_ended=True)),
        (State(), [" "], State(is_paused=True)),
        (State(page="domain"), [" ", " "], State(page="domain")),
        (State(), ["u"], State(unit="J")),
        (State(), ["u", "u"], State(unit="kWh")),
        (State(), ["u", "u", "u"], State()),
        (State(), ["R"], State(is_reversed=True)),
        (State(is_reversed=True), ["R"], State()),
        (State(is_reversed=True), ["n"], State(sort="name")),
        (State(), ["P"], State(sort="cpu")),
        (State(), ["<"], State(sort="cpu")),
        (State(), ["<", "<", "<", "<", "<", "<", "<"], State(sort="name")),
        (State(), [">"], State(sort="today")),
        (State(), [">", ">", ">"], State(sort="today")),  # there is no room for more columns
        (State(sort="cost"), [">"], State(sort="state")),
        (State(), ["x", "", "tab"], State()),
        (State(), ["backspace"], State()),
        (State(), ["/"], State(entry=Entry(what="filter"))),
        (State(), ["/", "v", "m", "-", "3"], State(entry=Entry(what="filter", text="vm-3"), filter="vm-3")),
        (State(), ["/", "q", "backspace", "j", "enter"], State(filter="j")),
        (State(filter="vm"), ["/", "x"], State(entry=Entry(what="filter", text="vmx"), filter="vmx")),
        (State(filter="vm"), ["/", "x", "escape"], State()),
        (State(filter="vm"), ["escape"], State()),
        (State(), ["/", "backspace", "down", "\x1b", "\n"], State(entry=Entry(what="filter"))),
        (State(filter="vm-3"), ["down", "down"], State(filter="vm-3", selected=uuid(32))),
        (State(filter="none"), ["down", "enter", "page up"], State(filter="none")),
        (State(), ["d", "5", "enter"], State(interval=5)),
        (State(), ["d", "0", ".", "5", "enter"], State(interval=0.5)),
        (State(filter="vm", interval=5), ["d", "escape"], State(filter="vm", interval=5)),
        (State(interval=5), ["d", "enter"], State(interval=5)),
        (
            State(interval=5),
            ["d", "x", "enter"],
            State(interval=5, message="expected seconds from 0.1 to 3600, found 'x'"),
        ),
        (State(message="no"), ["x"], State()),
    ],
)
def test_keys(before: State, keys: Sequence[str], after: State) -> None:
    assert press(before, *keys) == after


def test_a_page_that_is_longer_than_the_screen_is_scrolled() -> None:
    vcpus = document([replace(FIGURES.document.domains[0], vcpus=FIGURES.document.domains[0].vcpus * 50)])
    figures = Figures(document=vcpus)
    state = State(page="domain", selected=uuid(0))

    def after(state: State, key: str) -> State:
        return press_(state, key, screen(figures, state, BLOCKS, (80, 24)))

    last = screen(figures, after(state, "end"), BLOCKS, (80, 24))
    assert last.most_scroll > 50
    assert last.lines[-2].text.startswith("1 "), "its last vCPU"
    assert after(after(state, "end"), "down") == after(state, "end")
    assert after(after(state, "page down"), "page up") == state == after(state, "up")
    assert (
        screen(figures, after(state, "down"), BLOCKS, (80, 24)).lines[1:]
        != screen(figures, state, BLOCKS, (80, 24)).lines[1:]
    )


@settings(deadline=None)
@given(st.lists(KEY, max_size=40))
def test_no_key_leads_astray(keys: list[str]) -> None:
    state = press(State(), *keys)
    seen = see(state)
    assert state.selected in {"", *(domain.uuid for domain in FIGURES.document.domains)}
    assert state.scroll == 0 or state.scroll <= seen.most_scroll
    assert state.interval == 0 or 0.1 <= state.interval <= 3600
    quit_ = press(replace(state, entry=None), "escape", "escape", "q")
    assert quit_.has_ended, "and there is always a way out"


@pytest.mark.parametrize("text", ["", "0", "-1", "0.05", "3601", "nan", "inf", "1e9", "five", "5 s"])
def test_no_seconds(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected seconds from 0\.1 to 3600"):
        seconds(text)


def test_an_entry_does_not_grow_for_ever() -> None:
    state = press(State(), "/", *"x" * 1000)
    assert len(state.filter) == 64


def test_help_names_every_key() -> None:
    first = HELP.partition("\n\n")[0]
    for letter in LETTERS:
        assert f" {letter} " in first, letter
    for key in ("Enter", "<", ">", "R", "/", "u", "d", "space", "q", "Esc"):
        assert key in first
    assert all(key in KEYS for key in ("h ", "q ", "Enter ", "/ ", "< > ", "R ", "u ", "space "))
