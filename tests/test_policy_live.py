"""The policy with a real libvirt: virt-rapld enables and repairs what the configuration chooses, and nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from walking import LOG, asked, configure, grows, wait_until

from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.simulator import guest
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

UUID = "5d6e7f80-9102-4b34-a5b6-c7d8e9f0a1b{}"
Define = Callable[[str, str], None]


@pytest.fixture
def define(world: World) -> Iterator[Define]:
    """A function that defines a domain of this name by its XML; what it defined goes with the test."""
    names: list[str] = []

    def define(name: str, xml: str) -> None:
        names.append(name)
        world.path(f"/mnt/{name}.rom").write_bytes(guest.rom(100))
        world.path(f"/mnt/{name}.rom").chmod(0o644)
        world.run(["virsh", "define", "/proc/self/fd/0"], input=xml)

    yield define
    for name in names:
        world.run(["virsh", "destroy", name], check=False)
        world.run(["virsh", "undefine", name], check=False)
        for suffix in ("rom", "log"):
            world.path(f"/mnt/{name}.{suffix}").unlink(missing_ok=True)


@pytest.fixture
def daemon(world: World, request: pytest.FixtureRequest) -> None:
    """virt-rapld runs, and chooses what is called chosen, but not what is said to be left alone."""
    request.getfixturevalue("default_configuration")
    configure(world, via="registers", domains={"include": ["chosen*"], "exclude": [{"title": "leave alone"}]})
    request.getfixturevalue("start_daemon")()


def plain(name: str, number: int, more: str = "") -> str:
    xml = guest.domain_xml(name, f"/mnt/{name}.rom", f"/mnt/{name}.log", uuid=UUID.format(number), vcpus=2)
    return xml.replace("<memory", f"{more}<memory", 1)


def dumped(world: World, name: str) -> str:
    return world.run(["virsh", "dumpxml", "--inactive", "--security-info", name]).stdout


def in_order(world: World, name: str) -> bool:
    """Return whether its meter is as virt-rapld puts it in."""
    definition = Definition.parse(dumped(world, name))
    socket = f"/run/virt-rapl/{definition.uuid}.sock"
    return definition.is_marked and definition.with_registers(socket=socket) is definition


def comes_in_order(world: World, name: str) -> None:
    wait_until(lambda: in_order(world, name), 30, f"{name} is enabled")


def log(world: World) -> list[str]:
    return world.path(LOG).read_text().splitlines()


@pytest.mark.usefixtures("daemon")
def test_a_chosen_domain_is_enabled_and_others_are_not_touched(world: World, define: Define) -> None:
    others = ["other", "chosen-not"]
    define("other", plain("other", 1))
    define("chosen-not", plain("chosen-not", 2, "<title>leave alone</title>"))
    files = [world.path(f"/etc/libvirt/qemu/{name}.xml") for name in others]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    define("chosen", plain("chosen", 3))
    comes_in_order(world, "chosen")
    world.run(["virsh", "start", "chosen"])
    wait_until(lambda: grows(world, "chosen"), 30, "the guest's counter moves")
    for name in others:
        world.run(["virsh", "start", name])
        world.run(["virsh", "destroy", name])
    # What comes later is answered later.
    define("chosen-too", plain("chosen-too", 4))
    comes_in_order(world, "chosen-too")
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    assert [line.split(",")[0] for line in log(world)] == [
        "virt-rapl: chosen: enabled",
        "virt-rapl: chosen-too: enabled",
    ]


NOVA = "http://openstack.org/xmlns/libvirt/nova/1.1"


def instance(flavor: str) -> str:
    """Return nova's element in the metadata, as far as it matters."""
    return f"<nova:instance xmlns:nova='{NOVA}'><nova:flavor name='{flavor}'/></nova:instance>"


@pytest.mark.usefixtures("default_configuration")
def test_a_flavor_is_chosen(world: World, define: Define, request: pytest.FixtureRequest) -> None:
    """By virt-rapld, also when it changes, and by the hook, which gets the XML from libvirt."""
    configure(world, via="registers", domains=[{"nova.flavor": "m1.green"}])
    for number, name in enumerate(("resized", "restored", "small")):
        define(name, plain(name, number, f"<metadata>{instance('m1.small')}</metadata>"))
    world.run(["virsh", "start", "restored"])
    resize = ["--uri", NOVA, "--key", "instance", "--set", instance("m1.green")]
    world.run(["virsh", "metadata", "restored", *resize, "--live"])
    world.run(["virsh", "save", "restored", "/mnt/restored.save"])
    world.run(["virsh", "restore", "/mnt/restored.save"])
    wait_until(lambda: grows(world, "restored"), 30, "the restored guest's counter moves")

    request.getfixturevalue("start_daemon")()
    world.run(["virsh", "metadata", "resized", *resize, "--config"])
    comes_in_order(world, "resized")
    assert [in_order(world, name) for name in ("restored", "small")] == [False, False]
    world.run(["rm", "/mnt/restored.save"])


