"""The policy: definitions of the domains that the configuration chooses get the meter, and keep it.

It works on definitions only, so a domain has its meter from its next start on, and it only ever adds. A domain that
was enabled by hand, or is not chosen any more, stays enabled until `virt-rapl disable`; one that is excluded is not
touched at all. A transient domain has no definition: its XML passes through `virt-rapl inject`.

libvirt cannot be told to define a domain only if it is still as we have read it. So it is read once more just before:
what remains for an edit to be lost in is the time of one call.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from libvirt_rapl import paths
from libvirt_rapl.config import Config
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.definition import Definition, UnreadableError
from libvirt_rapl.domains.domain import Domain, DomainGoneError, lookup_uuid
from libvirt_rapl.errors import VirtRaplError, explain
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.requirements import check_processor
from libvirt_rapl.lifecycle.enabling import enabled, is_enabled
from libvirt_rapl.selection import Selection

RULE = f"/{paths.POLKIT_RULE}"
"""Where polkit is told that virt-rapld, which is no root, may change definitions: `org.libvirt.unix.manage`.

That is a comment there until the operator makes it a line, as the right is as good as root's.
"""
GRANT = f'sed -i \'s|// "org.libvirt.unix.manage"|"org.libvirt.unix.manage"|\' {RULE}'
"""The command that gives the right, in sh."""
SETTLE_SECONDS = 1.0
"""A change is answered that much later: whoever changes a domain in steps is done by then."""
RETRY_SECONDS = 60.0
"""After this long a domain that refused is looked at again, in silence: QEMU may have been upgraded, say."""
MOST_CHANGES = 5
"""So often within RETRY_SECONDS is a domain changed. Then somebody else wants it otherwise, and has their way."""


def wanted(
    definition: Definition, selection: Selection, registry: Registry, check_emulator: Callable[[str], None]
) -> Definition | None:
    """Return the definition that a domain shall have instead of this one; None when this one may stay.

    Raises VirtRaplError when the domain is chosen and cannot have a meter.
    """
    if not selection.selects(definition.traits) or is_enabled(definition, registry):
        return None
    return enabled(definition, registry, check_emulator)


def gives_right_to_manage(rule: str) -> bool:
    """Tell whether the text of RULE gives it."""
    return any(line.strip().startswith('"org.libvirt.unix.manage"') for line in rule.splitlines())


class Emulators:
    """Asks each emulator once: one that hangs holds up a round of the policy once, however many domains name it."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
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
            raise VirtRaplError(refusal.message, refusal.hint)


@dataclass(frozen=True)
class _Refusal:
    definition: int
    """Hash of the definition, whose text may hold passwords."""
    reason: str
    final: bool
    """Whether it holds for as long as the definition stays as it is."""


class Policy:
    """Applies the configuration's choice in a thread of its own. Nobody who calls it waits for libvirt."""

    def __init__(self, config: Config, uri: str, tell: Callable[[str], None]) -> None:
        """Take libvirt's URI; `tell` takes a line for each definition that was changed or refuses."""
        self._selection = config.domains
        self._registry = Registry(config.run_directory)
        self._uri = uri
        self._tell = tell
        self._changes: SimpleQueue[frozenset[str]] = SimpleQueue()
        self._refusals: dict[str, _Refusal] = {}
        self._changed_at: dict[str, list[float]] = {}
        """When we have changed each domain, in monotonic seconds; what is older than RETRY_SECONDS is forgotten."""
        self._trouble = ""

    def start(self) -> None:
        """Begin to work, if any domain is chosen at all: only then libvirt is opened for more than reading.

        Where no guest of this processor can have a meter that is told here, once.
        """
        if not self._selection.include:
            return
        try:
            check_processor()
        except VirtRaplError as error:
            self._tell(f"cannot enable the configuration's `domains`: {error}; domains are metered on the host")
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
                    self._tell(f"cannot enable the configuration's `domains`: {trouble}{right}; domains are metered on")
                self._trouble = trouble
                continue
            waiting.clear()
            if self._trouble:
                self._tell("the configuration's `domains` are enabled again")
            self._trouble = ""

    def _next(self, *, retry: bool) -> set[str]:
        """Wait for changes, and for others that follow at once; with `retry` not for ever."""
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
        """Bring these domains in order. Raises VirtRaplError when libvirt cannot be had."""
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
            while changed := wanted(definition, self._selection, self._registry, emulators.check):
                self._check_that_it_is_no_fight(uuid)
                domain = _persistent(connection, uuid)
                definition = domain.definition(secrets=True)
                read, xml = xml, definition.xml
                if xml == read:
                    domain.define(changed)
                    break
                # Somebody has changed it meanwhile: that is what counts now.
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
            self._tell(f"{domain.name}: {verb}, as the configuration's `domains` say; takes effect at the next start")

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
        """Note why, and tell it unless that is what was told last: an edit alone is no news."""
        before = self._refusals.get(domain.uuid)
        if before is None or before.reason != error.message:
            hint = f"; {error.hint}" if error.hint else ""
            self._tell(f"{domain.name}: the configuration's `domains` choose it, but {error.message}{hint}")
        self._refusals[domain.uuid] = _Refusal(hash(xml), error.message, final)


class _FightError(VirtRaplError):
    """Somebody changes the domain back again and again."""


def _persistent(connection: Any, uuid: str) -> Domain:  # noqa: ANN401
    """Return a domain that has a definition. Raises DomainGoneError when it is gone or transient, VirtRaplError."""
    domain = lookup_uuid(connection, uuid)
    if domain is None or not domain.persistent:
        raise DomainGoneError(f"there is no definition of {uuid}")
    return domain
