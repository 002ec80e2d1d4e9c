"""libvirt's default emulator: the links under a root of the test's, and whether libvirt's daemon finds them first."""

from pathlib import Path

import pytest
from fakes.libvirt import FakeLibvirt, failure

from libvirt_rapl import paths
from libvirt_rapl.domains import emulator
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import default_emulator, installer, places, wrappers

QEMU = "/usr/bin/qemu-system-x86_64"
LINK = f"/{paths.DEFAULT_EMULATOR}"
USUAL = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with QEMU and a libvirtd that has the usual PATH."""
    program = tmp_path / QEMU[1:]
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    daemon(tmp_path, "libvirtd", 7, USUAL)
    return tmp_path


def daemon(root: Path, name: str, pid: int, path: str) -> None:
    process = root / f"proc/{pid}"
    process.mkdir(parents=True, exist_ok=True)
    (process / "comm").write_text(f"{name}\n")
    (process / "environ").write_text(f"XPATH=/nowhere\0PATH={path}\0HOME=/\0")
    (root / "run").mkdir(exist_ok=True)
    (root / f"run/{name}.pid").write_text(f"{pid}\n")


def install(root: Path, default: str | None = None) -> list[str]:
    return list(installer.install(root, wrappers.emulators(root), default_emulator=default))


def links(root: Path) -> set[str]:
    directory = (root / paths.DEFAULT_EMULATOR).parent
    return {path.name for path in directory.glob("qemu*")} if directory.exists() else set()


def test_it_is_put_in_place_and_taken_out_again(root: Path) -> None:
    install(root)
    assert (links(root), default_emulator.is_installed(root)) == (set(), False)
    install(root, QEMU)
    assert links(root) == {"qemu-system-x86_64", "qemu-system-x86_64-rapl"}
    for target in places.DEFAULT_EMULATOR_LINKS:
        assert (root / target).readlink() == Path(f"{QEMU}-rapl")
    assert default_emulator.is_installed(root)
    assert {line.split()[0] for line in install(root, QEMU)} == {"unchanged"}
    assert list(wrappers.refresh(root)) == []
    install(root)
    assert (links(root), default_emulator.is_installed(root)) == (set(), False)
    assert (root / f"{QEMU[1:]}-rapl").exists()
    install(root, QEMU)
    list(installer.uninstall(root))
    installer.forget(root)
    assert (links(root), (root / "usr/local").exists()) == (set(), False)


@pytest.mark.parametrize("target", places.DEFAULT_EMULATOR_LINKS)
def test_a_qemu_of_somebody_elses_is_not_replaced(root: Path, target: str) -> None:
    theirs = root / target
    theirs.parent.mkdir(parents=True)
    theirs.write_text("QEMU")
    with pytest.raises(VirtRaplError, match="is there already and not virt-rapl's"):
        install(root, QEMU)
    theirs.unlink()
    theirs.symlink_to("/opt/qemu")
    with pytest.raises(VirtRaplError, match="is there already and not virt-rapl's"):
        install(root, QEMU)
    assert theirs.readlink() == Path("/opt/qemu")


@pytest.mark.parametrize("target", places.DEFAULT_EMULATOR_LINKS)
def test_a_qemu_that_has_taken_its_place_is_not_replaced(root: Path, target: str) -> None:
    """As by `make install` of QEMU itself."""
    install(root, QEMU)
    theirs = root / target
    theirs.unlink()
    theirs.write_text("QEMU")
    with pytest.raises(VirtRaplError, match="is there already and not virt-rapl's") as caught:
        install(root, QEMU)
    assert "--no-default-emulator" in caught.value.hint
    install(root)
    assert (theirs.read_text(), default_emulator.is_installed(root)) == ("QEMU", False)


@pytest.mark.parametrize("again", [None, QEMU])
def test_it_is_known_although_the_manifest_was_lost(root: Path, again: str | None) -> None:
    install(root, QEMU)
    (root / paths.MANIFEST).unlink()
    assert default_emulator.is_installed(root)
    install(root, again)
    assert (default_emulator.is_installed(root), bool(links(root))) == (bool(again), bool(again))
    list(installer.uninstall(root))
    assert links(root) == set()


@pytest.mark.parametrize("before", [False, True])
def test_a_link_to_the_qemu_that_it_wraps_becomes_ours(root: Path, *, before: bool) -> None:
    """It was made for domains that come from other hosts, or when the wrapper was gone."""
    if before:
        install(root, QEMU)
    link = root / paths.DEFAULT_EMULATOR
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(QEMU)
    install(root, QEMU)
    assert link.readlink() == Path(f"{QEMU}-rapl")
    install(root)
    assert links(root) == set()


def test_it_does_not_go_where_others_can_write(root: Path) -> None:
    directory = root / "usr/local/bin"
    directory.mkdir(parents=True)
    directory.chmod(0o775)
    with pytest.raises(VirtRaplError, match=r"others than root can change .*/usr/local/bin"):
        install(root, QEMU)
    assert links(root) == set()
    assert {line.split()[0] for line in install(root)} == {"installed"}


@pytest.mark.parametrize("path", [USUAL, "/usr/local/bin", "/opt/venv/bin:/usr/local/bin:/usr/bin"])
def test_a_daemon_that_finds_it_first(root: Path, path: str) -> None:
    daemon(root, "libvirtd", 7, path)
    default_emulator.check_path(root)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/usr/bin:/usr/local/bin", "libvirtd finds .*/usr/bin/qemu-system-x86_64 before /usr/local/bin/"),
        ("/usr/sbin:/usr/bin", "libvirtd looks for emulators in /usr/sbin:/usr/bin, where /usr/local/bin is not"),
        ("", "where /usr/local/bin is not"),
    ],
)
def test_a_daemon_that_does_not(root: Path, path: str, problem: str) -> None:
    daemon(root, "libvirtd", 7, path)
    with pytest.raises(VirtRaplError, match=problem) as caught:
        default_emulator.check_path(root)
    assert "systemctl edit libvirtd" in caught.value.hint
    daemon(root, "libvirtd", 7, USUAL)
    daemon(root, "virtqemud", 8, path)
    with pytest.raises(VirtRaplError) as caught:
        default_emulator.check_path(root)
    assert "systemctl edit virtqemud" in caught.value.hint


def test_a_daemon_that_does_not_run(root: Path) -> None:
    (root / "run/libvirtd.pid").unlink()
    with pytest.raises(VirtRaplError, match="libvirt does not run"):
        default_emulator.check_path(root)


class Libvirt(FakeLibvirt):
    """One that takes this emulator."""

    def __init__(self, path: str | None) -> None:
        super().__init__()
        self.path = path

    def getCapabilities(self) -> str:  # noqa: N802
        if self.path is None:
            raise failure("gone")
        other = "<guest><arch name='i686'><emulator>/usr/bin/qemu-system-i386</emulator></arch></guest>"
        ours = f"<guest><arch name='x86_64'><emulator>{self.path}</emulator></arch></guest>"
        return f"<capabilities>{other}{ours}</capabilities>"


def test_what_libvirt_takes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "wrapped_by_default", lambda: QEMU)
    assert default_emulator.check(Libvirt(LINK), root) == (
        f"libvirt takes {LINK}, the wrapper of {QEMU}, for domains that name no emulator"
    )
    with pytest.raises(VirtRaplError, match=f"libvirt takes {QEMU} .* and not {LINK}"):
        default_emulator.check(Libvirt(QEMU), root)
    with pytest.raises(VirtRaplError, match="cannot ask libvirt for its default emulator: gone"):
        default_emulator.check(Libvirt(None), root)


def test_which_links_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "qemu-system-x86_64"
    monkeypatch.setattr(emulator, "DEFAULT_WRAPPER", link)
    assert (emulator.wrapped_by_default(), emulator.is_default_wrapper(str(link))) == (None, False)
    link.symlink_to("/usr/libexec/qemu-kvm-rapl")
    assert (emulator.wrapped_by_default(), emulator.is_default_wrapper(str(link))) == ("/usr/libexec/qemu-kvm", True)
    assert not emulator.is_default_wrapper("/usr/libexec/qemu-kvm-rapl")
    link.unlink()
    link.symlink_to("/opt/qemu")
    assert (emulator.wrapped_by_default(), emulator.is_default_wrapper(str(link))) == (None, False)
