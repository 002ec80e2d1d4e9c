"""Staging an installation: what goes where, twice, and over what was there."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libvirt_rapl import paths
from libvirt_rapl.cli import main
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import installer, places, program, wrappers
from libvirt_rapl.install.manifest import Manifest

HOOK = "etc/libvirt/hooks/qemu.d/virt-rapl"
WRAPPER = "usr/bin/qemu-system-x86_64-rapl"
GUEST = "usr/local/share/virt-rapl/guest/virt-rapl-guest"
UNIT = "etc/systemd/system/virt-rapl-helper@.service"
DAEMON_UNIT = "etc/systemd/system/virt-rapld.service"
TICK = 0.05
"""Seconds in which the clock that files are stamped by goes on."""
CONFIGURATION = "etc/virt-rapl/virt-rapl.yaml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    emulator = tmp_path / "usr/bin/qemu-system-x86_64"
    emulator.parent.mkdir(parents=True)
    emulator.touch(0o755)
    (tmp_path / paths.COCKPIT).mkdir(parents=True)
    return tmp_path


def install(root: Path, *, dry_run: bool = False) -> list[str]:
    return list(installer.install(root, wrappers.emulators(root), dry_run=dry_run))


def uninstall(root: Path) -> list[str]:
    lines = list(installer.uninstall(root))
    if (root / paths.MANIFEST).exists():
        installer.forget(root)
    return lines


EVERY_ITEM = list(places.shipped_items(["/usr/bin/qemu-system-x86_64"], ""))


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """All that is under the root, with modes and contents."""
    found = {}
    for path in root.rglob("*"):
        said = str(path.readlink()) if path.is_symlink() else "" if path.is_dir() else path.read_text()
        found[str(path.relative_to(root))] = (path.lstat().st_mode, said)
    return found


def contents(root: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): (path.stat().st_mode & 0o777, path.read_text()) for path in files}


def test_everything_is_put_in_place_with_its_mode(root: Path) -> None:
    os.umask(0o077)
    try:
        install(root)
    finally:
        os.umask(0o022)
    files = contents(root)
    modes = {name: mode for name, (mode, _) in files.items() if name != "usr/bin/qemu-system-x86_64"}
    assert {name for name, mode in modes.items() if mode == 0o755} == {HOOK, WRAPPER, GUEST}
    assert {UNIT, DAEMON_UNIT, CONFIGURATION, "etc/tmpfiles.d/virt-rapl.conf"} <= modes.keys()
    assert set(modes.values()) == {0o755, 0o644}
    assert {path.stat().st_mode & 0o777 for path in (root / "etc").rglob("*") if path.is_dir()} == {0o755}
    assert sys.executable in files[HOOK][1]
    assert sys.executable in files[UNIT][1]
    assert "After=libvirtd.service virtqemud.service\n" in files[DAEMON_UNIT][1]  # one of them, whichever there is
    assert not any("@PYTHON@" in text or "@WATCHED@" in text or "@QEMU_GROUP@" in text for _, text in files.values())


def test_the_page_is_put_in_place_where_cockpit_is(root: Path) -> None:
    """It comes with the next `install` after Cockpit, and goes with the next one after it."""
    ours = [root / paths.COCKPIT_PAGE / "manifest.json", root / paths.COCKPIT_METAINFO]
    (root / paths.COCKPIT).rmdir()
    for has_cockpit in (False, True, False):
        if has_cockpit:
            (root / paths.COCKPIT).mkdir()
        install(root)
        assert [path.exists() for path in ours] == [has_cockpit, has_cockpit]
        if has_cockpit:  # what a package of it would leave: our directory, for it is not empty
            shutil.move(root / paths.COCKPIT_PAGE, root / "usr/share/moved")
            (root / paths.COCKPIT).rmdir()


def test_nobody_else_may_change_the_page(root: Path) -> None:
    """An administrator's browser runs it, with rights to run commands as root."""
    (root / paths.COCKPIT).chmod(0o777)
    with pytest.raises(VirtRaplError, match=f"can change .*{paths.COCKPIT}"):
        install(root)


def left_by_a_killed_process(root: Path) -> Path:
    left = root / f"etc/.installed.json.{2**22 + 1}.virt-rapl"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    return left


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_only_a_dry_run_leaves_what_killed_processes_have_left(root: Path, command: str) -> None:
    act = installer.uninstall if command == "uninstall" else partial(installer.install, emulators=[])
    left = left_by_a_killed_process(root)
    list(act(root, dry_run=True))
    assert left.exists()
    list(act(root))
    assert not left.exists()


