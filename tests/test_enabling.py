"""A meter into a definition: which emulator is checked, and when nothing has to be changed."""

from pathlib import Path

import pytest
from fakes.libvirt import UUID, definition

from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.lifecycle.enabling import enabled, is_enabled

REGISTRY = Registry(Path("/run/virt-rapl"))
PLAIN = definition("web", UUID, Path("/opt/q"))
NAMELESS = PLAIN.replace("    <emulator>/opt/q</emulator>\n", "")
MARKED = Definition.parse(PLAIN).with_registers(socket=f"/run/elsewhere/{UUID}.sock").xml


@pytest.mark.parametrize(
    ("xml", "default", "emulator"),
    [
        (PLAIN, "/usr/bin/other", "/opt/q"),
        (MARKED, "/usr/bin/other", "/opt/q"),
        (NAMELESS, "/usr/bin/other", "/usr/bin/other"),
        (NAMELESS, None, "/usr/bin/qemu-system-x86_64"),
    ],
)
def test_the_emulator_that_will_run_is_checked_and_not_its_wrapper(
    xml: str, default: str | None, emulator: str
) -> None:
    checked: list[str] = []
    defaults = (default,) if default else ()
    changed, _ = enabled(Definition.parse(xml), REGISTRY, "registers", checked.append, *defaults)
    assert checked == [emulator]
    assert changed.helper_socket == f"/run/virt-rapl/{UUID}.sock"
    assert f"<emulator>{emulator}-rapl</emulator>" in changed.xml


def test_what_the_check_refuses_is_refused() -> None:
    def refuse(path: str) -> None:
        raise VirtRaplError(f"{path} is too old")

    with pytest.raises(VirtRaplError, match="/opt/q is too old"):
        enabled(Definition.parse(PLAIN), REGISTRY, "registers", refuse)


def test_whether_it_is_enabled_does_not_depend_on_quotes_but_on_the_socket() -> None:
    whole, _ = enabled(Definition.parse(PLAIN), REGISTRY, "registers", str)
    for xml, state in ((PLAIN, False), (MARKED, False), (whole.xml, True), (whole.xml.replace('"', "'"), True)):
        assert is_enabled(Definition.parse(xml), REGISTRY, "registers") == state
    with pytest.raises(VirtRaplError, match="type 'qemu'"):
        is_enabled(Definition.parse(PLAIN.replace("'kvm'", "'qemu'")), REGISTRY, "registers")
