"""Give each running domain that has an energy channel its figures, one line of JSON a second, until SIGTERM.

systemd starts it as virt-rapl-channel, together with virt-rapld, whose figures they are. It connects to QEMU's sockets
for these channels, and reads nothing from them (docs/channel.md).
"""

import argparse
import signal
import sys

from libvirt_rapl.config import load
from libvirt_rapl.daemon.channel_process import ChannelProcess
from libvirt_rapl.log import log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the run directory is in the configuration."""


def run(options: argparse.Namespace) -> int:
    """Give out lines until SIGTERM."""
    config = load(options.config)
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, lambda *_: sys.exit(0))
    ChannelProcess(config.run_directory, log).run()
    return 0
