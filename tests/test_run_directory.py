"""The run directory: who owns it, what is removed of it, and which process waits for which."""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_rapl import paths
from libvirt_rapl.directories import NotOursError
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import temporary
from libvirt_rapl.helper import run_directory
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.run_directory import SHARED, Suffix
from libvirt_rapl.lifecycle import events

UUID = "12345678-1234-1234-1234-123456789abc"


LOCKS: tuple[Suffix, ...] = ("lock", "live")


def record() -> Record:
    return Record(uuid=UUID, name="ünïcode vm", backend="native", owner_uid=64055, owner_gid=64055, state="ready")


def test_a_directory_that_somebody_else_uses_keeps_its_mode(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "run")
    registry.write(record())
    for name in SHARED:
        (registry.run_directory / name).touch()
    registry.run_directory.chmod(0o700)
    registry.write(record())
    assert registry.run_directory.stat().st_mode & 0o7777 == 0o711
    (registry.run_directory / "libvirt-sock").touch()
    registry.run_directory.chmod(0o755)
    with pytest.raises(NotOursError, match="libvirt-sock in it is not virt-rapl's"):
        registry.write(record())
    assert registry.run_directory.stat().st_mode & 0o7777 == 0o755


def test_what_is_shared_has_the_names_that_its_owners_use() -> None:
    shared = (paths.DAEMON, paths.CHANNEL, paths.EVENTS, f"{paths.EVENTS}.1", paths.CHOSEN, paths.REMEMBERED)
    assert shared == SHARED


def test_removing_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.write(record())
    for suffix in ("sock", "log", "alive", "live"):
        registry.path(UUID, suffix).touch()
    registry.remove(UUID)
    registry.remove(UUID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory away")
def test_in_a_directory_of_somebody_else_nothing_is_believed_and_nothing_touched(tmp_path: Path) -> None:
    """As one made by a user beforehand, where everybody may make one."""
    registry = Registry(tmp_path / "run")
    registry.write(record())
    for name in ("live", "lock"):
        registry.path(UUID, name).touch()
    event = events.Event(time=0, domain="", uuid="", operation="", milliseconds=0, result="unchanged")
    events.record(registry.run_directory, event)
    os.chown(registry.run_directory, 4321, 4321)
    before = {path.name: path.stat() for path in registry.run_directory.iterdir()}
    assert registry.read(UUID) is None
    assert registry.how_to_restore(UUID) == ""
    for attempt in (
        lambda: registry.write(record()),
        lambda: registry.remove(UUID),
        lambda: registry.switching_on(UUID).__enter__(),
        lambda: list(events.read(registry.run_directory)),
    ):
        with pytest.raises(VirtRaplError, match=f"{registry.run_directory} .*user 4321"):
            attempt()
    with registry.locked(UUID):  # a hook goes on without
        events.record(registry.run_directory, event)
    assert {path.name: path.stat() for path in registry.run_directory.iterdir()} == before
    assert not registry.is_made_by_us()


@pytest.mark.parametrize("uuid", ["", "../../etc/passwd", UUID.upper(), UUID + "\n", UUID[:-1]])
def test_a_path_is_made_of_a_uuid_only(tmp_path: Path, uuid: str) -> None:
    with pytest.raises(ValueError, match="not a UUID"):
        Registry(tmp_path).path(uuid, "sock")


def test_a_link_in_place_of_the_run_directory_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    (tmp_path / "run").symlink_to(target)
    with pytest.raises(OSError, match=r"run"):
        Registry(tmp_path / "run").write(record())
    assert target.stat().st_mode & 0o777 == 0o755
    assert list(target.iterdir()) == []


def test_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "run")
    order = []

    def second() -> None:
        with registry.locked(UUID):
            order.append("second")

    with registry.locked(UUID):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.3)
        registry.remove(UUID)  # its lock as well: a process that waits takes the next one
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    monkeypatch.setattr("libvirt_rapl.helper.run_directory.LOCK_SECONDS", 0.1)
    with registry.locked(UUID):
        second()  # a process that hangs delays no other
    registry.remove(UUID)
    assert list(registry.run_directory.iterdir()) == []


# Locks.


