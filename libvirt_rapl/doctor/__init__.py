"""What can be wrong on a host, and what to do about it: small checks, each of which looks at one thing.

They change nothing. They call the same functions by which the hook, `enable` and the helper decide.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from libvirt_rapl.doctor import channel, domains, exporter, host, installation, service
from libvirt_rapl.doctor.finding import FAILED, SKIPPED, Finding, State
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.errors import VirtRaplError, explain

SCHEMA = 1
CHECKS: dict[str, Callable[[Machine], Iterator[Finding]]] = {
    "installation": installation.installation,
    "configuration": service.configuration,
    "processor": host.processor,
    "energy": host.energy,
    "registers": host.registers,
    "rapl": host.rapl,
    "cpus": host.cpus,
    "kvm": host.kvm,
    "clock": host.clock,
    "processes": host.processes,
    "helper": installation.helper,
    "qemu": installation.qemu,
    "wrapper": installation.wrapper,
    "libvirt": service.libvirt,
    "default-emulator": installation.default,
    "hook": installation.hook,
    "hook-seen": installation.hook_seen,
    "files": installation.files,
    "apparmor": installation.apparmor,
    "selinux": installation.selinux,
    "run-directory": service.run_directory,
    "virt-rapld": service.virt_rapld,
    "ledger": service.ledger,
    "channel": channel.channel,
    "exporter": exporter.exporter,
    "events": service.events,
    "domains": domains.domains,
}
"""A check comes after those it depends on: the first failure is the one to mend first."""
OF_AN_INSTALLATION = (
    "wrapper",
    "default-emulator",
    "hook",
    "hook-seen",
    "files",
    "apparmor",
    "selinux",
    "virt-rapld",
    "channel",
    "exporter",
)
"""These look at what `virt-rapl install` puts in place. If nothing was installed, one finding says so for them all."""


@dataclass(frozen=True)
class Check:
    """The result of one check for one thing."""

    name: str
    state: State
    message: str
    hint: str
    """What to do; empty where there is nothing to do."""


def examine(machine: Machine) -> Iterator[Check]:
    """Run the checks; each has at least one result, and one for each domain or emulator where there are several."""
    for name, check in CHECKS.items():
        if name in OF_AN_INSTALLATION and not machine.is_installed:
            continue
        for finding in _run(check, machine):
            yield Check(name, *finding)


def document(checks: list[Check]) -> dict[str, object]:
    """Return what `doctor --json` prints."""
    return {"schema": SCHEMA, "checks": [asdict(check) for check in checks]}


def _run(check: Callable[[Machine], Iterator[Finding]], machine: Machine) -> Iterator[Finding]:
    try:
        yield from check(machine)
    except VirtRaplError as error:
        if isinstance(error.__cause__, PermissionError) and os.geteuid():
            yield Finding(SKIPPED, error.message, "run as root")
        else:
            yield Finding(FAILED, error.message, error.hint)
    except PermissionError as error:
        yield Finding(SKIPPED, f"this user may not read {error.filename}", "run as root")
    except (OSError, ValueError) as error:
        yield Finding(FAILED, f"cannot be checked: {explain(error)}", "mend what the message says")
