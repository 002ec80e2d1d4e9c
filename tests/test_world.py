"""The private world: real libvirt and guests inside, nothing of the machine seen or touched, nothing left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.qemu import script

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator import world as world_module
from libvirt_rapl.simulator.world import NAMESPACES, NEEDED, World

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


@pytest.mark.e2e
def test_commands_run_inside(world: World) -> None:
    assert world.run(["cat"], input="as it is\n").stdout == "as it is\n"
    assert world.run(["hostname"]).stdout == "world\n"
    assert world.run(["sh", "-c", "exit 7"], check=False).returncode == 7
    with pytest.raises(VirtRaplError, match="no such thing"):
        world.run(["sh", "-c", "echo no such thing >&2; exit 1"])
    with pytest.raises(subprocess.TimeoutExpired):
        world.run(["sleep", "60"], timeout=0.2)


@pytest.mark.e2e
def test_a_command_that_is_killed_dies_inside_too(world: World) -> None:
    command = world.popen(["sh", "-c", "echo $$; exec sleep 60"])
    with command:
        assert command.stdout is not None
        inside = command.stdout.readline().strip()
        assert world.path(f"/proc/{inside}").exists()
        command.kill()
    wait_for(lambda: not world.path(f"/proc/{inside}").exists())


@pytest.mark.e2e
def test_the_machine_is_neither_seen_nor_touched(world: World) -> None:
    for directory in ("/etc", "/usr", "/var", "/opt", "/run"):
        world.run(["touch", f"{directory}/virt-rapl-was-here"])
        assert not Path(f"{directory}/virt-rapl-was-here").exists()
    assert world.run(["virsh", "list", "--all", "--name"]).stdout.split() == []
    assert world.run(["virsh", "net-list", "--all", "--name"]).stdout.split() == []
    assert world.run(["ls", "/sys/class/powercap/virt-rapl-simulator"]).stdout.split() == ["cpuinfo", "truth"]
    for kind in ("mnt", "pid", "uts", "net", "ipc"):
        assert world.path(f"/proc/1/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()


@pytest.mark.e2e
def test_qemu_runs_under_its_own_user(world: World, new_guest: Callable[..., str]) -> None:
    name = new_guest(0)
    world.run(["virsh", "start", name])
    wait_for_new_readings(world, name)
    pid = world.path(f"/run/libvirt/qemu/{name}.pid").read_text().strip()
    assert world.path(f"/proc/{pid}").stat().st_uid != 0


@pytest.mark.e2e
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


@pytest.mark.e2e
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


@pytest.mark.e2e
def test_everything_ends_with_the_block() -> None:
    with World() as world:
        world.start_libvirtd()
        processes = processes_of_world(world.path("/").parts[2])
        assert len(processes) >= 2, "the first process and libvirtd"
    assert all(gone(pid) for pid in processes)


@pytest.mark.e2e
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


@pytest.mark.e2e
def test_a_world_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(VirtRaplError, match="absent"):
        World(None, shared=tmp_path / "absent").__enter__()


# Without a world: programs that do what a test wants, in place of those that make one.

STARTS = "echo 4242; read line"
ENTERS = """
for word; do shift; [ "$word" = -- ] && break; done
exec 3<&0
"$@" <&3 3<&- &
wait $!
"""
"""As nsenter: it runs a command in a child."""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for them."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(world_module, "SEARCH_PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(world_module, "check_machine", lambda: None)
    script(tmp_path / "unshare", STARTS)
    script(tmp_path / "nsenter", ENTERS)
    return tmp_path


@pytest.fixture
def empty(programs: Path) -> Iterator[World]:  # noqa: ARG001 (they are there)
    """A world in which commands run that is none."""
    with World(None) as world:
        yield world


@pytest.mark.parametrize("missing", [*NEEDED, None])
def test_what_is_missing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str | None) -> None:
    for name in NEEDED:
        script(tmp_path / Path(name).name, "exit 0")
    needed = {str(tmp_path / Path(name).name) if "/" in name else name: package for name, package in NEEDED.items()}
    monkeypatch.setattr(world_module, "NEEDED", needed)
    monkeypatch.setattr(world_module, "SEARCH_PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if missing is None:
        world_module.check_machine()
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(VirtRaplError, match="root"):
            World().__enter__()
        return
    (tmp_path / Path(missing).name).unlink()
    with pytest.raises(VirtRaplError, match="is not installed") as caught:
        World().__enter__()
    assert NEEDED[missing] in caught.value.hint


@pytest.mark.parametrize(
    ("does", "message", "hint"),
    [
        (
            "echo a line >&2; echo virt-rapl: error: no FUSE >&2; echo hint: modprobe fuse >&2; exit 1",
            ": no FUSE",
            "modprobe fuse",
        ),
        ("echo first >&2; echo last >&2; echo >&2", ": last", "it needs root"),
        ("exit 1", ": it printed nothing", "it needs root"),
    ],
)
def test_why_a_world_cannot_start(programs: Path, does: str, message: str, hint: str) -> None:
    script(programs / "unshare", does)
    world = World(None)
    with pytest.raises(VirtRaplError, match=f"{message}$") as caught:
        world.__enter__()
    assert caught.value.hint.startswith(hint)
    assert world._process is None


def test_a_world_that_does_not_start_is_ended(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "START_SECONDS", 0.1)
    script(programs / "unshare", f"echo $$ > {programs}/pid; exec sleep 5")
    with pytest.raises(VirtRaplError, match=r"0\.1 s"):
        World(None).__enter__()
    assert gone(int((programs / "pid").read_text()))


def test_a_world_that_does_not_end_is_killed(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(programs / "unshare", "echo 4242; exec sleep 5")
    world = World(None).__enter__()
    process = world._process
    assert process is not None
    monkeypatch.setattr(world_module, "START_SECONDS", 0.1)
    world.close()
    assert process.returncode == -signal.SIGKILL


def test_a_world_ends_with_its_block_and_is_closed_once(programs: Path) -> None:
    script(programs / "unshare", f"echo $$ > {programs}/pid; echo 4242; read line; echo end > {programs}/end")
    before = set(Path("/proc/self/fd").iterdir())
    with World(None) as world:
        assert world.path("/mnt/log") == Path("/proc/4242/root/mnt/log")
    world.close()
    assert (programs / "end").exists(), "it was not killed"
    assert gone(int((programs / "pid").read_text()))
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize(
    ("simulate", "shared", "words"),
    [
        (None, None, ["libvirt_rapl.simulator.world_init", "a"]),
        (None, Path("/shared"), ["libvirt_rapl.simulator.world_init", "a", "/shared"]),
    ],
)
def test_how_a_world_is_started(
    programs: Path, simulate: list[str] | None, shared: Path | None, words: list[str]
) -> None:
    script(programs / "unshare", f'echo "$@" > {programs}/arguments; {STARTS}')
    with World(simulate, shared=shared, hostname="a"):
        arguments = (programs / "arguments").read_text().split()
    ours, theirs = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    assert {*NAMESPACES, "--kill-child", "private"} <= set(ours)
    assert theirs == [sys.executable, "-I", "-m", *words]


def test_a_command_has_its_input_and_output_and_a_clean_environment(
    empty: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRT_RAPL_STRAY", "1")
    old = os.umask(0o077)
    try:
        assert empty.run(["sh", "-c", "cat; umask; env"], input="in\n").stdout.split("\n")[:2] == ["in", "0022"]
        with empty.popen(["sh", "-c", "umask; env; cat"]) as command:
            printed = command.communicate()[0]
    finally:
        os.umask(old)
    assert printed.startswith("0022\n")
    for output in (empty.run(["env"]).stdout, printed):
        assert "STRAY" not in output
        assert "HOME=/run\n" in output
    assert empty.run(["cat"]).stdout == ""


@pytest.mark.parametrize(
    ("does", "status", "last"),
    [("echo first >&2; echo last >&2; exit 3", 3, "last"), ("exit 1", 1, "nothing"), ("exit 0", 0, "")],
)
def test_a_command_that_fails_is_an_error_unless_it_may(empty: World, does: str, status: int, last: str) -> None:
    assert empty.run(["sh", "-c", does], check=False).returncode == status
    if last:
        with pytest.raises(VirtRaplError, match=f"{last}$"):
            empty.run(["sh", "-c", does])
    else:
        empty.run(["sh", "-c", does])


def test_a_command_dies_with_what_has_started_it(empty: World) -> None:
    with empty.popen(["sh", "-c", "echo $$; exec sleep 60"]) as command:
        assert command.stdout is not None
        inside = int(command.stdout.readline())
        command.kill()
        wait_for(lambda: gone(inside))
