"""libvirt's own run-time files: the process and vCPU threads of a domain."""

import os
from pathlib import Path

import pytest
from fakes.host import Host, Thread, write

from libvirt_rapl.domains.channel import Channel
from libvirt_rapl.domains.run_files import RunState, read_run_state, written

STATUS = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST. Changes to this xml configuration should be made using:
  virsh edit vm
or other application using the libvirt API.
-->

<domstatus state='running' reason='booted' pid='7'>
  <taint flag='custom-argv'/>
  <monitor path='/var/lib/libvirt/qemu/domain-1-vm/monitor.sock' type='unix'/>
  <vcpus>
    <vcpu id='0' pid='70'/>
    <vcpu id='1' pid='71'/>
  </vcpus>
  <domain type='kvm' id='1' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <name>vm</name>
    <vcpu placement='static' current='2'>3</vcpu>
    <vcpus>
      <vcpu id='0' enabled='yes' hotpluggable='no' order='1'/>
      <vcpu id='2' enabled='no' hotpluggable='yes'/>
    </vcpus>
  </domain>
</domstatus>
"""
NAMES = {7: "qemu-system-x86", 99: "CPU 1/KVM", 98: "CPU 0/KVM", 97: "kvm-msr"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    Host(tmp_path).process(7, {tid: Thread(name, 0) for tid, name in NAMES.items()})
    return tmp_path / "run"


def state(run: Path, name: str = "vm") -> RunState | None:
    return read_run_state(name, run, run.parent / "proc")


def test_the_status_file(run: Path) -> None:
    write(run / "vm.xml", STATUS)
    assert state(run) == RunState(7, {0: 70, 1: 71})


SOCKET = "/run/libvirt/qemu/channel/1-vm/org.virt-rapl.energy.0"
CHANNEL = f"""<channel type='unix'><source mode='bind' path='{SOCKET}'/>
<target type='virtio' name='org.virt-rapl.energy.0' state='STATE'/></channel>"""


@pytest.mark.parametrize(("word", "is_open"), [("connected", True), ("disconnected", False)])
def test_the_channel_and_whether_the_guest_has_it_open(run: Path, word: str, is_open: bool) -> None:
    devices = f"<devices>{CHANNEL.replace('STATE', word)}</devices></domain>"
    write(run / "vm.xml", STATUS.replace("</domain>", devices))
    assert state(run) == RunState(7, {0: 70, 1: 71}, Channel(SOCKET, is_open))


def test_no_thread_is_a_vcpu_while_the_status_file_has_none(run: Path) -> None:
    write(run / "vm.xml", STATUS.replace("<vcpu id='0' pid='70'/>", "").replace("<vcpu id='1' pid='71'/>", ""))
    assert state(run) == RunState(7, {})  # whatever QEMU calls its threads


@pytest.mark.parametrize("status", [None, "", "<domstatus state='running'>", "<domstatus state='running'/>"])
def test_the_pid_file_where_the_status_file_does_not_say(run: Path, status: str | None) -> None:
    if status is not None:
        write(run / "vm.xml", status)
    assert state(run) is None
    write(run / "vm.pid", "7\n")
    assert state(run) == RunState(7, {})


def test_whenever_libvirt_writes_the_status_file_anew_it_shows(run: Path) -> None:
    assert written("vm", run) is None
    write(run / "vm.xml", STATUS)
    before = written("vm", run)
    assert before == written("vm", run)
    write(run / "new", STATUS)
    assert before
    os.utime(run / "new", ns=(0, before[1]))  # within one tick of the clock
    (run / "new").replace(run / "vm.xml")
    replaced = written("vm", run)
    assert replaced not in (before, None)
    os.utime(run / "vm.xml", ns=(0, 1))  # or written in place
    assert written("vm", run) not in (before, replaced, None)


def test_files_that_may_not_be_read_are_no_domain_that_does_not_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    write(run / "vm.xml", STATUS)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", forbid)
        with pytest.raises(PermissionError):
            state(run)


def test_a_process_that_has_gone_is_not_running(run: Path) -> None:
    write(run / "vm.xml", STATUS.replace("pid='7'", "pid='8'"))
    write(run / "vm.pid", "7\n")
    assert state(run) is None
    write(run / "vm.xml", "")
    write(run / "vm.pid", "\n")
    assert state(run) is None


def test_a_domain_that_does_not_run(run: Path) -> None:
    assert state(run, "other") is None
