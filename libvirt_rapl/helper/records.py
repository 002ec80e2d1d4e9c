"""What is known of each domain from its start to its end: its helper, process and threads."""

import json
import time
from collections.abc import Iterable
from typing import Literal, get_args

from libvirt_rapl.choices import Backend
from libvirt_rapl.files import replace
from libvirt_rapl.helper.run_directory import RunDirectory

State = Literal["ready", "degraded", "refuse"]
"""The helper answers; the domain runs without RAPL; it must not start."""


class Record:
    """What is known of one domain from its start to its end. No dataclass: a start would wait for what that imports."""

    def __init__(
        self,
        *,
        uuid: str,
        name: str,
        backend: Backend,
        owner_uid: int,
        owner_gid: int,
        state: State = "degraded",
        reason: str = "",
        since: float | None = None,
        helper_pid: int | None = None,
        helper_start: int | None = None,
        id: int | None = None,  # noqa: A002  libvirt's word
        pid: int | None = None,
        vcpu_tids: dict[int, int] | None = None,
        by_policy: bool = False,
        qemu_version: str = "",
    ) -> None:
        """Take what is known; `since` is now if it is not given."""
        self.uuid = uuid
        self.name = name
        self.backend: Backend = backend
        self.owner_uid = owner_uid
        """With the group the socket's owner: the DAC label that QEMU runs under."""
        self.owner_gid = owner_gid
        self.state: State = state
        self.reason = reason
        """Why it is not ready; one line."""
        self.since = time.time() if since is None else since
        """When the state was entered, in seconds since the epoch."""
        self.helper_pid = helper_pid
        self.helper_start = helper_start
        """Start time of the helper in clock ticks since boot: with the PID it identifies one process for ever."""
        self.id = id
        """Libvirt's number of the domain, while it runs: no other running domain has it."""
        self.pid = pid
        """QEMU's main process."""
        self.vcpu_tids = {} if vcpu_tids is None else vcpu_tids
        """Thread of each vCPU, by vCPU number."""
        self.by_policy = by_policy
        """Whether the configuration alone gives the domain its meter: there is no mark in its definition."""
        self.qemu_version = qemu_version
        """Of the running QEMU, such as `10.0.2`; empty when it did not answer."""

    def __eq__(self, other: object) -> bool:
        """Compare all that is known."""
        return isinstance(other, Record) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # it changes


class Registry(RunDirectory):
    """The run directory with the records in it. Writing is atomic; files that are not our records are left alone."""

    def write(self, record: Record) -> None:
        """Write the record and the word for the wrapper. Raises OSError when the disk is full or the place not ours."""
        self.create_directory()
        replace(self.path(record.uuid, "json"), json.dumps(vars(record)) + "\n", 0o600)
        self.write_word(record, self.socket(record.uuid))

    def write_word(self, record: Record, socket: str) -> None:
        """Write the word for the wrapper, which names the helper's socket. Raises OSError as write() does."""
        state = f"degraded: {record.reason}" if record.state == "degraded" else record.state
        pid = "" if record.pid is None else record.pid
        self.create_directory()
        replace(self.path(record.uuid, "state"), f"{state}\n{pid}\n{socket}\n", 0o644)

    def read(self, uuid: str) -> Record | None:
        """Return the domain's record; None when there is none, it cannot be parsed, or other users could write it."""
        return self.read_all([uuid]).get(uuid)

    def read_all(self, uuids: Iterable[str]) -> dict[str, Record]:
        """Return the same as read() for these domains, by UUID; whether others could write there is checked once."""
        try:
            self.check_directory()
        except OSError:
            return {}
        return {uuid: record for uuid in uuids if (record := self._read(uuid))}

    def _read(self, uuid: str) -> Record | None:
        try:
            with open(self.name(uuid, "json"), "rb", buffering=0) as file:
                values = json.loads(file.read())
            values["vcpu_tids"] = {int(vcpu): tid for vcpu, tid in values["vcpu_tids"].items()}
            record = Record(**values)
            known = record.state in get_args(State) and record.backend in get_args(Backend)
            return record if record.uuid == uuid and known else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