@pytest.mark.usefixtures("daemon")
def test_repairs(world: World, define: Define) -> None:
    define("chosen", plain("chosen", 1))
    comes_in_order(world, "chosen")
    whole = dumped(world, "chosen")

    clone = whole.replace(f"<uuid>{UUID.format(1)}", f"<uuid>{UUID.format(2)}").replace(">chosen<", ">chosen-clone<")
    define("chosen-clone", clone.replace("/mnt/chosen.", "/mnt/chosen-clone."))
    assert not in_order(world, "chosen-clone")
    comes_in_order(world, "chosen-clone")
    world.run(["virsh", "start", "chosen-clone"])
    wait_until(lambda: grows(world, "chosen-clone"), 30, "the clone's counter moves")

    world.run(["virsh", "domrename", "chosen", "chosen-renamed"])
    define("chosen-renamed", whole.replace(">chosen<", ">chosen-renamed<").replace("/run/virt-rapl/", "/run/other/"))
    assert not in_order(world, "chosen-renamed")
    comes_in_order(world, "chosen-renamed")

    whole = dumped(world, "chosen-renamed")
    head, _, rest = whole.partition("<metadata>")
    arguments, _, tail = whole.partition("<qemu:commandline>")
    for broken in (
        whole.replace("-rapl</emulator>", "</emulator>"),
        arguments + tail.partition("</qemu:commandline>")[2],
        head + rest.partition("</metadata>")[2],
    ):
        world.run(["virsh", "define", "/proc/self/fd/0"], input=broken)
        assert not in_order(world, "chosen-renamed")
        comes_in_order(world, "chosen-renamed")
    assert dumped(world, "chosen-renamed") == whole


@pytest.mark.usefixtures("daemon")
def test_a_refusal_is_logged_once_and_shown(world: World, define: Define) -> None:
    growable = plain("chosen", 1).replace("<vcpu>2<", "<vcpu current='1'>2<")
    define("chosen", growable)
    wait_until(lambda: (asked(world) or {}).get("chosen", {}).get("reason"), 30, "the reason is shown")
    before = dumped(world, "chosen")
    for _ in range(2):
        world.run(["virsh", "start", "chosen"])
        world.run(["virsh", "destroy", "chosen"])
        world.run(["virsh", "define", "/proc/self/fd/0"], input=growable)
    define("chosen-too", plain("chosen-too", 2))
    comes_in_order(world, "chosen-too")
    assert dumped(world, "chosen") == before
    (line,) = (line for line in log(world) if line.startswith("virt-rapl: chosen: "))
    assert "the domain's number of vCPUs can grow" in line
    table = world.run(["virt-rapl", "status"]).stdout
    assert "chosen gets no meter at its next start, though the configuration's `domains` choose it: the" in table


@pytest.mark.usefixtures("daemon")
def test_disable_warns_that_it_is_in_vain(world: World, define: Define) -> None:
    define("chosen", plain("chosen", 1))
    comes_in_order(world, "chosen")
    done = world.run(["virt-rapl", "disable", "chosen"])
    assert done.stdout == "chosen: disabled; takes effect at the next start\n"
    assert "warning: chosen is chosen by `domains`" in done.stderr
    comes_in_order(world, "chosen")


