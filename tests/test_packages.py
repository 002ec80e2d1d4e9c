"""What is handed out: source distribution, wheel and Debian package; and what the last one does on a machine."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fetch import FETCH
from machine import Machine
from walking import wait_until

from libvirt_rapl import __version__
from libvirt_rapl.cli import main
from libvirt_rapl.install import packaged, places
from libvirt_rapl.simulator import guest

ROOT = Path(__file__).parent.parent
NOT_OF_THE_TREE = (".git", ".venv", ".*_cache", ".hypothesis", "*.egg-info", "__pycache__", "build", "dist")
SYSTEM = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LC_ALL": "C.UTF-8"}
WRAPPER = "/usr/bin/qemu-system-x86_64-rapl"
HOOK = "/etc/libvirt/hooks/qemu.d/virt-rapl"
CONFIGURATION = "/etc/virt-rapl/virt-rapl.yaml"
EXPORTER_OPTIONS = "/etc/default/virt-rapl-exporter"
NAME = "packaged-guest"
LIBVIRT = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service")
UUID = "11111111-2222-4333-8444-777777777777"


def copy_tree(into: Path) -> Path:
    return Path(shutil.copytree(ROOT, into / "tree", symlinks=True, ignore=shutil.ignore_patterns(*NOT_OF_THE_TREE)))


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_version_everywhere() -> None:
    release = re.compile(r"^## (\S+)", re.MULTILINE).search((ROOT / "CHANGELOG.md").read_text())
    assert release
    assert release[1] == __version__
    assert (ROOT / "debian/changelog").read_text().startswith(f"virt-rapl ({__version__}) ")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source distribution, and the wheel that was made of it."""
    directory = tmp_path_factory.mktemp("distributions")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, copy_tree(directory), cwd=directory)
    return directory


@pytest.mark.slow
def test_the_index_would_take_both(distributions: Path) -> None:
    files = sorted(map(str, distributions.glob("virt_rapl-*")))
    assert [Path(file).name for file in files] == [
        f"virt_rapl-{__version__}-py3-none-any.whl",
        f"virt_rapl-{__version__}.tar.gz",
    ]
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=distributions)


@pytest.mark.slow
def test_the_wheel_has_what_is_installed_and_nothing_else(distributions: Path) -> None:
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    (license_file,) = [name for name in names if name.endswith("/LICENSE")]
    assert license_file.startswith(f"virt_rapl-{__version__}.dist-info/")
    files = {name for name in names if not name.startswith(f"virt_rapl-{__version__}.dist-info/")}
    package = ROOT / "libvirt_rapl"
    ours = {path for pattern in ("*.py", "*.S", "*.rom", "py.typed") for path in package.rglob(pattern)}
    shipped = {path for path in (ROOT / "hooks").iterdir() if path.is_file()}
    for source in places.PLACES:
        shipped |= {path for path in [ROOT / source, *(ROOT / source).rglob("*")] if path.is_file()}
    assert files == {str(path.relative_to(ROOT)) for path in ours} | {
        f"libvirt_rapl/shipped/{path.relative_to(ROOT)}" for path in shipped
    }


@pytest.mark.slow
def test_the_wheel_is_the_trees_own_and_installs_what_the_tree_does(distributions: Path, tmp_path: Path) -> None:
    """The wheel here is made of the source distribution: nothing is lost on the way, and nothing of the tests is in."""
    run(
        sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", tmp_path, distributions / "tree", cwd=tmp_path
    )
    contents = []
    for directory in (tmp_path, distributions):
        with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
            contents.append({name: wheel.read(name) for name in wheel.namelist()})
    assert contents[0] == contents[1]
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as source:
        tops = {name.split("/")[1] for name in source.getnames() if "/" in name}
    assert tops & {"tests", "debian", ".ci", ".venv"} == set()
    assert {"LICENSE", "CHANGELOG.md", "README.md", "setup.cfg", "pyproject.toml", "libvirt_rapl"} <= tops

    site, by_wheel, by_tree = tmp_path / "site", tmp_path / "by-wheel", tmp_path / "by-tree"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "-t",
        site,
        *distributions.glob("*.whl"),
        cwd=tmp_path,
    )
    for place, environment in ((by_wheel, {"PYTHONPATH": str(site)}), (by_tree, {"PYTHONPATH": str(ROOT)})):
        (place / "usr/bin").mkdir(parents=True)
        (place / "usr/bin/qemu-system-x86_64").touch(0o755)
        command = (sys.executable, "-m", "libvirt_rapl", "install", "--prefix-root", place)
        run(*command, cwd=tmp_path, env=SYSTEM | environment)
    wheels, trees = ({name: text for name, (_, text) in staged(place).items()} for place in (by_wheel, by_tree))
    digests = [json.loads(texts.pop("etc/virt-rapl/installed.json"))["files"].keys() for texts in (wheels, trees)]
    assert digests[0] == digests[1]
    # Hook and unit name the file with which a start begins.
    assert {name: text.replace(bytes(site), bytes(ROOT)) for name, text in wheels.items()} == trees
    modes = [{name: mode for name, (mode, _) in staged(place).items()} for place in (by_wheel, by_tree)]
    assert modes[0] == modes[1]


