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
from pathlib import Path

from libvirt_rapl import paths
from libvirt_rapl.choices import Via
from libvirt_rapl.config import Config
from libvirt_rapl.domains import emulator
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import replace
from libvirt_rapl.helper.run_directory import RunDirectory
from libvirt_rapl.labels import Place
from libvirt_rapl.selection import Selection

MARGIN_SECONDS = 10.0
"""The file is given a time that is this much older: what changes after the configuration was read is newer than it."""
HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{32}")
NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.:/@%+=,-]+")


def note(directory: Path, config: Config, config_error: VirtRaplError | None) -> None:
    """Write the patterns, if that is possible and of use here; `config_error`: why the configuration is not known."""
    if config_error or not emulator.wrapped_by_default():
        return
    path = directory / paths.CHOSEN
    with contextlib.suppress(OSError):
        RunDirectory(directory).create_directory()
        replace(path, "".join(f"{line}\n" for line in lines(config.domains, config.via)), 0o600)
        os.utime(path, (time.time() - MARGIN_SECONDS,) * 2)


def lines(selection: Selection, via: Via) -> Iterator[str]:
    """Yield `WHAT PATTERN` for each way to be chosen, where WHAT is name, uuid or xml.

    The patterns are of sh, and match too much rather than too little.
    """
    for by, text in selection.include if via != "channel" else ():
        match by:
            case "name":
                yield f"name {_pattern(text)}"
                if HEXADECIMAL.fullmatch(digits := text.replace("-", "")):
                    yield f"uuid {uuid.UUID(digits)}"
            case "title":
                yield "xml *<title>*"
            case "metadata":
                yield f"xml *{_pattern(text.split()[0])}*"
            case Place():  # an element's namespace is declared before what is in it
                yield from (f"xml *{_pattern(namespace)}*{_pattern(text)}*" for namespace in by.namespaces)


def _pattern(text: str) -> str:
    """Return a pattern that matches at least what fnmatch's does: what sh may understand in another way is a `*`."""
    return NOT_PLAIN.sub("*", text.partition("[")[0]) + ("*" if "[" in text else "")
