"""A client that does with domains what OpenStack's nova does, on hosts whose default emulator is the wrapper.

It defines and starts in one breath, without an emulator; its hard reboot undefines, defines and starts again; it moves
domains to hosts with virt-rapl and without; and all the while its XML stays its own.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from lifecycle import Host
from walking import CONSTANT_100_WATTS, wait_until

from libvirt_rapl import paths
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

PATIENCE_SECONDS = 20
LINK = "/usr/local/bin/qemu-system-x86_64"
GREEN = """<metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:flavor name="m1.green"/>
    </nova:instance>
  </metadata>
  """
CHOSEN = "[{nova.flavor: m1.green}]"
CREATE = """
import libvirt, sys
connection = libvirt.open("qemu:///system")
domain = connection.defineXML(sys.stdin.read())
domain.createWithFlags(0)
"""
"""nova's two calls, in one process: nobody comes between them in time."""


@dataclass
class Hosts:
    here: Host
    there: Host
    """With another run directory."""
    stranger: World
    """Without virt-rapl."""


@dataclass
class Nova:
    """The client; `defined` is what it has defined of each domain."""

    hosts: Hosts
    defined: dict[str, str] = field(default_factory=dict)

    def spawn(self, name: str, more: str = GREEN, **changes: str) -> None:
        """Define and start a domain that names no emulator."""
        rom = self.hosts.here.world.path(f"/mnt/{name}.rom")
        rom.write_bytes(guest.rom(100))
        rom.chmod(0o644)
        xml = guest.domain_xml(name, f"/mnt/{name}.rom", f"/mnt/{name}.log")
        xml = re.sub(r"\s*<emulator>.*</emulator>", "", xml).replace("<memory", f"{more}<memory", 1)
        for old, new in changes.items():
            assert old in xml
            xml = xml.replace(old, new)
        self.defined[name] = xml
        self.create(name)

    def create(self, name: str) -> None:
        self.hosts.here.world.run(["/usr/bin/python3", "-c", CREATE], input=self.defined[name])

    def hard_reboot(self, name: str) -> None:
        self.hosts.here.virsh("destroy", name)
        self.hosts.here.virsh("undefine", name)
        self.create(name)

    def migrate(self, name: str, source: World, to: str, *options: str, check: bool = True) -> str:
        """Move it, as nova does: the XML of the destination comes from the source; return what virsh complained of."""
        source.path("/mnt/nova.xml").write_text(source.run(["virsh", "dumpxml", "--migratable", name]).stdout)
        uri = f"qemu+unix:///system?socket=/mnt/{to}/libvirt-sock"
        more = options or ("--xml", "/mnt/nova.xml")
        command = ["virsh", "migrate", "--live", "--unsafe", name, uri, "--migrateuri", "unix:///mnt/stream", *more]
        return source.run(command, check=check).stderr

    def check_xml(self, world: World, name: str, emulator: str = LINK) -> None:
        """Hold that nothing of the definition is ours, but the path that libvirt has put into it."""
        for options in ([], ["--inactive"]):
            xml = world.run(["virsh", "dumpxml", *options, name]).stdout
            definition = Definition.parse(xml)
            assert not definition.is_marked
            assert "rapl" not in re.sub(r"/mnt/\S+", "", xml.replace(name, ""))
            assert "qemu:commandline" not in xml
            assert definition.emulator() == emulator
            assert xml.count("<nova:") == self.defined[name].count("<nova:")


def meters(host: Host, name: str) -> None:
    """Wait until the guest reads energy from now on, and status says by what right."""
    host.are_alive(name, counting=[name])

    def is_active() -> bool:
        shown = {domain["name"]: domain for domain in (host.asked() or {"domains": []})["domains"]}
        found = shown.get(name, {})
        return (found.get("vrapl"), found.get("by"), found.get("reason")) == ("active", "policy", None)

    wait_until(is_active, PATIENCE_SECONDS, f"{name} is active by the policy")


