"""`virt-rapl demo`, as its user sees it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

VIRT_RAPL = str(Path(sys.executable).with_name("virt-rapl"))
QUICKSTART = Path(__file__).parent.parent / "etc/quickstart"
SECONDS = 4


def demo(*command: str) -> list[str]:
    """Run the command, which ends in the demo, and return the screens it showed."""
    command = (*command, f"--seconds={SECONDS}")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stderr
    assert "\033" not in done.stdout, "no terminal, so nothing is redrawn"
    assert done.stdout.splitlines()[-1].endswith("nothing is left behind")
    return done.stdout.split("\n\n")[1:]


def test_guests_read_what_status_says() -> None:
    """By the quick start, which here has nothing to install any more."""
    screens = demo(VIRT_RAPL, "simulate", "--idle-watts=100", "--cpu-watts=0", "--", str(QUICKSTART))
    assert len(screens) == SECONDS
    for screen in screens:
        assert "energy is SIMULATED" in screen
    rows = dict(re.findall(r"^(busy|calm) .* ([0-9.]+) J +[0-9.]+ J +\S+$", screens[-1], re.MULTILINE))
    own = dict(re.findall(r"^(busy|calm) .* ([0-9.]+) J +\S+$", screens[-1], re.MULTILINE))
    assert rows.keys() == own.keys() == {"busy", "calm"}
    assert float(rows["busy"]) > float(rows["calm"]) > 0
    assert float(own["busy"]) > float(own["calm"]) > 0


WITH_A_SCRIPT = """
mount -t tmpfs -o mode=755 none /srv
cp /usr/bin/qemu-system-x86_64 /srv/qemu-real
cat >/srv/script <<'X'
#!/bin/sh
case $* in *rapl=true*)
  echo "no meter today" >&2
  exit 1
esac
exec /srv/qemu-real "$@"
X
chmod 755 /srv/script
mount --bind /srv/script /usr/bin/qemu-system-x86_64
exec "$@"
"""
"""An emulator that runs guests; that it runs none with a meter cannot be known beforehand."""


def test_where_guests_start_without_a_meter_only_the_host_s_side_is_shown() -> None:
    command = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", WITH_A_SCRIPT, "sh", VIRT_RAPL)
    screens = demo(*command, "simulate", "--cpu=intel", "--", VIRT_RAPL, "demo")
    assert len(screens) == SECONDS
    for screen in screens:
        assert "no guest can read its energy here: " in screen
        assert "no meter today" in screen
    assert re.search(r"^busy .* [0-9.]+ W +[0-9.]+ J +- +-$", screens[-1], re.MULTILINE)


WITHOUT_KVM = """
set -eu
mount -t tmpfs -o mode=755 dev /mnt
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/fuse /mnt
mkdir /mnt/pts /mnt/shm
ln -s pts/ptmx /mnt/ptmx
mount --bind /dev/pts /mnt/pts
mount --rbind /mnt /dev
umount -l /mnt
exec "$@"
"""


def guests_read_by_the_channel(screens: list[str], why: str) -> None:
    assert len(screens) == SECONDS
    for screen in screens:
        assert "energy is SIMULATED" in screen
        assert re.search(f"guests get their energy by the channel: {why}", screen)
    own = dict(re.findall(r"^(busy|calm) .* ([0-9.]+) J +[+-]0\.0%$", screens[-1], re.MULTILINE))
    assert float(own["busy"]) > float(own["calm"]) > 0


def test_on_amd_guests_get_their_energy_by_the_channel() -> None:
    guests_read_by_the_channel(demo(str(QUICKSTART), "--cpu=amd"), "QEMU gives guests RAPL on Intel hosts only")


def test_a_kvm_that_runs_no_guests_is_found_out() -> None:
    """Any device that is no KVM: QEMU says so, and that is what the demo shows."""
    broken = 'mount --bind /dev/null /dev/kvm; exec "$@"'
    screens = demo("unshare", "--mount", "--propagation", "private", "sh", "-ec", broken, "sh", VIRT_RAPL, "demo")
    guests_read_by_the_channel(screens, ".*/dev/kvm.* does not run guests: qemu")


def test_without_kvm_guests_get_their_energy_by_the_channel() -> None:
    screens = demo("unshare", "--mount", "--propagation", "private", "sh", "-c", WITHOUT_KVM, "sh", VIRT_RAPL, "demo")
    guests_read_by_the_channel(screens, "this machine has no KVM")