def staged(root: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "qemu-system-x86_64"]
    return {str(path.relative_to(root)): (path.stat().st_mode & 0o777, path.read_bytes()) for path in files}


@pytest.mark.needs("appstreamcli")
def test_software_centres_take_what_is_said_of_the_page() -> None:
    (page,) = (ROOT / "etc/cockpit").glob("*.xml")
    command = ["appstreamcli", "validate", "--no-net", "--pedantic", str(page)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout, said.stderr
    # virt-rapl has no homepage; Debian 12's does not ask for one.
    found = set(re.findall(r"^[A-Z]: \S+ (\S+)$", said.stdout, re.MULTILINE))
    assert found <= {"url-homepage-missing", "developer-info-missing"}, said.stdout
    assert said.returncode == 0 or found, said.stdout


def test_where_a_package_owns_the_files_others_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only an emulator that the package knows nothing of gets its wrapper, and that one is taken out again."""
    assert main(["install", "--package", "--dry-run", "--prefix-root", str(tmp_path)]) == 0
    assert staged(tmp_path) == {}
    assert main(["install", "--package", "--prefix-root", str(tmp_path)]) == 0
    assert not any("/local/" in name or name.startswith("etc/systemd") for name in staged(tmp_path))
    for name in ("usr/bin/qemu-system-x86_64", "usr/libexec/qemu-kvm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch(0o755)
    before = staged(tmp_path)
    capsys.readouterr()
    assert main(["install", "--prefix-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == packaged.NOT_OURS
    assert set(staged(tmp_path)) - set(before) == {"usr/libexec/qemu-kvm-rapl", "etc/virt-rapl/installed.json"}
    assert main(["uninstall", "--prefix-root", str(tmp_path)]) == 0
    assert staged(tmp_path) == before
    assert capsys.readouterr().out.splitlines()[-1] == packaged.NOT_OURS
    assert main(["uninstall", "--prefix-root", str(tmp_path)]) == 0
    assert staged(tmp_path) == before
    assert capsys.readouterr().out.splitlines() == [packaged.NOT_OURS]


def test_a_package_is_not_staged_in_the_root(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "--package"]) == 1
    assert "give --prefix-root" in capsys.readouterr().err


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory where the Debian packages were built."""
    directory = tmp_path_factory.mktemp("deb")
    run(ROOT / "etc/build-deb", directory, cwd=directory, env=SYSTEM)
    return directory


@pytest.mark.slow
@pytest.mark.needs("dpkg-buildpackage", "lintian")
def test_lintian_finds_no_error(deb: Path) -> None:
    said = run("lintian", "--fail-on", "error", *deb.glob("*.changes"), cwd=deb, env=SYSTEM)
    tags = {line.split(": ", 2)[2].split()[0] for line in said.splitlines()}
    # A script that never runs by hand has no manual; a PATH may lead to another Python than the system's; Debian 13
    # wants a homepage.
    expected = {"no-manual-page", "command-with-path-in-maintainer-script", "appstream-metadata-validation-failed"}
    assert tags <= expected


@pytest.mark.slow
@pytest.mark.needs("dpkg-buildpackage")
def test_the_files_of_the_debs_are_those_that_install_puts_in_place(deb: Path, tmp_path: Path) -> None:
    main, page = tmp_path / "main", tmp_path / "page"
    for name, directory in (("virt-rapl", main), ("virt-rapl-cockpit", page)):
        run("dpkg-deb", "-R", next(deb.glob(f"{name}_*.deb")), directory, cwd=deb)
    for item in packaged.contents():
        if "/man/" in item.target:
            assert (main / f"{item.target}.gz").is_file(), item.target
        else:
            text = ((page if places.is_of_cockpit(item) else main) / item.target).read_text()
            assert text == item.text.replace(sys.executable, "/usr/bin/python3"), item.target
    assert {path.name for path in (main / "usr/share").iterdir()} & {"cockpit", "metainfo"} == set()
    assert {path.name for path in (page / "usr/share").iterdir()} == {"cockpit", "metainfo", "doc"}
    assert {path.name for path in page.iterdir()} == {"DEBIAN", "usr"}
    assert {path.name for path in (main / "usr/share/doc/virt-rapl/docs").iterdir() if path.suffix == ".py"} == set()
    conffiles = (main / "DEBIAN/conffiles").read_text().split()
    assert {HOOK, CONFIGURATION} <= set(conffiles)
    assert set(conffiles) == {f"/{item.target}" for item in packaged.contents() if item.target.startswith("etc/")}


@pytest.fixture(scope="module")
def machine(deb: Path) -> Iterator[Machine]:
    """A machine without virt-rapl, the package and a next version of it in /root, and a guest that is defined."""
    (package,) = deb.glob("virt-rapl_*.deb")
    run("dpkg-deb", "-R", package, deb / "next", cwd=deb)
    control = deb / "next/DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {__version__}", f"Version: {__version__}+next"))
    run("dpkg-deb", "--root-owner-group", "-b", deb / "next", deb / "next.deb", cwd=deb)
    with Machine() as machine:
        machine.path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)  # services start there, wherever this runs
        machine.path("/var/lib/man-db/auto-update").unlink(missing_ok=True)  # an index that takes seconds each time
        shutil.copy(package, machine.path("/root/this.deb"))
        shutil.copy(deb / "next.deb", machine.path("/root/next.deb"))
        rom, log = f"/var/lib/libvirt/images/{NAME}.rom", f"/var/log/libvirt/qemu/{NAME}.out"
        machine.path(rom).write_bytes(guest.rom(100))
        machine.path("/root/guest.xml").write_text(guest.domain_xml(NAME, rom, log, uuid=UUID))
        machine.run(["virsh", "define", "/root/guest.xml"])
        yield machine


