"""The private world: real libvirt and guests inside, nothing of the machine seen or touched, nothing left."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator.world import World

pytestmark = pytest.mark.e2e

SECONDS = 20.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def wait_for_new_readings(world: World, name: str) -> None:
    before = len(world.readings(name))
    wait_for(lambda: len(world.readings(name)) > before + 2)


def processes_of_world(first: str) -> list[int]:
    """PIDs of a world's processes, given that of its first one; all as the machine counts them."""
    namespace = Path(f"/proc/{first}/ns/pid_for_children").readlink()
    pids = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "ns/pid").readlink() == namespace:
                pids.append(int(directory.name))
        except OSError:
            continue  # it has ended
    return pids


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_commands_run_inside(world: World) -> None:
    assert world.run(["cat"], input="as it is\n").stdout == "as it is\n"
    assert world.run(["hostname"]).stdout == "world\n"
    assert world.run(["sh", "-c", "exit 7"], check=False).returncode == 7
    with pytest.raises(VirtRaplError, match="no such thing"):
        world.run(["sh", "-c", "echo no such thing >&2; exit 1"])
    with pytest.raises(subprocess.TimeoutExpired):
        world.run(["sleep", "60"], timeout=0.2)


def test_a_command_that_is_killed_dies_inside_too(world: World) -> None:
    command = world.popen(["sh", "-c", "echo $$; exec sleep 60"])
    with command:
        assert command.stdout is not None
        inside = command.stdout.readline().strip()
        assert world.path(f"/proc/{inside}").exists()
        command.kill()
    wait_for(lambda: not world.path(f"/proc/{inside}").exists())


def test_the_machine_is_neither_seen_nor_touched(world: World) -> None:
    for directory in ("/etc", "/usr", "/var", "/opt", "/run"):
        world.run(["touch", f"{directory}/virt-rapl-was-here"])
        assert not Path(f"{directory}/virt-rapl-was-here").exists()
    assert world.run(["virsh", "list", "--all", "--name"]).stdout.split() == []
    assert world.run(["virsh", "net-list", "--all", "--name"]).stdout.split() == []
    assert world.run(["ls", "/sys/class/powercap/virt-rapl-simulator"]).stdout.split() == ["cpuinfo", "truth"]
    for kind in ("mnt", "pid", "uts", "net", "ipc"):
        assert world.path(f"/proc/1/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()


def test_qemu_runs_under_its_own_user(world: World, new_guest: Callable[..., str]) -> None:
    name = new_guest(0)
    world.run(["virsh", "start", name])
    wait_for_new_readings(world, name)
    pid = world.path(f"/run/libvirt/qemu/{name}.pid").read_text().strip()
    assert world.path(f"/proc/{pid}").stat().st_uid != 0


def test_a_guest_goes_on_while_libvirtd_is_killed_and_restarted(world: World, new_guest: Callable[..., str]) -> None:
    name = new_guest(0)
    world.run(["virsh", "start", name])
    pid = world.path(f"/run/libvirt/qemu/{name}.pid").read_text()
    world.stop_libvirtd("KILL")
    try:
        assert world.run(["virsh", "uri"], check=False).returncode != 0
        wait_for_new_readings(world, name)
    finally:
        world.start_libvirtd()
    assert world.run(["virsh", "domstate", name]).stdout.strip() == "running"
    assert world.path(f"/run/libvirt/qemu/{name}.pid").read_text() == pid


def test_a_running_guest_migrates_between_two_worlds(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with World(shared=tmp_path, hostname="a") as a, World(shared=tmp_path, hostname="b") as b:
        a.start_libvirtd()
        b.start_libvirtd()
        a.define_guest("traveller", 0)
        a.run(["virsh", "start", "traveller"])
        wait_for_new_readings(a, "traveller")
        to_b = "qemu+unix:///system?socket=/mnt/b/libvirt-sock"
        a.run(["virsh", "migrate", "--live", "--p2p", "traveller", to_b, "--migrateuri", "unix:///mnt/migration"])
        assert a.run(["virsh", "domstate", "traveller"]).stdout.strip() == "shut off"
        assert b.run(["virsh", "domstate", "traveller"]).stdout.strip() == "running"
        wait_for_new_readings(b, "traveller")


def test_everything_ends_with_the_block() -> None:
    with World() as world:
        world.start_libvirtd()
        processes = processes_of_world(world.path("/").parts[2])
        assert len(processes) >= 2, "the first process and libvirtd"
    assert all(gone(pid) for pid in processes)


def test_everything_ends_when_the_process_that_holds_the_world_is_killed() -> None:
    script = """
import sys
from libvirt_rapl.simulator.world import World
world = World().__enter__()
world.start_libvirtd()
world.define_guest("left-alone", 0)
world.run(["virsh", "start", "left-alone"])
print(world.path("/").parts[2], flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        processes = processes_of_world(holder.stdout.readline().strip())
        assert len(processes) >= 3, "the first process, libvirtd and QEMU"
        holder.send_signal(signal.SIGKILL)
    wait_for(lambda: all(gone(pid) for pid in processes))


def test_what_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libvirt_rapl.simulator.world.SEARCH_PATH", "/nowhere")
    with pytest.raises(VirtRaplError, match="is not installed") as caught:
        World().__enter__()
    assert "apt install" in caught.value.hint


def test_a_world_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(VirtRaplError, match="absent"):
        World(None, shared=tmp_path / "absent").__enter__()
