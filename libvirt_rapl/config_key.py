"""What the configuration is made of: the declaration of a key, and the files. No start waits for what it imports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """The declaration of a key beside its name, type and default."""

    expected: str
    """Which values it accepts, in words."""
    parse: Callable[[Any], object | None]
    """Returns the written value as Config holds it; None if that is not what is expected."""
    text: str
    """What it means: Markdown, from which the shipped file and the documentation are made (docs/generate.py).

    Paragraphs, `- ` items, and examples, which are indented by four columns more.
    """
    words: tuple[str, ...] = ()
    """A misspelt word is compared with these."""
    default: str = ""
    """The default as one writes it, where it is not written as its type is."""


def files(path: Path) -> list[Path]:
    """Return the files that are read if they exist; later ones override earlier ones."""
    try:
        return [path, *sorted((path.parent / "conf.d").glob("*.yaml"))]
    except PermissionError:  # then `path` cannot be read either, which is reported
        return [path]
