"""Checks of what the machine itself can do."""

import os
from collections.abc import Iterator

from libvirt_rapl.doctor.finding import FAILED, HOST_METERING_ONLY, OK, SKIPPED, WARNING, Finding
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.vmsr import registers as vmsr_registers
from libvirt_rapl.host.energy_source import open_source
from libvirt_rapl.host.msr import AMD_VENDORS
from libvirt_rapl.host.process_clock import NOT_COUNTED
from libvirt_rapl.host.processes import read
from libvirt_rapl.host.requirements import check_cpus, check_enabled, check_processes_are_seen, check_processor
from libvirt_rapl.host.topology import model_name, packages
from libvirt_rapl.host.topology import processor as kind_of_processor


def processor(machine: Machine) -> Iterator[Finding]:
    """Intel's processors count energy for host and guests, AMD's for the host."""
    name = model_name(machine.proc) or "unknown processor"
    try:
        check_processor(machine.proc)
        yield Finding(OK, name)
    except VirtRaplError as error:
        amd = kind_of_processor(machine.proc).vendor in AMD_VENDORS
        what = "they can have it by the channel" if amd else "it may count no energy at all"
        yield Finding(WARNING, f"{name}: {error.message}; {what}", error.hint)


def energy(machine: Machine) -> Iterator[Finding]:
    """Where the host reads energy, and whether it is real."""
    source = open_source(machine.config.source, sys=machine.sys, dev=machine.dev, proc=machine.proc)
    zones = ", ".join(zone.name for zone in source.zones)
    if source.name == "simulated":
        yield Finding(WARNING, f"energy is SIMULATED, it is not this machine's own: {zones}", "end the simulation")
    else:
        yield Finding(OK, f"{source.name} shows {zones}")


def registers(machine: Machine) -> Iterator[Finding]:
    """What the helper reads for guests. With TPMI only, registers read 0 and qemu-vmsr-helper is of no use."""
    if not machine.can_serve_guests:
        yield HOST_METERING_ONLY
        return
    native = machine.config.helper == "native"
    try:
        found = vmsr_registers.find(
            machine.config.source if native else "msr", sys=machine.sys, dev=machine.dev, proc=machine.proc
        )
    except VirtRaplError as error:
        if native:
            raise
        hint = "set `helper: native`, which reads powercap as well, or modprobe msr"
        raise VirtRaplError(f"qemu-vmsr-helper reads registers only: {error.message}", hint) from error.__cause__
    if any(counter.register for counter in found.counters):
        yield Finding(OK, "helpers read the CPUs' registers")
    elif os.geteuid():
        yield Finding(
            SKIPPED, "this user reads powercap, and may not check whether a helper reads registers", "run as root"
        )
    else:
        yield Finding(OK, "helpers read powercap: the registers cannot be read, or read 0 (TPMI), or are not chosen")


def rapl(machine: Machine) -> Iterator[Finding]:
    """QEMU's own condition for RAPL."""
    if not machine.can_serve_guests:
        yield HOST_METERING_ONLY
        return
    check_enabled(machine.sys)
    yield Finding(OK, "intel-rapl is enabled")


def cpus(machine: Machine) -> Iterator[Finding]:
    """QEMU's condition for CPUs and packages."""
    if not machine.can_serve_guests:
        yield HOST_METERING_ONLY
        return
    check_cpus(machine.sys)
    found = packages(machine.sys)
    yield Finding(OK, f"CPUs: {sum(map(len, found.values()))}, all online; packages: {len(found)}")


def kvm(machine: Machine) -> Iterator[Finding]:
    """Only KVM guests can have RAPL."""
    if (machine.dev / "kvm").exists():
        yield Finding(OK, "/dev/kvm is there")
    else:
        module = "kvm_amd" if kind_of_processor(machine.proc).vendor in AMD_VENDORS else "kvm_intel"
        yield Finding(FAILED, "there is no /dev/kvm", f"modprobe {module}; is virtualization on in the firmware?")


def clock(machine: Machine) -> Iterator[Finding]:
    """How exactly the kernel reports which threads ran."""
    if (read(machine.proc / "self/schedstat") or NOT_COUNTED) == NOT_COUNTED:
        yield Finding(
            WARNING,
            "the kernel keeps no schedstat: threads' run time is counted in clock ticks, usually of 10 ms",
            "boot with `delayacct`, or Linux 5.14 or newer",
        )
    elif "nohz=off" in (read(machine.proc / "cmdline") or "").split():
        yield Finding(
            WARNING,
            "booted with nohz=off: the kernel guesses at timer ticks how long CPUs were busy",
            "remove nohz=off from the kernel's command line",
        )
    else:
        yield Finding(OK, "schedstat counts threads' run time in nanoseconds")


def processes(machine: Machine) -> Iterator[Finding]:
    """A helper has to see QEMU's threads."""
    check_processes_are_seen(machine.proc / "self/mountinfo")
    yield Finding(OK, "/proc shows all users' processes")