def dpkg(machine: Machine, *arguments: str, check: bool = True, **environment: str) -> str:
    """Run dpkg without asking questions; return all that it prints."""
    variables = [f"{name}={value}" for name, value in {**SYSTEM, "DEBIAN_FRONTEND": "noninteractive"}.items()]
    variables += [f"{name}={value}" for name, value in environment.items()]
    done = machine.run(["env", *variables, "dpkg", "--force-unsafe-io", *arguments], check=check, timeout=180)
    assert check or done.returncode
    return done.stdout + done.stderr


def virt_rapl(machine: Machine, *arguments: str) -> str:
    return machine.run(["/usr/bin/virt-rapl", *arguments]).stdout


def status(machine: Machine) -> dict[str, Any]:
    (domain,) = json.loads(virt_rapl(machine, "status", "--json", NAME))["domains"]
    assert isinstance(domain, dict)
    return domain


def joules(machine: Machine) -> float:
    return sum(guest.joules(guest.readings(machine.path(f"/var/log/libvirt/qemu/{NAME}.out"))).values())


def counts_on(machine: Machine) -> None:
    before = joules(machine)
    wait_until(lambda: joules(machine) > before, 20, "the guest's counter moves")


def traces(machine: Machine) -> set[str]:
    """What on the machine has our name, but for this checkout, the guest's and systemd's own records of its units."""
    places = ["/etc", "/usr", "/var", "/run", "/lib"]
    found = machine.run(
        ["find", *places, "-xdev", "-name", "*virt[-_]rapl*", "-o", "-xdev", "-name", "qemu*-rapl"]
    ).stdout
    return {
        line
        for line in found.splitlines()
        if not re.search(r"^/run/(systemd|credentials)|/var/lib/systemd/linger", line)
    }


