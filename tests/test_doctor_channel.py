"""doctor's check of the energy channels, for each state that guests, the unit and its group may be in."""

from pathlib import Path
from typing import Any

import pytest

from libvirt_rapl import paths, systemd
from libvirt_rapl.doctor import channel
from libvirt_rapl.doctor.finding import Finding
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.lifecycle.channel_state import DOES_NOT_RUN, NOT_ALLOWED, NOT_CONNECTED, NOT_OPEN

RUNS = {"ActiveState": "active", "LoadState": "loaded", "SupplementaryGroups": "virt-rapl libvirt-qemu"}


class Host:
    """A machine of files, and what its virt-rapld and systemd say."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.unit: dict[str, str] | None = dict(RUNS)
        self.status: dict[str, Any] | None = {"domains": []}
        (root / "etc/libvirt").mkdir(parents=True)
        (root / "etc/group").write_text("libvirt-qemu:x:64055:\nkvm:x:36:\n")
        monkeypatch.setattr(systemd, "runs", lambda: self.unit is not None)
        monkeypatch.setattr(systemd, "unit_property", self.property)

    def property(self, unit: str, name: str) -> str:
        assert unit == "virt-rapl-channel.service"
        return (self.unit or {})[name]

    def guest(self, state: str, reason: str = "") -> None:
        assert self.status is not None
        self.status["domains"].append({"channel": state, "channel_reason": reason})

    def findings(self) -> list[Finding]:
        machine = Machine("", self.root / "none.yaml", self.root)
        machine.status = self.status
        return list(channel.channel(machine))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_how_many_guests_read(host: Host) -> None:
    for state in ("connected", "off", "waiting", "connected", "stalled"):
        host.guest(state)
    message = "virt-rapl-channel runs; of 4 guests with a channel 2 read their energy there"
    assert host.findings() == [("ok", message, "")]


def test_that_no_guest_reads_is_not_in_order(host: Host) -> None:
    for state in ("waiting", "stalled"):
        host.guest(state, "why")
    message = "virt-rapl-channel runs; of 2 guests with a channel none read their energy there"
    assert host.findings() == [("warning", message, "see each one's reason at `domains` below")]


def test_where_nothing_is_to_be_checked(host: Host) -> None:
    host.guest("off")
    host.status = {"domains": [{"name": "in a document of an older virt-rapld"}, *(host.status or {})["domains"]]}
    host.unit = {**RUNS, "ActiveState": "failed"}
    (found,) = host.findings()
    assert found[:2] == ("skipped", "no running domain has an energy channel")
    host.status = None
    (found,) = host.findings()
    assert found.state == "skipped"
    assert "nothing is known" in found.message


@pytest.mark.parametrize(
    ("unit", "hint"),
    [
        ({"ActiveState": "inactive"}, "systemctl start virt-rapl-channel; `journalctl"),
        ({"ActiveState": "failed"}, "systemctl start virt-rapl-channel; `journalctl"),
        ({"ActiveState": "inactive", "LoadState": "masked"}, "systemctl unmask virt-rapl-channel; systemctl start "),
    ],
)
def test_a_process_that_does_not_run(host: Host, unit: dict[str, str], hint: str) -> None:
    host.guest("waiting")
    host.unit = RUNS | unit
    (found,) = host.findings()
    assert found.state == "failed"
    assert found.hint.startswith(hint)


def test_without_systemd_there_is_no_unit_to_look_at(host: Host) -> None:
    host.unit = None
    host.guest("connected")
    host.guest("waiting", NOT_OPEN)
    assert [found.state for found in host.findings()] == ["ok"]


def test_whether_it_runs_is_known_without_systemd(host: Host) -> None:
    host.unit = None
    host.guest("waiting", DOES_NOT_RUN)
    (found,) = host.findings()
    assert found[:2] == ("failed", "virt-rapl-channel does not run: no guest is given its energy by a channel")
    assert found.hint == "run `virt-rapl channel`"


def test_a_process_that_hangs(host: Host) -> None:
    host.guest("waiting", DOES_NOT_RUN)
    (found,) = host.findings()
    assert found.state == "failed"
    assert "virt-rapl-channel hangs" in found.message
    assert found.hint.startswith("systemctl restart virt-rapl-channel; ")


@pytest.mark.parametrize(
    ("state", "reason", "hint"),
    [
        ("waiting", NOT_OPEN, "in the guest: systemctl start virt-rapl-guest"),
        ("waiting", DOES_NOT_RUN, "systemctl start virt-rapl-channel"),
        ("waiting", NOT_CONNECTED, "wait a few seconds"),
        ("waiting", f"{NOT_ALLOWED}: {{}} is not open to it", "SupplementaryGroups=GROUP"),
        ("waiting", "QEMU has hung up", "docs/channel.md"),
        ("stalled", "slow", "restart virt-rapl-guest in the guest"),
    ],
)
def test_what_to_do_for_each_reason(host: Host, tmp_path: Path, state: str, reason: str, hint: str) -> None:
    host.unit = {**RUNS, "ActiveState": "inactive"}
    shown = {"channel": state, "channel_reason": reason, "channel_socket": str(tmp_path / "1.sock")}
    assert hint.replace("GROUP", tmp_path.group()) in channel.what_to_do(shown)
    gone = {**shown, "channel_socket": str(tmp_path / "gone/1.sock")}
    assert channel.what_to_do(gone)


def test_a_process_without_the_group_of_qemus_user(host: Host) -> None:
    host.guest("waiting")
    (host.root / "etc/libvirt/qemu.conf").write_text('group = "kvm"\n')
    found = host.findings()[0]
    assert found.state == "failed"
    assert "not in kvm" in found.message
    assert "`virt-rapl install`" in found.hint
    unit = host.root / paths.PACKAGED_UNITS / paths.DAEMON_UNIT
    unit.parent.mkdir(parents=True)
    unit.touch()
    assert "SupplementaryGroups=kvm" in host.findings()[0].hint
    (host.root / "etc/group").write_text("")
    found = host.findings()[0]
    assert (found.state, "qemu.conf" in found.hint) == ("warning", True)
