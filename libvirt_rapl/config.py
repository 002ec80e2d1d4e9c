"""The configuration: /etc/virt-rapl/virt-rapl.yaml, then conf.d/*.yaml beside it in the order of their names."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from libvirt_rapl import paths
from libvirt_rapl.choices import Backend, EnergySource, Model, OnFailure
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import who_else_may_write
from libvirt_rapl.labels import EXPECTED as EXPECTED_LABELS
from libvirt_rapl.labels import WELL_KNOWN, Labels, is_name
from libvirt_rapl.labels import place as place_of_label
from libvirt_rapl.selection import EXPECTED as EXPECTED_DOMAINS
from libvirt_rapl.selection import KINDS, LISTS, Selection

DEFAULT_PATH = Path("/", paths.CONFIGURATION)
STANDARD_INPUT = Path("/dev/stdin")

CONSTRUCTORS = (ValueError, KeyError, AttributeError, TypeError)
"""What PyYAML raises for a value that does not fit its tag, or looks like a date and is none."""


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


def _key(default: object, key: Key) -> Any:  # noqa: ANN401  a field, of the type that its key has in Config
    return field(default=default, metadata={"key": key})


def _choice(default: str, choice: object, text: str) -> Any:  # noqa: ANN401
    words: tuple[str, ...] = get_args(choice)
    return _key(default, Key(f"one of {', '.join(words)}", lambda it: it if it in words else None, text, words))


def _seconds(default: float, least: float, most: float, text: str) -> Any:  # noqa: ANN401
    def parse(written: object) -> float | None:
        if isinstance(written, bool) or not isinstance(written, int | float):
            return None
        return float(written) if least <= written <= most else None

    return _key(default, Key(f"seconds from {least:g} to {most:g}", parse, text))


def _directory(default: str, text: str) -> Any:  # noqa: ANN401
    def parse(written: object) -> Path | None:
        """Return the path; None if it may be a directory of the system: the hook changes the mode of its own."""
        path = Path(written) if isinstance(written, str) else Path()
        plain = path.root == "/" and ".." not in path.parts and str(written).isprintable()
        return path if plain and len(path.parts) > 2 else None  # the root is the first part

    return _key(Path("/", default), Key(f"a directory of its own, such as /{default}", parse, text))


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that an operator can choose: the keys of the file. An absent key keeps the default."""

    helper: Backend = _choice(
        "native",
        Backend,
        """
        Which program answers QEMU's questions for energy, one process for each domain: native (virt-rapl's own, with
        which the guest counts what its domain is charged, whatever QEMU's own arithmetic would make of it) or qemu
        (qemu-vmsr-helper, which passes the energy of the package through).
        """,
    )
    on_failure: OnFailure = _choice(
        "degrade",
        OnFailure,
        """
        What to do when a domain's meter cannot be set up: degrade (the domain starts without RAPL, `virt-rapl status`
        and the log say why) or refuse (it does not start).
        """,
    )
    source: EnergySource = _choice(
        "auto", EnergySource, "Where to read energy: auto (powercap where it has zones, else MSR), powercap or msr."
    )
    model: Model = _choice(
        "capacity",
        Model,
        """
        How the host shares the energy of its zones out to domains. (What a guest reads of itself is always QEMU's
        capacity.)
        - capacity: by the share of all the time the CPUs have. Guest and host agree; unused time is idle.
        - active: by the share of the time the CPUs were busy. Domains and the host's own work share all of it.
        - baseline: idle power is set apart, the rest is shared as in active. Idle power is the lowest that a zone has
          shown since the ledger was begun: until the host has been quiet once, domains are charged too little.
        """,
    )
    run_directory: Path = _directory(
        paths.RUN_DIRECTORY,
        """
        Where the sockets of helpers and the records of the hook are, a directory of its own below /run. The wrapper and
        QEMU open files in it, so every user may search it. virt-rapl's units and the rules for AppArmor and SELinux are
        made for this directory: with another, virt-rapld does not start until a drop-in names it (RuntimeDirectory=).
        """,
    )
    state_directory: Path = _directory(
        paths.STATE_DIRECTORY,
        """
        Where virt-rapld keeps its ledger of energy, a directory of its own. Its unit is made for this directory: in
        another, virt-rapld cannot keep totals until a drop-in names it (ReadWritePaths=).
        """,
    )
    interval: float = _seconds(1.0, 0.1, 60, "Seconds between two samples of virt-rapld.")
    hook_deadline: float = _seconds(
        5.0,
        1,
        10,
        """
        The most seconds that the hook may take for one operation of libvirt on a domain; libvirt waits for it. A domain
        whose helper does not answer by then is treated as on_failure says. `virt-rapl events` shows how long it took.
        """,
    )
    domains: Selection = _key(
        Selection(),
        Key(
            EXPECTED_DOMAINS,
            Selection.parse,
            f"""
            Domains that get a meter without `virt-rapl enable`, including those that do not exist yet. virt-rapld
            enables them for their next start and repairs what edits and clones break; a restore or an incoming
            migration does it at once. A list of names, shell patterns of names, UUIDs, titles (patterns, too) and
            elements directly under `<metadata>`; or two such lists, include and exclude. By default no domain is
            chosen. virt-rapld reads this when it starts, and needs a right for it that is commented out in
            /{paths.POLKIT_RULE}.
                domains: ['*']
            or
                domains:
                  include: [web*, 2b3c4d5e-6f70-4a81-92b3-c4d5e6f70819, title: 'Shop *', metadata: http://example.com/shop tenant]
                  exclude: [web-test]
            """,  # noqa: E501  as one writes it
            (*LISTS, *KINDS),
        ),
    )
    labels: Labels = _key(
        Labels(),
        Key(
            EXPECTED_LABELS,
            Labels.parse,
            """
            What is known of each domain beside name and title, for Prometheus: labels, and where their values are in a
            domain's `<metadata>`. `nova.project` and `nova.flavor` are what OpenStack's nova writes there. Any other
            place is a namespace and a path of elements in it, whose text is the value, or an attribute of the last one.
            A domain that has nothing there has no such label. virt-rapld reads this when it starts.
                labels:
                  project: nova.project
                  flavor: nova.flavor
                  tenant: http://example.com/shop tenant/name
                  tier: http://example.com/shop tenant@tier
            """,
            tuple(WELL_KNOWN),
        ),
    )


