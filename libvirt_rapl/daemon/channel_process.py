"""virt-rapl-channel: a process of its own between virt-rapld and the guests, with the rights it takes."""

import gc
import time
from collections.abc import Callable
from pathlib import Path

from libvirt_rapl import paths, systemd
from libvirt_rapl.daemon import stream_socket
from libvirt_rapl.daemon.channel_report import Report
from libvirt_rapl.daemon.channel_writer import ChannelWriter
from libvirt_rapl.daemon.status_socket import is_forbidden, listens
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.sockets import what_is_closed

RETRY_SECONDS = 0.25
"""How long to wait before virt-rapld is asked again after it has gone: guests miss no more than they must."""
PATIENCE_SECONDS = 3.0
"""virt-rapld may be away for so long, as for a restart, before that is logged."""


class ChannelProcess:
    """Follows virt-rapld, and gives each sample's lines to the writer."""

    def __init__(self, run_directory: Path, log: Callable[[str], None]) -> None:
        """Take the run directory, and `log`, which takes a line."""
        self._stream = run_directory / paths.CHANNEL_STREAM_SOCKET
        self._log = log
        self._writer = ChannelWriter(log)
        self._report = Report(run_directory, log)
        self._fine = time.monotonic()
        """When there were lines last, or none were needed because no domain has a channel."""
        self._logged = ""
        """The trouble that was logged last; empty if it is over."""

    def run(self) -> None:
        """Give out lines until an exception, as of a signal, ends it. Raises VirtRaplError if another one does."""
        self._report.claim()
        systemd.notify("READY=1")
        gc.freeze()  # what was imported stays, and need not be looked at again each second
        try:
            while True:
                self.follow()
                time.sleep(RETRY_SECONDS)
                self._report.claim()  # virt-rapld may have made its directory since
        finally:
            systemd.notify("STOPPING=1")
            self._writer.close()
            self._report.remove()

    def follow(self) -> None:
        """Give out lines until virt-rapld goes, or is silent because no domain has a channel."""
        trouble = ""
        try:
            for sample in stream_socket.follow(self._stream):
                self._writer.write(sample)
                self._note("")
                self._report.write(self._writer.deliveries())
                systemd.notify("WATCHDOG=1")
            if is_forbidden(self._stream):
                trouble = f"virt-rapl-channel may not ask virt-rapld: {what_is_closed(self._stream)}"
            elif not listens(self._stream):
                trouble = f"virt-rapld does not answer at {self._stream}"
        except VirtRaplError as error:
            trouble = error.message
        self._note(trouble)
        found = self._writer.deliveries()
        if trouble:
            found = {uuid: each._replace(state="waiting", reason=trouble) for uuid, each in found.items()}
        self._report.write(found)
        systemd.notify("WATCHDOG=1")

    def _note(self, trouble: str) -> None:
        """Log once why there are no lines, if that lasts, and once that there are again."""
        now = time.monotonic()
        if trouble and trouble != self._logged and now > self._fine + PATIENCE_SECONDS:
            self._log(trouble)
            self._logged = trouble
        elif not trouble:
            self._fine = now
            if self._logged:
                self._log("virt-rapld answers again")
            self._logged = ""