@pytest.mark.parametrize("place", ["etc/libvirt/hooks", "usr/bin", "etc/virt-rapl"])
def test_nothing_goes_into_a_directory_that_others_can_change(root: Path, place: str) -> None:
    (root / place).mkdir(parents=True, exist_ok=True)
    (root / place).chmod(0o777)
    before = tree(root)
    for dry_run in (True, False):
        with pytest.raises(VirtRaplError, match=f"can change .*{place}") as caught:
            install(root, dry_run=dry_run)
        assert "chmod go-w" in caught.value.hint
    assert tree(root) == before


@pytest.mark.parametrize("place", ["usr/local/share", "etc/polkit-1/rules.d"])
def test_some_directories_may_belong_to_others(root: Path, place: str) -> None:
    """To Debian's group staff, or polkit's user: root runs nothing of ours there."""
    (root / place).mkdir(parents=True)
    (root / place).chmod(0o775)
    assert {line.split()[0] for line in install(root)} == {"installed"}


def test_a_manifest_names_what_is_there_and_no_more(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(root)
    assert Manifest.load(root).files.keys() == {item.target for item in EVERY_ITEM}
    fewer = [item for item in EVERY_ITEM if item.target != UNIT]
    with monkeypatch.context() as patch:
        patch.setattr(places, "shipped_items", lambda *_: iter(fewer))
        install(root)
    assert Manifest.load(root).files.keys() == {item.target for item in fewer}


def test_everything_that_is_shipped_has_its_place() -> None:
    sources = {str(path) for top in ("etc", "hooks") for path in Path(top).rglob("*") if path.is_file()}
    placed = {path for path in sources if any(path == place or path.startswith(f"{place}/") for place in places.PLACES)}
    others = {path for path in sources - placed if not path.startswith(("etc/examples/", "etc/ansible/"))}
    assert others == {"etc/bootstrap", "etc/build-deb", "etc/quickstart", "hooks/qemu-system-rapl"}


def test_the_documentation_names_every_place() -> None:
    page = Path("docs/install.md").read_text()
    for target in [item.target for item in EVERY_ITEM] + [paths.MANIFEST]:
        assert any(f"`/{place}`" in page for place in (target, *(f"{path}/" for path in Path(target).parents))), target


def test_a_second_run_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert main(["install", "--prefix-root", str(root)]) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"unchanged"}


def test_a_mode_that_somebody_has_changed_is_set_right(root: Path) -> None:
    install(root)
    before = contents(root)
    for name, mode in ((HOOK, 0o644), (WRAPPER, 0o700), (UNIT, 0o666), (CONFIGURATION, 0o600)):
        (root / name).chmod(mode)
    assert {line.split()[0] for line in install(root)} == {"unchanged"}
    assert contents(root) == before


@pytest.mark.skipif(os.getuid() != 0, reason="gives a file away")
def test_a_file_of_ours_that_belongs_to_somebody_else_is_made_anew(root: Path) -> None:
    install(root)
    os.chown(root / HOOK, 4321, 4321)
    assert f"updated   {root / HOOK}" in install(root)
    assert (root / HOOK).stat().st_uid == os.getuid()


def test_the_operators_configuration_stays_and_old_files_of_ours_do_not(root: Path) -> None:
    install(root)
    (root / CONFIGURATION).write_text("helper: qemu\n")
    (root / HOOK).write_text("an older hook\n")
    assert f"updated   {root / HOOK}" in install(root)
    assert (root / CONFIGURATION).read_text() == "helper: qemu\n"
    assert "older" not in (root / HOOK).read_text()


def test_a_wrapper_for_every_emulator_that_is_there(root: Path) -> None:
    (root / "usr/bin/qemu-system-x86_64").unlink()
    install(root)
    assert not (root / WRAPPER).exists()
    (root / "usr/libexec").mkdir()
    (root / "usr/libexec/qemu-kvm").touch(0o755)
    install(root)
    assert (root / "usr/libexec/qemu-kvm-rapl").read_text() == Path("hooks/qemu-system-rapl").read_text()


def test_a_default_that_nobody_has_changed_follows_the_new_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = places.Item(target=CONFIGURATION, text="# an older default of virt-rapl\n", keep=True)
    with monkeypatch.context() as patch:
        patch.setattr(places, "shipped_items", lambda *_: iter([older]))
        install(root)
    install(root)
    assert (root / CONFIGURATION).read_text() == Path("etc/virt-rapl.yaml").read_text()


