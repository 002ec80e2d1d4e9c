"""The state of a domain's own meter, and why it has none: status, doctor and `enable --live` use it."""

from libvirt_rapl.choices import MeterState
from libvirt_rapl.domains.inventory import Entry
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.vmsr.qemu_arithmetic import known


def vrapl_state(domain: Entry, record: Record | None, registry: Registry) -> tuple[MeterState, str]:
    """Return the state of a domain's own meter, and, if it is degraded, why."""
    return state_with(domain, record, instances.trouble(record, registry) if record else "")


def state_with(domain: Entry, record: Record | None, trouble: str) -> tuple[MeterState, str]:
    """Return the same as vrapl_state(), if the `trouble` of its helper is known already."""
    if domain.mark != "live" and not by_policy(domain, record):
        return "pending" if domain.mark == "next" else "off", ""
    reason = _reason(domain, record, trouble)
    return "degraded" if reason else "active", reason


def by_policy(domain: Entry, record: Record | None) -> bool:
    """Return whether the configuration alone has given the running domain its meter, without a mark."""
    if record is None or not record.by_policy or domain.pid is None:
        return False
    if record.pid is None:  # the hook's `started`, for which nobody waits, comes yet or has failed
        return domain.id is not None and record.id == domain.id
    return record.pid == domain.pid


def _reason(domain: Entry, record: Record | None, trouble: str) -> str:
    """Return in one line why a domain runs without a working helper; empty when the helper works."""
    if record is None or _is_of_an_earlier_run(record, domain):
        return instances.UNRECORDED
    if record.state == "ready":
        return trouble
    return record.reason or instances.HELPER_ENDED


def _is_of_an_earlier_run(record: Record, domain: Entry) -> bool:
    """Return whether that is certain. libvirt may give a number again after it was restarted; a PID may come later."""
    both = (record.pid, domain.pid), (record.id, domain.id)
    return any(None not in (then, now) and then != now for then, now in both)


def unknown_qemu(record: Record) -> str | None:
    """Return one line if our helper calculates for a QEMU whose arithmetic nobody has checked yet; else None."""
    version = record.qemu_version
    if record.backend != "native" or not version or known(version):
        return None
    return f"QEMU {version} is not known; it is taken to compute as 11.x does (`helper: qemu` leaves it alone)"
