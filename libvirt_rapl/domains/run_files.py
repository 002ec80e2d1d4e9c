"""The process and vCPU threads of a running domain, from libvirt's own files, without a connection to it.

A libvirt hook may not call libvirt, and asking libvirt for threads is slow. /run/libvirt/qemu/NAME.xml is there
from the start of a domain to its end, replaced as a whole at each change:

    <domstatus state='running' reason='booted' pid='4242'>
      <vcpus>
        <vcpu id='0' pid='4250'/>
      </vcpus>
      <domain type='kvm' id='1'> the definition, which may hold another <vcpus> </domain>
    </domstatus>

It is the only source for which thread is which vCPU: threads have the names that QEMU gives them. libvirt itself has
the TIDs from QEMU, but accepts no two that are the same, and knows how many vCPUs there are.
"""

from dataclasses import dataclass
from pathlib import Path

from lxml import etree
from lxml.etree import _Element

from libvirt_rapl import paths
from libvirt_rapl.domains import channel
from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.xml_parser import parse
from libvirt_rapl.host import processes
from libvirt_rapl.host.machine_cgroup import machine_number
from libvirt_rapl.paths import PROC, SYS

LIBVIRT_RUN = Path("/", paths.LIBVIRT_RUN)


@dataclass(frozen=True)
class RunState:
    """One running domain: QEMU's PID, the TID of each vCPU by its number, and its energy channel, as far as libvirt has
    written it.
    """

    pid: int
    vcpu_tids: dict[int, int]
    channel: Channel | None = None


@dataclass(frozen=True)
class RunningDomain:
    """One running domain, as far as libvirt recorded it."""

    name: str
    uuid: str
    id: int
    state: str
    pid: int
    vcpu_tids: dict[int, int]
    xml: str
    """Its live XML."""


def running_domains(root: Path = LIBVIRT_RUN, proc: Path = PROC, sys: Path = SYS) -> list[RunningDomain]:
    """Return the domains that libvirt recorded as running and whose process is there; unreadable files are left out.

    The record may be old if libvirt itself does not run: the process must be in the cgroup of that domain, from which
    only root can move it. If libvirt uses no cgroups, it must have the domain's UUID in its command line, which a QEMU
    may change.
    """
    found = []
    for path in sorted(root.glob("*.xml")):
        try:
            status = parse(path.read_bytes())
            (domain,) = status.findall("domain")
            uuid, pid, number = domain.findtext("uuid", ""), int(status.attrib["pid"]), int(domain.attrib["id"])
            if uuid and _is_of(uuid, number, pid, proc, sys):
                xml, state = etree.tostring(domain, encoding="unicode", with_tail=False), str(status.attrib["state"])
                name, vcpu_tids = domain.findtext("name", ""), _vcpu_tids(status)
                found.append(RunningDomain(name, uuid, number, state, pid, vcpu_tids, xml))
        except (OSError, KeyError, ValueError):
            continue
    return found


def _is_of(uuid: str, number: int, pid: int, proc: Path, sys: Path) -> bool:
    """Return whether a process is the QEMU of the domain to which libvirt has given this number."""
    if processes.start_time(pid, proc) is None:
        return False
    in_cgroup_of = machine_number(pid, sys=sys, proc=proc)
    if in_cgroup_of is not None:
        return in_cgroup_of == number
    return uuid in (processes.read(proc / str(pid) / "cmdline") or "").split("\0")


def read_run_state(name: str, root: Path = LIBVIRT_RUN, proc: Path = PROC) -> RunState | None:
    """Return the run state of the domain `name`; None when it does not run.

    Without a status file, the process is known from NAME.pid, and the vCPUs are unknown. Raises PermissionError when
    the files may not be read.
    """
    state = _status(root / f"{name}.xml")
    if state is None and (pid := _number(root / f"{name}.pid")) is not None:
        state = RunState(pid, {})
    return None if state is None or processes.start_time(state.pid, proc) is None else state


def written(name: str, root: Path = LIBVIRT_RUN) -> tuple[int, int] | None:
    """Return a value that changes whenever libvirt writes the status file of the domain `name`; None without one."""
    try:
        status = (root / f"{name}.xml").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _status(path: Path) -> RunState | None:
    try:
        status = parse(path.read_bytes())
        domain = status.find("domain")
        return RunState(int(status.attrib["pid"]), _vcpu_tids(status), None if domain is None else channel.find(domain))
    except (FileNotFoundError, KeyError, ValueError):
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def _vcpu_tids(status: _Element) -> dict[int, int]:
    return {int(vcpu.attrib["id"]): int(vcpu.attrib["pid"]) for vcpu in status.findall("vcpus/vcpu")}
