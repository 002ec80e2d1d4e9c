"""virt-rapl as a package: what is in it, what its hook does once it is removed, and what postinst does."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_rapl import paths
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import activation, packaged, places, wrappers
from libvirt_rapl.install.places import Item

DEFAULT = "usr/bin/qemu-system-x86_64-rapl"


@pytest.fixture
def items() -> dict[str, Item]:
    return {item.target: item for item in packaged.contents()}


def test_files_are_where_a_package_has_them(items: dict[str, Item]) -> None:
    assert not any(item.link for item in items.values())
    assert not any(name.startswith(("etc/systemd", "etc/tmpfiles.d", "usr/local")) for name in items)
    assert {DEFAULT, paths.HOOK, f"{paths.PACKAGED_UNITS}/virt-rapld.service", "usr/lib/sysusers.d/virt-rapl.conf"} <= (
        items.keys()
    )
    assert {"usr/share/bash-completion/completions/virt-rapl", "usr/share/zsh/vendor-completions/_virt-rapl"} <= (
        items.keys()
    )


def test_what_is_in_etc_is_the_operators(items: dict[str, Item]) -> None:
    assert {name for name, item in items.items() if item.keep} == {name for name in items if name.startswith("etc/")}
    assert paths.CONFIGURATION in items


def test_staged_files_have_their_mode_and_a_dry_run_makes_none(tmp_path: Path, items: dict[str, Item]) -> None:
    root = tmp_path / "root"
    lines = list(packaged.stage(root, dry_run=True))
    assert (len(lines), root.exists()) == (len(items), False)
    os.umask(0o077)
    try:
        assert len(list(packaged.stage(root))) == len(items)
    finally:
        os.umask(0o022)
    staged = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    modes = {name: path.stat().st_mode & 0o777 for name, path in staged.items()}
    programs = {DEFAULT, paths.HOOK, "usr/share/virt-rapl/guest/virt-rapl-guest"}
    assert modes == {name: 0o755 if name in programs else 0o644 for name in items}
    assert {path.stat().st_mode & 0o777 for path in root.rglob("*") if path.is_dir()} == {0o755}
    assert packaged.owns(root)
    assert not packaged.owns(tmp_path)


def test_where_it_cannot_be_staged_that_is_reported(tmp_path: Path) -> None:
    (tmp_path / "etc").touch()
    with pytest.raises(VirtRaplError, match=r"cannot write .*: Not a directory"):
        list(packaged.stage(tmp_path))


@pytest.mark.parametrize("name", ["virt-rapl", "virt-rapl.dpkg-new", "virt-rapl.dpkg-old"])
@pytest.mark.parametrize("is_there", [True, False])
def test_the_hook_does_nothing_for_a_package_that_is_removed_or_being_replaced(
    tmp_path: Path, items: dict[str, Item], name: str, is_there: bool
) -> None:
    program = tmp_path / "virt-rapl-program"
    if is_there:
        program.touch()
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ntouch {tmp_path}/woken\n")
    python.chmod(0o755)
    text = items[paths.HOOK].text.replace("/usr/bin/virt-rapl ]", f"{program} ]")
    lines = [f"python='{python}'" if line.startswith("python=") else line for line in text.splitlines()]
    hook = tmp_path / name
    hook.write_text("\n".join([*lines, ""]).replace("/run/virt-rapl", f"{tmp_path}/run"))
    hook.chmod(0o755)
    done = subprocess.run([hook, "web", "restore", "begin", "-"], input="", text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "woken").exists() == (is_there and name == "virt-rapl")


def test_what_must_be_there_has_no_manuals_and_the_wrappers_that_no_package_has() -> None:
    found = {item.target for item in packaged.in_place([f"/{DEFAULT.removesuffix('-rapl')}", "/opt/own/q"])}
    assert {DEFAULT, "opt/own/q-rapl", paths.HOOK} <= found
    assert not any("/man/" in name or "cockpit" in name for name in found)


def test_the_package_has_the_wrapper_of_the_usual_emulator_only(items: dict[str, Item]) -> None:
    assert [name for name in items if places.is_wrapper(name)] == [DEFAULT]


@pytest.mark.parametrize("failing", ["", "first", "second", "touched"])
def test_postinst_does_all_that_can_be_done_and_reports_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    done: list[str] = []

    def act(name: str) -> None:
        if name == failing:
            raise VirtRaplError(f"{name} failed", "mend it")
        done.append(name)

    def refresh(_: Path) -> Iterator[str]:
        act("touched")
        yield "a wrapper"

    steps = [(name, lambda name=name: act(name)) for name in ("first", "second")]
    monkeypatch.setattr(activation, "after_install", lambda: steps)
    monkeypatch.setattr(wrappers, "refresh", refresh)
    assert packaged.main() == (1 if failing else 0)
    assert done == [name for name in ("first", "second", "touched") if name != failing]
    assert (f"{failing} failed\nhint: mend it" in capsys.readouterr().err) == bool(failing)
