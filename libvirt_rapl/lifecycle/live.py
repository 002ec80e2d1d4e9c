"""Giving a running domain its meter without a reboot: it is saved, and the hook puts the meter in when it is restored.

A persistent domain is saved as libvirt's managed save: whatever happens to us then, `virsh start` resumes it where it
was. A transient one is saved to a file beside those. A domain that libvirt does not save runs on; one that is saved is
restored with its meter or, if that fails, without.
"""

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from libvirt_rapl import paths
from libvirt_rapl.domains import inventory
from libvirt_rapl.domains.connection import LibvirtError
from libvirt_rapl.domains.domain import SAVE_JOB, Domain, lookup_uuid
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.helper.run_directory import HowToRestore
from libvirt_rapl.lifecycle import events
from libvirt_rapl.lifecycle.live_plan import Plan, check_image, check_jobs
from libvirt_rapl.lifecycle.meter_state import vrapl_state

KILLED = re.compile(
    r"terminating on signal"
    r"|(exited while connecting to|closed the) monitor( \(vm=.*\))?\s*$"
    r"|Unable to (write to|read from) monitor: [^:]*$"
)
"""libvirt's message about a QEMU that was killed while it started; for any other it quotes QEMU's last message."""


def is_active(domain: Domain, registry: Registry) -> bool:
    """Return whether the guest reads its joules already."""
    return vrapl_state(inventory.describe(domain), registry.read(domain.uuid), registry)[0] == "active"


def switch_on(plan: Plan, registry: Registry, report: Callable[[str], None]) -> None:
    """Save and restore the domain, and report in one line how long that took, which is the guest's longest pause.

    Signals that would end us half-way take effect after the report. Raises VirtRaplError when the guest has no meter
    afterwards, or its definition is not enabled; the message says whether the domain runs.
    """
    name = plan.domain.name
    with _signals_held_back() as signals, contextlib.ExitStack() as stack:
        try:
            instruct_hook = stack.enter_context(registry.switching_on(plan.domain.uuid))
            before = lookup_uuid(plan.domain.handle.connect(), plan.domain.uuid)
            if before is None or not before.active:
                raise VirtRaplError("it has ended meanwhile", "without --live it is enabled from its next start on")
            if is_active(before, registry):
                report(f"{name}: its meter is already active")
                return
            check_jobs(before)
            check_image(plan)
            instruct_hook("with")
        except VirtRaplError as error:
            raise VirtRaplError(f"{name}: {error.message}", error.hint) from error
        with events.recording(registry.run_directory, name, plan.domain.uuid, "live") as has_come_to:
            began = time.monotonic()
            _save(plan, signals)
            _restore(plan, instruct_hook)
            seconds = time.monotonic() - began
            _check(plan.domain, registry)
            has_come_to("active")
            _enable(plan)
        report(f"{name}: has its meter; it paused for {seconds:.1f} s")


@contextlib.contextmanager
def _signals_held_back() -> Iterator[list[int]]:
    """Collect the signals that would end or stop us half-way; they take effect at the end, unless that is an error."""
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
    before = [(number, signal.signal(number, lambda number, _: held.append(number))) for number in numbers]
    try:
        yield held
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    for late in held:
        signal.raise_signal(late)


def _save(plan: Plan, signals: list[int]) -> None:
    """Save and end the domain; a signal cancels that, except Ctrl-Z, which can wait."""
    handle = plan.domain.handle
    cancelled = False
    with ThreadPoolExecutor(1) as thread:
        saving = thread.submit(handle.managedSave) if plan.persistent else thread.submit(handle.save, str(plan.image))
        while not saving.done():
            time.sleep(0.02)
            if cancelled := bool(set(signals) - {signal.SIGTSTP}):
                with contextlib.suppress(LibvirtError):  # not begun yet, or over
                    if handle.jobStats().get("operation") == SAVE_JOB:  # somebody else's job is not ours to end
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
        if cancelled:
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


def _restore(plan: Plan, instruct_hook: Callable[[HowToRestore], None]) -> None:
    """Resume the saved domain, with its meter if that is possible."""
    name, handle = plan.domain.name, plan.domain.handle
    connection = handle.connect()

    def restore() -> None:
        if plan.persistent:
            handle.create()
        else:
            connection.restore(str(plan.image))
            plan.image.unlink(missing_ok=True)

    try:
        return restore()
    except LibvirtError as error:
        if _is_active(plan):
            return None  # somebody else was faster
        trouble = error
    if not plan.image.exists():
        raise VirtRaplError(
            f"{name}: cannot be restored: {trouble}; {plan.image} is gone", "somebody has removed or restored it"
        ) from trouble
    if _was_killed(trouble):
        raise VirtRaplError(
            f"{name}: was killed as it was restored, or QEMU crashed: {trouble}; it is saved in {plan.image}",
            f"`{plan.command}` lets it go on where it was",
        ) from trouble
    instruct_hook("without")
    try:
        restore()
    except LibvirtError as error:
        raise VirtRaplError(
            f"{name}: cannot be restored: {error}; "
            + (f"nothing is lost, it is saved in {plan.image}" if plan.image.exists() else f"{plan.image} is gone"),
            f"mend what the message says, then `{plan.command}`: it goes on where it was",
        ) from error
    raise VirtRaplError(
        f"{name}: {'runs on as before' if _is_active(plan) else 'has ended since'}, "
        f"as it could not be restored with its meter: {trouble}",
        f"see /{paths.LIBVIRT_LOGS}/{name}.log",
    ) from trouble


def _was_killed(error: LibvirtError) -> bool:
    """Return whether QEMU ended without a message of its own, as by `virsh destroy`: the owner's wish stands."""
    return bool(KILLED.search(str(error)))


def _enable(plan: Plan) -> None:
    """Enable the definition of a domain that has its meter; it may be another definition by now, or be gone."""
    try:
        plan.enable()
    except VirtRaplError as error:
        raise VirtRaplError(
            f"{plan.domain.name}: has its meter until it ends, but not from its next start on: {error.message}",
            error.hint,
        ) from error


def _check(domain: Domain, registry: Registry) -> None:
    """Raise VirtRaplError unless the restored domain has its meter."""
    restored = lookup_uuid(domain.handle.connect(), domain.uuid)
    if restored is None or not restored.active:
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
