"""Which domains still need what is installed, and taking their meters out, on a libvirt of ours."""

from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from fakes.libvirt import UUID, FakeDomain, FakeLibvirt, definition, failure, without_passwords

from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import still_needed
from libvirt_rapl.install.manifest import Manifest

QEMU = Path("/usr/bin/q")
PLAIN = definition("web", UUID, QEMU)
MARKED = Definition.parse(PLAIN).with_registers(socket=f"/run/virt-rapl/{UUID}.sock").xml
WRAPPED = PLAIN.replace(f"{QEMU}<", f"{QEMU}-rapl<")
UNREADABLE = "<metadata><y xmlns='a<b'/></metadata></domain>"


class Snapshot:
    def __init__(self, name: str, xml: str) -> None:
        self.name, self.xml = name, xml

    def getName(self) -> str:  # noqa: N802
        return self.name

    def getXMLDesc(self) -> str:  # noqa: N802
        return f"<domainsnapshot>{self.xml}</domainsnapshot>"


class Domain(FakeDomain):
    """One that runs in another way than it is defined, or is saved; libvirt shows passwords only to who asks."""

    live: str = ""
    saved: str = ""
    gone: bool = False
    snapshots: tuple[Snapshot, ...] = ()

    def name(self) -> str:
        return "web"

    def UUIDString(self) -> str:  # noqa: N802
        return UUID

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        self._look()
        return super().XMLDesc(flags) if flags & libvirt.VIR_DOMAIN_XML_INACTIVE else self.live or self.xml

    def hasManagedSaveImage(self) -> int:  # noqa: N802
        return int(bool(self.saved))

    def managedSaveGetXMLDesc(self, flags: int) -> str:  # noqa: N802
        return self.saved if flags & libvirt.VIR_DOMAIN_XML_SECURE else without_passwords(self.saved)

    def managedSaveDefineXML(self, xml: str) -> int:  # noqa: N802
        if self.libvirt.refuses:  # type: ignore[attr-defined]
            raise failure("refused")
        self.saved = xml
        return 0

    def listAllSnapshots(self) -> tuple[Snapshot, ...]:  # noqa: N802
        self._look()
        return self.snapshots

    def _look(self) -> None:
        if self.gone:
            self.libvirt.lookupByName("gone")


class Libvirt(FakeLibvirt):
    refuses = False

    def defineXML(self, xml: str) -> None:  # noqa: N802
        if self.refuses:
            raise failure("refused")
        super().defineXML(xml)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    """One on a machine where a wrapper was installed beside /usr/bin/q."""
    manifest = Manifest(files={"usr/bin/q-rapl": "", "etc/virt-rapl/virt-rapl.yaml": ""})
    monkeypatch.setattr(Manifest, "load", lambda _root: manifest)
    return Libvirt()


def add(fake: Libvirt, *, defined: str = PLAIN, live: str = "", saved: str = "", persistent: bool = True) -> Domain:
    domain = Domain(fake, defined, 3 if live else -1, persistent)
    domain.live, domain.saved = live, saved
    fake.domains.append(domain)
    return domain


def reasons(fake: Libvirt) -> list[str]:
    return [dependent.why.name for dependent in still_needed.find(fake)]


@pytest.mark.parametrize(
    ("domain", "why"),
    [
        ({}, []),
        ({"live": PLAIN}, []),
        ({"defined": MARKED}, ["ENABLED"]),
        ({"defined": MARKED, "live": PLAIN}, ["ENABLED"]),
        ({"live": MARKED}, ["RUNS"]),
        ({"defined": MARKED, "live": MARKED}, ["RUNS", "ENABLED"]),
        ({"saved": MARKED}, ["SAVED"]),
        ({"defined": MARKED, "saved": MARKED}, ["ENABLED", "SAVED"]),
        ({"defined": WRAPPED}, ["UNMARKED"]),
        ({"saved": WRAPPED}, ["UNMARKED"]),
        ({"defined": WRAPPED.replace("/usr/bin/q-", "/usr/bin/qemu-system-x86_64-")}, ["UNMARKED"]),
        ({"defined": WRAPPED.replace("/usr/bin/q-", "/opt/own-")}, []),
        ({"defined": MARKED, "live": MARKED, "persistent": False}, ["RUNS"]),
        ({"defined": MARKED.replace("</domain>", UNREADABLE)}, ["ENABLED", "UNMARKED"]),
        ({"defined": WRAPPED.replace("</domain>", UNREADABLE)}, ["ENABLED", "UNMARKED"]),
        ({"defined": PLAIN.replace("</domain>", UNREADABLE)}, []),
    ],
)
def test_why_a_domain_needs_us(fake: Libvirt, domain: dict[str, str], why: list[str]) -> None:
    add(fake, **domain)  # type: ignore[arg-type]
    assert reasons(fake) == why