def held(path: Path) -> bool:
    """Return whether some process, or another part of ours, has a file locked."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def locked_by_another(path: Path, text: str = "") -> Iterator[None]:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def taken(registry: Registry, suffix: Suffix) -> contextlib.AbstractContextManager[object]:
    return registry.locked(UUID) if suffix == "lock" else registry.switching_on(UUID)


@pytest.mark.parametrize("suffix", LOCKS)
def test_a_lock_is_held_until_its_end(tmp_path: Path, suffix: Suffix) -> None:
    registry = Registry(tmp_path / "run")
    path = registry.path(UUID, suffix)
    before = descriptors()
    with contextlib.suppress(InterruptedError), taken(registry, suffix):
        assert held(path)
        assert path.stat().st_mode & 0o7777 == 0o600
        raise InterruptedError
    assert descriptors() == before
    assert not path.exists() or not held(path)


@pytest.mark.parametrize("suffix", LOCKS)
def test_a_lock_counts_only_if_its_file_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: Suffix
) -> None:
    """Another process had it, removed it with the domain, and ended, after we had opened it."""
    registry = Registry(tmp_path / "run")
    path, real = registry.path(UUID, suffix), fcntl.flock

    def too_late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        path.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with taken(registry, suffix):
        assert held(path)


def test_who_waits_in_vain_goes_on_with_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(run_directory, "LIVE_SECONDS", 0.1)
    registry = Registry(tmp_path)
    with contextlib.ExitStack() as others:
        for suffix in LOCKS:
            others.enter_context(locked_by_another(registry.path(UUID, suffix), "with"))
        before = descriptors()
        with registry.locked(UUID):
            assert descriptors() == before
        with pytest.raises(VirtRaplError, match="another"), registry.switching_on(UUID):
            pass
        assert registry.how_to_restore(UUID) == "with", "the other one still instructs the hook"
        assert descriptors() == before


@pytest.mark.parametrize("suffix", LOCKS)
def test_a_lock_is_not_made_through_a_link(tmp_path: Path, suffix: Suffix) -> None:
    registry, elsewhere = Registry(tmp_path / "run"), tmp_path / "elsewhere"
    registry.create_directory()
    registry.path(UUID, suffix).symlink_to(elsewhere)
    if suffix == "lock":
        with taken(registry, suffix):  # the hook goes on without
            pass
    else:
        with pytest.raises(VirtRaplError, match="cannot write"), taken(registry, suffix):
            pass
    assert not elsewhere.exists()


def test_what_instructs_the_hook_and_what_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "run")
    path, real = registry.path(UUID, "live"), Path.unlink
    assert registry.how_to_restore(UUID) == ""
    with registry.switching_on(UUID) as instruct:
        assert registry.how_to_restore(UUID) == ""
        instruct("without")
        assert registry.how_to_restore(UUID) == "without"
        instruct("with")
        assert registry.how_to_restore(UUID) == "with"
        at_the_end: list[bool] = []

        def unlink(path: Path, *, missing_ok: bool = False) -> None:
            at_the_end.append(held(path))
            real(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)
    assert at_the_end == [True], "once it is unlocked it may be another's"
    assert not path.exists()
    path.write_text("without")  # of one that was killed
    assert registry.how_to_restore(UUID) == ""
    assert not path.exists()
    for text in ("", "sideways", "\N{SNOWMAN}"):
        with locked_by_another(path, text):
            assert registry.how_to_restore(UUID) == ""
    path.unlink()
    other = tmp_path / "other"
    path.symlink_to(other)
    with locked_by_another(other, "without"):
        assert registry.how_to_restore(UUID) == ""


# What is removed, and when.


def test_what_a_record_describes_goes_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed in between leaves the record, and the next one finds the rest by it."""
    registry, order, real = Registry(tmp_path), [], Path.unlink
    registry.write(record())

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        order.append(path.suffix.removeprefix("."))
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    registry.remove(UUID)
    assert order[-2:] == ["json", "lock"]
    assert set(order[:-2]) == {"state", "sock", "alive", "log", "plan"}


def test_clearing_takes_what_is_ours(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "run")
    registry.write(record())
    ours = (*SHARED[2:], temporary(f"{UUID}.json"), f"{UUID}.sock")
    others = (f".{UUID}.json.1.virt-rapl", "other", "other.json")  # the first is being written by a process that runs
    for name in (*ours, *others):
        (registry.run_directory / name).touch()
    for name in SHARED[:2]:
        (registry.run_directory / name).mkdir()
    for name in (paths.CHANNEL_REPORT, paths.CHANNEL_LOCK):
        (registry.run_directory / name).touch()
    registry.clear()
    assert {path.name for path in registry.run_directory.iterdir()} == set(others)
    for name in others:
        (registry.run_directory / name).unlink()
    registry.clear()
    assert not registry.run_directory.exists()


@pytest.mark.parametrize(
    ("mode", "name", "made_by_us", "without_record"),
    [
        (0o711, None, True, True),
        (0o711, f"{UUID}.sock", True, True),
        (0o711, f"{UUID}.json", True, False),
        (0o711, "other", False, True),
        (0o755, None, False, True),
        (0o777, None, False, False),
        (None, None, False, False),
    ],
)
def test_whose_it_is_and_whether_a_domain_is_in_it(
    tmp_path: Path, mode: int | None, name: str | None, *, made_by_us: bool, without_record: bool
) -> None:
    registry = Registry(tmp_path / "run")
    if mode is not None:
        registry.create_directory()
        registry.run_directory.chmod(mode)
    if name:
        (registry.run_directory / name).touch()
    assert registry.is_made_by_us() == made_by_us
    assert registry.holds_no_record() == without_record
