"""How the hook finds out about a domain: at a glance, and by what takes longer only where that is not enough."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from libvirt_rapl import libraries
from libvirt_rapl.domains import glance
from libvirt_rapl.domains.glance import Glance, Threads
from libvirt_rapl.domains.names import WRAPPER_SUFFIX
from libvirt_rapl.errors import UnreadableError
from libvirt_rapl.helper.run_directory import RunDirectory
from libvirt_rapl.host.processes import start_time
from libvirt_rapl.remembered import Memory, stamps

if TYPE_CHECKING:
    from libvirt_rapl.domains.definition import Definition

OPENING = re.compile(r"<domain [^<>]*>\n  <name>[^<\n]*</name>\n  <uuid>([0-9a-f-]{36})</uuid>\n")
"""How libvirt's XML begins; a name contains no line feed."""
Seen: TypeAlias = "Glance | Definition | UnreadableError"
"""What is known of a domain: usually a glance is enough."""


def at(xml: str, run_directory: Path) -> tuple[str, Seen]:
    """Return the domain's UUID and what is known of it. Raises UnreadableError as in_full() does."""
    if seen := glance.at_domain(xml, RunDirectory(run_directory).socket):
        return seen.uuid, seen
    return in_full(xml)


def in_full(xml: str) -> "tuple[str, Definition | UnreadableError]":
    """Return the domain's UUID and its definition, or why there is none: its metadata can make the XML unreadable.

    Raises UnreadableError if not even the UUID can be read.
    """
    libraries.find()
    from libvirt_rapl.domains.definition import Definition

    try:
        definition = Definition.parse(xml)
        return definition.uuid, definition
    except UnreadableError as error:
        if found := OPENING.match(xml):
            return found[1], error
        raise


def running(name: str) -> Threads | None:
    """Return process and threads of the domain `name`; None when it does not run."""
    threads = glance.at_threads(name)
    if threads:
        return threads if start_time(threads.pid) is not None else None
    libraries.find()
    from libvirt_rapl.domains.run_files import read_run_state

    state = read_run_state(name)
    return Threads(state.pid, state.vcpu_tids) if state else None


def version(path: str, memory: Memory) -> str:
    """Return the version of an emulator, which is asked once until it is changed. Raises VirtRaplError.

    The path may be a link to its wrapper.
    """
    real = os.path.realpath(path).removesuffix(WRAPPER_SUFFIX)
    what, asked = f"version of {path}", stamps([Path(path), Path(real)])
    found = memory.recall(what, asked)
    if found is None:
        libraries.find()
        from libvirt_rapl.domains import emulator

        found = emulator.version(path)
        memory.keep(what, asked, found)
    return str(found)
