"""What is installed where: modes, links, the directories that are watched, and what only looks like a wrapper."""

from dataclasses import replace
from pathlib import Path

import pytest

from libvirt_rapl import paths
from libvirt_rapl.domains.emulator import KNOWN
from libvirt_rapl.install import places
from libvirt_rapl.install.places import Item
from libvirt_rapl.tree import Tree

OWN = "/opt/a%i b/q"
ITEMS = {item.target: item for item in places.shipped_items([OWN], "qemu-group")}
UNIT = f"{paths.UNITS}/virt-rapld.service"
RULES = f"{paths.POLKIT_RULES}/60-virt-rapl.rules"


GUEST = "usr/local/share/virt-rapl/guest/virt-rapl-guest"


def test_only_programs_can_be_executed_and_only_the_operators_files_are_kept() -> None:
    assert {name for name, item in ITEMS.items() if item.mode == 0o755} == {
        paths.HOOK,
        f"{OWN[1:]}-rapl",
        GUEST,
    }
    assert {item.mode for item in ITEMS.values()} == {0o755, 0o644}
    assert {name for name, item in ITEMS.items() if item.keep} == {paths.CONFIGURATION, RULES}


def test_what_needs_no_decision_of_the_operator_is_enabled() -> None:
    links = {name: item.text for name, item in ITEMS.items() if item.link}
    units = {Path(name).name for name in ITEMS if name.startswith(f"{paths.UNITS}/virt-rapl-wrappers")}
    assert {Path(name).name for name in links} == units == {paths.WRAPPERS_PATH_UNIT, paths.WRAPPERS_UNIT}
    for name, text in links.items():
        assert str((Path("/", name).parent / text).resolve()).removeprefix("/") in ITEMS


def test_each_directory_with_emulators_is_watched_once() -> None:
    lines = ITEMS[f"{paths.UNITS}/{paths.WRAPPERS_PATH_UNIT}"].text.splitlines()
    watched = [line.partition("=")[2] for line in lines if line.startswith("PathChanged=")]
    assert sorted(watched) == sorted({"/opt/a%%i b", *(str(Path(path).parent) for path in KNOWN)})


def test_the_channels_unit_has_the_group_of_qemus_user() -> None:
    lines = ITEMS[f"{paths.UNITS}/{paths.CHANNEL_UNIT}"].text.splitlines()
    assert "SupplementaryGroups=virt-rapl qemu-group" in lines


def test_virt_rapld_takes_the_channels_unit_with_it() -> None:
    channel, daemon = (ITEMS[f"{paths.UNITS}/{unit}"].text for unit in (paths.CHANNEL_UNIT, paths.DAEMON_UNIT))
    assert f"Wants={paths.CHANNEL_UNIT}\n" in daemon
    assert f"PartOf={paths.DAEMON_UNIT}\n" in channel


@pytest.mark.parametrize("link", [True, False])
def test_a_digest_is_that_of_what_is_put_in_place(tmp_path: Path, link: bool) -> None:
    item, tree = Item(target="x", text="there", link=link), Tree(tmp_path)
    for text, same in (("there", True), ("elsewhere", False)):
        if link:
            tree.link("x", text)
        else:
            tree.write("x", text, 0o644)
        assert (tree.digest("x") == item.digest) == same
    assert replace(item, link=not link).digest != item.digest


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("usr/bin/qemu-system-x86_64-rapl", True),
        ("opt/own/virt-rapl-rapl", True),
        ("usr/bin/qemu-system-x86_64", False),
        (paths.HOOK, False),
        ("usr/local/share/zsh/site-functions/_virt-rapl", False),
    ],
)
def test_what_is_a_wrapper(target: str, expected: bool) -> None:
    assert places.is_wrapper(target) == expected


def test_who_else_can_change_what_root_runs_or_reads(tmp_path: Path) -> None:
    """Not what is polkit's user's, and not a masked unit, which leads to /dev/null."""
    tree = Tree(tmp_path)
    for item in ITEMS.values():
        (tmp_path / item.target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / item.target).touch()
    assert places.changeable_files(tree, ITEMS.values()) == {}
    (tmp_path / RULES).chmod(0o666)
    (tmp_path / UNIT).unlink()
    (tmp_path / UNIT).symlink_to("/dev/null")
    assert places.changeable_files(tree, ITEMS.values()) == {}
    (tmp_path / paths.HOOK).chmod(0o666)
    assert list(places.changeable_files(tree, ITEMS.values())) == [tmp_path / paths.HOOK]
