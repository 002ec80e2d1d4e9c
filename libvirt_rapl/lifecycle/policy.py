"""The policy: definitions of the domains that the configuration chooses get the meter, and keep it.

It works on definitions only, so a domain has its meter from its next start on, and it leaves alone what has one. A
domain that was enabled by hand, or is not chosen any more, stays enabled until `virt-rapl disable`; one that is
excluded is not touched at all. A transient domain has no definition: its XML passes through `virt-rapl inject`.

libvirt has no call that defines a domain only if it is still as we have read it. So it is read once more just before:
an edit can only be lost in the time of one call.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from libvirt_rapl import paths
from libvirt_rapl.choices import Via
from libvirt_rapl.config import Config
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, DomainGoneError, lookup_uuid
from libvirt_rapl.errors import UnreadableError, VirtRaplError, explain
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.requirements import check_processor
from libvirt_rapl.lifecycle import as_it_is
from libvirt_rapl.lifecycle.enabling import CheckEmulator, enabled, is_enabled
from libvirt_rapl.selection import Selection

RULE = f"/{paths.POLKIT_RULE}"
"""polkit's rule that lets virt-rapld, which is not root, change definitions: `org.libvirt.unix.manage`.

That is a comment there until the operator uncomments the line, because the right is as good as root's.
"""
GRANT = f'sed -i \'s|// "org.libvirt.unix.manage"|"org.libvirt.unix.manage"|\' {RULE}'
"""The command that gives the right, in sh."""
SETTLE_SECONDS = 1.0
"""We react to a change this much later: a program that changes a domain in steps has finished by then."""
RETRY_SECONDS = 60.0
"""After this long a domain that was refused is checked again, without a log line: QEMU may have been upgraded."""
MOST_CHANGES = 5
"""A domain is changed this often within RETRY_SECONDS. After that somebody else is changing it back: we give way."""


def wanted(
    definition: Definition, selection: Selection, via: Via, registry: Registry, check_emulator: CheckEmulator
) -> Definition | None:
    """Return the definition that a domain is to have instead of this one; None when this one may stay.

    Raises VirtRaplError when the domain is chosen and cannot have a meter.
    """
    if as_it_is.is_chosen(definition, selection, via):
        as_it_is.check(definition, registry.socket(definition.uuid))
        return None
    if not selection.selects(definition.traits) or is_enabled(definition, registry, via):
        return None
    return enabled(definition, registry, via, check_emulator)[0]


def gives_right_to_manage(rule: str) -> bool:
    """Return whether the text of RULE gives it."""
    return any(line.strip().startswith('"org.libvirt.unix.manage"') for line in rule.splitlines())


class Emulators:
    """Asks each emulator once: one that hangs delays a round of the policy once, however many domains name it."""

    def __init__(self) -> None:
        """No emulator has been asked yet."""
        self._refusals: dict[str, VirtRaplError | None] = {}

    def check(self, path: str) -> None:
        """Raise VirtRaplError as emulator.check() does, or did."""
        if path not in self._refusals:
            self._refusals[path] = None
            try:
                emulator.check(path)
            except VirtRaplError as error:
                self._refusals[path] = error
        if refusal := self._refusals[path]:
            raise type(refusal)(refusal.message, refusal.hint)


@dataclass(frozen=True)
class _Refusal:
    definition: int
    """Hash of the definition, whose text may hold passwords."""
    reason: str
    final: bool
    """Whether it holds for as long as the definition stays as it is."""


class Policy:
    """Applies the configuration's choice in a thread of its own, so that callers never wait for libvirt."""

    def __init__(self, config: Config, uri: str, log: Callable[[str], None]) -> None:
        """Take libvirt's URI; `log` takes a line for each definition that was changed or cannot be."""
        self._selection = config.domains
        self._via = config.via
        self._registry = Registry(config.run_directory)
        self._uri = uri
        self._log = log
        self._changes: SimpleQueue[frozenset[str]] = SimpleQueue()
        self._refusals: dict[str, _Refusal] = {}
        self._changed_at: dict[str, list[float]] = {}
        """When we have changed each domain, in monotonic seconds; what is older than RETRY_SECONDS is forgotten."""
        self._trouble = ""

    def start(self) -> None:
        """Start working if any domain is chosen at all: only then libvirt is opened for more than reading.

        If no guest of this processor can have what `via` asks for, that is logged here, once.
        """
        if not self._selection.include:
            return
        try:
            if self._via in ("registers", "both"):
                check_processor()
        except VirtRaplError as error:
            self._log(f"cannot enable the configuration's `domains`: {error.message}; {error.hint}")
        else:
            threading.Thread(target=self._run, name="policy", daemon=True).start()

    def changed(self, uuids: Iterable[str]) -> None:
        """Take note that these domains have come, changed or gone."""
        if self._selection.include:
            self._changes.put(frozenset(uuids))

    def refusals(self) -> dict[str, str]:
        """Return why chosen domains do not get a meter, by UUID."""
        return {uuid: refusal.reason for uuid, refusal in self._refusals.copy().items()}

    def _run(self) -> None:
        waiting: set[str] = set()
        while True:
            waiting |= self._next(retry=bool(waiting or self._refusals))
            try:
                self._apply(waiting)
            except Exception as error:  # whatever it is, libvirt may be back soon
                trouble = explain(error)
                if not self._trouble:
                    right = f"; does {RULE} give the right to manage? {GRANT}" if "authentication" in trouble else ""
                    self._log(f"cannot enable the configuration's `domains`: {trouble}{right}; metering goes on")
                self._trouble = trouble
                continue
            waiting.clear()
            if self._trouble:
                self._log("enabling the configuration's `domains` works again")
            self._trouble = ""

    def _next(self, *, retry: bool) -> set[str]:
        """Wait for changes, and for others that follow at once; with `retry`, for RETRY_SECONDS at most."""
        try:
            found = set(self._changes.get(timeout=RETRY_SECONDS if retry else None))
        except Empty:
            return set(self._refusals)
        time.sleep(SETTLE_SECONDS)
        with contextlib.suppress(Empty):
            while True:
                found |= self._changes.get_nowait()
        return found

    def _apply(self, uuids: Iterable[str]) -> None:
        """Bring these domains in order. Raises VirtRaplError when libvirt cannot be reached."""
        connection = connect(self._uri)
        emulators = Emulators()
        try:
            for uuid in sorted(uuids):
                try:
                    self._bring_in_order(connection, uuid, emulators)
                except DomainGoneError:
                    self._refusals.pop(uuid, None)
        finally:
            connection.close()

    def _bring_in_order(self, connection: Any, uuid: str, emulators: Emulators) -> None:  # noqa: ANN401
        domain = _persistent(connection, uuid)
        xml = ""
        try:
            definition = domain.definition(secrets=True)
            xml, refusal = definition.xml, self._refusals.get(uuid)
            if refusal and refusal.final and refusal.definition == hash(xml):
                return
            while changed := wanted(definition, self._selection, self._via, self._registry, emulators.check):
                self._check_that_it_is_no_fight(uuid)
                domain = _persistent(connection, uuid)
                definition = domain.definition(secrets=True)
                read, xml = xml, definition.xml
                if xml == read:
                    domain.define(changed)
                    break
                # Somebody has changed it meanwhile: check it again as it is now.
        except _FightError as error:
            self._refuse(domain, xml, error, final=True)
            return
        except VirtRaplError as error:
            if isinstance(error, DomainGoneError) or not connection.isAlive():
                raise
            self._refuse(domain, error.xml if isinstance(error, UnreadableError) else xml, error)
            return
        self._refusals.pop(uuid, None)
        if changed:
            self._changed_at[uuid].append(time.monotonic())
            verb = "repaired" if definition.is_marked else "enabled"
            self._log(f"{domain.name}: {verb}, as the configuration's `domains` say; takes effect at the next start")

    def _check_that_it_is_no_fight(self, uuid: str) -> None:
        recent = time.monotonic() - RETRY_SECONDS
        self._changed_at = {
            uuid: late for uuid, times in self._changed_at.items() if (late := [at for at in times if at > recent])
        }
        if len(self._changed_at.setdefault(uuid, [])) >= MOST_CHANGES:
            raise _FightError(
                f"something took its meter out {MOST_CHANGES} times within {RETRY_SECONDS:.0f} s",
                "exclude it, or find out what defines it anew",
            )

    def _refuse(self, domain: Domain, xml: str, error: VirtRaplError, *, final: bool = False) -> None:
        """Record why, and log it unless it was logged last time: an edit alone is no news."""
        before = self._refusals.get(domain.uuid)
        if before is None or before.reason != error.message:
            hint = f"; {error.hint}" if error.hint else ""
            self._log(f"{domain.name}: the configuration's `domains` choose it, but {error.message}{hint}")
        self._refusals[domain.uuid] = _Refusal(hash(xml), error.message, final)


class _FightError(VirtRaplError):
    """Somebody changes the domain back again and again."""


def _persistent(connection: Any, uuid: str) -> Domain:  # noqa: ANN401
    """Return a domain that has a definition. Raises DomainGoneError when it is gone or transient, VirtRaplError."""
    domain = lookup_uuid(connection, uuid)
    if domain is None or not domain.persistent:
        raise DomainGoneError(f"there is no definition of {uuid}")
    return domain