@pytest.mark.e2e
def test_the_life_of_a_package(machine: Machine) -> None:
    before, definition = traces(machine), machine.run(["virsh", "dumpxml", NAME]).stdout

    # Installed: a domain has a meter as soon as it is enabled.
    dpkg(machine, "-i", "/root/this.deb")
    for unit in ("virt-rapld.service", "virt-rapl-wrappers.path"):
        assert machine.run(["systemctl", "is-active", unit]).stdout == "active\n"
        assert machine.run(["systemctl", "is-enabled", unit]).stdout == "enabled\n"
    channel = "virt-rapl-channel"
    assert machine.run(["systemctl", "is-active", channel]).stdout == "active\n", "virt-rapld has started it"
    exporter = ["virt-rapl-exporter"]
    assert machine.run(["systemctl", "is-enabled", *exporter], check=False).stdout == "disabled\n"
    assert machine.run(["systemctl", "is-active", *exporter], check=False).stdout == "inactive\n"
    assert machine.run(["virsh", "dumpxml", NAME]).stdout == definition
    assert packaged.NOT_OURS in virt_rapl(machine, "install")
    assert dpkg(machine, "--verify", "virt-rapl") == ""
    checks = {check["name"]: check for check in json.loads(virt_rapl(machine, "doctor", "--json"))["checks"]}
    for name in ("wrapper", "hook", "files", "run-directory", "virt-rapld"):
        assert checks[name]["state"] == "ok", checks[name]
    virt_rapl(machine, "enable", NAME)
    machine.run(["virsh", "start", NAME])
    assert status(machine)["vrapl"] == "active"
    counts_on(machine)

    # The exporter, once it is enabled.
    machine.path(EXPORTER_OPTIONS).write_text("ARGS=--web.listen-address=127.0.0.1:9799\n")
    machine.run(["systemctl", "enable", "--now", *exporter])
    assert f'domain="{NAME}"' in machine.run([*FETCH, "http://127.0.0.1:9799/metrics"]).stdout
    checks = {check["name"]: check for check in json.loads(virt_rapl(machine, "doctor", "--json"))["checks"]}
    assert checks["exporter"]["state"] == "ok", checks["exporter"]
    assert "127.0.0.1:9799" in checks["exporter"]["message"]

    # Upgraded: the guest keeps its helper, daemon and exporter are the new ones, the operator's configuration stays.
    helper, energy = status(machine)["helper"]["pid"], status(machine)["energy_joules"]
    daemon, exporter_was, channel_was = main_pid(machine), main_pid(machine, *exporter), main_pid(machine, channel)
    configuration = "interval: 0.5\n"
    machine.path(CONFIGURATION).write_text(configuration)
    dpkg(machine, "-i", "/root/next.deb")
    assert machine.path(CONFIGURATION).read_text() == configuration
    assert main_pid(machine) not in (daemon, "0")
    assert main_pid(machine, *exporter) not in (exporter_was, "0")
    wait_until(lambda: main_pid(machine, channel) not in (channel_was, "0"), 20, "so is the process for channels")
    assert (status(machine)["vrapl"], status(machine)["helper"]["pid"]) == ("active", helper)
    assert status(machine)["energy_joules"] >= energy
    counts_on(machine)

    # QEMU is upgraded: libvirt is to ask the wrapper anew, by dpkg's trigger alone.
    machine.run(["systemctl", "stop", "virt-rapl-wrappers.path"])
    touched = machine.path(WRAPPER).stat().st_ctime_ns
    machine.run(["chmod", "755", "/usr/bin/qemu-system-x86_64"])
    machine.run(["dpkg-trigger", "--by-package=qemu-system-x86", "/usr/bin/qemu-system-x86_64"])
    dpkg(machine, "--configure", "--pending")
    assert machine.path(WRAPPER).stat().st_ctime_ns > touched

    # Not removed while a domain needs it; then all that is not configuration goes.
    said = dpkg(machine, "--remove", "virt-rapl", check=False)
    assert f"domains still need virt-rapl: {NAME} runs with its meter, {NAME} is enabled" in said
    assert "VIRT_RAPL_UNINSTALL=--disable-domains" in said
    assert status(machine)["vrapl"] == "active"
    assert machine.run(["systemctl", "is-active", "virt-rapld"]).stdout == "active\n"
    machine.run(["virsh", "destroy", NAME])
    machine.run(["systemctl", "stop", *LIBVIRT])
    assert "cannot find out whether domains still need virt-rapl" in dpkg(machine, "--remove", "virt-rapl", check=False)
    machine.run(["systemctl", "start", *LIBVIRT])
    said = dpkg(machine, "--remove", "virt-rapl", VIRT_RAPL_UNINSTALL="--disable-domains")
    assert packaged.NOT_OURS not in said
    assert machine.run(["virsh", "dumpxml", NAME]).stdout == definition
    assert machine.path(CONFIGURATION).read_text() == configuration
    assert machine.path(HOOK).exists()
    assert not machine.path(WRAPPER).exists()
    for unit in (*exporter, channel):
        assert machine.run(["systemctl", "is-active", unit], check=False).stdout == "inactive\n"
    assert not machine.path("/usr/lib/python3/dist-packages/libvirt_rapl").exists()
    events = machine.path("/run/virt-rapl/events.jsonl").read_text()
    machine.run(["virsh", "start", NAME])
    machine.run(["virsh", "managedsave", NAME])
    machine.run(["virsh", "start", NAME])
    machine.run(["virsh", "destroy", NAME])
    assert machine.path("/run/virt-rapl/events.jsonl").read_text() == events  # the hook that is left says nothing

    # Purged: nothing is left.
    dpkg(machine, "--purge", "virt-rapl")
    assert traces(machine) == before


