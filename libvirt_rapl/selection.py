"""Which domains the operator chose: the key `domains` of the configuration. Pure; Traits has what a choice goes by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, Self

from libvirt_rapl.labels import WELL_KNOWN, Place, place

LISTS = ("include", "exclude")
KINDS = ("title", "metadata", *WELL_KNOWN)
"""What an item may choose by, in addition to name, UUID and other places in the metadata."""
EXPECTED = (
    "a list of names, patterns, UUIDs, `title: PATTERN`, `metadata: NAMESPACE [ELEMENT]` and `PLACE: PATTERN`, "
    f"where PLACE is {', '.join(WELL_KNOWN)} or `NAMESPACE PATH`, or include: and exclude: with such lists"
)


class Traits(NamedTuple):
    """The properties of a domain that a choice goes by."""

    name: str
    uuid: str
    """Lower case, with dashes."""
    title: str
    """Empty if there is none."""
    metadata: frozenset[tuple[str, str]]
    """Namespace and name of each element directly under <metadata>."""
    texts: Callable[[Place], Iterable[str]]
    """Returns all that is found at a place in <metadata>."""


class Selector(NamedTuple):
    """One item of a list."""

    by: Literal["name", "title", "metadata"] | Place
    """A name is also tried as a UUID."""
    text: str

    def matches(self, domain: Traits) -> bool:
        """Return whether it chooses this domain."""
        match self.by:
            case Place() as where:
                return any(fnmatchcase(text, self.text) for text in domain.texts(where))
            case "metadata":
                namespace, *name = self.text.split()
                return any((found[0], *found[1:][: len(name)]) == (namespace, *name) for found in domain.metadata)
            case "title":
                return fnmatchcase(domain.title, self.text)
            case "name":
                if self.text == domain.name or self.text.lower() in (domain.uuid, domain.uuid.replace("-", "")):
                    return True
                return fnmatchcase(domain.name, self.text)


@dataclass(frozen=True)
class Selection:
    """The domains that are included and not excluded; none unless the operator says so."""

    include: tuple[Selector, ...] = ()
    exclude: tuple[Selector, ...] = ()

    @classmethod
    def parse(cls, value: object) -> Self | None:
        """Parse the value in the configuration; None for a value that is no choice of domains."""
        lists = value if isinstance(value, dict) else {"include": value}
        if not lists.keys() <= set(LISTS):
            return None
        parsed = {name: _selectors(items) for name, items in lists.items()}
        if any(selectors is None for selectors in parsed.values()):
            return None
        return cls(*(parsed.get(name) or () for name in LISTS))

    def selects(self, domain: Traits) -> bool:
        """Return whether the operator wants this domain to have a meter."""
        return any(selector.matches(domain) for selector in self.include) and not self.excludes(domain)

    def excludes(self, domain: Traits) -> bool:
        """Return whether the operator has excluded this domain, even if an item includes it."""
        return any(selector.matches(domain) for selector in self.exclude)


def _selectors(items: object) -> tuple[Selector, ...] | None:
    if not isinstance(items, list):
        return None
    found = [_selector(item) for item in items]
    return None if None in found else tuple(selector for selector in found if selector)


def _selector(item: object) -> Selector | None:
    if isinstance(item, str):
        return Selector("name", item) if item.strip() else None
    if not isinstance(item, dict) or len(item) != 1:
        return None
    ((key, text),) = item.items()
    by = key if key in ("title", "metadata") else place(key)
    if not isinstance(text, str) or by is None:
        return None
    if by == "metadata" and len(text.split()) not in (1, 2):
        return None
    return Selector(by, text)
