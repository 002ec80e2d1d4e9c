"""A glance at domain XML: it recognizes a domain with registers that are in order, and then agrees with Definition."""

import re
from pathlib import Path

import pytest
from fakes.domain_xml import UUID, domain, domains
from hypothesis import given

from libvirt_rapl.domains import glance, names
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.glance import Threads
from libvirt_rapl.helper.run_directory import RunDirectory

RUN = RunDirectory(Path("/run/virt-rapl"))
SOCKET = RUN.socket(UUID)
PLAIN = domain(
    "<title>a &lt; b</title>\n  <metadata><x:y xmlns:x='urn:x'>é</x:y></metadata>\n  <vcpu current='2'>2</vcpu>\n"
    "  <os><type arch='x86_64' machine='pc'>hvm</type></os>\n"
    "  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices>\n"
    "  <seclabel type='dynamic' model='apparmor'><label>x</label></seclabel>\n"
    "  <seclabel type='dynamic' model='dac'><label>+64055:+993</label></seclabel>",
    attributes="type='kvm' id='3'",
)
MARKED = Definition.parse(PLAIN).with_registers(socket=SOCKET).xml
ARGUMENTS = f'<qemu:arg value="-accel"/>\n    <qemu:arg value="{names.ACCELERATOR}{SOCKET}"/>'


def test_what_it_sees() -> None:
    seen = glance.at_domain(MARKED, RUN.socket)
    assert seen
    assert (seen.name, seen.uuid, seen.id, seen.dac_label) == ("guest", UUID, 3, "+64055:+993")
    assert (seen.helper_socket, seen.emulator()) == (SOCKET, "/usr/bin/qemu-system-x86_64")


@given(domains())
def test_it_sees_nothing_in_which_definition_finds_a_fault(xml: str) -> None:
    for text in (xml, Definition.parse(xml).with_registers(socket=SOCKET).xml):
        if seen := glance.at_domain(text, RUN.socket):
            definition = Definition.parse(text)
            assert definition.has_registers
            definition.check(SOCKET)
            definition.check_takes_effect()
            known = (definition.name, definition.uuid, definition.id, definition.dac_label, definition.helper_socket)
            assert known == (seen.name, seen.uuid, seen.id, seen.dac_label, seen.helper_socket)
            assert definition.emulator() == seen.emulator()


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ('type="kvm"', 'type="qemu"'),
        ('arch="x86_64"', 'arch="aarch64"'),
        ('<vcpu current="2">2', '<vcpu current="1">2'),
        ("</vcpu>", "</vcpu><vcpus><vcpu id='0' enabled='no'/></vcpus>"),
        (UUID, UUID.upper()),
        ("-rapl</emulator>", "</emulator>"),
        ("<emulator>/usr/bin/qemu-system", "<emulator>/usr/bin/other"),
        ("emulator=", "another="),
        (' socket="', ' socket="/other'),
        (ARGUMENTS, ""),
        (ARGUMENTS, ARGUMENTS + ARGUMENTS),
        (ARGUMENTS, ARGUMENTS + '<qemu:arg value="--accel"/><qemu:arg value="tcg"/>'),
        (ARGUMENTS, ARGUMENTS.replace("-accel", "--accel")),
        (ARGUMENTS, ARGUMENTS.replace("-accel", "-device")),
        (ARGUMENTS, ARGUMENTS.replace(UUID, "87654321-1234-1234-1234-123456789abc")),
        ("<metadata>", f"<metadata><a:b xmlns:a='{names.MARK}'/>"),
        ("<metadata>", "<metadata>" + "<a>" * 300 + "</a>" * 300),
        ("<metadata>", f"<metadata><{'a' * 1001}/>"),
        ("<metadata>", f"<metadata><a {'a' * 1001}='1'/>"),
        ("<metadata>", "<metadata>" + " " * glance.MOST_BYTES),
        ("<metadata>", "<metadata><unbound:prefix/>"),
        ("<metadata>", "<metadata>&unknown;"),
        ("<metadata>", "<metadata>\x01"),
        ("<domain ", "<!DOCTYPE domain><domain "),
        ("<name>", "<name><b/>"),
        ("</domain>", ""),
    ],
)
def test_of_anything_else_it_says_nothing(part: str, instead: str) -> None:
    """Some of these `definition` refuses, some it does not: it is asked."""
    changed = MARKED.replace(part, instead)
    assert changed != MARKED
    assert glance.at_domain(changed, RUN.socket) is None


@pytest.mark.parametrize("directory", ["/run/elsewhere", "/run/a,b", "/run/" + "x" * 100])
def test_only_the_socket_of_the_run_directory_is_in_order(directory: str) -> None:
    elsewhere, moved = RunDirectory(Path(directory)), MARKED.replace(str(RUN.run_directory), directory)
    assert glance.at_domain(MARKED, elsewhere.socket) is None
    assert glance.at_domain(moved, RUN.socket) is None
    at_home = glance.at_domain(moved, elsewhere.socket)
    assert (at_home is not None) == (directory == "/run/elsewhere")


STATUS = """<domstatus state='running' reason='booted' pid='4242'>
  <vcpus>
    <vcpu id='0' pid='4250'/>
    <vcpu id='1' pid='4251'/>
  </vcpus>
  <domain type='kvm' id='1'>
    <vcpus><vcpu id='7' pid='7'/></vcpus>
    <metadata><unbound:prefix/></metadata>
  </domain>
</domstatus>
"""


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (STATUS, Threads(4242, {0: 4250, 1: 4251})),
        (re.sub(r"<vcpus>.*?</vcpus>", "", STATUS, count=1, flags=re.DOTALL), Threads(4242, {})),
        (STATUS.replace(" pid='4242'", ""), None),
        (STATUS.replace("'4250'", "'x'"), None),
        ("", None),
        ("<domstatus", None),
    ],
)
def test_processes_of_a_running_domain(tmp_path: Path, text: str, seen: Threads | None) -> None:
    (tmp_path / "vm.xml").write_text(text)
    assert glance.at_threads("vm", tmp_path) == seen
    assert glance.at_threads("other", tmp_path) is None
