"""What the configuration's `domains` choose, roughly, as the shell part of the hook reads it.

libvirt waits for the hook at every start of every domain. So that Python is not started for each, the hook notes here
by which patterns a domain may be chosen. A domain that matches none is certainly not chosen. For one that matches, and
for all when a file of the configuration is newer than this, Python decides.
"""

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from libvirt_rapl import paths
from libvirt_rapl.choices import Via
from libvirt_rapl.config import Config
from libvirt_rapl.domains import emulator
from libvirt_rapl.files import replace
from libvirt_rapl.helper.run_directory import RunDirectory
from libvirt_rapl.labels import Place
from libvirt_rapl.selection import Selection

MARGIN_SECONDS = 10.0
"""The file is given a time that is this much older: what changes after the configuration was read is newer than it."""
HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{32}")
NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.:/@%+=,-]+")
STARS = 2
"""How many `*` a pattern may have: dash tries all ways to divide a text among them, and libvirt waits meanwhile."""
SPLIT = "*<[?!]*"
"""What matches XML with a comment or CDATA, which can be in the middle of a text. libvirt keeps them in metadata."""


def note(directory: Path, config: Config) -> None:
    """Write the patterns, if that is possible and of use here.

    They are of use wherever there is a link: also where it is somebody else's, the shell part looks for them.
    """
    if not emulator.DEFAULT_WRAPPER.is_symlink():
        return
    path = directory / paths.CHOSEN
    with contextlib.suppress(OSError):
        RunDirectory(directory).create_directory()
        replace(path, "".join(f"{line}\n" for line in dict.fromkeys(lines(config.domains, config.via))), 0o600)
        os.utime(path, (time.time() - MARGIN_SECONDS,) * 2)


def lines(selection: Selection, via: Via) -> Iterator[str]:
    """Yield `WHAT PATTERN [PATTERN]` for each way to be chosen: what has to match all these, name, uuid or xml.

    The patterns are of sh, and match too much rather than too little: only a text that has elements inside it is looked
    for as if it had none.
    """
    for by, text in selection.include if via != "channel" else ():
        match by:
            case "name":
                yield f"name {_shortened(_pattern(text))}"
                if HEXADECIMAL.fullmatch(digits := text.replace("-", "")):
                    yield f"uuid {uuid.UUID(digits)}"
            case "title":
                yield "name *" if fnmatchcase("", text) else "xml *<title>*"
            case "metadata":
                yield f"xml {_within(text.split()[0])}"
            case Place():
                for namespace in map(_within, by.namespaces):
                    yield f"xml {namespace} {_within(text)}"
                    yield f"xml {namespace} {SPLIT}"


def _pattern(text: str) -> str:
    """Return a pattern that matches at least what fnmatch's does: what sh may understand in another way is a `*`."""
    return NOT_PLAIN.sub("*", text.partition("[")[0]) + ("*" if "[" in text else "")


def _shortened(pattern: str) -> str:
    """Return one with at most STARS, which matches at least the same."""
    pieces = pattern.split("*")
    return pattern if len(pieces) <= STARS + 1 else "*".join([*pieces[:STARS], ""])


def _within(text: str) -> str:
    """Return a pattern for XML with such a text in it: by the longest piece that XML has no other way to write."""
    return f"*{max(_pattern(text).split('*'), key=len)}*"
