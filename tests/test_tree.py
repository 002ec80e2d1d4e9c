"""Files in directories that others may write: what root does there, it does to what it has looked at."""

import contextlib
import errno
import gc
import os
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libvirt_rapl import files, tree
from libvirt_rapl.cli import main
from libvirt_rapl.files import is_left_over, replace, who_else_may_write
from libvirt_rapl.install import program
from libvirt_rapl.tree import NO_FILE, Tree, digest_of

SOMEBODY = 1234
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "etc").mkdir()
        (Path(name) / "etc/file").write_text("text")
        (Path(name) / "etc/file").chmod(0o600)
        yield Path(name)


# What is at the end of a name.


def secret(root: Path) -> Path:
    path = root / "secret"
    path.write_text("secret")
    path.chmod(0o600)
    os.utime(path, (1, 1))
    return path


CHANGES: list[Callable[[Tree, str], object]] = [
    lambda tree, name: tree.set_mode(name, 0o755, digest_of(b"secret")),
    lambda tree, name: tree.touch(name),
    lambda tree, name: tree.write(name, "new", 0o644),
    lambda tree, name: tree.link(name, "elsewhere"),
    lambda tree, name: tree.remove(name),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_file_is_not_changed_through_its_name(
    root: Path, change: Callable[[Tree, str], object], kind: str
) -> None:
    path, aim = root / "etc/name", secret(root)
    before = aim.stat()
    if kind == "link":
        path.symlink_to(aim)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir(0o700)
    assert Tree(root).digest("etc/name") == (f"link to {aim}" if kind == "link" else NO_FILE)
    with contextlib.suppress(OSError):
        change(Tree(root), "etc/name")
    after = aim.stat()
    assert (after.st_mode, after.st_mtime, aim.read_text()) == (before.st_mode, before.st_mtime, "secret")
    if kind == "directory":
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_link_that_is_swapped_in_after_a_look_opens_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an attacker in a loop may manage: between any two calls of ours."""
    aim, path, real = secret(root), root / "etc/file", os.open

    def swap(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if name == "file":
            path.unlink()
            path.symlink_to(aim)
        return real(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(OSError, match=str(path)):
        Tree(root).set_mode("etc/file", 0o755, digest_of(b"secret"))
    assert stat.S_IMODE(aim.stat().st_mode) == 0o600


def test_the_mode_is_set_of_what_was_looked_at(root: Path) -> None:
    """A link to the file itself is put there meanwhile, where the kernel lets somebody make one."""
    looked_at = Tree(root).digest("etc/file") or ""
    aim = secret(root)
    (root / "etc/file").unlink()
    os.link(aim, root / "etc/file")
    Tree(root).set_mode("etc/file", 0o755, looked_at)
    assert stat.S_IMODE(aim.stat().st_mode) == 0o600
    Tree(root).set_mode("etc/file", 0o755, digest_of(b"secret"))
    assert stat.S_IMODE(aim.stat().st_mode) == 0o755


def test_a_temporary_file_is_made_and_not_found(root: Path) -> None:
    """Whatever waits under its name, a link or a file that somebody holds open, is not what gets the text."""
    aim = secret(root)
    name = files.temporary("file")
    (root / "etc" / name).symlink_to(aim)
    Tree(root).write("etc/file", "new", 0o644)
    assert aim.read_text() == "secret"
    (root / "etc" / name).symlink_to(aim)
    replace(root / "etc/file", "newer", 0o644)
    assert (aim.read_text(), (root / "etc/file").read_text()) == ("secret", "newer")
    assert not (root / "etc" / name).is_symlink()
    assert is_left_over(name)
    assert not is_left_over(".file.1.virt-rapl")
    assert not is_left_over("file")


def test_a_file_that_does_not_end_is_not_read_to_its_end(root: Path) -> None:
    with (root / "etc/file").open("w") as file:
        file.truncate(1 << 40)
    assert Tree(root).digest("etc/file") == NO_FILE
    assert len(Tree(root).text("etc/file")) <= tree.MOST_BYTES + 1


def test_what_is_longer_than_any_file_of_ours_has_no_digest(root: Path) -> None:
    path = root / "etc/file"
    for size, known in ((tree.MOST_BYTES, True), (tree.MOST_BYTES + 1, False)):
        path.write_bytes(bytes(size))
        assert Tree(root).digest("etc/file") == (digest_of(bytes(size)) if known else NO_FILE)


USES: list[Callable[[Tree, str], object]] = [
    lambda tree, name: tree.text(name),
    lambda tree, name: tree.digest(name),
    lambda tree, name: tree.changeable(name),
    lambda tree, name: tree.writable(name),
    lambda tree, name: tree.is_ours(name),
    lambda tree, name: tree.is_directory(name),
    lambda tree, name: tree.left_over(name),
    lambda tree, name: tree.rename(name, name),
]


def test_nothing_stays_open(root: Path) -> None:
    (root / "etc/link").symlink_to("file")
    os.mkfifo(root / "etc/pipe")
    (root / "etc" / files.temporary("left")).touch()
    gc.collect()  # what tests before this one have left open
    before = set(Path("/proc/self/fd").iterdir())
    for use in (*CHANGES[:3], *USES):
        for name in ("etc", "etc/file", "etc/link", "etc/pipe", "etc/none", "none/file", "etc/file/none"):
            with contextlib.suppress(OSError):
                use(Tree(root), name)
    with contextlib.suppress(OSError), Tree(root).directory("etc/file"):
        pass
    assert set(Path("/proc/self/fd").iterdir()) <= before


@needs_root
def test_of_what_was_left_only_ours_counts(root: Path) -> None:
    ours, theirs = files.temporary("ours"), files.temporary("theirs")
    for name in (ours, theirs, ".other.1.virt-rapl", "file"):
        (root / "etc" / name).touch()
    os.chown(root / "etc" / theirs, SOMEBODY, 0)
    assert Tree(root).left_over("etc") == [f"etc/{ours}"]
    assert Tree(root).left_over("none") == Tree(root).left_over("etc/file") == []


def test_what_is_gone_is_removed(root: Path) -> None:
    for name in ("etc/file", "etc/file", "none/file", "etc/none/file"):
        Tree(root).remove(name)
    assert not (root / "etc/file").exists()
    (root / "etc/file").touch()
    Tree(root).remove("etc/file/none")
    Tree(root).remove_directory("none")
    with pytest.raises(OSError, match=f"{root}/etc"):
        Tree(root).remove_directory("etc")
    assert (root / "etc/file").exists()


# What is on the way.


def test_missing_directories_are_made_where_nobody_else_can_change_them(root: Path) -> None:
    with Tree(root).directory("a/b/c", make=0o711) as (_, others):
        assert others == {}
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")}
    assert modes == {"a": 0o755, "a/b": 0o755, "a/b/c": 0o711}
    (root / "a/b").chmod(0o777)
    with pytest.raises(FileNotFoundError), Tree(root).directory("a/b/new/deep", make=0o711):
        pass
    assert not (root / "a/b/new").exists()


def test_links_of_roots_are_followed_within_the_root(root: Path) -> None:
    (root / "real/deep").mkdir(parents=True)
    (root / "etc/absolute").symlink_to("/real")
    (root / "etc/relative").symlink_to("../real/./deep/..")
    (root / "etc/above").symlink_to("../../../../real")
    for name in ("absolute", "relative", "above"):
        Tree(root).write(f"etc/{name}/file", name, 0o644)
        assert (root / "real/file").read_text() == name
        assert Tree(root).text(f"etc/{name}/file") == name
        assert not Tree(root).changeable(f"etc/{name}/file")
    for number in range(tree.MOST_LINKS):
        (root / f"etc/{number + 1}").symlink_to(str(number))
    (root / "etc/0").mkdir()
    Tree(root).write(f"etc/{tree.MOST_LINKS}/file", "text", 0o644)
    (root / "etc/one more").symlink_to(str(tree.MOST_LINKS))
    with pytest.raises(OSError, match="etc/1'") as caught:
        Tree(root).write("etc/one more/file", "text", 0o644)
    assert caught.value.errno == errno.ELOOP


@needs_root
@pytest.mark.parametrize("whose", ["link", "directory above", "mode above"])
def test_links_that_others_can_make_are_not(root: Path, whose: str) -> None:
    (root / "bin").mkdir()
    (root / "bin/program").write_text("root's")
    (root / "opt/theirs").mkdir(parents=True)
    (root / "opt/theirs/bin").symlink_to("/bin")
    if whose == "link":
        os.lchown(root / "opt/theirs/bin", SOMEBODY, SOMEBODY)
    elif whose == "directory above":
        os.chown(root / "opt", SOMEBODY, SOMEBODY)
    else:
        (root / "opt").chmod(0o775)
    name = "opt/theirs/bin/program"
    for change in CHANGES:
        with pytest.raises(OSError, match="/opt/theirs/bin"):
            change(Tree(root), name)
    assert (root / "bin/program").read_text() == "root's"
    assert Tree(root).digest(name) == NO_FILE
    place = root / ("opt/theirs/bin" if whose == "link" else "opt")
    assert place in Tree(root).changeable(name)
    assert place in Tree(root).writable(name)


@needs_root
def test_who_else_can_change_a_file_or_add_one(root: Path) -> None:
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/c/file").touch(0o644)
    assert (Tree(root).changeable("a/b/c/file"), Tree(root).writable("a/b/c/file")) == ({}, {})
    (root / "a/b/c/file").chmod(0o664)
    assert list(Tree(root).changeable("a/b/c/file")) == [root / "a/b/c/file"]
    assert Tree(root).writable("a/b/c/file") == {}
    os.chown(root / "a/b", SOMEBODY, 0)
    (root / "a").chmod(0o777)
    assert list(Tree(root).writable("a/b/c/missing/too")) == [root / "a", root / "a/b"]
    (root / "a").chmod(0o1777)
    os.chown(root / "a/b", 0, 0)
    assert Tree(root).writable("a/b/c/file") == {}
    assert list(Tree(root).writable("a/file")) == [root / "a"], "with the sticky bit others may add files"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list as the kernel has it: of each entry tag, rights and ID."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


OWNER, USER, GROUP, MASK, OTHER, NOBODYS = 1, 2, 4, 0x10, 0x20, 0xFFFFFFFF
ONE_USER = acl((OWNER, 7, NOBODYS), (USER, 7, SOMEBODY), (GROUP, 5, NOBODYS), (MASK, 7, NOBODYS), (OTHER, 5, NOBODYS))


def test_whom_an_acl_lets_write_is_another(root: Path) -> None:
    assert not who_else_may_write(root / "etc")
    try:
        os.setxattr(root / "etc", "system.posix_acl_access", ONE_USER)
    except OSError:
        pytest.skip("the file system has no ACLs")
    assert "ACL" in who_else_may_write(root / "etc")
    assert root / "etc" in Tree(root).writable("etc/file")
    (root / "etc").chmod(0o755)
    assert not who_else_may_write(root / "etc"), "its mask takes that right away"


def test_what_is_made_below_a_default_acl_others_cannot_write(root: Path) -> None:
    try:
        os.setxattr(root / "etc", "system.posix_acl_default", ONE_USER)
    except OSError:
        pytest.skip("the file system has no ACLs")
    Tree(root).make_directories(["etc/new"])
    Tree(root).write("etc/new/file", "text", 0o644)
    assert not Tree(root).changeable("etc/new/file")


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_directories_are_open_to_all_from_the_beginning(root: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        Tree(root).make_directories(["etc/new", "etc/new/deep"])
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root / "etc/new").rglob("..")} == {0o755}


# install and its like.


@pytest.mark.parametrize("name", ["etc/libvirt", "etc", "etc/virt-rapl", "."])
def test_install_refuses_directories_that_others_can_change(
    root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name).chmod(0o775)
    before = sorted(root.rglob("*"))
    assert main(["install", "--prefix-root", str(root)]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert f"{root / name}: group" in error
    assert f"chmod go-w {root / name}" in hint
    assert sorted(root.rglob("*")) == before


@needs_root
@pytest.mark.parametrize("place", ["python", "package", "library", "above", "link"])
@pytest.mark.parametrize("acl", [False, True])
def test_install_refuses_a_program_that_others_can_change(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str, *, acl: bool
) -> None:
    """Root itself is in the group, or the ACL names one user: neither makes a difference."""
    root.chmod(0o755)
    for name in ("opt/bin/python", "opt/lib/package/installer.py", "opt/lib/package/hook.py", "usr/lib/lxml/etree.so"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "opt/bin/python3").symlink_to(root / "opt/bin/python")
    parts = [root / name for name in ("opt/bin/python3", "opt/lib/package/installer.py", "usr/lib/lxml/etree.so")]
    monkeypatch.setattr(program, "PROGRAM", parts)
    assert not program.changeable_program()
    name = {
        "python": "opt/bin/python",
        "package": "opt/lib/package/hook.py",
        "library": "usr/lib/lxml",
        "above": "opt",
        "link": "opt/bin/python3",
    }[place]
    if place == "link":
        os.lchown(root / name, SOMEBODY, 0)
    elif acl:
        try:
            os.setxattr(root / name, "system.posix_acl_access", ONE_USER)
        except OSError:
            pytest.skip("the file system has no ACLs")
    else:
        (root / name).chmod(0o775)
    assert main(["install", "--dry-run"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert str(root / name) in error
    assert "--force" in hint


def test_all_of_the_package_is_looked_at() -> None:
    package = program.PROGRAM[1].parent
    assert (package / "lifecycle/hook.py").exists()
    assert (package.name, package.parent) == ("libvirt_rapl", Path(__file__).parent.parent)


def test_a_directory_that_python_looks_into_may_get_no_file_of_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor with the sticky bit: a .pth file is run."""
    (root / "lib/package").mkdir(parents=True)
    (root / "lib/package/installer.py").touch()
    monkeypatch.setattr(program, "PROGRAM", [root / "lib/package/installer.py"] * 2)
    monkeypatch.setattr(sys, "path", [str(root / "lib")])
    assert not program.changeable_program()
    (root / "lib").chmod(0o1777)
    assert list(program.changeable_program()) == [root / "lib"]


@needs_root
def test_an_emulator_that_others_can_put_something_beside_gets_no_wrapper(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is installed; and polkitd's own directory, in which root runs nothing, is no hindrance."""
    for name in ("usr/bin/qemu-system-x86_64", "usr/libexec/qemu-kvm"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch(0o755)
    (root / "usr/libexec").chmod(0o775)
    (root / "etc/polkit-1/rules.d").mkdir(parents=True)
    os.chown(root / "etc/polkit-1/rules.d", SOMEBODY, 0)
    assert main(["install", "--prefix-root", str(root)]) == 0
    warning, hint = capsys.readouterr().err.splitlines()
    assert f"{root}/usr/libexec: group" in warning
    assert f"chmod go-w {root}/usr/libexec" in hint
    assert (root / "usr/bin/qemu-system-x86_64-rapl").exists()
    assert not (root / "usr/libexec/qemu-kvm-rapl").exists()
    watched = (root / "etc/systemd/system/virt-rapl-wrappers.path").read_text()
    assert "PathChanged=/usr/bin\n" in watched
    assert (root / "etc/polkit-1/rules.d/60-virt-rapl.rules").exists()


@needs_root
def test_a_wrapper_that_others_have_got_at_is_neither_opened_nor_touched(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was installed, then its directory given away: what is there now may be anything, and goes nowhere."""
    emulator, aim = root / "usr/libexec/qemu-kvm", secret(root)
    emulator.parent.mkdir(parents=True)
    emulator.touch(0o755)
    assert main(["install", "--prefix-root", str(root)]) == 0
    os.chown(emulator.parent, SOMEBODY, 0)
    wrapper = Path(f"{emulator}-rapl")
    wrapper.unlink()
    os.link(aim, wrapper)
    os.utime(emulator)
    before = aim.stat()
    capsys.readouterr()
    assert main(["install", "--prefix-root", str(root)]) == 0
    assert f"kept      {wrapper}" in capsys.readouterr().out
    assert (aim.stat().st_mode, aim.stat().st_mtime) == (before.st_mode, before.st_mtime)
    assert main(["uninstall", "--prefix-root", str(root)]) == 0
    assert f"kept      {wrapper}, which was changed" in capsys.readouterr().out
    assert aim.read_text() == "secret"


@needs_root
def test_a_file_of_ours_that_was_given_away_is_made_anew(root: Path) -> None:
    assert main(["install", "--prefix-root", str(root)]) == 0
    hook = root / "etc/libvirt/hooks/qemu.d/virt-rapl"
    os.chown(hook, SOMEBODY, 0)
    assert main(["install", "--prefix-root", str(root)]) == 0
    assert hook.stat().st_uid == 0