@pytest.mark.e2e
@pytest.mark.needs("cockpit-bridge")
def test_the_page_is_a_package_of_its_own(deb: Path, machine: Machine) -> None:
    shutil.copy(next(deb.glob("virt-rapl-cockpit_*.deb")), machine.path("/root/page.deb"))
    before = traces(machine)
    dpkg(machine, "-i", "/root/this.deb")
    assert "virt-rapl" not in machine.run(["cockpit-bridge", "--packages"]).stdout
    dpkg(machine, "-i", "/root/page.deb")
    assert "VM energy" in machine.run(["cockpit-bridge", "--packages"]).stdout
    checks = {check["name"]: check for check in json.loads(virt_rapl(machine, "doctor", "--json"))["checks"]}
    assert checks["files"]["state"] == "ok", checks["files"]
    dpkg(machine, "--purge", "virt-rapl-cockpit", "virt-rapl")
    assert traces(machine) == before


@pytest.mark.e2e
def test_a_package_that_was_unpacked_and_not_configured_is_removed_without_being_asked(machine: Machine) -> None:
    """As after an upgrade that broke off. It cannot refuse, but warns; and nothing that it leaves is in the way."""
    other = "/usr/libexec/qemu-kvm"
    dpkg(machine, "-i", "/root/this.deb")
    machine.run(["cp", "/usr/bin/qemu-system-x86_64", other])
    virt_rapl(machine, "install")
    virt_rapl(machine, "enable", NAME)
    machine.run(["systemctl", "start", "virt-rapl-exporter"])
    dpkg(machine, "--unpack", "/root/next.deb")
    said = dpkg(machine, "--remove", "virt-rapl")
    assert f"warning: {NAME} is enabled and does not start without virt-rapl" in said
    for unit in ("virt-rapl-exporter", "virt-rapld", "virt-rapl-channel", "virt-rapl-wrappers.path"):
        assert machine.run(["systemctl", "is-active", unit], check=False).stdout == "inactive\n"

    dpkg(machine, "-i", "/root/next.deb")
    virt_rapl(machine, "disable", NAME)
    machine.path(other).unlink()
    dpkg(machine, "--unpack", "/root/this.deb")
    assert machine.path(f"{other}-rapl").exists()
    dpkg(machine, "--purge", "virt-rapl")
    assert not machine.path(f"{other}-rapl").exists(), "nobody would know of it any more"


@pytest.mark.e2e
def test_a_package_that_does_not_run_is_removed_by_force(machine: Machine) -> None:
    dpkg(machine, "-i", "/root/this.deb")
    machine.path("/usr/lib/python3/dist-packages/libvirt_rapl/__main__.py").unlink()
    assert "--force removes virt-rapl whatever needs it" in dpkg(machine, "--purge", "virt-rapl", check=False)
    assert machine.path(WRAPPER).exists()
    said = dpkg(machine, "--purge", "virt-rapl", VIRT_RAPL_UNINSTALL="--force")
    assert "it is removed all the same" in said
    assert not machine.path(WRAPPER).exists()


@pytest.mark.e2e
def test_a_package_beside_an_installation_by_hand(machine: Machine) -> None:
    """It would be two of each unit, also where nobody knows any more what was put in place."""
    machine.run(["virt-rapl", "install", "--force"])
    machine.path("/etc/virt-rapl/installed.json").unlink()
    said = dpkg(machine, "-i", "/root/this.deb", check=False)
    assert "another virt-rapl has put its files in place here" in said
    assert "/.venv/bin/python" in machine.path(HOOK).read_text()
    machine.run(["virt-rapl", "install", "--force"])
    machine.run(["virt-rapl", "uninstall"])
    dpkg(machine, "--purge", "virt-rapl")


def main_pid(machine: Machine, unit: str = "virt-rapld") -> str:
    return machine.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.strip()
