"""`virt-rapl simulate` for real: mounts, FUSE, processes, signals."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_rapl.host.processes import NANOSECONDS_PER_TICK
from libvirt_rapl.simulator import power
from libvirt_rapl.simulator.power import Model
from libvirt_rapl.simulator.registers import Counters

pytestmark = pytest.mark.e2e

VIRT_RAPL = [sys.executable, "-m", "libvirt_rapl"]
POWERCAP = Path("/sys/class/powercap")
ZONES = power.ZONES["intel"]
WAIT = 60
"""Seconds after which something that must happen is taken never to happen."""

PRELUDE = """
import errno, json, os, struct, sys, time
from pathlib import Path
from libvirt_rapl.host import topology
from libvirt_rapl.host.busy_clock import BusyClock
from libvirt_rapl.host.powercap import powercap_zones

POWERCAP = Path("/sys/class/powercap")
ZONES = {"package": (0x611, ""), "core": (0x639, ":0"), "dram": (0x619, ":1")}

def truth():
    return json.loads((POWERCAP / "virt-rapl-simulator/truth").read_text())

def pread(cpu, address, size=8):
    descriptor = os.open(f"/dev/cpu/{cpu}/msr", os.O_RDONLY)
    try:
        return os.pread(descriptor, size, address)
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        os.close(descriptor)

def msr(cpu, address):
    return struct.unpack("=Q", pread(cpu, address))[0]

def energy_uj(zone):
    return int((POWERCAP / ("intel-rapl:0" + ZONES[zone][1]) / "energy_uj").read_text())

def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
"""


def simulate(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*VIRT_RAPL, "simulate", *arguments], **{"capture_output": True, "text": True, "timeout": WAIT, **settings}
    )


def inside(script: str, *options: str) -> object:
    """Run Python in the simulated machine and return the document it prints."""
    done = simulate(*options, "--", sys.executable, "-c", PRELUDE + script)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def processes() -> dict[int, str]:
    """PID and mount namespace of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found[int(entry.name)] = str((entry / "ns/mnt").readlink())
            except OSError:
                continue
    return found


# What COMMAND finds.


def test_registers() -> None:
    answers = inside("""
fixed = {hex(address): msr(0, address) for address in (0x606, 0x610, 0x614)}
energy = [msr(0, address) for address in (0x611, 0x639, 0x619)]
errors = [pread(0, 0x10), pread(0, 0x641), pread(0, 0x611, 4), pread(0, 0x611, 16), pread(0, 0x611, 1)]
cpus_ = sorted(int(path.name) for path in Path("/dev/cpu").iterdir())
mode = os.stat("/dev/cpu/0/msr")
print(json.dumps([fixed, energy, errors, cpus_, [oct(mode.st_mode), mode.st_uid]]))
""")
    assert isinstance(answers, list)
    fixed, energy, errors, cpus, mode = answers
    assert fixed["0x606"] == 0xA0E03
    assert fixed["0x610"] > 0
    assert fixed["0x614"] > 0
    assert all(0 <= value < 2**32 for value in energy)
    assert errors == ["EIO", "EIO", "EINVAL", "EINVAL", "EINVAL"]
    assert len(cpus) == os.cpu_count()
    assert mode == ["0o100600", 0]


