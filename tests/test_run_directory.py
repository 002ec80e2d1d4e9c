"""The run directory: who owns it, what is removed of it, and which process waits for which."""

import os
import threading
import time
from pathlib import Path

import pytest

from libvirt_rapl import paths
from libvirt_rapl.directories import NotOursError
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.run_directory import SHARED
from libvirt_rapl.lifecycle import events

UUID = "12345678-1234-1234-1234-123456789abc"


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
    assert (paths.DAEMON, paths.EVENTS, f"{paths.EVENTS}.1") == SHARED


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
