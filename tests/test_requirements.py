"""What QEMU and a helper require of a host."""

from pathlib import Path

import pytest
from fakes.host import write

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host import requirements
from libvirt_rapl.host.requirements import check_cpus, check_enabled, check_processes_are_seen, qemu_helper


@pytest.mark.parametrize(("enabled", "accepted"), [("1\n", True), ("0\n", False), ("\n", False), (None, False)])
def test_powercap_is_loaded_and_enabled(tmp_path: Path, enabled: str | None, *, accepted: bool) -> None:
    if enabled is not None:
        write(tmp_path / "class/powercap/intel-rapl/enabled", enabled)
    if accepted:
        check_enabled(tmp_path)
    else:
        with pytest.raises(VirtRaplError, match="enabled"):
            check_enabled(tmp_path)


@pytest.mark.parametrize(
    ("packages", "accepted"),
    [
        (["0", "0", "1", "1"], True),
        (["1", "0"], True),
        (["0", None, "0"], False),
        (["0", "0", None], False),
        (["0", "2"], False),
        (["1"], False),
        (["-1"], False),
        (["garbage"], False),
    ],
)
def test_all_cpus_are_online_and_packages_have_no_gap(
    tmp_path: Path, packages: list[str | None], *, accepted: bool
) -> None:
    for cpu, package in enumerate(packages):
        directory = tmp_path / f"devices/system/cpu/cpu{cpu}"
        directory.mkdir(parents=True)
        if package is not None:
            write(directory / "topology/physical_package_id", f"{package}\n")
    if accepted:
        check_cpus(tmp_path)
    else:
        with pytest.raises(VirtRaplError, match="QEMU"):
            check_cpus(tmp_path)


VISIBLE, HIDDEN = "proc /proc rw", "proc /proc rw,hidepid=invisible"


@pytest.mark.parametrize(
    ("mounts", "hidden"),
    [
        ([VISIBLE], False),
        ([HIDDEN], True),
        (["proc /proc rw,hidepid=0"], False),
        (["proc /proc rw,hidepid=off"], False),
        (["proc /proc rw,gid=5,hidepid=2"], True),
        ([VISIBLE, HIDDEN], True),
        ([HIDDEN, VISIBLE], False),  # the last is the one that is seen
        ([VISIBLE, "proc /srv/proc rw,hidepid=2", "proc /proc/sys rw,hidepid=2"], False),
        ([], False),
    ],
)
def test_whether_proc_hides_processes(tmp_path: Path, mounts: list[str], *, hidden: bool) -> None:
    lines = []
    for number, mount in enumerate(mounts):
        kind, place, options = mount.split()
        lines.append(f"{number} 1 0:19 / {place} rw,nosuid shared:5 - {kind} {kind} {options}\n")
    write(tmp_path / "mountinfo", "".join(lines))
    if hidden:
        with pytest.raises(VirtRaplError, match="hidepid"):
            check_processes_are_seen(tmp_path / "mountinfo")
    else:
        check_processes_are_seen(tmp_path / "mountinfo")


def test_where_qemus_helper_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(requirements, "QEMU_HELPER_PATH", f"{first}:{second}")
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    write(tmp_path / "elsewhere/qemu-vmsr-helper", "not there where an administrator puts it")
    (tmp_path / "elsewhere/qemu-vmsr-helper").chmod(0o755)
    write(first / "qemu-vmsr-helper", "not executable")
    with pytest.raises(VirtRaplError, match="not installed"):
        qemu_helper()
    write(second / "qemu-vmsr-helper", "")
    (second / "qemu-vmsr-helper").chmod(0o755)
    assert qemu_helper() == str(second / "qemu-vmsr-helper")
