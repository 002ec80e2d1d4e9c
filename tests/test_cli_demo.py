"""`virt-rapl demo` in a world of which nothing is real: what it starts there, and what it compares."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.host import write

from libvirt_rapl.cli import demo, main
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.simulator.guest import Reading

UNIT = 0xE00
"""Energy counts in units of 2**-14 J."""


class FakeWorld:
    """As much of a World as the demo uses. Each guest uses and reads so many watts; a vCPU runs half of the time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.watts = {"busy": 20, "calm": 5}
        self.documents = 60
        """How many `virt-rapl status` prints, each 1.1 s after the one before."""
        self.ran: list[str] = []
        self.fails: dict[str, str] = {}
        self.now = 0
        self.ended = False
        self.stdout = self._lines()

    def __enter__(self) -> "FakeWorld":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, command: Sequence[str]) -> None:
        words = " ".join(command)
        self.ran.append(words)
        if words in self.fails:
            raise VirtRaplError(self.fails.pop(words))

    def start_libvirtd(self) -> None:
        self.ran.append("libvirtd")

    def define_guest(self, name: str, duty: int, *, kvm: bool) -> None:
        self.ran.append(f"define {name} {duty}{'' if kvm else ' without KVM'}")

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def channel_lines(self, name: str) -> list[str]:
        """Return a line for each second until the last but one, where it has the channel."""
        if not any(f"--via channel {name}" in words for words in self.ran):
            return []
        joules = {second: 1000.0 + self.watts[name] * second * 1.1 for second in range(-5, self.now)}
        return [json.dumps({"time": f"at {second}", "energy_joules": each}) for second, each in joules.items()]

    def readings(self, name: str) -> list[Reading]:
        """Return ten readings a second; the counter moves once a second."""
        tenths = range(-50, self.now * 11 + 1)
        return [Reading(0, UNIT, ((tenth - 3) // 10 + 6) * self.watts[name] << 14) for tenth in tenths]

    def popen(self, command: Sequence[str]) -> "FakeWorld":
        self.ran.append(" ".join(command))
        return self

    def kill(self) -> None:
        self.ended = True

    def _lines(self) -> Iterator[str]:
        for now in range(-demo.SETTLING_SECONDS, self.documents):
            self.now = now
            for number, _ in enumerate(self.watts, 1):
                write(self.path(f"/proc/{number}/task/{number}/schedstat"), f"{5 * 10**8 * (now + 9)} 1 2\n")
            yield json.dumps(self.document()) + "\n"

    def document(self) -> dict[str, Any]:
        meter = "active" if any(words.startswith("virt-rapl enable busy") for words in self.ran) else "off"
        domains = [
            {
                "name": name,
                "vrapl": meter,
                "pid": number,
                "power_watts": watts,
                "energy_joules": 1000.0 + watts * self.now * 1.1,
                "vcpus": [{"tid": number}, {"tid": None}],
            }
            for number, (name, watts) in enumerate(self.watts.items(), 1)
        ]
        zones = [{"name": "package-0", "power_watts": 40.0}, {"name": "dram", "power_watts": 7.0}]
        host = {
            "source": "msr",
            "sampled_at": f"at {self.now}",
            "zones": zones,
            "domains_watts": 25.0,
            "other_watts": 5.0,
            "idle_watts": 10.0,
        }
        return {"host": host, "domains": domains}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    world = FakeWorld(tmp_path)
    monkeypatch.setattr(demo, "World", lambda **_: world)
    monkeypatch.setattr(demo, "check_machine", lambda: None)
    monkeypatch.setattr(demo, "check_kvm", lambda: None)
    monkeypatch.setattr(demo, "check_host", lambda **_: None)
    monkeypatch.setattr("libvirt_rapl.cli.demo.time", SimpleNamespace(monotonic=lambda: float(world.now)))
    return world


STARTED = [f"{action} {name}" for name in demo.GUESTS for action in ("define", "virt-rapl enable", "virsh start")]


def rows(out: str) -> dict[str, list[str]]:
    """Return the cells of each guest in the last screen."""
    return {line.split()[0]: re.split(r"  +", line) for line in out.splitlines() if line.startswith(("busy", "calm"))}


def test_what_a_guest_reads_is_compared_with_what_it_is_charged_since_the_first_screen(
    world: FakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--seconds=4"]) == 0
    assert [re.sub(r" \d+$", "", words) for words in world.ran[2:-1]] == STARTED
    assert world.ended
    out = capsys.readouterr().out
    assert len(out.split("\n\n")) == 5
    assert rows(out) == {
        "busy": ["busy", "50%", "20.0 W", "100.0 J", "100.0 J", "+0.0%"],
        "calm": ["calm", "50%", "5.0 W", "25.0 J", "25.0 J", "+0.0%"],
    }
    assert "package 40.0 W: domains 25.0 W" in out
    assert "SIMULATED" not in out


def test_where_a_guest_does_not_start_with_its_meter_it_starts_without(
    world: FakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.fails = {"virsh start busy": "no meter today"}
    assert main(["demo", "--seconds=1"]) == 0
    assert world.ran[2:-1] == [
        "define busy 100",
        "virt-rapl enable busy",
        "virsh start busy",
        "virt-rapl disable busy",
        "virsh start busy",
        "define calm 30",
        "virsh start calm",
    ]
    assert "no guest can read its energy here: no meter today" in capsys.readouterr().out


def test_without_kvm_guests_get_their_energy_by_the_channel(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise VirtRaplError("this machine has no KVM")

    monkeypatch.setattr(demo, "check_kvm", missing)
    assert main(["demo", "--seconds=2"]) == 0
    assert world.ran[2:-1] == [
        "sh -c exec virt-rapl daemon >/dev/null 2>&1 </dev/null &",
        "sh -c exec virt-rapl channel >/dev/null 2>&1 </dev/null &",
        "define busy 100 without KVM",
        "virt-rapl enable --via channel busy",
        "virsh start busy",
        "define calm 30 without KVM",
        "virt-rapl enable --via channel calm",
        "virsh start calm",
    ]
    out = capsys.readouterr().out
    assert "guests get their energy by the channel: this machine has no KVM" in out
    assert rows(out)["busy"][3:] == ["22.0 J", "22.0 J", "+0.0%"], "until the last sample that the guest has heard of"


def test_a_processor_can_be_chosen(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated: list[object] = []

    def make(*, simulate: object) -> FakeWorld:
        simulated.append(simulate)
        return world

    monkeypatch.setattr(demo, "World", make)
    assert main(["demo", "--seconds=1", "--cpu=amd"]) == 0
    assert main(["demo", "--seconds=1"]) == 0
    assert simulated[0] == ("--cpu", "amd")
    assert simulated[1] in ((), None)
    capsys.readouterr()


def test_a_status_that_ends_too_early_is_a_failure(world: FakeWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.documents = 3
    assert main(["demo", "--seconds=4"]) == 1
    shown = capsys.readouterr()
    assert "ended too early" in shown.err
    assert "nothing is left behind" not in shown.out
