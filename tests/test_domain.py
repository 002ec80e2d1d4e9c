"""Finding domains and asking libvirt about them: what it is asked for, and what becomes of its errors."""

from collections.abc import Callable
from dataclasses import dataclass, field

import libvirt
import pytest
from fakes.libvirt import OTHER_UUID, UUID, failure

from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, DomainGoneError, every_domain, lookup, lookup_uuid
from libvirt_rapl.errors import VirtRaplError

INACTIVE, SECURE = libvirt.VIR_DOMAIN_XML_INACTIVE, libvirt.VIR_DOMAIN_XML_SECURE
XML = f"<domain type='kvm'><name>web</name><uuid>{UUID}</uuid></domain>"


GONE, BROKEN = failure("refused", libvirt.VIR_ERR_NO_DOMAIN), failure("refused", libvirt.VIR_ERR_INTERNAL_ERROR)


@dataclass
class Handle:
    """A domain that fails in one way, or records the flags of what is asked."""

    called: str = "web"
    number: int = 4
    code: int = libvirt.VIR_DOMAIN_RUNNING
    trouble: libvirt.libvirtError | None = None
    flags: list[int] = field(default_factory=list)
    saved: bool = True

    def _answer(self, flags: int = 0) -> str:
        self.flags.append(flags)
        if self.trouble:
            raise self.trouble
        return XML

    def ID(self) -> int:  # noqa: N802
        return self.number

    def name(self) -> str:
        if self.trouble:
            raise self.trouble
        return self.called

    def UUIDString(self) -> str:  # noqa: N802
        return UUID

    def state(self) -> list[int]:
        return [self.code, 0]

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return self._answer(flags)

    def isPersistent(self) -> int:  # noqa: N802
        self._answer()
        return 1

    def hasManagedSaveImage(self) -> int:  # noqa: N802
        return int(self.saved)

    def managedSaveGetXMLDesc(self, flags: int) -> str:  # noqa: N802
        return self._answer(flags)

    def managedSaveDefineXML(self, _: str) -> None:  # noqa: N802
        self._answer()

    def listAllSnapshots(self) -> list[object]:  # noqa: N802
        self._answer()
        return []


class Connection:
    """One that lists these, and finds the first of them by its name or UUID."""

    def __init__(self, *handles: Handle, trouble: libvirt.libvirtError | None = None) -> None:
        self.handles, self.trouble = list(handles), trouble

    def listAllDomains(self) -> list[Handle]:  # noqa: N802
        if self.trouble:
            raise self.trouble
        return self.handles

    def lookupByName(self, name: str) -> Handle:  # noqa: N802
        return self._found(name == "web")

    def lookupByUUIDString(self, uuid: str) -> Handle:  # noqa: N802
        return self._found(uuid == UUID)

    def _found(self, found: bool) -> Handle:
        if self.trouble or not found:
            raise self.trouble or GONE
        return self.handles[0]


def looked_up(**values: object) -> Domain:
    (found,) = every_domain(Connection(Handle(**values)))  # type: ignore[arg-type]
    return found


def test_domains_are_listed_by_name_and_without_those_that_end_meanwhile() -> None:
    handles = Handle("web2"), Handle("gone", trouble=GONE), Handle("web1"), Handle("db")
    assert [domain.name for domain in every_domain(Connection(*handles))] == ["db", "web1", "web2"]


@pytest.mark.parametrize(
    "connection", [Connection(trouble=BROKEN), Connection(Handle(trouble=BROKEN)), Connection(trouble=GONE)]
)
def test_a_libvirt_that_fails_is_not_one_without_domains(connection: Connection) -> None:
    with pytest.raises(VirtRaplError) as caught:
        every_domain(connection)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("number", "code", "state", "active"),
    [
        (4, libvirt.VIR_DOMAIN_RUNNING, "running", True),
        (0, libvirt.VIR_DOMAIN_PAUSED, "paused", True),
        (-1, libvirt.VIR_DOMAIN_SHUTOFF, "shut off", False),
        (4, 4711, "no state", True),
    ],
)
def test_states_are_virshs(number: int, code: int, state: str, active: bool) -> None:
    found = looked_up(number=number, code=code)
    assert (found.state, found.active, found.id) == (state, active, number if active else None)


def test_one_is_found_by_name_or_uuid_and_one_that_is_not_there_is_no_failure_of_libvirt() -> None:
    connection = Connection(Handle())
    assert [lookup(connection, given).uuid for given in ("web", UUID, UUID.upper(), UUID.replace("-", ""))] == [
        UUID
    ] * 4
    assert lookup_uuid(connection, OTHER_UUID) is None
    for unknown in ("db", OTHER_UUID, ""):
        with pytest.raises(VirtRaplError, match="there is no domain"):
            lookup(connection, unknown)
    for find in (lookup, lookup_uuid):
        with pytest.raises(VirtRaplError, match="libvirt: refused"):
            find(Connection(trouble=BROKEN), UUID)


@pytest.mark.parametrize(
    ("ask", "flags"),
    [
        (lambda domain: domain.live(), 0),
        (lambda domain: domain.definition(), INACTIVE),
        (lambda domain: domain.definition(secrets=True), INACTIVE | SECURE),
        (lambda domain: domain.saved(), SECURE),
    ],
    ids=["live", "definition", "with secrets", "saved"],
)
def test_passwords_are_asked_for_only_where_a_definition_is_written_again(
    ask: Callable[[Domain], Definition | None], flags: int
) -> None:
    found = looked_up()
    definition = ask(found)
    assert definition
    assert definition.name == "web"
    assert found.handle.flags == [flags]


def test_one_that_is_not_saved_has_no_saved_definition() -> None:
    assert looked_up(saved=False).saved() is None


ASKED: dict[str, Callable[[Domain], object]] = {
    "live": lambda domain: domain.live(),
    "definition": lambda domain: domain.definition(),
    "saved": lambda domain: domain.saved(),
    "persistent": lambda domain: domain.persistent,
    "snapshots": lambda domain: domain.snapshots(),
    "define_saved": lambda domain: domain.define_saved(Definition.parse(XML)),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_that_it_is_gone_is_told_apart_from_other_failures(ask: Callable[[Domain], object]) -> None:
    found = looked_up()
    for trouble, kind in ((GONE, DomainGoneError), (BROKEN, VirtRaplError)):
        found.handle.trouble = trouble
        with pytest.raises(VirtRaplError, match="web: refused") as caught:
            ask(found)
        assert type(caught.value) is kind
