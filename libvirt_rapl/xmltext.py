"""Putting elements into an XML tree, and taking them out, so that the white space around them comes back exactly."""

from collections.abc import Sequence

from lxml.etree import _Element


def index_after(parent: _Element, tags: Sequence[str]) -> int:
    """Return the place after the last child that is one of these; the first place where there is none."""
    return max((index + 1 for index, child in enumerate(parent) if child.tag in tags), default=0)


def insert(parent: _Element, index: int, element: _Element) -> None:
    """Put the element on a line of its own, so that remove() restores the white space around it."""
    line = indentation(parent)
    if not len(parent) and line:
        line += "  "  # what stands there indents the end tag
    if index == 0:
        tail, parent.text = parent.text, line
    else:
        before = parent[index - 1]
        tail, before.tail = before.tail, line
    parent.insert(index, element)
    element.tail = tail


def remove(element: _Element) -> None:
    """Take the element out with its line."""
    parent, before, tail = element.getparent(), element.getprevious(), element.tail
    assert parent is not None
    parent.remove(element)
    if before is None:
        parent.text = tail
    else:
        before.tail = tail


def indentation(parent: _Element) -> str:
    """Return line end and spaces before the first child; empty where the text is not laid out in lines."""
    text = parent.text or ""
    if text.strip() or "\n" not in text:
        return ""
    return "\n" + text.rpartition("\n")[2]


def string(element: _Element | None) -> str:
    """Return an element's text without comments, as libvirt reads it; empty where there is no element."""
    if element is None:
        return ""
    return (element.text or "") + "".join(child.tail or "" for child in element)


def last_text(element: _Element) -> str:
    """Return the text before the element's end tag, after the last comment in it."""
    return (element[-1].tail if len(element) else element.text) or ""


def set_last_text(element: _Element, text: str) -> None:
    """Replace what last_text() returns."""
    if len(element):
        element[-1].tail = text
    else:
        element.text = text
