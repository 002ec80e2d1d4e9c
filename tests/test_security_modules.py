"""Which rules AppArmor and SELinux need for a wrapper in a place of its own, and when they have them."""

import os
from pathlib import Path

import pytest

from libvirt_rapl.domains.security_modules import missing_rules

EMULATOR = "/opt/q 1.0/bin/qemu".replace(" ", "-")
WRAPPER = f"{EMULATOR}-rapl"
DOMAINS, DAEMON = "abstractions/libvirt-qemu", "usr.sbin.libvirtd"
PLAIN = "  # /opt/** rix,\n  deny /opt/** x,\n  /usr/bin/* PUx,\n  /opt/** r,\n  @{HOME}/** rix,\n  /opt/{ rix,\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "../../sys/module/apparmor/parameters/enabled", "Y\n")
    write(tmp_path, "../../sys/kernel/security/apparmor/profiles", "libvirtd (enforce)\n")
    for name in (DOMAINS, DAEMON):
        write(tmp_path, name, PLAIN)
    (tmp_path / "opt/q-1.0/bin").mkdir(parents=True)
    (tmp_path / WRAPPER[1:]).touch()
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = Path(os.path.normpath(root / "etc/apparmor.d" / name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def hints(root: Path, emulator: str = EMULATOR) -> list[str]:
    assert all(emulator in missing.message for missing in missing_rules(emulator, root))
    return [missing.hint for missing in missing_rules(emulator, root)]


def test_apparmors_rules_are_named_until_they_are_there(root: Path) -> None:
    domains, daemon = hints(root)
    assert f"`{WRAPPER} rix,` to /etc/apparmor.d/{DOMAINS}.d/local" in domains
    assert f"`{WRAPPER} PUx,` to /etc/apparmor.d/local/{DAEMON}" in daemon
    write(root, f"{DOMAINS}.d/local", f"{WRAPPER} rix,\n")  # as the hint says
    assert hints(root) == [daemon]
    write(root, f"local/{DAEMON}", f"{WRAPPER} PUx,\n")
    assert hints(root) == []


@pytest.mark.parametrize(
    "rule",
    [
        "/opt/q-1.0/bin/* rmix,",
        "  allow /opt/** mrix,",
        '"/opt/q-1.0/bin/qemu{,-rapl}" ix,',
        "/opt/q-?.0/bin/qemu-rapl Pix -> other,",
    ],
)
def test_a_pattern_that_fits_is_a_rule(root: Path, rule: str) -> None:
    write(root, f"local/{DOMAINS}", rule)
    write(root, f"local/{DAEMON}", rule)
    assert hints(root) == []


@pytest.mark.parametrize("rule", ["/opt/* rmix,", "/opt/q-1.0/bin/qemu rmix,", "/opt/q-1.0/bin/* rm,", "/opt/[ rix,"])
def test_one_that_does_not_is_none(root: Path, rule: str) -> None:
    write(root, f"local/{DOMAINS}", rule)
    assert len(hints(root)) == 2


def test_where_apparmor_has_no_say_nothing_is_missing(root: Path) -> None:
    for known in ("/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm"):
        assert hints(root, known) == [], "virt-rapl's own rules name it"
    write(root, "../../sys/kernel/security/apparmor/profiles", "man (enforce)\nlibvirtd (complain)\n")
    assert hints(root) == []
    write(root, "../../sys/module/apparmor/parameters/enabled", "N\n")
    assert hints(root) == []


def test_who_may_not_read_whether_apparmor_is_on_gets_no_error(root: Path) -> None:
    (root / "sys/kernel/security/apparmor/profiles").unlink()
    assert hints(root) == []


@pytest.mark.parametrize("enforce", ["0", "1"])
def test_selinuxs_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enforce: str) -> None:
    (tmp_path / "sys/fs/selinux").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux/enforce").write_text(enforce)
    for label in (b"", b"system_u:object_r:usr_t:s0\0", b"odd"):
        monkeypatch.setattr(os, "getxattr", lambda *_, label=label: label)
        (hint,) = hints(tmp_path)
        assert hint.startswith("semanage fcontext -a -t qemu_exec_t '/opt/q-1\\.0/bin/qemu-rapl' && restorecon ")
    monkeypatch.setattr(os, "getxattr", lambda *_: b"system_u:object_r:qemu_exec_t:s0\0")
    assert hints(tmp_path) == []
