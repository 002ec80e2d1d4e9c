"""The UUID in domain XML: found as libvirt finds it; put in where there is none, and out again without a trace."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from fakes.domain_xml import UUID, canonical, domain, domains
from hypothesis import given, settings

from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.lifecycle.enabling import enabled

REGISTRY = Registry(Path("/run/virt-rapl"))
OTHER = "aaaaaaaa-0000-4000-8000-000000000000"
WRITTEN = f"<uuid>{UUID}</uuid>"


def sysinfo(*entries: str, kind: str = "smbios", inside: str = "system") -> str:
    found = "".join(f"<entry name='uuid'>{text}</entry>" for text in entries)
    return f"<sysinfo type='{kind}'><{inside}><entry name='family'>F</entry>{found}</{inside}></sysinfo>"


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    """libvirt's test driver, which reads XML as all others do."""
    connection = connect("test:///default")
    yield connection
    connection.close()


REST = "<memory>65536</memory><os><type>hvm</type></os></domain>"


def as_libvirt_takes_it(connection: Any, xml: str) -> str:  # noqa: ANN401
    handle = connection.defineXML(xml.replace("type='kvm'", "type='test'").replace("</domain>", REST))
    found = str(handle.UUIDString())
    handle.undefine()
    return found


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        (WRITTEN, UUID),
        (f"<uuid> \n{UUID.upper().replace('-', ' ')}<!-- mine --></uuid>", UUID),
        (WRITTEN + sysinfo(UUID.upper()), UUID),
        (WRITTEN + sysinfo(), UUID),
        (WRITTEN + sysinfo(OTHER, kind="fwcfg"), UUID),
        (sysinfo(UUID), UUID),
        (sysinfo(f" <!-- mine -->{UUID.replace('-', '')}\n"), UUID),
        (sysinfo(UUID, OTHER), UUID),
        (sysinfo(OTHER) + sysinfo(UUID), UUID),
        (sysinfo(UUID) + sysinfo(""), UUID),
        ("<uuid/>" + sysinfo(UUID), UUID),
        (f"<sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry></system><system/></sysinfo>", UUID),
    ],
)
def test_it_is_where_libvirt_takes_it_from(connection: Any, inside: str, expected: str) -> None:  # noqa: ANN401
    xml = domain(inside, uuid="")
    definition = Definition.parse(xml)
    assert definition.uuid == as_libvirt_takes_it(connection, xml) == expected
    assert definition.with_uuid() is definition.strip() is definition


@pytest.mark.parametrize(
    "inside",
    [
        "",
        sysinfo(),
        sysinfo(""),
        sysinfo("", OTHER),
        sysinfo(OTHER, inside="baseBoard"),
        sysinfo(OTHER, kind="fwcfg"),
        f"<sysinfo type='smbios'><system/><system><entry name='uuid'>{OTHER}</entry></system></sysinfo>",
    ],
)
def test_one_is_put_in_where_libvirt_would_make_one(connection: Any, inside: str) -> None:  # noqa: ANN401
    xml = domain(inside, uuid="")
    assert as_libvirt_takes_it(connection, xml) not in (OTHER, as_libvirt_takes_it(connection, xml))
    with pytest.raises(VirtRaplError, match="has no UUID"):
        _ = Definition.parse(xml).uuid
    completed = Definition.parse(xml).with_uuid()
    assert as_libvirt_takes_it(connection, completed.xml) == completed.uuid
    assert Definition.parse(xml).with_uuid().uuid != completed.uuid
    assert canonical(Definition.parse(completed.xml).strip().xml) == canonical(xml)


@pytest.mark.parametrize(
    "inside", ["<uuid> </uuid>", "<uuid>12</uuid>", sysinfo("x"), sysinfo(" "), "<uuid>12</uuid>" + sysinfo(UUID)]
)
def test_what_is_none_is_refused_as_libvirt_refuses_it(connection: Any, inside: str) -> None:  # noqa: ANN401
    xml = domain(inside, uuid="")
    with pytest.raises(libvirt.libvirtError, match="malformed"):
        as_libvirt_takes_it(connection, xml)
    with pytest.raises(VirtRaplError, match="not a UUID") as caught:
        enabled(Definition.parse(xml), REGISTRY, "registers", str)
    assert caught.value.hint


def test_an_empty_one_is_left_for_its_owner_to_fill_in() -> None:
    xml = domain(uuid="<uuid/>")
    with pytest.raises(VirtRaplError, match="has no UUID") as caught:
        enabled(Definition.parse(xml), REGISTRY, "registers", str)
    assert "remove it" in caught.value.hint


@settings(max_examples=200, deadline=None)
@given(domains(with_uuid=False))
def test_strip_undoes_inject_exactly(xml: str) -> None:
    for via in ("registers", "both"):
        injected = Definition.parse(enabled(Definition.parse(xml), REGISTRY, via, str)[0].xml)
        assert injected.helper_socket == f"/run/virt-rapl/{injected.uuid}.sock"
        assert enabled(injected, REGISTRY, via, str)[0] is injected
        assert canonical(injected.strip().xml) == canonical(xml)


def test_the_channel_needs_none() -> None:
    assert "<uuid" not in enabled(Definition.parse(domain(uuid="")), REGISTRY, "channel", str)[0].xml


def test_strip_leaves_a_domain_of_libvirts_its_uuid(connection: Any) -> None:  # noqa: ANN401
    """Or libvirt would not define it again: it has a domain of that name, with another UUID."""
    xml = domain(uuid="").replace("type='kvm'", "type='test'").replace("</domain>", REST)
    completed = Definition.parse(xml).with_uuid()
    handle = connection.defineXML(completed.xml)
    shown = Definition.parse(handle.XMLDesc())
    assert (shown.uuid, shown.strip()) == (completed.uuid, shown)
    connection.defineXML(shown.strip().xml).undefine()