def test_what_a_newer_version_does_not_have_any_more_goes_but_for_wrappers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setitem(places.PLACES, "etc/virt-rapl.yaml", "etc/default/virt-rapl")
        older.setitem(places.PLACES, places.WRAPPER, paths.LIBVIRT_HOOK)  # once libvirt before 6.5 got a file there
        list(installer.install(root, ["/usr/bin/qemu-system-x86_64"]))
    assert os.access(root / paths.LIBVIRT_HOOK, os.X_OK)
    (root / "usr/bin/qemu-system-x86_64").unlink()  # as for a moment while it is being replaced
    assert [line.split()[0] for line in install(root) if not line.startswith("unchanged")] == [
        "installed",
        "removed",
        "removed",
    ]
    assert not (root / paths.LIBVIRT_HOOK).exists()
    assert not (root / "etc/default/virt-rapl").exists()
    assert (root / WRAPPER).exists()
    uninstall(root)
    assert not (root / WRAPPER).exists()


def test_what_cannot_be_written_is_reported(root: Path) -> None:
    (root / "etc").write_text("not a directory")
    with pytest.raises(VirtRaplError, match="cannot change") as caught:
        install(root)
    assert caught.value.hint.startswith("move away")


@pytest.mark.parametrize("name", [HOOK, WRAPPER, UNIT])
def test_a_file_of_somebody_elses_is_not_overwritten(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("# mine, for intel_rapl_msr and virt-rapl\n")
    before = tree(root)
    with pytest.raises(VirtRaplError, match="is there already and not virt-rapl's"):
        install(root)
    assert tree(root) == before


def test_a_dry_run_says_what_a_run_does_and_does_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def virt_rapl(*arguments: str) -> list[str]:
        assert main([*arguments, "--prefix-root", str(root)]) == 0
        return capsys.readouterr().out.splitlines()

    for command in ("install", "uninstall"):
        before = tree(root)
        printed = virt_rapl(command, "--dry-run")
        assert tree(root) == before
        assert {line.split()[0] for line in printed} == {"would"}
        assert virt_rapl(command) == [line.removeprefix("would be ") for line in printed]
        assert tree(root) != before


# Uninstall.


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_was_there_before_is_there_after(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin/qemu-system-x86_64").touch(0o755)
        places = sorted({*(str(Path(item.target).parent) for item in EVERY_ITEM), "etc/apparmor.d/local", "var/lib"})
        for directory in data.draw(st.sets(st.sampled_from(places))):
            (root / directory).mkdir(parents=True, exist_ok=True)
            if data.draw(st.booleans()):
                (root / directory / "other").write_text("somebody else's")
        if data.draw(st.booleans()):
            (root / CONFIGURATION).parent.mkdir(parents=True, exist_ok=True)
            (root / CONFIGURATION).write_text(data.draw(st.sampled_from(["", "helper: qemu\n"])))
        before = tree(root)
        for _ in range(data.draw(st.integers(1, 2))):
            install(root)
        assert tree(root) != before
        uninstall(root)
        assert tree(root) == before
        assert [line.split(": ")[0] for line in uninstall(root)] == [f"nothing is installed under {root}"]


def test_what_was_changed_since_stays_and_is_named(root: Path) -> None:
    install(root)
    (root / CONFIGURATION).write_text("helper: qemu\n")
    (root / UNIT).unlink()
    (root / "etc/libvirt/hooks/qemu.d/mine").touch()
    lines = uninstall(root)
    assert f"kept      {root / CONFIGURATION}, which was changed" in lines
    assert not any(UNIT in line for line in lines)
    left = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    assert left == {CONFIGURATION, "etc/libvirt/hooks/qemu.d/mine", "usr/bin/qemu-system-x86_64"}
    install(root)
    assert (root / CONFIGURATION).read_text() == "helper: qemu\n"


class _Killed(BaseException):
    """Nothing that is run catches it."""


@contextlib.contextmanager
def after(survives: int, what: BaseException) -> Iterator[Counter[str]]:
    """Let so many system calls that change something go through; at each one after that `what` is raised."""
    made: Counter[str] = Counter()
    real_open = os.open

    def count(name: str) -> None:
        if made.total() >= survives:
            raise what
        made[name] += 1

    def limited(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def counted(*arguments: object, **named: object) -> object:
            count(name)
            return call(*arguments, **named)

        return counted

    def opened(path: str, flags: int, *arguments: Any, **named: Any) -> int:  # noqa: ANN401
        if flags & os.O_CREAT:
            count("create")
        return real_open(path, flags, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "symlink", "unlink", "rmdir", "fchmod", "utime"):
            patch.setattr(os, name, limited(name))
        patch.setattr(os, "open", opened)
        patch.setattr(os, "fsync", lambda _: count("write"))
        yield made


@pytest.mark.parametrize("survives", range(0, 60, 7))
def test_a_disk_that_gets_full_half_way(root: Path, survives: int) -> None:
    """After `survives` changes nothing more can be written: a second run completes it, or uninstall takes it back."""
    before = tree(root)
    for finish in (install, uninstall):
        with after(survives, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):  # noqa: SIM117
            with pytest.raises(VirtRaplError, match=rf"cannot change {root}/.*: No space left") as caught:
                install(root)
        assert caught.value.hint == "make room and run this again"
        finish(root)
        assert (set(contents(root)) >= {HOOK, WRAPPER}) == (finish == install)
        uninstall(root)
        assert tree(root) == before


FEW = [
    places.Item(target=HOOK, text="hook", mode=0o755),
    places.Item(target=CONFIGURATION, text="# default", keep=True),
    places.Item(target="etc/systemd/system/x.service", text="unit"),
    places.Item(target="etc/systemd/system/multi-user.target.wants/x.service", text="../x.service", link=True),
    places.Item(target="usr/local/share/deep/below/page.1", text="page"),
    places.Item(target=WRAPPER, text="wrapper", mode=0o755),
]
OLDER = [replace(item, text=f"{item.text} of old") for item in FEW[:4]]
OLDER += [places.Item(target="etc/gone/old", text="not any more")]


def nothing(_root: Path) -> None:
    pass


def directories(root: Path) -> None:
    (root / "etc/virt-rapl").mkdir(parents=True)
    (root / "usr/local/share/deep").mkdir(parents=True)


def somebody_elses(root: Path) -> None:
    (root / "etc/virt-rapl/conf.d").mkdir(parents=True)
    (root / CONFIGURATION).write_text("helper: qemu")
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "etc/systemd/system/other").touch()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[places.Item]], None]:
    """Ship these files instead of all."""

    def ship(items: list[places.Item]) -> None:
        monkeypatch.setattr(places, "shipped_items", lambda *_: iter(items))

    return ship


