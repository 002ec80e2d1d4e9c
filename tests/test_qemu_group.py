"""The group of QEMU's user, by qemu.conf and /etc/group of several distributions."""

from pathlib import Path

import pytest

from libvirt_rapl.install.qemu_group import qemu_group

DEBIAN = "root:x:0:\nkvm:x:993:\nlibvirt:x:106:\nlibvirt-qemu:x:64055:libvirt-qemu\n"
RED_HAT = "root:x:0:\nkvm:x:36:qemu\nqemu:x:107:\n"
COMMENT = '# Some examples of valid values are:\n#       group = "+0"     # none\n'


def host(root: Path, groups: str, configuration: str | None) -> Path:
    (root / "etc/libvirt").mkdir(parents=True)
    (root / "etc/group").write_text(groups)
    if configuration is not None:
        (root / "etc/libvirt/qemu.conf").write_text(configuration)
    return root


@pytest.mark.parametrize(
    ("groups", "configuration", "expected"),
    [
        pytest.param(DEBIAN, '#group = "libvirt-qemu"\n', "libvirt-qemu", id="Debian"),
        pytest.param(DEBIAN, '#group = "kvm"\n', "kvm", id="Ubuntu"),
        pytest.param(RED_HAT, '#group = "qemu"\n', "qemu", id="Fedora"),
        pytest.param(DEBIAN, '#group = "root"\n', "libvirt-qemu", id="an older libvirt, whose comment is wrong"),
        pytest.param(RED_HAT, '#group = "root"\n', "qemu", id="an older libvirt on Red Hat"),
        pytest.param(DEBIAN, '#group = "libvirt-qemu"\ngroup = "kvm"\n', "kvm", id="set"),
        pytest.param(DEBIAN, '  group="kvm" # why\n', "kvm", id="written otherwise"),
        pytest.param(DEBIAN, 'group = "libvirt"\ngroup = "kvm"\n', "kvm", id="set twice"),
        pytest.param(DEBIAN, 'group = "root"\n', "root", id="set to root"),
        pytest.param(DEBIAN, 'group = "+64055"\n', "libvirt-qemu", id="by its number"),
        pytest.param(DEBIAN, 'group = "993"\n', "kvm", id="by its number without a sign"),
        pytest.param(DEBIAN, 'group = "+4711"\n', "libvirt-qemu", id="a number of no group"),
        pytest.param(DEBIAN, 'group = "gone"\n', "libvirt-qemu", id="a name of no group"),
        pytest.param(DEBIAN, 'swtpm_group = "kvm"\n#swtpm_group = "kvm"\n', "libvirt-qemu", id="another key"),
        pytest.param(DEBIAN, None, "libvirt-qemu", id="without libvirt"),
        pytest.param("kvm:x:36:\n", COMMENT, "kvm", id="the last resort"),
        pytest.param("root:x:0:\nusers:x:100:\n", '#group = "libvirt-qemu"\n', "", id="none"),
        pytest.param("", 'group = "qemu"\n', "", id="an empty file"),
        pytest.param("qemu\nqemu:x\n:x:1:\na b:x:2:\n", 'group = "a b"\n', "", id="lines that are none"),
    ],
)
def test_the_group(tmp_path: Path, groups: str, configuration: str | None, expected: str) -> None:
    assert qemu_group(host(tmp_path, groups, configuration)) == expected


def test_groups_of_a_distribution_whose_usr_is_an_image(tmp_path: Path) -> None:
    root = host(tmp_path, "root:x:0:\n", 'group = "107"\n')
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/group").write_text("qemu:x:107:\n")
    assert qemu_group(root) == "qemu"
    (root / "etc/group").write_text("other:x:107:\n")
    assert qemu_group(root) == "other"


def test_a_host_that_has_neither_file(tmp_path: Path) -> None:
    assert qemu_group(tmp_path) == ""