KEYS: dict[str, Key] = {each.name: each.metadata["key"] for each in fields(Config)}


class Setting(NamedTuple):
    """A valid line of a file."""

    value: Any
    """As Config holds it."""
    written: object
    """As YAML has it."""
    place: str
    """FILE:LINE."""


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read the configuration; return the defaults if the file does not exist.

    Raises VirtRaplError when a file cannot be read, can be written by users other than root and ours, is not YAML, or
    holds an unknown key or a wrong value.
    """
    settings, mistakes = read(path)
    if mistakes:
        raise mistakes[0]
    return Config(**{key: setting.value for key, setting in settings.items()})


def stated_policy(path: Path = DEFAULT_PATH) -> OnFailure:
    """Return `on_failure`, if it can be read in a configuration that load() rejects; else its default."""
    settings, _ = read(path)
    stated: OnFailure = settings["on_failure"].value if "on_failure" in settings else Config.on_failure
    return stated


def read(path: Path = DEFAULT_PATH) -> tuple[dict[str, Setting], list[VirtRaplError]]:
    """Return the files' valid settings, and all mistakes in them, in the order of the files."""
    settings: dict[str, Setting] = {}
    mistakes: list[VirtRaplError] = []
    for file in files(path):
        found: dict[str, Setting] = {}
        for setting in _settings(file):
            if isinstance(setting, VirtRaplError):
                mistakes.append(setting)
                continue
            key, value = setting
            if key in found:
                mistakes.append(
                    VirtRaplError(
                        f"{value.place}: {key} is set a second time",
                        f"keep one of the two lines; the first is {found[key].place}",
                    )
                )
            found[key] = value
        settings |= found
    return settings, mistakes


def as_yaml(value: object) -> str:
    """Return a value on one line, as a person would write it."""
    written = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return written.removesuffix("...\n").rstrip("\n")


def files(path: Path) -> list[Path]:
    """Return the files that are read if they exist; later ones override earlier ones."""
    return [path, *sorted((path.parent / "conf.d").glob("*.yaml"))]


def _check_writers(file: Path) -> None:
    """Raise VirtRaplError if users other than root and ours can write the file, which root's processes obey."""
    for place in (file.parent, file):
        if other := who_else_may_write(place):
            hint = f"check what it says, then: chown root:root {place} && chmod go-w {place}"
            raise VirtRaplError(f"{place} is not used: {other}", hint)


def _settings(file: Path) -> Iterator[tuple[str, Setting] | VirtRaplError]:
    """Yield each key of the file with its setting, or what is wrong with it; one error if nothing can be read."""
    try:
        loader, document = _read(file)
    except VirtRaplError as error:
        yield error
        return
    if document is None:
        return
    if not isinstance(document, yaml.MappingNode):
        yield VirtRaplError(f"{_place(file, document)}: expected `key: value` lines", f"correct {file}")
        return
    for key_node, node in document.value:
        place = _place(file, key_node)
        try:
            key = loader.construct_object(key_node, deep=True)
            key = key if isinstance(key, str) else as_yaml(key)
            yield key, _setting(file, key, place, node, loader)
        except VirtRaplError as error:
            yield error
        except (yaml.YAMLError, *CONSTRUCTORS, RecursionError) as error:
            yield _not_yaml(file, error, place)


