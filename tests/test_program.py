"""Who else can change what root runs, and who cannot reach it, for a program of the test's."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libvirt_rapl.install import program


@pytest.fixture
def root() -> Iterator[Path]:
    """A Python, a package with a module in a room of it, and a library; only we can change what is on the way."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for path in ("bin/python", "lib/package/__init__.py", "lib/package/room/module.py", "lib/library/__init__.py"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        yield root


@pytest.fixture
def changeable(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    programs = (root / "bin/python", root / "lib/package/__init__.py", root / "lib/library/__init__.py")
    monkeypatch.setattr(program, "PROGRAM", programs)
    monkeypatch.setattr(sys, "path", [str(root / "lib")])
    return lambda: [str(path.relative_to(root)) for path in program.changeable_program()]


@pytest.mark.parametrize(
    "name",
    ["bin", "bin/python", "lib", "lib/package", "lib/package/room", "lib/package/room/module.py", "lib/library"],
)
def test_whatever_root_runs_is_looked_at(root: Path, changeable: Callable[[], list[str]], name: str) -> None:
    assert changeable() == []
    (root / name).chmod(0o777)
    assert name in changeable()


def test_a_module_may_be_added_where_python_looks_for_modules(root: Path, changeable: Callable[[], list[str]]) -> None:
    """The sticky bit does not keep others from adding files."""
    for name, found in (("bin", []), ("lib", ["lib"])):
        (root / name).chmod(0o1777)
        assert changeable() == found


def test_the_outermost_closed_directory_is_named(root: Path) -> None:
    root.chmod(0o711)  # who may enter it need not list it
    assert program.closed_directory(root / "bin/python") is None
    (root / "lib/package").chmod(0o700)
    (root / "lib").chmod(0o754)
    assert program.closed_directory(root / "bin/python", root / "lib/package/__init__.py") == root / "lib"


def test_how_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/opt/virt-rapl")
    assert program.to_open(Path("/opt/virt-rapl/lib")) == "chmod -R o+rX /opt/virt-rapl"
    assert program.to_open(Path("/home/me")).startswith("chmod o+x /home/me, or ")