@pytest.mark.parametrize("given", [nothing, directories, somebody_elses])
@pytest.mark.parametrize("killed", ["install", "update", "uninstall"])
def test_killed_at_any_moment(
    tmp_path: Path, few: Callable[[list[places.Item]], None], killed: str, given: Callable[[Path], None]
) -> None:
    """Before each call that changes something, in turn: uninstall leaves what was there before, a new try all of it."""
    survives, done = 0, False
    while not done:
        for finish in (uninstall, install):
            root = tmp_path / f"{survives}-{finish.__name__}"
            root.mkdir()
            given(root)
            before = tree(root)
            if killed != "install":
                few(OLDER if killed == "update" else FEW)
                install(root)
            few(FEW)
            try:
                with after(survives, _Killed()):
                    (uninstall if killed == "uninstall" else install)(root)
                done = True
            except _Killed:
                pass
            finish(root)
            if finish is install:
                assert set(contents(root)) >= {item.target for item in FEW}
            uninstall(root)
            assert tree(root) == before, f"killed after {survives} changes"
        survives += 1
    assert survives > 10


def test_what_another_process_is_writing_stays(root: Path) -> None:
    """A leftover under a temporary name is removed if the process that wrote it has ended, and it is ours."""
    install(root)
    other = subprocess.Popen(["sleep", "60"])
    try:
        living = root / f"etc/virt-rapl/.virt-rapl.yaml.{other.pid}.virt-rapl"
        living.touch()
        install(root)
        assert living.exists()
    finally:
        other.kill()
        other.wait()
    mine = root / f"etc/.hidden.{other.pid}"
    mine.touch()
    uninstall(root)
    assert not living.exists()
    assert mine.exists()


def test_what_cannot_be_removed_is_reported_and_goes_the_next_time(root: Path) -> None:
    before = tree(root)
    install(root)
    with after(3, OSError(errno.EROFS, os.strerror(errno.EROFS))):  # noqa: SIM117
        with pytest.raises(VirtRaplError, match=rf"cannot change {root}/.*: Read-only file system") as caught:
            uninstall(root)
    assert caught.value.hint == "make it writable and run this again"
    uninstall(root)
    assert tree(root) == before


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