@pytest.fixture
def by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """XML of a domain that named no emulator where the wrapper of /usr/bin/q is the default one."""
    link = tmp_path / "qemu-system-x86_64"
    link.symlink_to("/usr/bin/q-rapl")
    monkeypatch.setattr(emulator, "DEFAULT_WRAPPER", link)
    return PLAIN.replace("/usr/bin/q<", f"{link}<")


def test_a_domain_with_the_default_emulator_needs_it(fake: Libvirt, by_default: str) -> None:
    domain = add(fake, defined=by_default, saved=by_default)
    domain.snapshots = (Snapshot("then", by_default), Snapshot("plain", PLAIN))
    assert reasons(fake) == ["BY_DEFAULT", "SAVED_BY_DEFAULT"]
    assert still_needed.old_snapshots(fake) == ["web/then"]
    assert still_needed.old_snapshots(fake, still_needed.needs_default_emulator) == ["web/then"]
    for dependent in still_needed.find(fake):
        still_needed.disable(dependent)
    for xml in (domain.xml, domain.saved):
        assert Definition.parse(PLAIN).difference(Definition.parse(xml)) == ""
    assert reasons(fake) == []


def test_one_that_runs_with_it_or_is_enabled_besides(fake: Libvirt, by_default: str) -> None:
    enabled = Definition.parse(by_default).with_registers(socket=f"/run/virt-rapl/{UUID}.sock").xml
    add(fake, defined=by_default, live=by_default)
    add(fake, defined=enabled)
    assert reasons(fake) == ["RUNS_BY_DEFAULT", "BY_DEFAULT", "ENABLED", "BY_DEFAULT"]


def test_one_that_cannot_be_read_and_names_the_default_emulator(fake: Libvirt, by_default: str) -> None:
    """libvirt reads it: without the link it would not start."""
    add(fake, defined=by_default.replace("</domain>", UNREADABLE))
    assert reasons(fake) == ["BY_DEFAULT"]
    (dependent,) = still_needed.find(fake)
    with pytest.raises(VirtRaplError):
        still_needed.disable(dependent)


def test_a_domain_that_ends_meanwhile_hides_no_other(fake: Libvirt) -> None:
    add(fake, defined=MARKED).gone = True
    add(fake, defined=MARKED).snapshots = (Snapshot("then", WRAPPED),)
    assert reasons(fake) == ["ENABLED"]
    assert still_needed.old_snapshots(fake) == ["web/then"]


def test_snapshots_need_the_wrapper_that_they_name(fake: Libvirt) -> None:
    other = PLAIN.replace("<name>web<", "<name>web-rapl<")
    named = {"before": PLAIN, "then": MARKED, "other": other, "later": WRAPPED}
    add(fake).snapshots = tuple(Snapshot(name, xml) for name, xml in named.items())
    assert still_needed.old_snapshots(fake) == ["web/then", "web/later"]
    assert still_needed.old_snapshots(fake, still_needed.needs_default_emulator) == []


def test_what_is_disabled_keeps_its_passwords_and_needs_nothing(fake: Libvirt) -> None:
    domain = add(fake, defined=MARKED, saved=MARKED)
    for dependent in still_needed.find(fake):
        assert "web" in str(dependent)
        still_needed.disable(dependent)
    for xml in (domain.xml, domain.saved):
        assert Definition.parse(PLAIN).difference(Definition.parse(xml)) == ""
        assert "s&lt;cret" in xml
    assert reasons(fake) == []


def running(fake: Libvirt) -> Domain:
    return add(fake, live=MARKED)


def unmarked(fake: Libvirt) -> Domain:
    return add(fake, defined=WRAPPED)


@pytest.mark.parametrize("add_domain", [running, unmarked])
def test_nothing_is_done_to_one_that_runs_with_it_or_has_no_mark(
    fake: Libvirt, add_domain: Callable[[Libvirt], Domain]
) -> None:
    domain = add_domain(fake)
    before = (domain.xml, domain.live, domain.saved)
    for dependent in still_needed.find(fake):
        still_needed.disable(dependent)
    assert (domain.xml, domain.live, domain.saved, fake.defined) == (*before, 0)


def test_a_saved_domain_that_was_started_meanwhile_is_left_alone(fake: Libvirt) -> None:
    domain = add(fake, saved=MARKED)
    (dependent,) = still_needed.find(fake)
    domain.saved = ""
    still_needed.disable(dependent)
    assert domain.saved == ""


@pytest.mark.parametrize("where", ["defined", "saved"])
def test_a_libvirt_that_does_not_take_it_is_reported(fake: Libvirt, where: str) -> None:
    domain = add(fake, **{where: MARKED})  # type: ignore[arg-type]
    fake.refuses = True
    (dependent,) = still_needed.find(fake)
    with pytest.raises(VirtRaplError, match="refused"):
        still_needed.disable(dependent)
    assert MARKED in (domain.xml, domain.saved)
