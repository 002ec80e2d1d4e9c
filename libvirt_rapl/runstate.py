"""The process and vCPU threads of a running domain, from the files libvirt keeps for itself: no connection is made.

A libvirt hook may not call libvirt, and asking libvirt for threads is slow. /run/libvirt/qemu/NAME.xml is there
from the start of a domain to its end, replaced as a whole at each change:

    <domstatus state='running' reason='booted' pid='4242'>
      <vcpus>
        <vcpu id='0' pid='4250'/>
      </vcpus>
      <domain type='kvm' id='1'> the definition, which may hold another <vcpus> </domain>
    </domstatus>
"""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from libvirt_rapl.host import processes

LIBVIRT_RUN = Path("/run/libvirt/qemu")


@dataclass(frozen=True)
class RunState:
    """One running domain: QEMU's PID, and the TID of each vCPU by its number."""

    pid: int
    vcpu_tids: dict[int, int]


@dataclass(frozen=True)
class RunningDomain:
    """One running domain, as much of it as libvirt recorded."""

    name: str
    uuid: str
    id: int
    state: str
    pid: int
    xml: str
    """Its live XML."""


def running_domains(root: Path = LIBVIRT_RUN, proc: Path = processes.PROC) -> list[RunningDomain]:
    """Return the domains that libvirt recorded as running and whose process is there; what cannot be read is left out.

    The record may be old, when libvirt itself does not run: the process must be a QEMU that carries the domain's UUID.
    """
    found = []
    for path in sorted(root.glob("*.xml")):
        try:
            status = ElementTree.fromstring(path.read_bytes())  # noqa: S314 - written by libvirtd
            (domain,) = status.findall("domain")
            uuid, pid = domain.findtext("uuid", ""), int(status.attrib["pid"])
            command_line = processes.read(proc / str(pid) / "cmdline") or ""
            if uuid and uuid in command_line.split("\0"):
                xml = ElementTree.tostring(domain, encoding="unicode")
                number, state = int(domain.attrib["id"]), status.attrib["state"]
                found.append(RunningDomain(domain.findtext("name", ""), uuid, number, state, pid, xml))
        except (OSError, ElementTree.ParseError, KeyError, ValueError):
            continue
    return found


def read_run_state(name: str, root: Path = LIBVIRT_RUN, proc: Path = processes.PROC) -> RunState | None:
    """Return the run state of the domain `name`; None when it does not run.

    Where the status file is absent or tells no vCPUs yet, NAME.pid and the names of QEMU's threads are used.
    Raises PermissionError when the files may not be read.
    """
    pid, vcpu_tids = _status(root / f"{name}.xml")
    if pid is None:
        pid = _number(root / f"{name}.pid")
    if pid is None or processes.start_time(pid, proc) is None:
        return None
    return RunState(pid, vcpu_tids or _vcpu_threads(pid, proc))


def _status(path: Path) -> tuple[int | None, dict[int, int]]:
    try:
        status = ElementTree.fromstring(path.read_bytes())  # noqa: S314 - written by libvirtd, in a directory of root's
        pid = int(status.attrib["pid"])
        return pid, {int(vcpu.attrib["id"]): int(vcpu.attrib["pid"]) for vcpu in status.findall("vcpus/vcpu")}
    except (FileNotFoundError, ElementTree.ParseError, KeyError, ValueError):
        return None, {}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def _vcpu_threads(pid: int, proc: Path) -> dict[int, int]:
    numbers = {tid: processes.vcpu_number(name) for tid, name in processes.thread_names(pid, proc).items()}
    return dict(sorted((vcpu, tid) for tid, vcpu in numbers.items() if vcpu is not None))
