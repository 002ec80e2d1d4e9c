"""A meter into a definition: by registers or by the channel, which emulator is checked, and when nothing is changed."""

from pathlib import Path

import pytest
from fakes.libvirt import UUID, definition

from libvirt_rapl.choices import Via
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import NoRegistersError, VirtRaplError
from libvirt_rapl.helper.records import Registry
from libvirt_rapl.host.requirements import check_processor
from libvirt_rapl.host.topology import Processor
from libvirt_rapl.lifecycle.enabling import enabled, is_enabled, wants_registers

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


# By registers, or by the channel.


def parts(definition: Definition) -> tuple[bool, bool]:
    return definition.has_registers, definition.channel is not None


BOTH = (True, True)
REGISTERS, CHANNEL, NOTHING = (True, False), (False, True), (False, False)
BEFORE = {
    NOTHING: Definition.parse(PLAIN),
    REGISTERS: enabled(Definition.parse(PLAIN), REGISTRY, "registers", str)[0],
    CHANNEL: Definition.parse(PLAIN).with_channel(),
    BOTH: enabled(Definition.parse(PLAIN), REGISTRY, "both", str)[0],
}


@pytest.mark.parametrize(
    ("via", "before", "is_in_order", "after"),
    [
        ("auto", NOTHING, False, REGISTERS),
        ("auto", REGISTERS, True, REGISTERS),
        ("auto", CHANNEL, True, CHANNEL),
        ("auto", BOTH, True, BOTH),
        ("registers", NOTHING, False, REGISTERS),
        ("registers", REGISTERS, True, REGISTERS),
        ("registers", CHANNEL, False, REGISTERS),
        ("registers", BOTH, True, REGISTERS),
        ("channel", NOTHING, False, CHANNEL),
        ("channel", REGISTERS, False, CHANNEL),
        ("channel", CHANNEL, True, CHANNEL),
        ("channel", BOTH, True, CHANNEL),
        ("both", NOTHING, False, BOTH),
        ("both", REGISTERS, False, BOTH),
        ("both", CHANNEL, False, BOTH),
        ("both", BOTH, True, BOTH),
    ],
)
def test_what_via_says(via: Via, before: tuple[bool, bool], is_in_order: bool, after: tuple[bool, bool]) -> None:
    """What is more than wanted is taken out, but is no reason to."""
    assert parts(BEFORE[before]) == before
    assert is_enabled(BEFORE[before], REGISTRY, via) == is_in_order
    changed, reason = enabled(BEFORE[before], REGISTRY, via, str)
    assert (parts(changed), reason) == (after, "")
    assert wants_registers(BEFORE[before], via) == after[0]
    assert (changed is BEFORE[before]) == (before == after)
    assert changed.strip().rewritten == BEFORE[NOTHING].rewritten


def too_old(_: str) -> None:
    raise NoRegistersError("too old", "upgrade it")


def broken(_: str) -> None:
    raise VirtRaplError("broken", "mend it")


@pytest.mark.parametrize("before", [NOTHING, REGISTERS])
def test_auto_is_the_channel_where_qemu_gives_no_registers(before: tuple[bool, bool]) -> None:
    growable = Definition.parse(BEFORE[before].xml.replace("<vcpu>2<", "<vcpu current='1'>2<"))
    both: tuple[Via, ...] = ("registers", "both")
    for refused, check, why in ((growable, str, "can grow"), (BEFORE[before], too_old, "too old")):
        changed, reason = enabled(refused, REGISTRY, "auto", check)
        assert (parts(changed), why in reason) == (CHANNEL, True)
        assert is_enabled(changed, REGISTRY, "auto")
        for via in both:
            with pytest.raises(NoRegistersError, match=why):
                enabled(refused, REGISTRY, via, check)
    assert not is_enabled(growable, REGISTRY, "auto")
    for via in both:
        with pytest.raises(NoRegistersError, match="can grow"):
            is_enabled(growable.with_channel(), REGISTRY, via)
    with pytest.raises(VirtRaplError, match="broken"):
        enabled(BEFORE[before], REGISTRY, "auto", broken)


def test_this_hosts_processor_counts_for_what_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libvirt_rapl.host.requirements.processor", lambda _: Processor("AuthenticAMD", 25, 1))
    unmendable = Definition.parse(PLAIN.replace("/opt/q", "q"))
    for there in (BEFORE[NOTHING], unmendable):
        changed, reason = enabled(there, REGISTRY, "auto", lambda _: check_processor())
        assert (parts(changed), "Intel hosts only" in reason) == (CHANNEL, True)
    assert parts(enabled(BEFORE[NOTHING], REGISTRY, "auto", str, here=False)[0]) == REGISTERS
    assert parts(enabled(BEFORE[NOTHING], REGISTRY, "registers", str)[0]) == REGISTERS
    assert parts(enabled(BEFORE[CHANNEL], REGISTRY, "auto", broken)[0]) == CHANNEL


@pytest.mark.parametrize("via", ["auto", "registers", "channel", "both"])
def test_a_channel_of_the_owners_is_used_and_stays(via: Via) -> None:
    channel = "<channel type='unix'><target type='virtio' name='org.virt-rapl.energy.0'/></channel>"
    owners = Definition.parse(PLAIN.replace("</devices>", f"{channel}</devices>"))
    changed, _ = enabled(owners, REGISTRY, via, str)
    assert parts(changed) == (via in ("registers", "both"), True)
    assert changed.strip().rewritten == owners.rewritten
    assert (changed is owners) == (via in ("auto", "channel")), "with auto it is its owner's choice"