def reads_nothing(host: Host, name: str) -> None:
    """Hold that the guest runs and its counter does not."""
    before = len(host.world.readings(name))
    host.are_alive(name)
    assert {reading.energy for reading in host.world.readings(name)[before:]} == {0}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o777)

    def world(hostname: str) -> World:
        return World(CONSTANT_100_WATTS, shared=shared, hostname=hostname)

    with world("here") as here, world("there") as there, world("stranger") as stranger:
        stranger.start_libvirtd()
        left = Host(here)
        both = Hosts(left, Host(there, "/run/elsewhere", left.counted), stranger)
        for host in (both.here, both.there):
            host.configure(domains=CHOSEN, via="registers")
            host.world.kill(host.daemon, "TERM")
            host.start_daemon()
            done = host.world.run(["virt-rapl", "install", "--force", "--default-emulator"])
            assert f"libvirt takes {LINK}, the wrapper of /usr/bin/qemu-system-x86_64" in done.stdout
        yield both


@pytest.fixture
def nova(hosts: Hosts) -> Iterator[Nova]:
    nova = Nova(hosts)
    yield nova
    for world in (hosts.here.world, hosts.there.world, hosts.stranger):
        for name in world.run(["virsh", "list", "--all", "--name"]).stdout.split():
            world.run(["virsh", "destroy", name], check=False)
            world.run(["virsh", "undefine", name, "--snapshots-metadata", "--managed-save"], check=False)
    for host in (hosts.here, hosts.there):
        host.configure(domains=CHOSEN, via="registers")
        wait_until(lambda: host.helpers() == [], PATIENCE_SECONDS, "no helper is left")  # noqa: B023
        directories = {host.world.path(path) for path in ("/run/virt-rapl", host.run_directory)}
        left = {path.name for directory in directories if directory.exists() for path in directory.iterdir()}
        assert left - {paths.EVENTS, paths.DAEMON, paths.CHOSEN, paths.REMEMBERED} == set()
    hosts.stranger.run(["rm", "-f", LINK])


@pytest.fixture
def name(nova: Nova) -> str:
    name = f"instance-{uuid4()}"
    nova.spawn(name)
    meters(nova.hosts.here, name)
    return name


def test_first_boot_and_hard_reboot(nova: Nova, name: str) -> None:
    here = nova.hosts.here
    nova.check_xml(here.world, name)
    log = here.world.path(f"/var/log/libvirt/qemu/{name}.log")
    assert "tainted" not in log.read_text()
    for _ in range(2):
        nova.hard_reboot(name)
        meters(here, name)
        nova.check_xml(here.world, name)
    assert "virt-rapl" not in log.read_text().replace("/run/virt-rapl", "")


def test_migration_to_a_host_with_virt_rapl_and_back(nova: Nova, name: str) -> None:
    nova.migrate(name, nova.hosts.here.world, "there")
    meters(nova.hosts.there, name)
    assert "rapl" not in nova.hosts.there.xml(name)
    nova.migrate(name, nova.hosts.there.world, "here")
    meters(nova.hosts.here, name)
    nova.check_xml(nova.hosts.here.world, name)


def test_migration_to_a_host_without_virt_rapl(nova: Nova, name: str) -> None:
    """libvirt writes the path of its default emulator into each domain: it must be there, or another be named."""
    here, stranger = nova.hosts.here, nova.hosts.stranger
    refused = nova.migrate(name, here.world, "stranger", check=False)
    assert f"Cannot check QEMU binary {LINK}" in refused
    meters(here, name)

    stranger.run(["ln", "-s", "/usr/bin/qemu-system-x86_64", LINK])
    nova.migrate(name, here.world, "stranger")
    before = len(stranger.readings(name))
    wait_until(lambda: len(stranger.readings(name)) > before + 5, PATIENCE_SECONDS, "it runs there")
    assert "rapl" not in stranger.run(["virsh", "dumpxml", name]).stdout
    nova.migrate(name, stranger, "here")
    meters(here, name)
    nova.check_xml(here.world, name)

    xml = here.xml(name, "--migratable").replace(LINK, "/usr/bin/qemu-system-x86_64")
    stranger.run(["rm", LINK])
    here.world.path("/mnt/plain.xml").write_text(xml)
    nova.migrate(name, here.world, "stranger", "--xml", "/mnt/plain.xml")
    nova.migrate(name, stranger, "here")  # it names QEMU itself, and comes through the wrapper all the same
    meters(here, name)
    assert Definition.parse(here.xml(name)).emulator() == LINK


