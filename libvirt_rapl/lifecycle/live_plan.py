"""What `enable --live` would do to a running domain: the checks beforehand, and how long its guest will pause."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from libvirt_rapl import paths
from libvirt_rapl.domains import emulator, inventory
from libvirt_rapl.domains.connection import LibvirtError
from libvirt_rapl.domains.domain import NO_JOB, Domain
from libvirt_rapl.domains.names import WRAPPER_SUFFIX
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import free_bytes
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host import processes
from libvirt_rapl.host.requirements import check_host
from libvirt_rapl.paths import PROC

SAVES = Path("/", paths.LIBVIRT_SAVES)
TRIAL_BYTES = 64 << 20
"""At most this much is written there, and removed, to measure how fast that is."""
RESTART_SECONDS = 2.0
"""How long the smallest domain pauses: for the new QEMU and the hook."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to happen to a running domain."""

    domain: Domain
    enable: Callable[[], None]
    """Enables its definition, whatever it is by then, once the domain has its meter."""
    persistent: bool
    used_bytes: int
    """Memory that QEMU uses: that much is written, and read again."""
    bytes_per_second: float

    def __str__(self) -> str:
        """Return the plan in one line."""
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


def plan(domain: Domain, enable: Callable[[], None], registry: Registry) -> Plan:
    """Check all that can be checked beforehand. Raises VirtRaplError when the domain cannot have its meter now."""
    if os.geteuid():
        raise VirtRaplError("saving a running domain and restoring it with its meter takes root", "use sudo")
    with registry.switching_on(domain.uuid):  # or we would report what another `enable --live` does to it as a failure
        return _checked_plan(domain, enable, registry)


def _checked_plan(domain: Domain, enable: Callable[[], None], registry: Registry) -> Plan:
    state = inventory.run_state(domain)
    pid = state.pid if state else None
    if pid is None:
        raise VirtRaplError("the domain does not run", "without --live it is enabled from its next start on")
    check_host()
    running = domain.live()
    running.check(registry.socket(domain.uuid))
    hook = Path("/", paths.HOOK)
    if not os.access(hook, os.X_OK):
        raise VirtRaplError(f"there is no hook {hook}", emulator.INSTALL)
    path = running.emulator()
    emulator.check(path)
    try:
        # libvirt starts a QEMU or two to answer, and remembers the answer: do that now, not while the guest waits.
        domain.handle.connect().getDomainCapabilities(path + WRAPPER_SUFFIX, "x86_64", None, "kvm")
    except LibvirtError as error:
        raise VirtRaplError(f"libvirt cannot use {path}{WRAPPER_SUFFIX}: {error}", "see its log") from error
    check_jobs(domain)
    used, free = _used_bytes(pid), free_bytes(SAVES)
    if free < used:
        raise VirtRaplError(f"it uses {_mib(used)} of memory, and {SAVES} has {_mib(free)} free", "make room there")
    made = Plan(
        domain=domain,
        enable=enable,
        persistent=domain.persistent,
        used_bytes=used,
        bytes_per_second=_bytes_per_second(min(used, TRIAL_BYTES)),
    )
    check_image(made)
    return made


def check_jobs(domain: Domain) -> None:
    """Raise VirtRaplError while libvirt does something else with the domain: a save would end or spoil it."""
    try:
        kind = domain.handle.jobInfo()[0]
    except LibvirtError as error:
        raise VirtRaplError(f"cannot ask for the jobs of the domain: {error}", "is it still there?") from error
    if kind != NO_JOB:
        raise VirtRaplError("libvirt is busy with it (a backup, a migration, ...)", "`virsh domjobinfo` shows it; wait")


def check_image(plan: Plan) -> None:
    """Raise VirtRaplError if we would overwrite an image that an earlier run of ours has left."""
    if not plan.persistent and plan.image.exists():
        raise VirtRaplError(
            f"{plan.image} was left by an `enable --live` that was killed",
            "remove it: the domain runs again, and restoring the file would set it back",
        )


def _used_bytes(pid: int) -> int:
    """Return the bytes of QEMU's memory, in RAM and swapped out: no more is written, except for some kilobytes."""
    status = processes.read(PROC / str(pid) / "status") or ""
    lines = (line.split() for line in status.splitlines())
    return sum(int(words[1]) << 10 for words in lines if words[0] in ("VmRSS:", "VmSwap:", "HugetlbPages:"))


def _bytes_per_second(size: int) -> float:
    """Return how fast a file of about this size is written to the disk the way libvirt does it: through a pipe."""
    block = os.urandom(1 << 20)
    blocks = max(1, size // len(block))
    began = time.monotonic()
    try:
        with tempfile.TemporaryFile(dir=SAVES) as trial:
            reader, writer = os.pipe()
            with ThreadPoolExecutor(1) as writing, open(reader, "rb") as pipe:
                writing.submit(_write, writer, block, blocks)
                shutil.copyfileobj(pipe, trial, len(block))
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        raise VirtRaplError(f"cannot write to {SAVES}: {error}", "make room there") from error
    return blocks * len(block) / (time.monotonic() - began)


def _write(descriptor: int, block: bytes, times: int) -> None:
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb") as pipe:
        for _ in range(times):
            pipe.write(block)


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.0f} MiB"
