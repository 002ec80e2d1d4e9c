"""What confines us and QEMU is as tight as it should be, and is understood by the programs that read it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import guest

ETC = Path(__file__).parent.parent / "etc"
APPARMOR = Path("/etc/apparmor.d")
"""Where Debian's packages apparmor and libvirt-daemon-system have put their profiles."""
UUID = "11111111-2222-4333-8444-555555555555"


def run(*command: str | Path, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize(
    ("unit", "most"),
    [
        ("virt-rapld.service", 1.1),
        ("virt-rapl-helper@.service", 2.8),
        ("virt-rapl-exporter.service", 1.4),
        ("virt-rapl-channel.service", 0.5),
    ],
)
def test_the_exposure_of_the_units(tmp_path: Path, unit: str, most: float) -> None:
    """0.9, 2.6, 1.2 and 0.3 by systemd 254; another version may count a setting more."""
    path = tmp_path / unit
    text = (ETC / "systemd" / unit).read_text()
    path.write_text(text.replace("@PYTHON@", "/usr/bin/python3").replace("@QEMU_GROUP@", "libvirt-qemu"))
    printed = run("systemd-analyze", "security", "--offline=true", "--no-pager", path)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+) ", printed)
    assert found, printed
    assert float(found[1]) <= most, printed


@pytest.mark.parametrize("unit", sorted(path.name for path in (ETC / "systemd").glob("*.service")))
def test_every_unit_is_bounded(unit: str) -> None:
    text = (ETC / "systemd" / unit).read_text()
    assert re.search(r"^CPUQuota=\d+%$", text, re.MULTILINE)
    assert re.search(r"^MemoryMax=\d+[MG]$", text, re.MULTILINE)


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """The profiles of this Debian, and what we add to them."""
    shutil.copytree(APPARMOR, tmp_path / "apparmor.d")
    shutil.copytree(ETC / "apparmor.d", tmp_path / "apparmor.d", dirs_exist_ok=True)
    return tmp_path / "apparmor.d"


def parsed(profiles: Path, profile: Path, *options: str) -> str:
    return run("apparmor_parser", *options, "--skip-kernel-load", "--skip-cache", "--base", profiles, profile)


@pytest.mark.needs("apparmor_parser", "/usr/lib/libvirt/virt-aa-helper")
def test_apparmor_understands_the_profile_that_libvirt_makes_for_a_domain(profiles: Path) -> None:
    xml = guest.domain_xml("web", "/var/lib/libvirt/images/web.rom", "/var/log/libvirt/qemu/web.out", uuid=UUID)
    xml = Definition.parse(xml).with_registers(socket=f"/run/virt-rapl/{UUID}.sock").xml
    # libvirt's own program must take the domain as it is: it writes this profile when the domain is started.
    run("/usr/lib/libvirt/virt-aa-helper", "--create", "--dryrun", "--uuid", f"libvirt-{UUID}", stdin=xml)
    profile = profiles / f"libvirt/libvirt-{UUID}"
    profile.write_text((profiles / "libvirt/TEMPLATE.qemu").read_text().replace("LIBVIRT_TEMPLATE", profile.name))
    text = parsed(profiles, profile, "--preprocess")
    ours = (ETC / "apparmor.d/abstractions/libvirt-qemu.d/virt-rapl").read_text()
    assert [line for line in ours.splitlines() if line not in text.splitlines()] == []
    parsed(profiles, profile)
    with_us = parsed_size(profiles, profile)
    (profiles / "abstractions/libvirt-qemu.d/virt-rapl").unlink()
    assert parsed_size(profiles, profile) != with_us


def parsed_size(profiles: Path, profile: Path) -> int:
    command = ["apparmor_parser", "--stdout", "--skip-cache", "--base", str(profiles), str(profile)]
    return len(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.needs("apparmor_parser", "/usr/lib/libvirt/virt-aa-helper")
@pytest.mark.parametrize("name", ["usr.sbin.libvirtd", "usr.lib.libvirt.virt-aa-helper"])
def test_apparmor_understands_libvirts_own_profiles_beside_ours(profiles: Path, name: str) -> None:
    parsed(profiles, profiles / name)


@pytest.mark.needs("checkmodule", "semodule_package")
def test_selinux_understands_the_module(tmp_path: Path) -> None:
    module, package = tmp_path / "virt_rapl.mod", tmp_path / "virt_rapl.pp"
    run("checkmodule", "-M", "-m", "-o", module, ETC / "selinux/virt_rapl.te")
    run("semodule_package", "-o", package, "-m", module, "-f", ETC / "selinux/virt_rapl.fc")
    content = package.read_bytes()
    assert b"virt_rapl_var_run_t" in content
    assert b"/run/virt-rapl(/.*)?" in content


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_who_is_not_root_runs_no_emulator_that_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """virt-rapld may manage libvirt: what it executes on behalf of a domain's XML could, too."""
    program, trace = tmp_path / "bin/qemu", tmp_path / "trace"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    os.chown(program, 0, 1234)
    program.chmod(0o757)
    with pytest.raises(VirtRaplError, match=f"{program} is not run to be asked"):
        emulator.check(str(program))
    program.chmod(0o755)
    program.parent.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(program)
    with pytest.raises(VirtRaplError, match=f"{link} is not run to be asked: {program.parent}: everybody may write it"):
        emulator.check(str(link))
    assert not trace.exists()
    program.parent.chmod(0o755)
    with pytest.raises(VirtRaplError, match="does not answer as QEMU does"):
        emulator.check(str(program))
    assert trace.exists()
