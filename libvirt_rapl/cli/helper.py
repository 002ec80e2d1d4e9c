"""Serve one domain's energy readings to its QEMU.

The libvirt hook starts it; there is no reason to run it by hand.
"""

import argparse
import os
import shutil
import socket
from pathlib import Path
from typing import NoReturn

from libvirt_rapl.config import load
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.registry import Registry
from libvirt_rapl.vmsr.readers import Readers
from libvirt_rapl.vmsr.registers import find
from libvirt_rapl.vmsr.server import listen, serve_until_terminated

QEMU_HELPER = "qemu-vmsr-helper"
QEMU_HELPER_PATH = "/usr/bin:/usr/libexec:/usr/local/bin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("uuid", metavar="UUID", help="the domain, as recorded by the hook")


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    config = load(options.config)
    registry = Registry(config.run_directory)
    try:
        record, path = registry.read(options.uuid), registry.path(options.uuid, "sock")
    except ValueError as error:
        raise VirtRaplError(str(error), "give the domain's UUID, as `virsh domuuid` prints it") from error
    if record is None:
        raise VirtRaplError(f"no record of domain {options.uuid}", "helpers are started by the hook at `virsh start`")
    if record.backend == "qemu":
        program = _qemu_helper()
        _exec_qemu_helper(program, _listen(path, record.owner_uid, record.owner_gid))
    try:
        readers = Readers(find(config.source), shaping=config.shaping)
    except (OSError, ValueError) as error:
        raise VirtRaplError(f"cannot read energy: {error}", "run as root") from error
    serve_until_terminated(
        _listen(path, record.owner_uid, record.owner_gid),
        owner_uid=record.owner_uid,
        reader_for=readers.reader_for,
    )
    return 0


def _listen(path: Path, uid: int, gid: int) -> socket.socket:
    try:
        return listen(path, uid=uid, gid=gid)
    except OSError as error:
        raise VirtRaplError(f"cannot listen on {path}: {error}", "it takes root and free space") from error


def _qemu_helper() -> str:
    program = shutil.which(QEMU_HELPER, path=QEMU_HELPER_PATH)
    if program is None:
        raise VirtRaplError(f"{QEMU_HELPER} is not installed", "install it with QEMU, or set `helper: native`")
    return program


def _exec_qemu_helper(program: str, listener: socket.socket) -> NoReturn:
    """Become qemu-vmsr-helper, handing it the socket as systemd's socket activation would (sd_listen_fds(3)).

    By itself it would make the socket root's with mode 0600, which the domain's QEMU cannot open.
    """
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)  # also when it was 3 already and dup2 had nothing to do
    os.execve(program, [program], {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