@pytest.mark.e2e
def test_a_read_only_system_is_reported_by_the_files_own_name(root: Path) -> None:
    install(root)
    (root / HOOK).write_text("of an older version\n")
    command = [sys.executable, "-m", "libvirt_rapl", "install", "--prefix-root", str(root)]
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY, str(root)]
    done = subprocess.run(
        [*unshare, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"virt-rapl: error: cannot change {root / paths.MANIFEST}: Read-only file system",
        "hint: make it writable and run this again",
    ]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"files": {"../x": ""}}', '{"files": {"/etc/passwd": ""}}', '{"what": 1}']
)
def test_a_manifest_that_is_damaged_removes_nothing(root: Path, text: str) -> None:
    install(root)
    (root / paths.MANIFEST).write_text(text)
    before = tree(root)
    for act in (install, uninstall):
        with pytest.raises(VirtRaplError, match="cannot read"):
            act(root)
    assert tree(root) == before


def test_a_manifest_that_was_lost_is_made_anew(root: Path) -> None:
    install(root)
    (root / paths.MANIFEST).unlink()
    with pytest.raises(VirtRaplError, match=r"installed\.json is lost"):
        uninstall(root)
    assert {line.split()[0] for line in install(root)} == {"unchanged"}
    uninstall(root)
    assert not [path for path in tree(root) if (root / path).is_file() and "rapl" in path]


def test_two_at_once_do_not_stumble(root: Path) -> None:
    """As it comes: which of them is how far no test can choose."""
    command = [sys.executable, "-m", "libvirt_rapl"]
    for what in ["install", "uninstall"] * 3:
        both = [
            subprocess.Popen([*command, what, "--prefix-root", root], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        assert [one.communicate(timeout=60)[1] for one in both] == [b"", b""]


# Which emulators.


def test_a_link_to_an_emulator_is_no_second_one_unless_a_domain_names_it(root: Path) -> None:
    (root / "usr/bin/kvm").symlink_to("qemu-system-x86_64")
    (root / "usr/libexec").mkdir()
    (root / "usr/libexec/qemu-kvm").symlink_to("/usr/bin/qemu-system-x86_64")  # of that root, not of the machine
    assert wrappers.emulators(root) == ["/usr/bin/qemu-system-x86_64"]
    named = ["/usr/bin/kvm", "/usr/bin/gone", "/usr/bin/qemu-system-x86_64"]
    assert wrappers.emulators(root, named) == ["/usr/bin/qemu-system-x86_64", "/usr/bin/kvm"]
    (root / "opt/a%i b").mkdir(parents=True)
    for odd in ("opt/a%i b/c", "opt/a\nExecStart=b"):
        (root / odd).touch(0o755)
    named = ["/opt/a%i b/c", "/opt/a\nExecStart=b", "/usr/../usr/bin/kvm"]
    assert wrappers.emulators(root, named) == ["/usr/bin/qemu-system-x86_64", "/opt/a%i b/c"]
    list(installer.install(root, ["/opt/a%i b/c"]))
    assert "PathChanged=/opt/a%%i b\n" in (root / "etc/systemd/system/virt-rapl-wrappers.path").read_text()
    (root / "usr/bin/qemu-kvm").touch(0o755)
    assert wrappers.emulators(root) == ["/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-kvm"]


def test_a_wrapper_older_than_its_emulator_is_touched(root: Path) -> None:
    qemu = root / "usr/bin/qemu-system-x86_64"
    time.sleep(TICK)
    install(root)
    assert list(wrappers.refresh(root)) == []
    before = (root / WRAPPER).stat().st_ctime_ns
    os.utime(qemu, (0, 0))  # packages bring files that are older than their installation
    time.sleep(TICK)
    (line,) = wrappers.refresh(root, dry_run=True)
    assert line.startswith("would be touched")
    assert wrappers.stale(qemu)
    (line,) = wrappers.refresh(root)
    assert line.startswith(f"touched   {root / WRAPPER}: qemu-system-x86_64 has changed")
    assert (root / WRAPPER).stat().st_ctime_ns > before
    assert not wrappers.stale(qemu)
    qemu.unlink()
    assert list(wrappers.refresh(root)) == []


def test_a_directory_that_virt_rapld_does_not_get_through_is_found() -> None:
    with tempfile.TemporaryDirectory() as directory:
        inside = Path(directory) / "bin"
        inside.mkdir()
        Path(directory).chmod(0o711)
        assert program.closed_directory(inside / "python") is None
        Path(directory).chmod(0o700)
        assert program.closed_directory(inside / "python") == Path(directory)


@pytest.mark.parametrize("odd", ["it's", "a b", "$x", "%i", "é", "a\nb", "a;b"])
def test_a_path_that_scripts_would_misread_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    monkeypatch.setattr(sys, "executable", f"/opt/{odd}/bin/python")
    with pytest.raises(VirtRaplError, match="cannot be named in scripts"):
        install(root)
    assert not (root / "etc").exists()
