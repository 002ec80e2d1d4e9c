"""Documents of hosts that there are not, and a virt-rapld that shows them."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from libvirt_rapl import paths
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.daemon.answerers import Answerers
from libvirt_rapl.daemon.document import Document, DomainReading, Host, Reading, Vcpu, Zone, render
from libvirt_rapl.daemon.stream_socket import Streams


def uuid(number: int) -> str:
    return f"{number:08}-0000-4000-8000-000000000000"


def domain(number: int, name: str, watts: float = 0.0, joules: float = 0.0, **fields: Any) -> DomainReading:  # noqa: ANN401
    """Return a running domain of two vCPUs without a meter; `fields` are what is different."""
    values: dict[str, Any] = {
        "name": name,
        "uuid": uuid(number),
        "id": number,
        "state": "running",
        "pid": 1000 + number,
        "vrapl": "off",
        "reason": None,
        "helper": None,
        "cpu_percent": 2 * watts,
        "power_watts": watts,
        "energy_joules": joules,
        "zones": {kind: Reading(power_watts=watts, energy_joules=joules) for kind in ("package", "dram")},
        "vcpus": tuple(
            Vcpu(id=vcpu, tid=2000 + vcpu, power_watts=watts / 2, energy_joules=joules / 2) for vcpu in range(2)
        ),
    }
    return DomainReading(**values | fields)


def shut_off(number: int, name: str, joules: float = 0.0, **fields: Any) -> DomainReading:  # noqa: ANN401
    return domain(number, name, 0.0, joules, **{"id": None, "pid": None, "state": "shut off", "vcpus": ()} | fields)


def document(domains: Iterable[DomainReading] = (), **host: Any) -> Document:  # noqa: ANN401
    """Return what is known of such domains on a host of one package, where 5 W are others' and 15 W nobody's."""
    shown = tuple(sorted(domains, key=lambda each: each.name))
    watts, joules = sum(each.power_watts for each in shown), sum(each.energy_joules for each in shown)
    package = Zone(
        name="package-0",
        power_watts=watts + 20,
        energy_joules=joules + 2000,
        domains_joules=joules,
        other_joules=500,
        idle_joules=1500,
    )
    values: dict[str, Any] = {
        "source": "powercap",
        "model": "CPU",
        "since": "2026-01-01T00:00:00+00:00",
        "interval_seconds": 1.0,
        "sampled_at": "2026-01-02T03:04:05.000+00:00",
        "zones": (replace(package, name="dram-0", power_watts=3, energy_joules=300), package),
        "domains_watts": watts,
        "other_watts": 5.0,
        "idle_watts": 15.0,
    }
    return Document(version="0", host=Host(**values | host), domains=shown)


def many(count: int, second: int, vcpus: int = 4) -> Document:
    """Return what such a host shows after so many seconds: each domain's power goes up and down."""

    def one(number: int) -> DomainReading:
        watts, joules = 10 + 9 * math.sin(second / 10 + number), 10.0 * second + number
        parts = {
            "zones": {kind: Reading(power_watts=watts, energy_joules=joules) for kind in ("core", "dram", "package")},
            "vcpus": tuple(
                Vcpu(id=each, tid=2000 + each, power_watts=watts / vcpus, energy_joules=joules / vcpus)
                for each in range(vcpus)
            ),
        }
        return domain(number, f"instance-{number:04}", watts, joules, vrapl="active", **parts)

    return document(map(one, range(count)))


class Daemon:
    """Answers on virt-rapld's sockets below a directory, and writes the configuration that leads there."""

    def __init__(self, directory: Path, shown: Document, configuration: str = "") -> None:
        """Show this document."""
        self.run_directory = directory / "run"
        self.state_directory = directory / "state"
        self.config = directory / "virt-rapl.yaml"
        self.config.write_text(
            f"run_directory: {self.run_directory}\nstate_directory: {self.state_directory}\n{configuration}"
        )
        self._text = render(shown).encode()
        self.start()

    def start(self) -> None:
        """Begin to answer."""
        (self.run_directory / paths.STATUS_SOCKET).parent.mkdir(parents=True, exist_ok=True)
        self._status: Answerers = status_socket.serve(self.run_directory / paths.STATUS_SOCKET, self._document, print)
        self._streams = Streams(self.run_directory / paths.STREAM_SOCKET, self._document, print)

    def _document(self) -> bytes:
        return self._text

    def show(self, shown: Document) -> None:
        """Show another document from now on."""
        self._text = render(shown).encode()
        self._streams.wake()

    def clients(self) -> int:
        """Return how many follow the documents."""
        return len(self._streams._clients)

    def stop(self) -> None:
        """Hang up, as a daemon does that ends."""
        self._status.close()
        self._streams.close()
        for name in (paths.STATUS_SOCKET, paths.STREAM_SOCKET):
            (self.run_directory / name).unlink(missing_ok=True)
