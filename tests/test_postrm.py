"""The Debian package's postrm, where dpkg did not run prerm: what it does with the links of the default emulator."""

import subprocess
from pathlib import Path

import pytest

POSTRM = Path(__file__).parent.parent / "debian" / "postrm"
NAME = "qemu-system-x86_64"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine whose default emulator was the wrapper, which dpkg has removed."""
    for directory in ("usr/bin", "usr/local/bin", "etc/libvirt/qemu", "etc/virt-rapl"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "usr/bin" / NAME).touch(0o755)
    for link in (NAME, f"{NAME}-rapl"):
        (tmp_path / "usr/local/bin" / link).symlink_to(tmp_path / "usr/bin" / f"{NAME}-rapl")
    return tmp_path


def postrm(root: Path, what: str) -> str:
    script = POSTRM.read_text()
    for place in ("/usr/local/", "/etc/", "/run/", "/var/"):
        assert place in script
        script = script.replace(place, f"{root}{place}")
    done = subprocess.run(["sh", "-c", script, "postrm", what], capture_output=True, text=True, check=True)
    return done.stderr


def names(root: Path) -> set[str]:
    return {path.name for path in (root / "usr/local/bin").iterdir()}


def test_domains_with_the_default_emulator_go_on_with_qemu_itself(root: Path) -> None:
    link = root / "usr/local/bin" / NAME
    assert f"warning: {link} is now a link to {root}/usr/bin/{NAME}" in postrm(root, "remove")
    assert link.readlink() == root / "usr/bin" / NAME
    assert postrm(root, "remove") == ""
    assert names(root) == {NAME, f"{NAME}-rapl"}
    postrm(root, "purge")
    assert (names(root), (root / "etc/virt-rapl").exists()) == ({NAME}, False)
    postrm(root, "purge")


@pytest.mark.parametrize("path", [f"usr/bin/{NAME}-rapl", f"usr/bin/{NAME}"], ids=["wrapper", "QEMU"])
@pytest.mark.parametrize("what", ["remove", "purge", "upgrade"])
def test_links_that_lead_to_something_stay_as_they_are(root: Path, path: str, what: str) -> None:
    """The wrapper of another installation; or a link that somebody has put there."""
    target = root / path
    target.touch(0o755)
    for link in (NAME, f"{NAME}-rapl"):
        (root / "usr/local/bin" / link).unlink()
        (root / "usr/local/bin" / link).symlink_to(target)
    assert postrm(root, what) == ""
    assert [(root / "usr/local/bin" / name).readlink() for name in (NAME, f"{NAME}-rapl")] == [target, target]


def test_where_there_is_no_link_nothing_is_made(root: Path) -> None:
    for name in names(root):
        (root / "usr/local/bin" / name).unlink()
    for what in ("remove", "purge"):
        assert postrm(root, what) == ""
    assert names(root) == set()


def test_without_qemu_the_link_stays_for_the_next_one(root: Path) -> None:
    (root / "usr/bin" / NAME).unlink()
    assert postrm(root, "remove") == ""
    assert names(root) == {NAME, f"{NAME}-rapl"}
