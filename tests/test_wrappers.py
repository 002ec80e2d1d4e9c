"""Which emulators get a wrapper, and when it is touched so that libvirt asks its emulator again."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from walking import wait_until

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import wrappers
from libvirt_rapl.install.manifest import Manifest
from libvirt_rapl.tree import Tree

QEMU, OWN = "usr/bin/qemu-system-x86_64", "opt/own/q"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A usual emulator, whose wrapper may be a package's, and another one with a wrapper of ours."""
    for name in (QEMU, OWN):
        (tmp_path / name).parent.mkdir(parents=True)
        for path in (tmp_path / name, tmp_path / f"{name}-rapl"):
            path.touch(0o755)
    (tmp_path / paths.MANIFEST).parent.mkdir(parents=True)
    (tmp_path / paths.MANIFEST).write_text('{"files": {"opt/own/q-rapl": "", "usr/share/virt-rapl": ""}}')
    return tmp_path


def make_newer(path: Path, other: Path) -> None:
    """Clocks of file systems tick coarsely."""
    while path.stat().st_ctime_ns <= other.stat().st_ctime_ns:
        os.utime(path)


def upgrade(root: Path, *names: str) -> None:
    for name in names:
        make_newer(root / name, root / f"{name}-rapl")


def touch(root: Path) -> None:
    for name in (QEMU, OWN):
        make_newer(root / f"{name}-rapl", root / name)


def touched(root: Path) -> list[str]:
    """Refresh, and return of which emulators the wrapper is the newer one after it."""
    list(wrappers.refresh(root))
    return [name for name in (QEMU, OWN) if not wrappers.stale(root / name)]


def test_wrappers_of_a_package_and_of_ours_are_touched_once_their_emulator_has_changed(root: Path) -> None:
    touch(root)
    before = {name: (root / f"{name}-rapl").stat().st_ctime_ns for name in (QEMU, OWN)}
    assert list(wrappers.refresh(root)) == []
    assert before == {name: (root / f"{name}-rapl").stat().st_ctime_ns for name in (QEMU, OWN)}
    upgrade(root, QEMU, OWN)
    wait_until(lambda: touched(root) == [QEMU, OWN], 30, "both are newer")  # than what has changed within one tick


def test_a_dry_run_touches_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tree, "touch", lambda *_: pytest.fail("it was touched"))
    upgrade(root, QEMU, OWN)
    lines = list(wrappers.refresh(root, dry_run=True))
    assert [line.startswith("would be touched") for line in lines] == [True, True]


@pytest.mark.parametrize("text", ["qemu-system-x86_64", "/usr/bin/qemu-system-x86_64", "../bin/./qemu-system-x86_64"])
def test_a_link_to_a_known_emulator_is_no_second_one(root: Path, text: str) -> None:
    """An absolute link leads within that root, not on this machine."""
    (root / "usr/bin/kvm").symlink_to(text)
    assert wrappers.emulators(root) == [f"/{QEMU}"]
    (root / QEMU).unlink()
    assert wrappers.emulators(root) == []


def test_of_two_changes_at_one_time_the_emulators_counts_as_the_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda _: SimpleNamespace(st_ctime_ns=7))
        stale = wrappers.stale(Path("/usr/bin/q"))
    assert stale


def test_in_a_directory_that_others_can_change_nothing_is_touched(root: Path) -> None:
    """What bears the wrapper's name may be a link to any file."""
    upgrade(root, OWN)
    (root / "opt/own").chmod(0o777)
    (line,) = [line for line in wrappers.refresh(root) if "opt/own" in line]
    assert line.startswith("kept")
    assert wrappers.stale(root / OWN)


@pytest.mark.parametrize("missing", [OWN, f"{OWN}-rapl"])
def test_where_one_of_both_is_missing_the_other_is_left_alone(root: Path, missing: str) -> None:
    upgrade(root, OWN)
    (root / missing).unlink()
    assert not any("opt/own" in line for line in wrappers.refresh(root))


def test_what_cannot_be_touched_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    upgrade(root, OWN)
    monkeypatch.setattr(os, "utime", refuse)
    with pytest.raises(VirtRaplError, match="cannot touch"):
        list(wrappers.refresh(root))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [lambda path: path.chmod(0o644), directory, lambda path: path.unlink()])
def test_what_is_no_program_gets_none(root: Path, change: Callable[[Path], None]) -> None:
    assert wrappers.emulators(root, [f"/{OWN}"]) == [f"/{QEMU}", f"/{OWN}"]
    change(root / OWN)
    assert wrappers.emulators(root, [f"/{OWN}"]) == [f"/{QEMU}"]


@pytest.mark.parametrize("path", ["/opt/own/../own/q", "/opt//own/q", "/opt/own/q/", "/opt/own/\nq"])
def test_a_name_in_another_form_is_no_second_emulator(root: Path, path: str) -> None:
    assert wrappers.emulators(root, [path]) == [f"/{QEMU}"]


def test_links_that_lead_in_a_circle_lead_to_no_emulator(root: Path) -> None:
    (root / "usr/bin/kvm").symlink_to("qemu-kvm")
    (root / "usr/bin/qemu-kvm").symlink_to("kvm")
    assert wrappers.emulators(root) == [f"/{QEMU}"]


def test_it_goes_on_until_an_upgrade_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """systemd does not watch meanwhile."""
    changes = [[1], [2], [3], [3]]
    slept: list[float] = []
    monkeypatch.setattr(Manifest, "load", lambda _: Manifest())
    monkeypatch.setattr(wrappers, "_changes", lambda _: changes.pop(0))
    monkeypatch.setattr(wrappers, "refresh", lambda _: iter(["touched"]))
    monkeypatch.setattr(wrappers, "time", SimpleNamespace(sleep=slept.append))
    assert wrappers.main() == 0
    assert (changes, slept) == ([], [wrappers.QUIET_SECONDS] * 3)
    assert capsys.readouterr().out == "touched\n" * 3


def test_its_failure_is_the_units(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Path) -> Manifest:
        raise VirtRaplError("cannot read it", "remove it")

    monkeypatch.setattr(Manifest, "load", fail)
    assert wrappers.main() == 1
    assert "cannot read it\nhint: remove it" in capsys.readouterr().err