@pytest.mark.usefixtures("default_configuration")
def test_a_daemon_that_may_not_write_says_so_once_and_tries_on(world: World, define: Define) -> None:
    configure(world, via="registers", domains=["chosen*"], state_directory="/mnt/unprivileged")
    for directory in ("/mnt/unprivileged", "/run/virt-rapl/daemon"):
        world.run(["install", "-d", "-o", "65534", directory])
    socket = world.path("/run/libvirt/libvirt-sock")
    mode = socket.stat().st_mode
    socket.chmod(0o600)
    capability = "--bounding-set=-all,+dac_read_search --inh-caps=-all,+dac_read_search --ambient-caps=+dac_read_search"
    command = f"setpriv --reuid=65534 --regid=65534 --clear-groups {capability} virt-rapl daemon"
    pid = int(world.run(["sh", "-c", f"{command} >/dev/null 2>{LOG} </dev/null & echo $!"]).stdout)

    def complaints() -> list[str]:
        return [line for line in log(world) if "cannot enable the configuration's `domains`" in line]

    try:
        define("chosen", plain("chosen", 1))
        wait_until(complaints, 20, "it says that it may not")
        define("chosen-too", plain("chosen-too", 2))
        wait_until(lambda: world.path("/mnt/unprivileged/ledger.db").exists(), 20, "the ledger is kept")
        socket.chmod(mode)
        define("chosen-three", plain("chosen-three", 3))
        for name in ("chosen", "chosen-too", "chosen-three"):
            wait_until(lambda: in_order(world, name), 30, f"{name} is enabled")  # noqa: B023
        assert len(complaints()) == 1
        assert log(world)[-1] == "virt-rapl: enabling the configuration's `domains` works again"
    finally:
        socket.chmod(mode)
        world.kill(pid, "TERM")
        world.run(["rm", "-r", "/mnt/unprivileged", "/run/virt-rapl/daemon", LOG])


# Orchestrators that make the XML themselves pass it through the filter: the examples, run as they would be.

EXAMPLES = Path(__file__).parent.parent / "etc/examples"


@pytest.fixture
def transient(world: World) -> Iterator[Callable[[str], None]]:
    """A function that creates the domain `passing` from XML and waits until its guest reads its energy."""
    world.path("/mnt/passing.rom").write_bytes(guest.rom(100))
    world.path("/mnt/passing.rom").chmod(0o644)

    def transient(xml: str) -> None:
        world.run(["virsh", "create", "/dev/stdin"], input=xml)
        wait_until(lambda: grows(world, "passing"), 30, "the guest's counter moves")

    yield transient
    world.run(["virsh", "destroy", "passing"], check=False)
    assert "passing" not in world.run(["virsh", "list", "--all", "--name"]).stdout
    world.run(["sh", "-c", "rm -f /mnt/passing.* /mnt/onDefineDomain /mnt/50_virt_rapl"])


def installed(world: World, example: str, name: str) -> str:
    """Put an example where its orchestrator looks for it, and return the path inside."""
    world.path(f"/mnt/{name}").write_bytes((EXAMPLES / example).read_bytes())
    world.path(f"/mnt/{name}").chmod(0o755)
    return f"/mnt/{name}"


Transient = Callable[[str], None]


WITH_UUID = f"<uuid>{UUID.format(5)}</uuid>"
IN_SYSINFO = f"<sysinfo type='smbios'><system><entry name='uuid'>{UUID.format(5)}</entry></system></sysinfo>"


@pytest.mark.parametrize("uuid", [WITH_UUID, ""])
def test_virsh_create(world: World, transient: Transient, uuid: str) -> None:
    xml = plain("passing", 5)
    assert WITH_UUID in xml
    transient(world.run(["virt-rapl", "inject"], input=xml.replace(WITH_UUID, uuid)).stdout)


def test_a_sidecar_of_kubevirt(world: World, transient: Transient) -> None:
    path = installed(world, "kubevirt-onDefineDomain", "onDefineDomain")
    xml = plain("passing", 5).replace(WITH_UUID, IN_SYSINFO)
    done = world.run([path, "--vmi", '{"metadata": {"name": "--domain"}}', "--domain", xml])
    transient(done.stdout)
    growable = xml.replace("<vcpu>2<", "<vcpu current='1'>2<")
    done = world.run([path, "--vmi", "{}", "--domain", growable])
    assert ("org.virt-rapl.energy.0" in done.stdout, "can grow" in done.stderr) == (True, True)


def test_a_hook_of_vdsm(world: World, transient: Transient) -> None:
    path = installed(world, "vdsm-before_vm_start", "50_virt_rapl")
    xml = plain("passing", 5)
    file = world.path("/mnt/passing.xml")

    def hooked(xml: str) -> str:
        file.write_text(xml)
        world.run(["env", "_hook_domxml=/mnt/passing.xml", "vmId=" + UUID.format(5), path])
        return file.read_text()

    growable = xml.replace("<vcpu>2<", "<vcpu current='1'>2<")
    assert "org.virt-rapl.energy.0" in hooked(growable)
    transient(hooked(xml))
