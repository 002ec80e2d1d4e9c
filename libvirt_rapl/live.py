"""Giving a running domain its meter without a reboot: it is saved, and as it is restored the hook puts the meter in.

A persistent domain is saved as libvirt's managed save: whatever becomes of us then, `virsh start` lets it go on where
it was. A transient one is saved to a file beside those. A domain that libvirt does not save runs on; one that is saved
is restored, with its meter or, when that fails, without.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from libvirt_rapl import domxml, emulator, events, inventory
from libvirt_rapl.domains import Domain, LibvirtError, lookup_uuid
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host import processes
from libvirt_rapl.installer import HOOK
from libvirt_rapl.registry import Registry
from libvirt_rapl.view import vrapl_state
from libvirt_rapl.vmsr.requirements import check_host

SAVES = Path("/var/lib/libvirt/qemu/save")
"""Where libvirt puts managed saves."""
TRIAL_BYTES = 64 << 20
"""So much is written there at most, and forgotten, to see how fast that goes."""
RESTART_SECONDS = 2.0
"""What a pause takes however small the domain: the new QEMU, and the hook."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What shall happen to a running domain."""

    domain: Domain
    enable: Callable[[], None]
    """Enables its definition, as that is then, once the domain has its meter."""
    persistent: bool
    used_bytes: int
    """Memory that QEMU uses: as much is written, and read again."""
    bytes_per_second: float

    def __str__(self) -> str:
        """Tell it in one line."""
        seconds = RESTART_SECONDS + 2 * self.used_bytes / self.bytes_per_second
        return (
            f"{self.domain.name}: pauses for about {seconds:.0f} s: it is saved to {SAVES} and restored with its meter "
            f"({_mib(self.used_bytes)} of memory; written at {_mib(self.bytes_per_second)}/s)"
        )

    @property
    def image(self) -> Path:
        """The file that holds the domain while it does not run."""
        return SAVES / (f"{self.domain.name}.save" if self.persistent else f"{self.domain.uuid}.virt-rapl")

    @property
    def command(self) -> str:
        """What restores the domain from that file."""
        return f"virsh start {self.domain.name}" if self.persistent else f"virsh restore {self.image}"


def is_active(domain: Domain, registry: Registry) -> bool:
    """Tell whether the guest reads its joules already."""
    return vrapl_state(inventory.describe(domain), registry.read(domain.uuid), registry)[0] == "active"


def plan(domain: Domain, enable: Callable[[], None], registry: Registry) -> Plan:
    """Check all that can be checked beforehand. Raises VirtRaplError when the domain cannot have its meter now."""
    if os.geteuid():
        raise VirtRaplError("saving a running domain and restoring it with its meter takes root", "use sudo")
    pid = inventory.running_pid(domain)
    if pid is None:
        raise VirtRaplError("the domain does not run", "without --live it is enabled from its next start on")
    hook = Path("/", HOOK)
    if not os.access(hook, os.X_OK):
        raise VirtRaplError(f"there is no hook {hook}", "run `virt-rapl install`")
    check_host()
    xml = domain.live_xml()
    domxml.check(xml, str(registry.path(domain.uuid, "sock")))
    path = domxml.original_emulator(xml)
    emulator.check(path)
    try:
        # libvirt starts a QEMU or two for an answer, which it remembers: now, and not while the guest waits.
        domain.handle.connect().getDomainCapabilities(path + domxml.WRAPPER_SUFFIX, "x86_64", None, "kvm")
    except LibvirtError as error:
        raise VirtRaplError(f"libvirt cannot use {path}{domxml.WRAPPER_SUFFIX}: {error}", "see its log") from error
    used, free = _used_bytes(pid), _free_bytes()
    if free < used:
        raise VirtRaplError(f"it uses {_mib(used)} of memory, and {SAVES} has {_mib(free)} free", "make room there")
    return Plan(
        domain=domain,
        enable=enable,
        persistent=domain.persistent,
        used_bytes=used,
        bytes_per_second=_bytes_per_second(min(used, TRIAL_BYTES)),
    )


def switch_on(plan: Plan, registry: Registry) -> float:
    """Save and restore the domain, and return the seconds that took; the guest stood still for so long at most.

    Raises VirtRaplError when the guest has no meter afterwards; the message says whether it runs.
    """
    began = time.monotonic()
    result, reason = "failed", "see what virt-rapl said"
    with _signals_held_back() as signals:
        try:
            _save(plan, signals)
            _restore(plan, registry)
            seconds = time.monotonic() - began
            _check(plan.domain, registry)
            plan.enable()
            result, reason = "active", ""
        except VirtRaplError as error:
            reason = error.message
            raise
        finally:
            milliseconds = round(1000 * (time.monotonic() - began))
            events.tell(
                registry.run_directory,
                events.Event(
                    time=time.time(),
                    domain=plan.domain.name,
                    uuid=plan.domain.uuid,
                    operation="live",
                    milliseconds=milliseconds,
                    result=result,
                    reason=reason,
                ),
            )
    return seconds


