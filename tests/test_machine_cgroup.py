"""Which domain a process belongs to, by the name of its cgroup."""

from pathlib import Path

import pytest

from libvirt_rapl.host.machine_cgroup import machine_number


@pytest.mark.parametrize(
    ("cgroup", "number"),
    [
        ("/machine.slice/machine-qemu\\x2d12\\x2dweb\\x2d1.scope/libvirt/emulator", 12),
        ("/machine/qemu-3-web.libvirt-qemu/emulator", 3),
        ("/custom/machine-qemu\\x2d7\\x2dqemu\\x2d3\\x2da.scope/libvirt/vcpu0", 7),
        ("/machine.slice/machine-qemu\\x2dembed\\x2d3\\x2da.scope", None),
        ("/libvirt/qemu/qemu/emulator", None),
        ("/system.slice/libvirtd.service", None),
    ],
)
def test_the_cgroup_names_the_domain(tmp_path: Path, cgroup: str, number: int | None) -> None:
    (tmp_path / "proc/9").mkdir(parents=True)
    (tmp_path / "proc/9/cgroup").write_text(f"0::{cgroup}\n")
    (tmp_path / f"sys/fs/cgroup{cgroup}").mkdir(parents=True)
    assert machine_number(9, sys=tmp_path / "sys", proc=tmp_path / "proc") == number
