"""How far a domain is with its own meter, and why it has none: what status, doctor and `enable --live` go by."""

from typing import Literal

from libvirt_rapl.domains.inventory import Entry
from libvirt_rapl.helper import instances
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.vmsr.qemu_arithmetic import known

MeterState = Literal["active", "degraded", "pending", "off"]
"""How far a domain is with its own meter. `active`: the guest reads its joules. `degraded`: it should, but runs without
a working helper. `pending`: it will from its next start on. `off`: it is not enabled."""


def vrapl_state(domain: Entry, record: Record | None, registry: Registry) -> tuple[MeterState, str]:
    """Return how far a domain is with its own meter, and why where it is degraded."""
    return state_with(domain, record, instances.trouble(record, registry) if record else "")


def state_with(domain: Entry, record: Record | None, trouble: str) -> tuple[MeterState, str]:
    """Return what vrapl_state() does, where the `trouble` of its helper is known already."""
    if domain.mark != "live":
        return "pending" if domain.mark == "next" else "off", ""
    reason = _reason(domain, record, trouble)
    return "degraded" if reason else "active", reason


def _reason(domain: Entry, record: Record | None, trouble: str) -> str:
    """Return in one line why a domain runs without a working helper; empty when the helper works."""
    if record is None or (None not in (record.pid, domain.pid) and record.pid != domain.pid):  # of an earlier run
        return instances.UNRECORDED
    if record.state == "ready":
        return trouble
    return record.reason or instances.HELPER_ENDED


def unknown_qemu(record: Record) -> str | None:
    """Tell in one line when our helper makes its answers for a QEMU that nobody has looked at yet."""
    version = record.qemu_version
    if record.backend != "native" or not version or known(version):
        return None
    return f"QEMU {version} is not known; it is taken to compute as 11.x does (`helper: qemu` leaves it alone)"