@contextlib.contextmanager
def _signals_held_back() -> Iterator[list[int]]:
    """Collect the signals that would end us half-way; the first takes effect at the end, unless that is an error."""
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def _save(plan: Plan, signals: list[int]) -> None:
    """Save and end the domain; a signal cancels that."""
    handle = plan.domain.handle
    with ThreadPoolExecutor(1) as thread:
        saving = thread.submit(handle.managedSave) if plan.persistent else thread.submit(handle.save, str(plan.image))
        while not saving.done():
            time.sleep(0.02)
            if signals:
                with contextlib.suppress(LibvirtError):  # not begun yet, or over
                    handle.abortJob()
    try:
        saving.result()
    except LibvirtError as error:
        name = plan.domain.name
        if not _is_active(plan):
            raise VirtRaplError(
                f"{name}: ended while libvirt saved it, or libvirt was lost: {error}",
                f"see `virsh domstate {name}`; if it is saved, `{plan.command}` lets it go on where it was",
            ) from error
        if signals:
            raise VirtRaplError(f"{name}: cancelled; it runs on as before") from error
        raise VirtRaplError(
            f"{name}: runs on as before, as libvirt did not save it: {error}",
            f"`virsh domstate {name}` shows it; enabled without --live, it gets its meter at its next start",
        ) from error


def _is_active(plan: Plan) -> bool:
    try:
        return bool(plan.domain.handle.isActive())
    except LibvirtError:
        return False


def _restore(plan: Plan, registry: Registry) -> None:
    """Let the saved domain go on, with its meter if that is possible."""
    name, handle = plan.domain.name, plan.domain.handle
    connection = handle.connect()

    def restore(*, meter: bool) -> None:
        with registry.restoring(plan.domain.uuid, meter=meter):
            if plan.persistent:
                handle.create()
            else:
                connection.restore(str(plan.image))
                plan.image.unlink()

    try:
        return restore(meter=True)
    except LibvirtError as error:
        if _is_active(plan):
            return None  # somebody else was faster
        trouble = error
    try:
        restore(meter=False)
    except LibvirtError as error:
        raise VirtRaplError(
            f"{name}: cannot be restored: {error}; nothing is lost, it is saved in {plan.image}",
            f"mend what the message says, then `{plan.command}`: it goes on where it was",
        ) from error
    raise VirtRaplError(
        f"{name}: runs on as before, as it could not be restored with its meter: {trouble}",
        f"see /var/log/libvirt/qemu/{name}.log",
    ) from trouble


def _check(domain: Domain, registry: Registry) -> None:
    """Raise VirtRaplError unless the restored domain has its meter."""
    restored = lookup_uuid(domain.handle.connect(), domain.uuid)
    if restored is None:
        raise VirtRaplError(f"{domain.name}: was restored and has ended since")
    vrapl, reason = vrapl_state(inventory.describe(restored), registry.read(domain.uuid), registry)
    if vrapl == "active":
        return
    if vrapl == "degraded":
        raise VirtRaplError(f"{domain.name}: runs on, without its meter: {reason}", "mend that and try again")
    raise VirtRaplError(
        f"{domain.name}: runs on as before: its meter was not put in as it was restored",
        "see `virt-rapl events`; without a line there, libvirt does not know the hook: systemctl reload libvirtd",
    )


def _used_bytes(pid: int) -> int:
    """Return what QEMU's memory holds, in RAM and swapped out: what is written at most, but for some kilobytes."""
    status = processes.read(processes.PROC / str(pid) / "status") or ""
    lines = (line.split() for line in status.splitlines())
    return sum(int(words[1]) << 10 for words in lines if words[0] in ("VmRSS:", "VmSwap:", "HugetlbPages:"))


def _free_bytes() -> int:
    space = os.statvfs(SAVES)
    return space.f_bavail * space.f_frsize


def _bytes_per_second(size: int) -> float:
    """Return how fast a file of about this size gets onto the disk as libvirt does it: through another process."""
    block = os.urandom(1 << 20)
    blocks = max(1, size // len(block))
    began = time.monotonic()
    try:
        with tempfile.TemporaryFile(dir=SAVES) as trial:
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=trial) as copier:
                assert copier.stdin is not None
                for _ in range(blocks):
                    copier.stdin.write(block)
            os.fsync(trial.fileno())
    except OSError as error:
        raise VirtRaplError(f"cannot write to {SAVES}: {error}", "make room there") from error
    return blocks * len(block) / (time.monotonic() - began)


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.0f} MiB"
