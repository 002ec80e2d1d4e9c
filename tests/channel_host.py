"""A host on which virt-rapl-channel gives guests their lines, and on which everything that `status` shows is kept."""

import json
import re
from datetime import datetime
from typing import Any
from uuid import uuid4

from lifecycle import Host

from libvirt_rapl.simulator.world import World

CHANNEL_LOG = "/var/log/virt-rapl-channel.log"
WATCHED = "/var/log/watched"
"""What `status --json --watch` prints."""


class ChannelHost(Host):
    """A Host with virt-rapl-channel beside virt-rapld."""

    def __init__(self, world: World, run_directory: str = "/run/virt-rapl") -> None:
        """Furnish the world."""
        # The worlds of a machine have its machine-id, and hosts have one each, by which guests tell them apart.
        world.path("/etc/machine-id").write_text(f"{uuid4().hex}\n")
        super().__init__(world, run_directory)
        self.start_channel()
        world.run(["sh", "-c", f"exec virt-rapl status --json --watch >{WATCHED} 2>/dev/null </dev/null &"])

    def start_channel(self) -> None:
        command = f"exec virt-rapl channel >/dev/null 2>>{CHANNEL_LOG} </dev/null & echo $!"
        self.channel = int(self.world.run(["sh", "-c", command]).stdout)

    def migrate(self, name: str, hostname: str) -> float:
        """Have a domain go on in another world, which shares /mnt; return for how many seconds it stood still."""
        to = f"qemu+unix:///system?socket=/mnt/{hostname}/libvirt-sock"
        self.virsh("migrate", "--live", "--persistent", name, to, "--migrateuri", "unix:///mnt/stream")
        completed = self.virsh("domjobinfo", name, "--completed").stdout
        (downtime,) = re.findall(r"^Total downtime: +(\d+) +ms", completed, re.MULTILINE)
        return int(downtime) / 1000

    def domain(self, name: str) -> dict[str, Any]:
        """Return what virt-rapld reports of a domain; nothing if it does not know it, or does not answer."""
        domains = (self.asked() or {"domains": []})["domains"]
        return next((domain for domain in domains if domain["name"] == name), {})

    def channel_of(self, name: str) -> str | None:
        """Return the state of a domain's channel."""
        return self.domain(name).get("channel")

    def watched(self, name: str) -> dict[float, dict[str, Any]]:
        """Return what `status` has shown of a domain, by the time of the sample, in seconds since 1970."""
        shown = {}
        for line in self.world.path(WATCHED).read_text().split("\n")[:-1]:
            document = json.loads(line)
            found = [domain for domain in document["domains"] if domain["name"] == name]
            if found and document["host"]["sampled_at"]:
                shown[datetime.fromisoformat(document["host"]["sampled_at"]).timestamp()] = found[0]
        return shown
