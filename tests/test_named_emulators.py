"""Which emulators get a wrapper: those that libvirt and its domains name for x86_64 KVM guests."""

from pathlib import Path

import pytest
from fakes.libvirt import OTHER_UUID, UUID, FakeDomain, FakeLibvirt, definition, failure

from libvirt_rapl.domains.named_emulators import named_emulators
from libvirt_rapl.errors import VirtRaplError

GUEST = "<guest><arch name='{}'><emulator>{}</emulator>{}</arch></guest>"
TCG, KVM = "<domain type='qemu'/>", "<domain type='qemu'/><domain type='kvm'/>"
X86 = "<os><type arch='x86_64'>hvm</type></os>"


class Domain(FakeDomain):
    def XMLDesc(self, _: int) -> str:  # noqa: N802
        return self.xml


class Gone(FakeDomain):
    def XMLDesc(self, _: int) -> str:  # noqa: N802
        return str(self.libvirt.lookupByName("one that ended meanwhile"))


class Libvirt(FakeLibvirt):
    guests: tuple[str, ...] = (GUEST.format("x86_64", "/usr/bin/q", KVM),)

    def getCapabilities(self) -> str:  # noqa: N802
        return f"<capabilities>{''.join(self.guests)}</capabilities>"


@pytest.fixture
def fake() -> Libvirt:
    return Libvirt()


def domain(fake: Libvirt, emulator: str, *, uuid: str = UUID, more: str = X86, domain_type: str = "kvm") -> None:
    xml = definition("web", uuid, Path(emulator), more=more, domain_type=domain_type)
    fake.domains.append(Domain(fake, xml))


def test_libvirts_own_are_those_of_this_architecture_that_run_kvm_guests(fake: Libvirt) -> None:
    fake.guests = (
        GUEST.format("aarch64", "/usr/bin/arm", KVM),
        GUEST.format("x86_64", "/usr/bin/slow", TCG),
        GUEST.format("x86_64", "/usr/bin/q", KVM),
        GUEST.format("x86_64", "/usr/bin/again-rapl", KVM),
    )
    assert named_emulators(fake) == ["/usr/bin/q", "/usr/bin/again"]


@pytest.mark.parametrize(
    ("emulator", "more", "domain_type", "named"),
    [
        ("/opt/q", X86, "kvm", ["/opt/q"]),
        ("/opt/q-rapl", X86, "kvm", ["/opt/q"]),
        ("/usr/bin/q", X86, "kvm", []),
        ("/opt/q", X86, "qemu", []),
        ("/opt/q", X86.replace("x86_64", "riscv64"), "kvm", []),
    ],
)
def test_a_domains_is_named_where_it_is_such_a_guest(
    fake: Libvirt, emulator: str, more: str, domain_type: str, named: list[str]
) -> None:
    domain(fake, emulator, more=more, domain_type=domain_type)
    assert named_emulators(fake) == ["/usr/bin/q", *named]


def test_each_is_named_once_and_no_domain_hides_another(fake: Libvirt) -> None:
    xml = definition("web", UUID, Path("/opt/a"))
    fake.domains.append(Gone(fake, xml))
    fake.domains.append(Domain(fake, xml))
    fake.domains[-1].UUIDString = fake.domains[-1].name = lambda: "unreadable"  # type: ignore[method-assign]
    fake.domains[-1].xml = xml.replace("<vcpu>", "<metadata><y xmlns='a<b'/></metadata><vcpu>")
    for uuid in (UUID, OTHER_UUID):
        domain(fake, "/opt/q", uuid=uuid)
    assert named_emulators(fake) == ["/usr/bin/q", "/opt/q"]


def test_a_libvirt_that_does_not_answer_is_reported(fake: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise failure("no answer")

    monkeypatch.setattr(fake, "getCapabilities", fail)
    with pytest.raises(VirtRaplError, match="no answer"):
        named_emulators(fake)
