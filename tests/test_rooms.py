"""The plan of the house: which room may import which, and which modules may import what is expensive or risky.

This table is the rule; CONTRIBUTING.md draws it. An import that is not in it fails here, wherever in a file it stands.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_rapl.cli import COMMANDS

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "libvirt_rapl"
GROUND = "ground"
ROOMS = {
    GROUND: {GROUND},
    "host": {GROUND, "host"},
    "energy": {GROUND, "host", "energy"},
    "domains": {GROUND, "host", "domains"},
    "helper": {GROUND, "host", "helper"},
    "lifecycle": {GROUND, "host", "domains", "helper", "lifecycle"},
    "install": {GROUND, "domains", "helper", "install"},
    "daemon": {GROUND, "host", "energy", "domains", "helper", "lifecycle", "daemon"},
    "exporter": {GROUND, "daemon", "exporter"},
    "top": {GROUND, "daemon", "top"},
    "simulator": {GROUND, "simulator"},
}
ROOMS["doctor"] = {*ROOMS, "doctor"} - {"simulator"}
ROOMS["cli"] = {*ROOMS, "cli"}
"""What each room may import."""

SIMULATES = {"cli.simulate", "cli.demo"}
"""Nobody else in the package may import the simulator."""
LIBVIRT = {"domains.connection", "domains.domain"}
"""Nobody else may import libvirt's own module."""
RUN_PROGRAMS = {
    "commands": "all others by it",
    "simulator.kvm": "talks with a QEMU",
    "simulator.world": "talks with whatever runs in a world",
}
"""Which modules may import subprocess, and what for."""
CATCH_ALL = {
    "helper.vmsr.server": "logs by itself: errors would take memory",
    "top.background": "raises it in the main thread",
}
"""Which modules may catch every exception without explain(), which logs a traceback."""
WOKEN = {"lifecycle.hook", "helper.process", "helper.vmsr.serving"}
"""Where a process begins that a domain's start waits for, or of which each domain has one."""
TOO_MUCH = {"libvirt", "argparse", "sqlite3", "http", "asyncio"}
"""What such a process may never import when it begins, by itself or through others of ours."""


def modules() -> dict[str, Path]:
    """Return every module of the package by its name below it: `host.zones`, `helper.vmsr`, `` is the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """Return where a module lives."""
    first = module.partition(".")[0]
    return first if (PACKAGE / first).is_dir() and first else GROUND


def imports(path: Path, *, at_start_only: bool = False) -> Iterator[str]:
    """Yield what a file imports: our own modules by their names below the package, others as `/name`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_start_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (own(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = own(f"{node.module}.{alias.name}")
                yield full if full in MODULES else own(str(node.module))


def own(name: str) -> str:
    if name == "libvirt_rapl" or name.startswith("libvirt_rapl."):
        return name.removeprefix("libvirt_rapl").removeprefix(".")
    return "/" + name.partition(".")[0]


def test_every_room_is_in_the_table_and_says_what_it_is_for() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == ROOMS.keys() - {GROUND}
    for name in rooms:
        docstring = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8")))
        assert docstring
        assert len(docstring.splitlines()) >= 2, f"{name}: what lives there, and what may it import?"


def test_contributing_draws_every_room() -> None:
    _, picture, rest = (TESTS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```", 2)
    table = rest.partition("\n## ")[0]
    for name in ROOMS:
        assert re.search(rf"\b{name}\b", picture), name
        assert re.search(rf"^\|[^|]*\b{name}\b[^|]*\|", table, re.MULTILINE), name


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down_the_table(module: str) -> None:
    if module == "__main__":  # the door of the house: it opens into cli
        return
    for name in imports(MODULES[module]):
        if name.startswith("/"):
            assert name != "/libvirt" or module in LIBVIRT
            assert name != "/subprocess" or module in RUN_PROGRAMS
            continue
        assert room(name) in ROOMS[room(module)], f"{module} is in {room(module)} and imports {name}"
        assert room(name) != "simulator" or room(module) == "simulator" or module in SIMULATES
        if room(module) == "cli" and name != "cli":
            assert not (name.startswith("cli.") and name.removeprefix("cli.") in COMMANDS), f"{module}: {name}"


@pytest.mark.parametrize("module", sorted(MODULES.keys() - CATCH_ALL.keys()))
def test_who_catches_everything_explains_it(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception":
            names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            assert names & {"explain", "_fail"}, f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", sorted(WOKEN))
def test_what_a_start_waits_for_imports_little(module: str) -> None:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if not name.startswith("/"):
            waiting += imports(MODULES[name], at_start_only=True)
            waiting += [parent for parent in [name.rpartition(".")[0]] if parent]
    assert {name.removeprefix("/") for name in seen if name.startswith("/")} & TOO_MUCH == set()


IMPORT_OF_A_TEST = re.compile(r"^\s*(?:from|import) (test_\w+|conftest)\b", re.MULTILINE)


def test_nobody_imports_a_test_file() -> None:
    """Not in programs that stand in strings either. What several files need is in fakes/, or a helper beside them."""
    assert IMPORT_OF_A_TEST.findall("import os\nfrom test_rooms import TESTS\n") == ["test_rooms"]
    texts = {path.relative_to(TESTS): path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py")}
    assert {str(path): found for path, text in texts.items() if (found := IMPORT_OF_A_TEST.findall(text))} == {}
