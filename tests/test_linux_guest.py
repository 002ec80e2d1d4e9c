"""The Linux guest that other tests use: it reads what is written to its energy channel, as a user's guest would."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import energy_channel
import linux_guest
import pytest
from initramfs import BUSYBOX, Initramfs, imported
from linux_guest import PORT, LinuxGuest
from walking import CONSTANT_100_WATTS, wait_until

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator.world import World

SCRIPT = f"""\
#!/usr/bin/python3
import json
with open("{PORT}") as port:
    for _ in range(3):
        print(json.loads(port.readline())["energy_joules"], flush=True)
"""
METERED = "virt_rapl_guest_energy_joules_total 12.5"


@pytest.mark.needs(BUSYBOX)
def test_what_an_initramfs_unpacks_to(tmp_path: Path) -> None:
    archive = Initramfs()
    archive.add("/sbin/hello", b"hello", mtime=1)
    archive.add("/sbin/hello", b"is there", mtime=2)
    archive.add("/etc/deep/file", b"12345678")
    subprocess.run([BUSYBOX, "cpio", "-idm"], cwd=tmp_path, input=archive.finish(), capture_output=True, check=True)
    hello = (tmp_path / "usr/sbin/hello").stat()
    assert (tmp_path / "usr/sbin/hello").read_bytes() == b"hello"
    assert (hello.st_mode & 0o777, hello.st_mtime) == (0o755, 1)
    assert (tmp_path / "sbin").readlink() == Path("usr/sbin")
    assert (tmp_path / "etc/deep/file").read_bytes() == b"12345678"


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("import os, json.decoder as d", {"os", "json.decoder"}),
        ("from pathlib import Path\ndef f():\n  import time", {"pathlib", "time"}),
        ("from . import x\nprint(1)", set()),
    ],
)
def test_what_a_script_imports(script: str, names: set[str]) -> None:
    assert imported(script) == names


@pytest.fixture(scope="module", params=["pc on intel", "q35 on amd"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxGuest]:
    """One that has booted; on a machine of each kind, on a host of each vendor."""
    machine, _, cpu = request.param.split()
    script = tmp_path_factory.mktemp("script") / "meter"
    script.write_text(SCRIPT)
    with World([f"--cpu={cpu}", *CONSTANT_100_WATTS]) as world:
        linux_guest.furnish(world, {"/usr/bin/meter": script})
        world.start_libvirtd()
        world.run(["virsh", "create", "/proc/self/fd/0"], input=linux_guest.domain_xml("linux", machine=machine))
        guest = LinuxGuest(world, "linux")
        guest.wait_for_boot()
        yield guest


@pytest.mark.e2e
@pytest.mark.needs(*linux_guest.NEEDS)
class TestLinuxGuest:
    def test_commands_have_output_and_status(self, guest: LinuxGuest) -> None:
        done = guest.run("echo out; echo err >&2; printf '%s' \"$0 é\"; exit 3", check=False)
        assert (done.returncode, done.stdout, done.stderr) == (3, "out\n/tmp/.command é", "err\n")
        assert guest.run("seq 20000").stdout == "".join(f"{number}\n" for number in range(1, 20001))
        with pytest.raises(VirtRaplError, match="in linux: 1: why"):
            guest.run("echo why >&2; exit 1")
        with pytest.raises(TimeoutError):
            guest.run("sleep 1; echo late", timeout=0.2)
        assert guest.run("echo next").stdout == "next\n"

    def test_it_reads_whole_lines_from_its_channel_again_and_again(self, guest: LinuxGuest) -> None:
        seen: list[dict[str, Any]] = []
        for _ in range(2):  # the writer may be started anew
            with energy_channel.writer(guest.world, guest.name):
                lines = guest.run(f"head -n 5 {PORT}").stdout.splitlines()[1:]  # the first may be what was left of one
            seen = [json.loads(text) for text in lines]
            energies = [each["energy_joules"] for each in seen]
            assert energies == list(range(int(energies[0]), int(energies[0]) + 4))
        assert seen[0] == energy_channel.line(seen[0]["energy_joules"])

    def test_python_reads_it_too(self, guest: LinuxGuest) -> None:
        with energy_channel.writer(guest.world, guest.name):
            guest.run(f"head -n 1 {PORT}")
            assert len(guest.run("meter").stdout.split()) == 3

    def test_its_node_exporter_shows_a_file_of_the_guests(self, guest: LinuxGuest) -> None:
        guest.run(f"mkdir -p /run/metrics; echo '{METERED}' >/run/metrics/energy.prom")
        options = "--collector.disable-defaults --collector.textfile --collector.textfile.directory=/run/metrics"
        guest.run(f"prometheus-node-exporter {options} >/run/log 2>&1 & echo $! >/run/pid")
        fetch = "wget -q -O - http://127.0.0.1:9100/metrics"
        wait_until(lambda: guest.run(fetch, check=False).returncode == 0, 30, "node_exporter answers")
        assert re.search(rf"^{METERED}$", guest.run(fetch).stdout, re.MULTILINE)
        guest.run("kill $(cat /run/pid)")

    def test_a_channel_comes_and_goes_while_it_runs(self, guest: LinuxGuest) -> None:
        def sees_it() -> bool:
            return guest.run(f"test -c {PORT}", check=False).returncode == 0

        assert sees_it()
        guest.world.run(
            ["virsh", "detach-device", guest.name, "/proc/self/fd/0"],
            input=energy_channel.element(guest.world, guest.name),
        )
        wait_until(lambda: not sees_it(), 30, "the port goes")
        guest.world.run(["virsh", "attach-device", guest.name, "/proc/self/fd/0"], input=energy_channel.ELEMENT)
        wait_until(sees_it, 30, "the port comes")
        with energy_channel.writer(guest.world, guest.name):
            guest.run(f"head -n 1 {PORT}")

    def test_it_boots_anew(self, guest: LinuxGuest) -> None:
        guest.run("touch /run/before")
        guest.world.run(["virsh", "reset", guest.name])
        guest.wait_for_boot()
        assert guest.run("test -e /run/before", check=False).returncode == 1
