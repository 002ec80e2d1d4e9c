"""Which domain a process belongs to, by the name of its cgroup."""

from pathlib import Path

import pytest

from libvirt_rapl.host import machine_cgroup
from libvirt_rapl.host.machine_cgroup import machine_number


@pytest.mark.parametrize(
    ("cgroup", "number"),
    [
        ("/machine.slice/machine-qemu\\x2d12\\x2dweb\\x2d1.scope/libvirt/emulator", 12),
        ("/machine/qemu-3-web.libvirt-qemu/emulator", 3),
        ("/custom/machine-qemu\\x2d7\\x2dqemu\\x2d3\\x2da.scope/libvirt/vcpu0", 7),
        ("/machine.slice/machine-qemu\\x2dembed\\x2d3\\x2da.scope", None),
        ("/libvirt/qemu/qemu/emulator", None),
        ("/libvirt/qemu/web-3-a/emulator", None),
        ("/machine/web-3-a.libvirt-qemu", None),
        ("/system.slice/libvirtd.service", None),
    ],
)
def test_the_cgroup_names_the_domain(tmp_path: Path, cgroup: str, number: int | None) -> None:
    (tmp_path / "proc/9").mkdir(parents=True)
    (tmp_path / "proc/9/cgroup").write_text(f"0::{cgroup}\n")
    (tmp_path / f"sys/fs/cgroup{cgroup}").mkdir(parents=True)
    assert machine_number(9, sys=tmp_path / "sys", proc=tmp_path / "proc") == number


def test_a_line_that_cannot_be_decoded_hides_no_other(tmp_path: Path) -> None:
    scope = "machine/qemu-3-web.libvirt-qemu"
    (tmp_path / "9").mkdir()
    (tmp_path / "9/cgroup").write_bytes(f"4:pids:/\xff\n0::/{scope}\n".encode("latin-1"))
    (tmp_path / "fs/cgroup" / scope).mkdir(parents=True)
    assert machine_number(9, sys=tmp_path, proc=tmp_path) == 3


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError])
def test_a_process_that_ends_meanwhile_is_no_domains(monkeypatch: pytest.MonkeyPatch, error: type[OSError]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(machine_cgroup, "open", fail, raising=False)
    assert machine_number(9) is None