def test_counters_that_break_and_are_mended(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    answers = inside(
        f"""
def answers():
    try:
        Path("{POWERCAP}/intel-rapl:0/energy_uj").read_text()
    except OSError as error:
        return [pread(0, 0x611), error.errno == 5, msr(0, 0x606)]
    return [pread(0, 0x611) != "EIO", False, msr(0, 0x606)]
first = answers()
Path("{broken}").touch()
second = answers()
Path("{broken}").unlink()
print(json.dumps([first, second, answers()]))
""",
        f"--fail-while={broken}",
    )
    works = [True, False, 0xA0E03]
    assert answers == [works, ["EIO", True, 0xA0E03], works]


def test_our_own_reader_finds_the_zones() -> None:
    zones = inside("""
zones = powercap_zones(Path("/sys"))
print(json.dumps([[zone.name, zone.kind, zone.package, zone.wrap] for zone in zones if zone.read() >= 0]))
""")
    wrap = 262_143_328_851
    assert zones == [["core-0", "core", 0, wrap], ["dram-0", "dram", 0, wrap], ["package-0", "package", 0, wrap]]


def test_counters_show_the_truth_of_the_instant() -> None:
    """Each counter, in either view, lies between what the truth was just before and just after."""
    readings = inside("""
readings = []
for _ in range(50):
    for zone, (address, _) in ZONES.items():
        readings.append((zone, truth(), msr(0, address), energy_uj(zone), truth()))
    spin(0.01)
print(json.dumps(readings))
""")
    assert isinstance(readings, list)
    counters = Counters(Model())
    for zone, before, register, energy_uj, after in readings:
        low, high = (reading["packages"][0]["zones"][zone] for reading in (before, after))
        first, last = counters.register(0, zone, low), counters.register(0, zone, high)
        assert (register - first) % 2**32 <= (last - first) % 2**32
        first, last = counters.energy_uj(0, zone, low), counters.energy_uj(0, zone, high)
        assert first <= energy_uj <= last
    zones = [reading[1]["packages"][0]["zones"] for reading in readings]
    assert all(zones[-1][zone] > zones[0][zone] for zone in ZONES)


def test_power_follows_the_load() -> None:
    """Busy time is what another clock shows, and energy what the model makes of it."""
    answers = inside(
        """
clock = BusyClock(Path("/proc"))
def busy():
    return sum(clock.read().values())
around = [busy()]
first = truth()
around.append(busy())
spin(0.5)
around.append(busy())
last = truth()
around.append(busy())
print(json.dumps([around, first, last]))
""",
        "--idle-watts=10",
        "--cpu-watts=30",
    )
    assert isinstance(answers, list)
    (earliest, after_first, before_last, latest), first, last = answers
    elapsed = last["time"] - first["time"]
    before, after = (reading["packages"][0] for reading in (first, last))
    busy = after["busy_seconds"] - before["busy_seconds"]
    coarse = len(os.sched_getaffinity(0)) * 3 * NANOSECONDS_PER_TICK  # of each of the two clocks
    assert 2 * coarse < before_last - after_first <= round(busy * 1e9) + 2 * coarse
    assert round(busy * 1e9) <= latest - earliest + 2 * coarse
    package = after["zones"]["package"] - before["zones"]["package"]
    assert package == pytest.approx((10 * elapsed + 30 * busy) * 1e6, abs=20)
    assert after["zones"]["core"] - before["zones"]["core"] == pytest.approx(30 * busy * 1e6, abs=20)


def test_counters_wrap_soon() -> None:
    answers = inside(
        """
spent = {zone: 0 for zone in ZONES}
start = START
while any((start[zone] + spent[zone] * 16384 // 1_000_000) < 2**32 for zone in ZONES):
    spin(0.05)
    spent = truth()["packages"][0]["zones"]
print(json.dumps({zone: [msr(0, ZONES[zone][0]), energy_uj(zone)] for zone in ZONES}))
""".replace("START", repr({zone: Counters(Model(wrap_soon=True)).register(0, zone, 0) for zone in ZONES})),
        "--wrap-soon",
    )
    assert isinstance(answers, dict)
    for zone in ZONES:
        register, energy_uj = answers[zone]
        # From the end of the range to its beginning.
        assert Counters(Model(wrap_soon=True)).register(0, zone, 0) > 2**32 - 2**21
        assert register < 2**31
        assert energy_uj < 2**31 * 61.035


@pytest.mark.skipif(os.cpu_count() == 1, reason="one CPU is one package")
def test_two_packages() -> None:
    answers = inside(
        """
packages = topology.packages(Path("/sys"))
first, second = packages[0][0], packages[1][0]
before = truth()["packages"]
os.sched_setaffinity(0, {second})
spin(0.5)
after = truth()["packages"]
names = [zone.name for zone in powercap_zones(Path("/sys"))]
spent = [(a["zones"]["core"] - b["zones"]["core"]) for a, b in zip(after, before)]
print(json.dumps([packages, names, spent, [msr(first, 0x611), msr(second, 0x611)], before, truth()["packages"]]))
""",
        "--packages=2",
    )
    assert isinstance(answers, list)
    packages, names, spent, registers, before, after = answers
    cpus = [*packages["0"], *packages["1"]]
    assert cpus == sorted(cpus)
    assert len(packages["0"]) == len(cpus) // 2
    assert names == ["core-0", "core-1", "dram-0", "dram-1", "package-0", "package-1"]
    assert spent[1] > 0
    counters = Counters(Model(packages=2))
    for package in (0, 1):
        first = counters.register(package, "package", before[package]["zones"]["package"])
        last = counters.register(package, "package", after[package]["zones"]["package"])
        assert (registers[package] - first) % 2**32 <= (last - first) % 2**32


def test_more_packages_than_cpus() -> None:
    done = simulate("--packages=100000", "--", "true")
    assert done.returncode == 1
    assert done.stderr.startswith("virt-rapl: error: 100000 packages need as many cores")
    assert "hint: " in done.stderr


def test_any_user_may_see_that_rapl_is_enabled_but_no_energy() -> None:
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups "
    done = simulate(
        "--",
        *(
            "sh",
            "-c",
            nobody + f"cat {POWERCAP}/intel-rapl/enabled; " + nobody + f"cat {POWERCAP}/intel-rapl:0/energy_uj",
        ),
    )
    assert (done.returncode, done.stdout) == (1, "1\n")
    assert "Permission denied" in done.stderr
    done = simulate("--", *nobody.split(), "cat", "/dev/cpu/0/msr")
    assert (done.returncode, done.stdout) == (1, "")


def test_nothing_can_be_written() -> None:
    done = simulate("--", "sh", "-c", f"echo 0 > {POWERCAP}/intel-rapl/enabled; cat {POWERCAP}/intel-rapl/enabled")
    assert done.stdout == "1\n"
    assert "Read-only file system" in done.stderr


def test_a_nested_namespace_inherits_it() -> None:
    nested = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
    done = simulate("--", *nested, "sh", "-c", f"cat {POWERCAP}/intel-rapl/enabled; ls /dev/cpu/0; echo $$")
    assert done.stdout == "1\nmsr\n1\n"


def test_a_machine_without_dev_cpu() -> None:
    """/dev gets the directory by an overlay, and keeps what is mounted in it."""
    hide = """
mount -t tmpfs none /mnt && mkdir /mnt/pts /mnt/upper /mnt/work && mknod /mnt/upper/cpu c 0 0
mount --bind /dev/pts /mnt/pts
mount -t overlay none -o lowerdir=/dev,upperdir=/mnt/upper,workdir=/mnt/work /dev
mount --bind /mnt/pts /dev/pts && mkdir -p /dev/shm && mount -t tmpfs none /dev/shm && touch /dev/shm/mine
umount -l /mnt
test ! -e /dev/cpu && exec "$@"
"""
    look = "ls /dev/cpu/0 /dev/shm; test -e /dev/pts/ptmx && echo pts; echo > /dev/null && echo null"
    prefix = ["unshare", "--mount", "--propagation=private", "sh", "-c", hide, "sh"]
    command = [*prefix, *VIRT_RAPL, "simulate", "--", "sh", "-c", look]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
    assert done.stdout == "/dev/cpu/0:\nmsr\n\n/dev/shm:\nmine\npts\nnull\n", done.stderr


# COMMAND and its processes.


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_the_exit_status_is_the_commands(script: str, status: int) -> None:
    assert simulate("--", "sh", "-c", script).returncode == status


def test_standard_streams_are_the_commands() -> None:
    done = simulate("--", "cat", input="in and out\n")
    assert done.stdout == "in and out\n"
    (line,) = done.stderr.splitlines()
    assert line == "virt-rapl: energy is SIMULATED: 1 Intel package, 20 W idle and 40 W more for each busy CPU"


def test_a_reader_of_the_output_sees_it_closed() -> None:
    command = [*VIRT_RAPL, "simulate", "--", "sh", "-c", "echo all; exec >&-; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"all\n"
            assert select.select([process.stdout], [], [], WAIT)[0]
            assert process.stdout.read() == b""
            assert process.poll() is None
        finally:
            process.terminate()


def test_arguments_reach_the_command_untouched() -> None:
    arguments = ["--json", "--help", "-h", "--", "--seed", "3", "", "two words", "*", "$HOME"]
    done = simulate("--seed", "2", "--", "printf", "%s|", *arguments)
    assert done.stdout == "".join(f"{argument}|" for argument in arguments)
    done = simulate("--", *VIRT_RAPL, "--config", "/none", "simulate", "--help")
    assert done.stdout.startswith("usage: virt-rapl simulate")


def test_signals_are_as_a_plain_command_has_them() -> None:
    command = ["cat", "/proc/self/status"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert _signals(simulate("--", *command).stdout) == _signals(plain)


def _signals(status: str) -> list[int]:
    """Blocked and ignored signals, without those that the C library keeps for itself (from 32 on)."""
    fields = dict(line.split(":\t") for line in status.splitlines())
    return [int(fields[name], 16) & 0x7FFFFFFF for name in ("SigBlk", "SigIgn")]


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM"])
def test_signals_reach_the_command(name: str) -> None:
    script = f"trap 'exit 42' {name}; echo ready; while :; do sleep 0.02; done"
    command = [*VIRT_RAPL, "simulate", "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.wait(WAIT) == 42


def test_ctrl_c_reaches_the_command_once() -> None:
    """The terminal gives it to the whole foreground group, so it must not be passed on as well."""
    script = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("ready", flush=True)
senders = [signal.sigwaitinfo([signal.SIGINT]).si_pid]
while more := signal.sigtimedwait([signal.SIGINT], 0.5):
    senders.append(more.si_pid)
print("got", senders)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*VIRT_RAPL, "simulate", "--", sys.executable, "-c", script])
    with open(terminal, "r+b", buffering=0) as screen:
        seen = b""
        while b"ready" not in seen:
            seen += screen.read(100)
        screen.write(b"\x03")
        while b"got" not in seen or not seen.endswith(b"\n"):
            seen += screen.read(100)
    assert seen.endswith(b"got [0]\r\n")
    assert os.waitpid(pid, 0)[1] == 0


def test_a_command_that_does_not_exist() -> None:
    done = simulate("--", "/no/such/command")
    assert done.returncode == 1
    assert "virt-rapl: error: cannot run /no/such/command: No such file or directory\nhint: " in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [[], ["--"], ["--packages=0", "--", "true"], ["--idle-watts=inf", "--", "true"], ["--no", "--", "true"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = simulate(*arguments)
    assert done.returncode == 2
    assert "usage: virt-rapl simulate [options] -- COMMAND" in done.stderr


def test_only_root_may() -> None:
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--reuid=0", *VIRT_RAPL, "simulate", "--", "true"],
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("virt-rapl: error: may not mount file systems")


# The end.

FAMILY = """
sleep 1000 &
setsid sh -c 'sleep 1000 & echo; exec sleep 1000' > /dev/null &
unshare --pid --fork --mount --mount-proc sh -c 'sleep 1000 & sleep 1000' &
echo ready
"""


def start_family(script: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a command with children, grandchildren and a nested PID namespace; return it and its mount namespace."""
    process = subprocess.Popen(
        [*VIRT_RAPL, "simulate", "--", "sh", "-c", FAMILY + script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    # The process it started directly, the keeper, lives in the namespace.
    (keeper,) = children(process.pid)
    wait_until(lambda: len(descendants(keeper)) >= 9)
    return process, processes()[keeper]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        try:
            found += [child, *descendants(child)]
        except OSError:
            continue
    return found


@pytest.mark.parametrize("victim", ["simulate", "keeper"])
def test_kill_9_leaves_nothing(victim: str) -> None:
    process, namespace = start_family("wait")
    with process:
        family = descendants(process.pid)
        (keeper,) = children(process.pid)
        held = os.open(f"/proc/{keeper}/ns/mnt", os.O_RDONLY)  # or another namespace gets its number
        os.kill(process.pid if victim == "simulate" else keeper, signal.SIGKILL)
        assert process.wait(WAIT) == (-9 if victim == "simulate" else 137)
        wait_until(lambda: not processes().keys() & family)
        wait_until(lambda: namespace not in processes().values())
        os.close(held)


def test_what_the_command_leaves_running_is_killed() -> None:
    process, namespace = start_family("read line; exit 3")
    with process:
        family = descendants(process.pid)
        process.communicate(b"go on\n", timeout=WAIT)
        assert process.returncode == 3
        assert not processes().keys() & family
        assert namespace not in processes().values()