def _read(file: Path) -> tuple[yaml.SafeLoader, yaml.Node | None]:
    """Return what is in the file; no node if it is empty or missing. Raises VirtRaplError."""
    try:
        _check_writers(file)
        if not (file.is_file() or file == STANDARD_INPUT):  # reading a pipe without a writer would never end
            raise VirtRaplError(f"{file} is not a regular file", "move it away")
        text = file.read_bytes().decode()
        loader = yaml.SafeLoader(text)
        return loader, loader.get_single_node()
    except FileNotFoundError:
        if file.is_symlink():
            raise VirtRaplError(f"{file} is a link to {file.readlink()}, which is not there", f"rm {file}") from None
        return yaml.SafeLoader(""), None
    except OSError as error:
        raise VirtRaplError(f"cannot read {file}: {error}", "make it a text file readable by root") from error
    except UnicodeDecodeError as error:
        place = f"{file}:{1 + error.object[: error.start].count(10)}"  # of line feeds
        raise VirtRaplError(f"{place}: not UTF-8: {error.reason}", f"correct {place}") from error
    except yaml.reader.ReaderError as error:
        place = f"{file}:{1 + text[: error.position].count(chr(10))}"
        raise _not_yaml(file, ValueError(f"{error.reason}: {chr(int(error.character))!r}"), place) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise _not_yaml(file, error) from error


def _setting(file: Path, key: str, place: str, node: yaml.Node, loader: yaml.SafeLoader) -> Setting:
    """Return what a key is set to. Raises VirtRaplError if the key or its value is wrong."""
    if key not in KEYS:
        near = get_close_matches(key, KEYS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(KEYS)}"
        raise VirtRaplError(f"{place}: unknown key {key!r}", hint)
    written = loader.construct_object(node, deep=True)
    value = KEYS[key].parse(written)
    if value is not None:
        return Setting(value, written, place)
    if key in WRONG_PARTS:
        part = WRONG_PARTS[key](node, loader)
        place, written = _place(file, part), loader.construct_object(part, deep=True)
    word = str(next(iter(written), "") if isinstance(written, dict) else written)
    near = get_close_matches(word, KEYS[key].words, 1) if word not in KEYS[key].words else []
    hint = f"did you mean {near[0]}?" if near else f"correct {place}"
    found = " ".join(as_yaml(written).split())
    raise VirtRaplError(f"{place}: {key}: expected {KEYS[key].expected}, found {found}", hint)


def _wrong_selector(node: yaml.Node, loader: yaml.SafeLoader) -> yaml.Node:
    """Return the wrong part of `domains`: a list's name, something that is no list, or an item; else all of it."""
    lists: list[tuple[yaml.Node, yaml.Node]] = node.value if isinstance(node, yaml.MappingNode) else [(node, node)]
    for name, items in lists:
        if name is not node and loader.construct_object(name) not in LISTS:
            return name
        if not isinstance(items, yaml.SequenceNode):
            return items
        for item in items.value:
            if Selection.parse([loader.construct_object(item, deep=True)]) is None:
                wrong: yaml.Node = item
                return wrong
    return node


def _wrong_label(node: yaml.Node, loader: yaml.SafeLoader) -> yaml.Node:
    """Return the wrong part of `labels`: a name or a place; all of it if it is no mapping."""
    if isinstance(node, yaml.MappingNode):
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        for name, where in pairs:
            if not is_name(loader.construct_object(name, deep=True)):
                return name
            if place_of_label(loader.construct_object(where, deep=True)) is None:
                return where
    return node


WRONG_PARTS: dict[str, Callable[[yaml.Node, yaml.SafeLoader], yaml.Node]] = {
    "domains": _wrong_selector,
    "labels": _wrong_label,
}
"""For values that have parts: which one is wrong."""


def _not_yaml(file: Path, error: Exception, place: str = "") -> VirtRaplError:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    place = f"{file}:{mark.line + 1}" if mark else place or str(file)
    problem = (isinstance(error, yaml.MarkedYAMLError) and error.problem) or str(error)
    if isinstance(error, RecursionError):
        problem = "nested too deeply"
    return VirtRaplError(f"{place}: not valid YAML: {' '.join(problem.split())}", f"correct {place}")


def _place(file: Path, node: yaml.Node) -> str:
    return f"{file}:{node.start_mark.line + 1}"
