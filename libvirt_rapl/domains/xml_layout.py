"""Changing XML so that all else stays as its owner wrote it: white space, line ends, encoding, references."""

import codecs
import re
from collections.abc import Sequence

from lxml.etree import _Element

from libvirt_rapl.errors import VirtRaplError

BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
DECLARED = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z][\w.-]*)["']""")
PROLOG = re.compile(r"\ufeff?(?:[ \t\r\n]|<\?.*?\?>|<!--.*?-->)*", re.DOTALL)
"""What may precede the root element if there is no document type."""


def decode(data: bytes) -> tuple[str, str]:
    """Return the text of an XML document, a byte order mark included, and the encoding that encodes it again.

    Raises VirtRaplError if it is not in the encoding that it declares, or there is no such encoding.
    """
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "")
    if not encoding:
        declared = DECLARED.match(data)
        encoding = declared[1].decode() if declared else "utf-8"
    try:
        return data.decode(encoding), encoding
    except (UnicodeError, LookupError) as error:
        hint = "convert it: iconv -t UTF-8; and remove the encoding from <?xml ...?>"
        raise VirtRaplError(f"the XML is not in {encoding.upper()}: {error}", hint) from error


def as_in(original: str, element: str) -> str:
    """Return a written root element in the style of `original`, the whole document that it comes from.

    Line ends are of the kind that `original` has, if it has only one kind. A character that is not ASCII and is not in
    `original` becomes a reference: the encoding of `original` may not have it.
    """
    there = set(original)
    element = re.sub(r"[^\0-\x7f]", lambda found: found[0] if found[0] in there else f"&#{ord(found[0])};", element)
    line_ends = set(re.findall(r"\r\n|\r|\n", original))
    return element.replace("\n", line_ends.pop()) if len(line_ends) == 1 else element


def index_after(parent: _Element, tags: Sequence[str]) -> int:
    """Return the index after the last child with one of these tags; 0 if there is none."""
    return max((index + 1 for index, child in enumerate(parent) if child.tag in tags), default=0)


def insert(parent: _Element, index: int, element: _Element) -> None:
    """Insert the element on a line of its own, so that remove() restores the white space around it."""
    line = indentation(parent)
    if not len(parent) and line:
        line += "  "  # the white space there indents the end tag
    if index == 0:
        tail, parent.text = parent.text, line
    else:
        before = parent[index - 1]
        tail, before.tail = before.tail, line
    parent.insert(index, element)
    element.tail = tail


def remove(element: _Element) -> None:
    """Remove the element with its line."""
    parent, before, tail = element.getparent(), element.getprevious(), element.tail
    assert parent is not None
    parent.remove(element)
    if before is None:
        parent.text = tail
    else:
        before.tail = tail


def indentation(parent: _Element) -> str:
    """Return line end and spaces before the first child; empty if the text is not laid out in lines."""
    text = parent.text or ""
    if text.strip() or "\n" not in text:
        return ""
    return "\n" + text.rpartition("\n")[2]


def string(element: _Element | None) -> str:
    """Return an element's text without comments, as libvirt reads it; empty if there is no element."""
    return "" if element is None else str(element.xpath("string()"))


def add_suffix(element: _Element, suffix: str) -> None:
    """Add to an element's text, after the last comment in it."""
    if len(element):
        element[-1].tail = (element[-1].tail or "") + suffix
    else:
        element.text = (element.text or "") + suffix


def remove_suffix(element: _Element, suffix: str) -> None:
    """Undo add_suffix(), even if comments were added after it since."""
    for child in reversed(element):
        if child.tail:
            child.tail = child.tail.removesuffix(suffix)
            return
    element.text = (element.text or "").removesuffix(suffix)