def test_crash_and_reset(nova: Nova, name: str) -> None:
    here = nova.hosts.here
    here.virsh("reset", name)
    meters(here, name)
    here.world.kill(here.qemu(name))
    wait_until(lambda: here.state(name) == "shut off", PATIENCE_SECONDS, "libvirt sees it")
    wait_until(lambda: here.helpers() == [], PATIENCE_SECONDS, "its helper has ended")
    here.virsh("start", name)
    meters(here, name)
    here.virsh("reboot", name)
    meters(here, name)


@pytest.mark.parametrize("managed", [True, False])
def test_save_and_restore(nova: Nova, name: str, managed: bool) -> None:
    here = nova.hosts.here
    if managed:
        here.virsh("managedsave", name)
        here.virsh("start", name)
    else:
        here.virsh("save", name, "/var/tmp/saved")
        here.virsh("restore", "/var/tmp/saved")
    meters(here, name)
    nova.check_xml(here.world, name)


def test_libvirtd_restarts_and_is_killed(nova: Nova, name: str) -> None:
    here = nova.hosts.here
    for signal in ("TERM", "KILL"):
        here.world.stop_libvirtd(signal)
        here.world.start_libvirtd()
        meters(here, name)
        nova.check_xml(here.world, name)


def test_its_helper_dies(nova: Nova, name: str) -> None:
    here = nova.hosts.here
    shown = {domain["name"]: domain for domain in (here.asked() or {"domains": []})["domains"]}
    here.world.kill(shown[name]["helper"]["pid"])

    def is_degraded() -> bool:
        shown = {domain["name"]: domain for domain in (here.asked() or {"domains": []})["domains"]}
        return bool(shown[name]["vrapl"] == "degraded" and "helper ended" in shown[name]["reason"])

    wait_until(is_degraded, PATIENCE_SECONDS, "that is shown")
    here.are_alive(name)
    here.virsh("managedsave", name)
    here.virsh("start", name)
    meters(here, name)


def test_the_helper_cannot_be_started(nova: Nova) -> None:
    here = nova.hosts.here
    here.configure(domains="['*']", helper="qemu")
    helper = here.world.path("/usr/bin/qemu-vmsr-helper")
    aside = helper.rename(f"{helper}.aside")
    try:
        nova.spawn("degraded")
        reads_nothing(here, "degraded")
        assert "the domain starts without RAPL" in here.world.path("/var/log/libvirt/qemu/degraded.log").read_text()
        here.configure(domains="['*']", helper="qemu", on_failure="refuse")
        here.virsh("destroy", "degraded")
        refused = here.virsh("start", "degraded", check=False)
        assert "degraded is not started without RAPL: qemu-vmsr-helper is not installed" in refused.stderr
    finally:
        aside.rename(helper)


def test_what_cannot_have_registers_is_left_alone(nova: Nova) -> None:
    here = nova.hosts.here
    here.configure(domains="['*']", on_failure="refuse")
    nova.spawn("growable", **{"<vcpu>1<": "<vcpu current='1'>2<"})
    reads_nothing(here, "growable")
    nova.check_xml(here.world, "growable")

    def reason() -> str:
        shown = {domain["name"]: domain for domain in (here.asked() or {"domains": []})["domains"]}
        return shown.get("growable", {}).get("reason") or ""

    wait_until(lambda: "can grow" in reason(), PATIENCE_SECONDS, "the reason is shown")


def test_what_is_not_chosen_runs_as_it_is(nova: Nova) -> None:
    here = nova.hosts.here
    here.configure(domains="[other]")
    for name in ("plain", "plain-too"):
        nova.spawn(name)
        reads_nothing(here, name)
    assert here.world.path("/run/virt-rapl/chosen").read_text() == "name other\n"
    here.configure(domains="[plain]")
    nova.hard_reboot("plain")
    meters(here, "plain")


def test_the_word_of_a_start_that_libvirtd_did_not_survive(nova: Nova, name: str) -> None:
    """It died between the hook and QEMU; what was chosen then is not now, and the hook that would say so runs."""
    here = nova.hosts.here
    uuid = here.uuid(name)
    word = here.world.path(f"/run/virt-rapl/{uuid}.state").read_text().split("\n")
    record = here.world.path(f"/run/virt-rapl/{uuid}.json").read_text()
    here.virsh("destroy", name)
    here.world.path(f"/run/virt-rapl/{uuid}.state").write_text("\n".join([word[0], "", *word[2:]]))
    here.world.path(f"/run/virt-rapl/{uuid}.json").write_text(record)
    here.configure(domains="[other]")
    here.virsh("start", name)
    reads_nothing(here, name)
    assert not here.world.path(f"/run/virt-rapl/{uuid}.state").exists()


