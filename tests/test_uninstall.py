"""Taking virt-rapl out of a machine with a real libvirt: which domains still need it, and what is there afterwards."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.emulator import installed
from libvirt_rapl.install import still_needed
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

OWN_QEMU = "/opt/own/bin/qemu-system-x86_64"
HOOKS = "/etc/libvirt/hooks"


def files(world: World) -> set[str]:
    """What there is of hooks and of ours, wherever it may be; the rest of the machine may change meanwhile."""
    find = ["find", "/etc", HOOKS, "/opt", "/usr", "/run", "/var/lib/virt-rapl", "-xdev"]
    found = world.run([*find, "(", "-path", "*rapl*", "-o", "-path", f"{HOOKS}*", ")"], check=False).stdout
    return {path for path in found.splitlines() if not path.startswith(sys.prefix)}


@pytest.fixture(scope="module")
def other_world() -> Iterator[World]:
    """A world with libvirt and without virt-rapl, where `plain` is a domain that never has a meter."""
    with World() as world:
        world.start_libvirtd()
        world.define_guest("plain", 0)
        yield world


def test_every_emulator_that_a_domain_names_gets_a_wrapper(other_world: World) -> None:
    other_world.run(["mkdir", "-p", str(Path(OWN_QEMU).parent)])
    other_world.run(["ln", "-s", installed(), OWN_QEMU])
    xml = other_world.run(["virsh", "dumpxml", "plain"]).stdout.replace(installed(), OWN_QEMU)
    other_world.run(["virsh", "define", "/proc/self/fd/0"], input=xml)
    printed = other_world.run(["virt-rapl", "install", "--force", "--dry-run"]).stdout
    assert f"would be installed {OWN_QEMU}-rapl\n" in printed
    assert f"would be installed {installed()}-rapl\n" in printed
    other_world.run(["virsh", "define", "/proc/self/fd/0"], input=xml.replace(OWN_QEMU, installed()))
    other_world.run(["rm", "-r", str(Path(OWN_QEMU).parent.parent)])


def test_an_emulator_whose_wrapper_would_not_last_or_be_roots_alone(other_world: World) -> None:
    """One in memory, as on NixOS, one in a directory of a group's; a link to it on disk will do."""
    definition = other_world.run(["virsh", "dumpxml", "plain"]).stdout
    uuid = other_world.run(["virsh", "domuuid", "plain"]).stdout.strip()
    in_memory, of_a_group, on_disk = "/run/emulators", "/opt/group", "/opt/own/bin"
    for directory in (in_memory, of_a_group, on_disk):
        other_world.run(["mkdir", "-p", directory])
        other_world.run(["ln", "-s", installed(), f"{directory}/qemu"])
    other_world.run(["chmod", "2775", of_a_group])
    try:
        for directory in (in_memory, of_a_group, on_disk):
            xml = definition.replace(installed(), f"{directory}/qemu")
            other_world.run(["virsh", "define", "/proc/self/fd/0"], input=xml)
            done = other_world.run(["virt-rapl", "install", "--force", "--dry-run"])
            refused = directory != on_disk
            assert (f"warning: {directory}/qemu can have no wrapper" in done.stderr) == refused
            assert (f"would be installed {directory}/qemu-rapl\n" in done.stdout) != refused
            error = other_world.run(["virt-rapl", "enable", uuid], check=False).stderr
            assert (f"plain: {directory}/qemu" in error) == refused
            assert directory in error
            assert "\nhint: " in error
    finally:
        other_world.run(["virsh", "define", "/proc/self/fd/0"], input=definition)
        other_world.run(["rm", "-r", in_memory, of_a_group, "/opt/own"])


