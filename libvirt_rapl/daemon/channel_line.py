"""The line that a guest gets through its channel, made of virt-rapld's document. No I/O.

It has fewer fields than the document: the guest's own energy, and nothing that names the host or another domain. A
reading that is missing is absent, never 0.

The lines of 500 guests, each second, are made of the document's JSON and not of its types, and as text in which numbers
are what they are there: that takes a sixth of the time. A test holds that this is what `json.dumps` makes.
"""

import json
from collections.abc import Mapping
from typing import Any

from libvirt_rapl.host.zones import kind_of

SCHEMA = 1


def parse(text: bytes) -> Any:  # noqa: ANN401  any JSON
    """Parse a document for Lines: a number with a fraction stays as its text. Raises ValueError."""
    return json.loads(text, parse_float=str)


class Lines:
    """Makes the lines of one document."""

    def __init__(self, host: Mapping[str, Any], host_id: str) -> None:
        """Take the host of a document, and the opaque id by which guests may know it.

        Raises KeyError, TypeError, ValueError if it is not as those of this version.
        """
        head = {
            "schema": SCHEMA,
            "time": host["sampled_at"],
            "host": host_id,
            "since": host["since"],
            "source": host["source"],
            "simulated": host["source"] == "simulated",
        }
        self._head = f'{json.dumps(head).removesuffix("}")}, "interval_seconds": {host["interval_seconds"]}'
        zones = [(kind_of(zone["name"]), zone) for zone in host["zones"]]
        self._counted = {kind for kind, zone in zones if float(zone["energy_joules"]) or not zone.get("unread")}
        """Kinds of zones that have been read at least once."""
        self._read = self._counted - {kind for kind, zone in zones if zone.get("unread")}
        """Kinds of zones of which all were read in the last interval."""

    def line(self, domain: Mapping[str, Any]) -> bytes:
        """Return a domain's line, with its line end; empty if nothing of it has been read yet.

        Raises KeyError, TypeError if the document is not as those of this version.
        """
        unread = domain.get("unread", False)
        if "package" not in self._counted or (unread and not float(domain["energy_joules"])):
            return b""
        read = () if unread else self._read
        figures = _both if "package" in read else _energy
        zones = ", ".join(
            [
                f'"{kind}": {{{_both(zone) if kind in read else _energy(zone)}}}'
                for kind, zone in domain["zones"].items()
                if kind in self._counted
            ]
        )
        vcpus = ", ".join([f'{{"id": {vcpu["id"]}, {figures(vcpu)}}}' for vcpu in domain["vcpus"]])
        return f'{self._head}, {figures(domain)}, "zones": {{{zones}}}, "vcpus": [{vcpus}]}}\n'.encode()


def _both(part: Mapping[str, Any]) -> str:
    return f'"power_watts": {part["power_watts"]}, "energy_joules": {part["energy_joules"]}'


def _energy(part: Mapping[str, Any]) -> str:
    return f'"energy_joules": {part["energy_joules"]}'