def test_a_clone_has_its_meter_at_its_first_start(nova: Nova) -> None:
    """Its argument is another domain's, and so is the mark."""
    here = nova.hosts.here
    here.configure(domains="[other]")
    nova.spawn("original")
    here.enable("original")
    here.virsh("destroy", "original")
    here.virsh("start", "original")
    xml = here.xml("original", "--inactive")
    here.world.path("/mnt/clone.rom").write_bytes(guest.rom(100))
    uuid, clone = here.uuid("original"), str(uuid4())
    here.define(
        xml.replace(f"<uuid>{uuid}", f"<uuid>{clone}")
        .replace(">original<", ">clone<")
        .replace("/mnt/original", "/mnt/clone")
    )
    here.virsh("start", "clone")
    assert f"{uuid}.sock" in here.xml("clone")
    here.are_alive("original", "clone", counting=["original", "clone"])
    assert here.helpers() == sorted([uuid, clone])


def test_snapshots(nova: Nova, name: str) -> None:
    here = nova.hosts.here
    here.virsh("snapshot-create-as", name, "external", "--memspec", "file=/mnt/memory")
    meters(here, name)
    nova.check_xml(here.world, name)
    for _ in range(2):
        here.virsh("snapshot-revert", name, "external")
        meters(here, name)
        nova.check_xml(here.world, name)
        here.virsh("destroy", name)


def test_uninstall_and_no_default_emulator_refuse_while_it_runs(nova: Nova, name: str) -> None:
    here = nova.hosts.here
    for command in (["uninstall"], ["uninstall", "--disable-domains"], ["install", "--force", "--no-default-emulator"]):
        refused = here.world.run(["virt-rapl", *command], check=False)
        assert refused.returncode == 1
        assert f"{name} runs, and was started through the default emulator of virt-rapl" in refused.stderr
    meters(here, name)


def test_it_goes_without_a_trace(tmp_path: Path) -> None:
    """Domains that are shut off get QEMU's own path, and start."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    with World(CONSTANT_100_WATTS, shared=shared, hostname="here") as world:
        host = Host(world)
        world.run(["virt-rapl", "install", "--force", "--default-emulator"])
        nova = Nova(Hosts(host, host, world))
        nova.spawn("leaving")
        host.virsh("destroy", "leaving")
        world.run(["virt-rapl", "install", "--force"])  # an upgrade keeps it
        assert world.path(LINK).is_symlink()
        refused = world.run(["virt-rapl", "install", "--force", "--no-default-emulator"], check=False)
        assert "leaving has the default emulator of virt-rapl" in refused.stderr
        world.run(["virt-rapl", "uninstall", "--disable-domains"])
        assert not os.path.lexists(world.path(LINK))
        assert not os.path.lexists(world.path(f"{LINK}-rapl"))
        assert Definition.parse(host.xml("leaving")).emulator() == "/usr/bin/qemu-system-x86_64"
        host.virsh("start", "leaving")
        host.are_alive("leaving")


def test_where_qemu_has_red_hats_name() -> None:
    """libvirt looks for qemu-system-x86_64 first, there, too; and a domain outlives a link that somebody removes."""
    with World(CONSTANT_100_WATTS) as world:
        move = (
            'mv "$(readlink -f /usr/bin/qemu-system-x86_64)" /usr/libexec/qemu-kvm; rm -f /usr/bin/qemu-system-x86_64'
        )
        world.run(["sh", "-c", f"mkdir -p /usr/libexec; {move} /usr/bin/qemu-kvm /usr/bin/kvm"])
        host = Host(world)
        host.configure(domains="['*']")
        done = world.run(["virt-rapl", "install", "--force", "--default-emulator"])
        assert f"libvirt takes {LINK}, the wrapper of /usr/libexec/qemu-kvm, for" in done.stdout
        Nova(Hosts(host, host, world)).spawn("red")
        meters(host, "red")
        world.path(LINK).unlink()
        world.stop_libvirtd()
        world.start_libvirtd()
        meters(host, "red")
        assert f"{LINK} is gone or leads nowhere" in world.run(["virt-rapl", "doctor"], check=False).stdout