def test_uninstall_leaves_domains_that_start_without_it(other_world: World) -> None:
    def uninstall(*options: str) -> tuple[str, str]:
        done = other_world.run(["virt-rapl", "uninstall", *options], check=False)
        assert done.returncode == (1 if "error" in done.stderr else 0)
        return done.stdout, done.stderr

    before = files(other_world)
    other_world.run(["virt-rapl", "install", "--force"])
    originals = {}
    for name in ("one", "two"):
        other_world.define_guest(name, 0)
        originals[name] = other_world.run(["virsh", "dumpxml", "--inactive", name]).stdout
        other_world.run(["virt-rapl", "enable", name])
    other_world.run(["virsh", "start", "two"])
    other_world.run(["virsh", "snapshot-create-as", "two", "then", "--memspec", "/mnt/then"])

    _, error = uninstall()
    assert error.startswith(
        "virt-rapl: error: domains still need virt-rapl: one is enabled, two runs with its meter, two is enabled\n"
        "hint: shut down those that run"
    )
    _, error = uninstall("--disable-domains")
    assert error.startswith("virt-rapl: error: domains still need virt-rapl: two runs with its meter\n")
    other_world.run(["virsh", "managedsave", "two"])
    there = files(other_world)
    _, error = uninstall()
    assert re.search(r"two is saved with its meter\nhint: .*`virt-rapl uninstall --disable-domains`.*\n\Z", error)
    manifest = other_world.path("/etc/virt-rapl/installed.json")
    whole = manifest.read_text()
    manifest.write_text("{")
    _, error = uninstall("--disable-domains")
    assert error.startswith("virt-rapl: error: cannot read /etc/virt-rapl/installed.json")
    assert Definition.parse(other_world.run(["virsh", "dumpxml", "--inactive", "one"]).stdout).is_marked
    manifest.write_text(whole)
    printed, _ = uninstall("--disable-domains", "--dry-run")
    assert "would be disabled two, which is saved with its meter\n" in printed
    assert there <= files(other_world)
    assert Definition.parse(other_world.run(["virsh", "dumpxml", "--inactive", "one"]).stdout).is_marked

    printed, warning = uninstall("--disable-domains")
    assert printed.startswith(
        "disabled  one, which is enabled\ndisabled  two, which is enabled\ndisabled  two, which is sa"
    )
    assert warning.startswith("virt-rapl: warning: two/then: ")
    assert "`virsh snapshot-revert`" in warning
    assert files(other_world) == before
    for name, original in originals.items():
        assert other_world.run(["virsh", "dumpxml", "--inactive", name]).stdout == original
        other_world.run(["virsh", "start", name])
        emulator = other_world.run(["sh", "-c", 'tr "\\0" " " <"/proc/$(cat "$1")/cmdline"', "sh", pid_file(name)])
        assert emulator.stdout.startswith(f"{installed()} ")
    assert uninstall()[0].startswith("nothing is installed under /")


def test_uninstall_by_force(other_world: World) -> None:
    """Where it is unknown whether domains need it, or some do."""
    before = files(other_world)
    other_world.run(["virt-rapl", "install", "--force"])
    other_world.define_guest("three", 0)
    other_world.run(["virt-rapl", "enable", "three"])
    unknown = ["virt-rapl", "--connect", "qemu+unix:///system?socket=/nowhere", "uninstall"]
    done = other_world.run(unknown, check=False)
    assert done.stderr.startswith(
        "virt-rapl: error: cannot find out whether domains still need virt-rapl: cannot connect"
    )
    assert re.search(r"\nhint: .*--force.*\n\Z", done.stderr)
    assert files(other_world) > before
    done = other_world.run(["virt-rapl", "uninstall", "--force"])
    assert "warning: three is enabled: it will not start without the emulator wrapper" in done.stderr
    assert files(other_world) == before
    assert other_world.run(["virsh", "start", "three"], check=False).returncode
    other_world.run(["virt-rapl", "install", "--force"])
    other_world.run(["virsh", "start", "three"])
    other_world.run([*unknown, "--force"])
    left = files(other_world) - before
    assert left  # what the helper of the domain that runs lives in
    assert all(path.startswith("/run/virt-rapl") for path in left)


def test_uninstall_does_not_break_a_domain_that_lost_its_mark(other_world: World) -> None:
    """What carries no mark is not changed, so its wrapper has to stay; somebody's own emulator needs none."""
    other_world.run(["virt-rapl", "install"])
    own = "/usr/bin/mine-rapl"
    other_world.run(["cp", "-P", installed(), own])
    for name, path in (("lost", f"{installed()}-rapl"), ("own", own)):
        other_world.define_guest(name, 0)
        xml = other_world.run(["virsh", "dumpxml", name]).stdout.replace(f"{installed()}<", f"{path}<")
        other_world.run(["virsh", "define", "/proc/self/fd/0"], input=xml)
    there = files(other_world)
    for options in ([], ["--disable-domains"]):
        done = other_world.run(["virt-rapl", "uninstall", *options], check=False)
        assert done.stderr.startswith("virt-rapl: error: domains still need virt-rapl: ")
        assert f"lost {still_needed.Reason.UNMARKED}" in done.stderr
        assert f"own {still_needed.Reason.UNMARKED}" not in done.stderr
        assert files(other_world) == there
    for name in ("lost", "own"):
        other_world.run(["virsh", "undefine", name])
    other_world.run(["rm", own])
    other_world.run(["virt-rapl", "uninstall", "--disable-domains", "--force"])


def pid_file(name: str) -> str:
    return f"/run/libvirt/qemu/{name}.pid"
