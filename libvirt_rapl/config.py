"""The configuration: /etc/virt-rapl/virt-rapl.yaml, then conf.d/*.yaml beside it in the order of their names."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import who_else_may_write
from libvirt_rapl.selection import EXPECTED as EXPECTED_DOMAINS
from libvirt_rapl.selection import KINDS, LISTS, Selection

DEFAULT_PATH = Path("/", paths.CONFIGURATION)
STANDARD_INPUT = Path("/dev/stdin")

CONSTRUCTORS = (ValueError, KeyError, AttributeError, TypeError)
"""What PyYAML raises of what has a tag, or looks like a date, and is none."""

CHOICES = {
    "helper": ("native", "qemu"),
    "on_failure": ("degrade", "refuse"),
    "source": ("auto", "powercap", "msr"),
    "model": ("capacity", "active", "baseline"),
}

EXPECTED = {
    **{key: f"one of {', '.join(choices)}" for key, choices in CHOICES.items()},
    "run_directory": "a directory of its own, such as /run/virt-rapl",
    "state_directory": "a directory of its own, such as /var/lib/virt-rapl",
    "interval": "seconds from 0.1 to 60",
    "hook_deadline": "seconds from 1 to 10",
    "domains": EXPECTED_DOMAINS,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What an operator can choose. Field names are the keys of the file; an absent key keeps the default."""

    helper: str = "native"
    """Backend of the helper instances: `native` (ours: a guest counts what its domain is charged) or `qemu`
    (qemu-vmsr-helper: it passes the energy of the package through)."""
    on_failure: str = "degrade"
    """When a domain's meter cannot be set up: `degrade` (it starts without RAPL) or `refuse` (it does not start)."""
    source: str = "auto"
    """Where energy is read: `powercap`, `msr`, or `auto` (powercap where it has zones, else MSR)."""
    model: str = "capacity"
    """How energy is given out to domains on the host; see libvirt_rapl.energy.attribution."""
    run_directory: Path = Path("/", paths.RUN_DIRECTORY)
    """Holds sockets and records. The wrapper and QEMU reach into it, so every user may search it (mode 0711)."""
    state_directory: Path = Path("/", paths.STATE_DIRECTORY)
    """Holds the daemon's ledger of energy."""
    interval: float = 1.0
    """Seconds between two samples of the daemon."""
    hook_deadline: float = 5.0
    """Seconds that each operation of the hook, for which libvirt and the domain wait, takes at most; from 1 to 10."""
    domains: Selection = field(default_factory=Selection)
    """Domains that shall have a meter without being asked for one by one: see lifecycle.policy. None by default."""


class Setting(NamedTuple):
    """A line of a file that says something valid."""

    value: Any
    """As Config holds it."""
    written: object
    """As YAML has it."""
    place: str
    """FILE:LINE."""


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read the configuration; defaults where the file does not exist.

    Raises VirtRaplError when a file cannot be read, can be written by others than root and us, is not YAML, or holds an
    unknown key or a wrong value.
    """
    settings, mistakes = read(path)
    if mistakes:
        raise mistakes[0]
    return Config(**{key: setting.value for key, setting in settings.items()})


def stated_policy(path: Path = DEFAULT_PATH) -> str:
    """Return `on_failure` as far as it can be made out in a configuration that load() does not take."""
    settings, _ = read(path)
    return str(settings["on_failure"].value) if "on_failure" in settings else Config.on_failure


def read(path: Path = DEFAULT_PATH) -> tuple[dict[str, Setting], list[VirtRaplError]]:
    """Return what the files set, as far as it is right, and all mistakes in them, in the order of the files."""
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
    """Return a value on one line, as one would write it."""
    written = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return written.removesuffix("...\n").rstrip("\n")


def files(path: Path) -> list[Path]:
    """Return the files that are read where they exist; later ones override."""
    return [path, *sorted((path.parent / "conf.d").glob("*.yaml"))]


def _check_writers(file: Path) -> None:
    """Who writes the configuration tells root's processes what to do: nobody but root and we may."""
    for place in (file.parent, file):
        if other := who_else_may_write(place):
            hint = f"look what it says, then: chown root:root {place} && chmod go-w {place}"
            raise VirtRaplError(f"{place} is not followed: {other}", hint)


def _settings(file: Path) -> Iterator[tuple[str, Setting] | VirtRaplError]:
    """Yield each key of the file with what it sets, or what is wrong with it; one error where nothing can be read."""
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
    """Return what is in the file; no node where it is empty or not there. Raises VirtRaplError."""
    try:
        _check_writers(file)
        if not (file.is_file() or file == STANDARD_INPUT):  # a pipe that nobody writes into would never end
            raise VirtRaplError(f"{file} is no file", "move it away")
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
    """Return what a key is set to. Raises VirtRaplError where the key or its value is wrong."""
    known = [known.name for known in fields(Config)]
    if key not in known:
        near = get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        raise VirtRaplError(f"{place}: unknown key {key!r}", hint)
    written = loader.construct_object(node, deep=True)
    value = _value(key, written)
    if value is not None:
        return Setting(value, written, place)
    if key == "domains":
        part = _wrong_part(node, loader)
        place, written = _place(file, part), loader.construct_object(part, deep=True)
    words = CHOICES.get(key, (*LISTS, *KINDS) if key == "domains" else ())
    word = str(next(iter(written), "") if isinstance(written, dict) else written)
    near = get_close_matches(word, words, 1) if word not in words else []
    hint = f"did you mean {near[0]}?" if near else f"correct {place}"
    expected = EXPECTED[key]
    found = " ".join(as_yaml(written).split())
    raise VirtRaplError(f"{place}: {key}: expected {expected}, found {found}", hint)


def _value(key: str, written: Any) -> object | None:  # noqa: ANN401 (whatever YAML makes of it)
    """Return what is written as Config holds it; None where that is not what the key expects."""
    match key:
        case _ if key in CHOICES and written in CHOICES[key]:
            return str(written)
        case "run_directory" | "state_directory" if isinstance(written, str):
            return _directory_of_its_own(written)
        case "interval" if type(written) in (int, float) and 0.1 <= written <= 60:
            return float(written)
        case "hook_deadline" if type(written) in (int, float) and 1 <= written <= 10:
            return float(written)
        case "domains":
            return Selection.parse(written)
    return None


def _directory_of_its_own(written: str) -> Path | None:
    """Return the path; None where it may be the system's: the hook sets the mode of its."""
    path = Path(written)
    plain = path.root == "/" and ".." not in path.parts and written.isprintable()
    return path if plain and len(path.parts) > 2 else None  # the root is the first part


def _wrong_part(node: yaml.Node, loader: yaml.SafeLoader) -> yaml.Node:
    """Return the part of `domains` that is wrong: a name of a list, what is no list, or an item; else all of it."""
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


def _not_yaml(file: Path, error: Exception, place: str = "") -> VirtRaplError:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    place = f"{file}:{mark.line + 1}" if mark else place or str(file)
    problem = (isinstance(error, yaml.MarkedYAMLError) and error.problem) or str(error)
    if isinstance(error, RecursionError):
        problem = "nested too deeply"
    return VirtRaplError(f"{place}: not valid YAML: {' '.join(problem.split())}", f"correct {place}")


def _place(file: Path, node: yaml.Node) -> str:
    return f"{file}:{node.start_mark.line + 1}"
