"""Whose processor a simulated machine has: what is replaced where, and what QEMU and others then take it for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from libvirt_rapl.host.topology import processor
from libvirt_rapl.simulator.processor import IDENTITIES, NAMES, PROGRAMS, Vendor, copies, cpuinfo_of, vendor_of
from libvirt_rapl.simulator.world import World

VENDORS: tuple[Vendor, ...] = ("intel", "amd")
CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu vme

processor\t: 1
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu vme

"""
HELPER = b"\x0f\xa2\x81\xfbGenu\x0f\x94\xc3\x81\xfaineI\x0f\x94\xc0!\xc3\x81\xf9ntel\x0f intel-rapl \x81\xf9ntelt3"
"""As a compiler makes it of three comparisons; and texts and comparisons that have nothing to do with it."""


def test_cpuinfo_of_another_vendor(tmp_path: Path) -> None:
    text = cpuinfo_of(CPUINFO, "intel")
    assert text.count("vendor_id\t: GenuineIntel\n") == 2
    assert text.count("model name\t: simulated Intel processor on AMD EPYC\n") == 2
    assert text.count("flags\t\t: fpu vme\n") == 2
    (tmp_path / "cpuinfo").write_text(text)
    assert tuple(processor(tmp_path)) == IDENTITIES["intel"]


def test_cpuinfo_of_the_same_vendor_is_the_machines_own() -> None:
    assert cpuinfo_of(CPUINFO, "amd") == CPUINFO
    assert vendor_of(CPUINFO) == "AuthenticAMD"
    assert vendor_of("flags\t: fpu\n") == ""


@pytest.mark.parametrize(
    ("real", "simulated", "compared"),
    [
        ("AuthenticAMD", "intel", b"AuthenticAMD"),  # as CPUID will say
        ("HygonGenuine", "intel", b"HygonGenuine"),
        ("GenuineIntel", "amd", b"AuthenticAMD"),  # which it will not
        ("HygonGenuine", "amd", b"AuthenticAMD"),
    ],
)
def test_what_programs_compare_with(tmp_path: Path, real: str, simulated: Vendor, compared: bytes) -> None:
    qemu, helper, link = (tmp_path / name for name in ("qemu-real", "helper", "qemu"))
    qemu.write_bytes(b"\0AuthenticAMD\0GenuineIntel\0")
    helper.write_bytes(HELPER)
    link.symlink_to(qemu)
    made = copies(real, simulated, (link, helper, tmp_path, tmp_path / "absent"))
    words = {b"Genu": compared[:4], b"ineI": compared[4:8], b"ntel\x0f": compared[8:] + b"\x0f"}
    expected = HELPER
    for old, new in words.items():
        expected = expected.replace(old, new)
    assert made == {qemu: b"\0AuthenticAMD\0" + compared + b"\0", helper: expected}


def test_a_program_that_is_right_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "qemu").write_bytes(b"GenuineIntel")
    assert copies("GenuineIntel", "intel", (tmp_path / "qemu",)) == {}
    assert copies("AuthenticAMD", "amd", (tmp_path / "qemu",)) == {}


@pytest.mark.parametrize("vendor", ["AuthenticAMD", "", "odd"])
def test_a_program_that_asks_in_another_way(tmp_path: Path, vendor: str) -> None:
    (tmp_path / "qemu").write_bytes(b"#!/bin/sh\nexec /opt/qemu\n")
    assert copies(vendor, "intel", (tmp_path / "qemu",)) == {tmp_path / "qemu": None}
    (tmp_path / "qemu").write_bytes(b"GenuineIntel")
    assert (copies(vendor, "intel", (tmp_path / "qemu",))[tmp_path / "qemu"] is None) == (vendor != "AuthenticAMD")


ASK = """
import json, subprocess
from pathlib import Path
from libvirt_rapl.host.topology import processor
from libvirt_rapl.host.msr import msr_zones
from libvirt_rapl.host.powercap import powercap_zones
roots = {"sys": Path("/sys"), "proc": Path("/proc"), "dev": Path("/dev")}
qemu = ["qemu-system-x86_64", "-machine", "none", "-display", "none", "-accel"]
qemu = subprocess.run([*qemu, "kvm,rapl=true,rapl-helper-socket=/nowhere"], capture_output=True, text=True)
helper = ["timeout", "0.5", "qemu-vmsr-helper", "-k", "/run/virt-rapl-test.sock"]
helper = subprocess.run(helper, capture_output=True, text=True)
powercap = [zone.name for zone in powercap_zones(roots["sys"])]
print(json.dumps([processor(roots["proc"]), powercap, [zone.name for zone in msr_zones(**roots)], qemu.stderr,
                  helper.stderr]))
"""
"""Which programs ask for the vendor, and what each finds. QEMU goes on to its socket if it finds Intel's."""
ZONES = {"intel": ["core-0", "dram-0", "package-0"], "amd": ["core-0", "package-0"]}


@pytest.mark.e2e
@pytest.mark.parametrize("vendor", VENDORS)
def test_everybody_takes_it_for_that_vendors(vendor: Vendor) -> None:
    """In a world too, which has a /proc and a /usr of its own; and nothing of it is seen outside."""
    before = {path: path.read_bytes() for path in (*PROGRAMS, Path("/proc/cpuinfo")) if path.exists()}
    simulate = [sys.executable, "-m", "libvirt_rapl", "simulate", "--cpu", vendor, "--", sys.executable, "-c", ASK]
    done = subprocess.run(simulate, capture_output=True, text=True, timeout=60, check=True)
    assert f"SIMULATED: 1 {NAMES[vendor]} package" in done.stderr
    with World(["--cpu", vendor]) as world:
        answers = [json.loads(done.stdout), json.loads(world.run([sys.executable, "-c", ASK]).stdout)]
        replaced = world.run(["sh", "-c", "cp /bin/true /usr/bin/new && mv /usr/bin/new /usr/bin/qemu-system-x86_64"])
    for identity, powercap, registers, qemu, helper in answers:
        assert identity[0] == IDENTITIES[vendor].vendor_id
        assert powercap == registers == ZONES[vendor]
        assert ("only be enabled on hosts with Intel" in qemu) == (vendor == "amd"), qemu
        assert ("not INTEL" in helper) == (vendor == "amd"), helper
    assert replaced.returncode == 0, "in a world they are files, which an upgrade can replace"
    assert {path: path.read_bytes()[:1000] for path in before} == {path: text[:1000] for path, text in before.items()}


WITHOUT_QEMU = """
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay none -o lowerdir=/usr,upperdir=/mnt/upper,workdir=/mnt/work /usr
umount -l /mnt
rm -f $PROGRAMS
exec "$@"
"""


@pytest.mark.e2e
def test_a_machine_without_qemu_can_be_simulated() -> None:
    for vendor in VENDORS:
        command = [sys.executable, "-m", "libvirt_rapl", "simulate", "--cpu", vendor, "--", "cat", "/proc/cpuinfo"]
        done = subprocess.run(
            ["unshare", "--mount", "--propagation=private", "sh", "-ec", WITHOUT_QEMU, "sh", *command],
            env={**os.environ, "PROGRAMS": " ".join(map(str, PROGRAMS))},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert vendor_of(done.stdout) == IDENTITIES[vendor].vendor_id
