"""Records: what is written is read back, for which users, and what a damaged one does."""

import json
from pathlib import Path

import pytest

from libvirt_rapl.helper.records import Record, Registry, State
from libvirt_rapl.helper.vmsr.serving import qemu_pid

UUID = "12345678-1234-1234-1234-123456789abc"


def record() -> Record:
    return Record(
        uuid=UUID,
        name="ünïcode vm",
        backend="native",
        owner_uid=64055,
        owner_gid=64055,
        state="ready",
        pid=42,
        vcpu_tids={0: 43, 1: 44},
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "run")
    written = record()
    registry.write(written)
    assert registry.read(UUID) == written


def test_of_many_the_directory_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "run")
    first = record()
    second, nobody = (Record(**{**vars(first), "uuid": UUID.replace("1", digit)}) for digit in "23")
    for each in (first, second):
        registry.write(each)
    looked: list[Registry] = []
    check = Registry.check_directory

    def looked_at(self: Registry) -> None:
        looked.append(self)
        check(self)

    monkeypatch.setattr(Registry, "check_directory", looked_at)
    assert registry.read_all([UUID, second.uuid, nobody.uuid]) == {UUID: first, second.uuid: second}
    assert len(looked) == 1
    registry.run_directory.chmod(0o777)
    assert registry.read_all([UUID, second.uuid]) == {}


def test_permissions_are_explicit_whatever_the_umask(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "run")
    registry.write(record())
    modes = {path.suffix: path.stat().st_mode & 0o7777 for path in registry.run_directory.iterdir()}
    assert modes == {".json": 0o600, ".state": 0o644}
    assert registry.run_directory.stat().st_mode & 0o7777 == 0o711


@pytest.mark.parametrize(
    ("state", "line"), [("ready", "ready"), ("refuse", "refuse"), ("degraded", "degraded: no helper")]
)
@pytest.mark.parametrize("pid", [None, 42])
def test_the_wrapper_finds_state_and_socket_and_the_helper_qemus_pid_in_lines_of_their_own(
    tmp_path: Path, state: State, line: str, pid: int | None
) -> None:
    registry = Registry(tmp_path)
    registry.write(Record(**{**vars(record()), "state": state, "reason": "no helper", "pid": pid}))
    path = registry.path(UUID, "state")
    assert path.read_text() == f"{line}\n{pid or ''}\n{registry.socket(UUID)}\n"
    assert qemu_pid(str(path)) == pid


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"uuid": 1}', "null", "\x00"])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    registry = Registry(tmp_path)
    registry.path(UUID, "json").write_text(text)
    assert registry.read(UUID) is None


@pytest.mark.parametrize("change", [{"state": "paused"}, {"backend": "other"}])
def test_a_record_that_says_what_nobody_knows_is_none(tmp_path: Path, change: dict[str, str]) -> None:
    registry = Registry(tmp_path)
    registry.path(UUID, "json").write_text(json.dumps(vars(record()) | change))
    assert registry.read(UUID) is None


def test_a_record_is_of_the_domain_whose_name_it_has(tmp_path: Path) -> None:
    registry, other = Registry(tmp_path), UUID.replace("1", "2")
    registry.path(other, "json").write_text(json.dumps(vars(record())))
    assert registry.read(other) is None


def test_a_full_disk_is_reported_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/{UUID}"):
        Registry(tmp_path).write(record())
    assert list(tmp_path.iterdir()) == []
