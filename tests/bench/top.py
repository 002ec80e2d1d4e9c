"""What `virt-rapl top` costs: the command in a terminal of 200 x 50, given a document of so many domains once a second.

    python top.py DIRECTORY SECONDS DOMAINS

The history that it asks for the energy of today is a ledger below DIRECTORY, with a day of as many domains. Prints one
JSON document: its CPU time and its memory as the kernel counts them, and how much it writes to the terminal.
"""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import memory
from history import Machine

sys.path.insert(0, str(Path(__file__).parent.parent))

from fakes.documents import Daemon, many

COLUMNS, LINES = 200, 50
VCPUS, ZONES = 4, 3
WARM_UP_SECONDS = 5.0


def main() -> None:
    directory, seconds, domains = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    daemon = Daemon(directory, many(domains, 0, VCPUS), "tariff: {currency: EUR, price: 0.3}\n")
    daemon.state_directory.mkdir()
    Machine(daemon.state_directory, domains, VCPUS, ZONES).fill(1)
    ended, written = threading.Event(), [0]

    def live() -> None:
        second = 0
        while not ended.wait(1):
            second += 1
            daemon.show(many(domains, second, VCPUS))

    def watch() -> None:
        while not ended.is_set():
            try:
                written[0] += len(os.read(terminal, 65536))
            except OSError:  # it has ended
                return

    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("4H", LINES, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "libvirt_rapl", "--config", str(daemon.config), "top"]
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    threads = [threading.Thread(target=each, daemon=True) for each in (live, watch)]
    with subprocess.Popen(command, stdin=its_end, stdout=its_end, env=environment, start_new_session=True) as process:
        for thread in threads:
            thread.start()
        time.sleep(WARM_UP_SECONDS)
        begin, cpu, bytes_before = time.monotonic(), cpu_seconds(process.pid), written[0]
        time.sleep(seconds)
        figures = {
            "seconds": time.monotonic() - begin,
            "cpu_seconds": cpu_seconds(process.pid) - cpu,
            "bytes": written[0] - bytes_before,
            **memory.of(process.pid),
        }
        os.write(terminal, b"q")
        process.wait(20)
    ended.set()
    daemon.stop()
    print(json.dumps(figures))


def cpu_seconds(pid: int) -> float:
    return time.clock_gettime(~pid << 3 | 2)  # the CPU clock of a process, clock_getcpuclockid(3)


if __name__ == "__main__":
    main()
