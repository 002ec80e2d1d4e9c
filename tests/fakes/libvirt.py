"""A libvirt that keeps definitions as they are, and the definitions of its domains."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

from libvirt_rapl.domains.definition import Definition

UUID = "2b3c4d5e-6f70-4a81-92b3-c4d5e6f70819"
OTHER_UUID = "3c4d5e6f-7081-4a92-83c4-d5e6f708192b"


def definition(name: str, uuid: str, emulator_path: Path, *, more: str = "", domain_type: str = "kvm") -> str:
    return f"""<domain type='{domain_type}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <vcpu>2</vcpu>
  <devices>
    <emulator>{emulator_path}</emulator>
    <graphics type='vnc' passwd='s&lt;cret'/>
  </devices>{more}
</domain>
"""


def failure(message: str, code: int = libvirt.VIR_ERR_OPERATION_FAILED) -> libvirt.libvirtError:
    """Return an error that says just this; by itself it would say what the last real one of this thread did."""
    error = libvirt.libvirtError(message)
    error.err = (code, 0, message, 0, None, None, None, 0, 0)
    return error


def without_passwords(xml: str) -> str:
    """Return what libvirt shows to who does not ask for them."""
    return re.sub(r""" passwd=(["'])s&lt;cret\1""", "", xml)


@dataclass
class FakeDomain:
    """As much of libvirt.virDomain as we use."""

    libvirt: "FakeLibvirt"
    xml: str
    number: int = -1
    persistent: bool = True
    running: str = ""
    """Its XML as it runs, if that is not its definition."""

    def name(self) -> str:
        return Definition.parse(self.xml).name

    def UUIDString(self) -> str:  # noqa: N802
        return Definition.parse(self.xml).uuid

    def ID(self) -> int:  # noqa: N802
        return self.number

    def state(self) -> list[int]:
        return [libvirt.VIR_DOMAIN_RUNNING if self.number >= 0 else libvirt.VIR_DOMAIN_SHUTOFF, 0]

    def isPersistent(self) -> int:  # noqa: N802
        return int(self.persistent)

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        if not flags & libvirt.VIR_DOMAIN_XML_INACTIVE:
            return without_passwords(self.running or self.xml)
        return self.xml if flags & libvirt.VIR_DOMAIN_XML_SECURE else without_passwords(self.xml)

    def attachDeviceFlags(self, device: str, flags: int) -> None:  # noqa: N802
        assert flags == libvirt.VIR_DOMAIN_AFFECT_LIVE
        before = self.running or self.xml
        if "<controller" in device and "virtio-serial" in before:
            raise failure("target virtio-serial:0 already exists")
        self.running = before.replace("</devices>", f"{device}</devices>")

    def detachDeviceFlags(self, device: str, flags: int) -> None:  # noqa: N802
        assert flags == libvirt.VIR_DOMAIN_AFFECT_LIVE
        before = self.running or self.xml
        self.running = before.replace(device, "")
        assert self.running != before

    def setMetadata(self, kind: int, mark: str | None, key: str, uri: str, flags: int) -> None:  # noqa: N802
        assert (kind, key, flags) == (libvirt.VIR_DOMAIN_METADATA_ELEMENT, "rapl", libvirt.VIR_DOMAIN_AFFECT_LIVE)
        running = re.sub(r"<metadata>.*?</metadata>", "", self.running or self.xml, flags=re.DOTALL)
        ours = "" if mark is None else f"<metadata>{mark.replace('<rapl', f'<rapl:rapl xmlns:rapl={uri!r}')}</metadata>"
        self.running = running.replace("<vcpu>", f"{ours}<vcpu>")

    def connect(self) -> "FakeLibvirt":
        return self.libvirt


@dataclass
class FakeLibvirt:
    """As much of libvirt.virConnect as we use."""

    domains: list[FakeDomain] = field(default_factory=list)
    defined: int = 0

    def add(self, xml: str, *, number: int = -1, persistent: bool = True) -> FakeDomain:
        self.domains.append(FakeDomain(self, xml, number, persistent))
        return self.domains[-1]

    def lookupByName(self, name: str) -> FakeDomain:  # noqa: N802
        return self._only(domain for domain in self.domains if domain.name() == name)

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:  # noqa: N802
        return self._only(domain for domain in self.domains if domain.UUIDString() == uuid)

    def listAllDomains(self) -> list[FakeDomain]:  # noqa: N802
        return self.domains

    def defineXML(self, xml: str) -> None:  # noqa: N802
        self.defined += 1
        self.lookupByUUIDString(Definition.parse(xml).uuid).xml = xml

    def isAlive(self) -> int:  # noqa: N802
        return 1

    def setKeepAlive(self, seconds: int, count: int) -> None:  # noqa: N802
        assert seconds * count > 0

    @staticmethod
    def _only(found: Iterator[FakeDomain]) -> FakeDomain:
        for domain in found:
            return domain
        raise failure("Domain not found", libvirt.VIR_ERR_NO_DOMAIN)
