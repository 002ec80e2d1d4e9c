"""Reading the files of the configuration: each setting with its place, and each mistake in a line with its own."""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from libvirt_rapl.config_key import Key, files
from libvirt_rapl.errors import VirtRaplError, WrongPartError
from libvirt_rapl.files import who_else_may_write
from libvirt_rapl.labels import is_name
from libvirt_rapl.labels import place as place_of_label
from libvirt_rapl.selection import LISTS, Selection

STANDARD_INPUT = Path("/dev/stdin")

CONSTRUCTORS = (ValueError, KeyError, AttributeError, TypeError)
"""What PyYAML raises for a value that does not fit its tag, or looks like a date and is none."""


class Loader(yaml.SafeLoader):
    """Reads YAML, where 22:00 stays a text: YAML 1.1 takes it for a number to the base of 60, and makes 1320 of it."""


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | str:
    return node.value if ":" in node.value else loader.construct_yaml_int(node)


Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class Setting(NamedTuple):
    """A valid line of a file."""

    value: Any
    """As Config holds it."""
    written: object
    """As YAML has it."""
    place: str
    """FILE:LINE."""


def read(path: Path, keys: Mapping[str, Key]) -> tuple[dict[str, Setting], list[VirtRaplError]]:
    """Return the files' valid settings, and all mistakes in them, in the order of the files."""
    settings: dict[str, Setting] = {}
    mistakes: list[VirtRaplError] = []
    for file in files(path):
        found: dict[str, Setting] = {}
        for setting in _settings(file, keys):
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


def _check_writers(file: Path) -> None:
    """Raise VirtRaplError if users other than root and ours can write the file, which root's processes obey."""
    for place in (file.parent, file):
        if other := who_else_may_write(place):
            hint = f"check what it says, then: chown root:root {place} && chmod go-w {place}"
            raise VirtRaplError(f"{place} is not used: {other}", hint)


def _settings(file: Path, keys: Mapping[str, Key]) -> Iterator[tuple[str, Setting] | VirtRaplError]:
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
            yield key, _setting(file, key, keys, place, node, loader)
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
        loader = Loader(text)
        return loader, loader.get_single_node()
    except FileNotFoundError:
        if file.is_symlink():
            raise VirtRaplError(f"{file} is a link to {file.readlink()}, which is not there", f"rm {file}") from None
        return Loader(""), None
    except PermissionError as error:
        hint = f"run the command as root, or let others read the file: chmod a+r {file}"
        raise VirtRaplError(f"cannot read {file}: {error.strerror}", hint) from error
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


def _setting(
    file: Path, name: str, keys: Mapping[str, Key], place: str, node: yaml.Node, loader: yaml.SafeLoader
) -> Setting:
    """Return what a key is set to. Raises VirtRaplError if the key or its value is wrong."""
    if name not in keys:
        near = get_close_matches(name, keys, 1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(keys)}"
        raise VirtRaplError(f"{place}: unknown key {name!r}", hint)
    key = keys[name]
    written = loader.construct_object(node, deep=True)
    try:
        value = key.parse(written)
    except WrongPartError as error:
        place = _place(file, _part(node, error.where))
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.where)
        raise VirtRaplError(f"{place}: {name}{steps}: {error.problem}", f"correct {place}") from None
    if value is not None:
        return Setting(value, written, place)
    if name in WRONG_PARTS:
        part = WRONG_PARTS[name](node, loader)
        place, written = _place(file, part), loader.construct_object(part, deep=True)
    word = str(next(iter(written), "") if isinstance(written, dict) else written)
    near = get_close_matches(word, key.words, 1) if word not in key.words else []
    hint = f"did you mean {near[0]}?" if near else f"correct {place}"
    found = " ".join(as_yaml(written).split())
    raise VirtRaplError(f"{place}: {name}: expected {key.expected}, found {found}", hint)


def _part(node: yaml.Node, where: list[str | int]) -> yaml.Node:
    """Return the part of a value that these keys and numbers lead to, as far as it exists."""
    for name in where:
        if isinstance(node, yaml.SequenceNode) and isinstance(name, int):
            node = node.value[name]
        elif isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == name), node)
    return node


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
