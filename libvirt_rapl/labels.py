"""Labels of domains from their `<metadata>`: the key `labels` of the configuration. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What Prometheus accepts as the name of a label."""
RESERVED = ("domain", "uuid", "zone", "vcpu", "state", "title", "kind", "instance", "job")
"""Labels of our own metrics, and the two that Prometheus adds; names with two underscores in front are its own."""
PATH = re.compile(r"[^\W\d][\w.-]*(?:/[^\W\d][\w.-]*)*(?:@[^\W\d][\w.-]*)?")

NOVA = ("http://openstack.org/xmlns/libvirt/nova/1.1", "http://openstack.org/xmlns/libvirt/nova/1.0")
"""The second is that of nova before 2021."""
WELL_KNOWN = {
    "nova.project": "instance/owner/project",
    "nova.project_id": "instance/owner/project@uuid",
    "nova.flavor": "instance/flavor@name",
}

EXPECTED = (
    f"names of labels (letters, digits and _, but none of {', '.join(RESERVED)}), each with {', '.join(WELL_KNOWN)} "
    "or `NAMESPACE PATH`, the path like instance/owner/project or instance/flavor@name"
)


class Place(NamedTuple):
    """Where in <metadata> the value of a label is found."""

    namespaces: tuple[str, ...]
    """Alternatives: all elements of the path are in the same one."""
    elements: tuple[str, ...]
    """Names of elements, from the one directly under <metadata> to the one with the value."""
    attribute: str
    """The attribute that holds the value; empty if it is the element's text."""


@dataclass(frozen=True)
class Labels:
    """The labels that the operator wants; none by default."""

    places: tuple[tuple[str, Place], ...] = ()
    """Name of each label, and where its value is."""

    @classmethod
    def parse(cls, value: object) -> Self | None:
        """Parse the value in the configuration; None if it is wrong."""
        if not isinstance(value, Mapping):
            return None
        found = tuple((name, each) for name, text in value.items() if is_name(name) and (each := place(text)))
        return cls(found) if len(found) == len(value) else None


def is_name(name: object) -> bool:
    """Return whether a label may have this name."""
    return (
        isinstance(name, str)
        and NAME.fullmatch(name) is not None
        and name not in RESERVED
        and not name.startswith("__")
    )


def place(text: object) -> Place | None:
    """Return where a label is found, as the operator wrote it; None if that is no place."""
    if not isinstance(text, str):
        return None
    if text in WELL_KNOWN:
        return _place(NOVA, WELL_KNOWN[text])
    match text.split():
        case [namespace, path] if PATH.fullmatch(path):
            return _place((namespace,), path)
    return None


def _place(namespaces: tuple[str, ...], path: str) -> Place:
    elements, _, attribute = path.partition("@")
    return Place(namespaces, tuple(elements.split("/")), attribute)
