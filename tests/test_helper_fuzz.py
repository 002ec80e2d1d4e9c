"""Random and mutated frames against a live instance: it answers the next good request, and its memory stays flat.

VIRT_RAPL_FUZZ_FRAMES sets how many frames are sent (10,000 by default); the seed is printed when it fails.
"""

import os
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import Instance, Rapl, ask

from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_UNIT, REGISTERS, REQUEST

pytestmark = pytest.mark.e2e

FRAMES = int(os.environ.get("VIRT_RAPL_FUZZ_FRAMES", "10000"))
AT_ONCE = 20
"""Frames on one connection, as far as the helper takes them: most end it."""
MEMORY_KIB = 256
"""What memory may grow by after the first tenth of the frames."""


@pytest.fixture
def instance() -> Iterator[Instance]:
    with (
        Rapl("--packages=2") as rapl,
        tempfile.TemporaryDirectory(prefix="virt-rapl-") as directory,
        Instance(rapl, Path(directory)) as instance,
    ):
        yield instance


def frame(chance: random.Random) -> bytes:
    """Make a request, or what is none: any bytes of any length, or a good one with some of it changed."""
    good = [chance.choice(sorted(REGISTERS)), chance.randrange(4), os.getpid()]
    match chance.randrange(6):
        case 0:
            return chance.randbytes(chance.randrange(64))
        case 1:
            return chance.randbytes(REQUEST.size)
        case 2:  # one number of three
            good[chance.randrange(3)] = chance.choice([0, 1, chance.getrandbits(32), 0x7FFFFFFF, 0xFFFFFFFF])
            return REQUEST.pack(*good)
        case 3:  # one bit
            (number,) = struct.unpack("=Q", REQUEST.pack(*good)[:8])
            return struct.pack("=QI", number ^ 1 << chance.randrange(64), os.getpid())
        case 4:  # cut short
            return REQUEST.pack(*good)[: chance.randrange(REQUEST.size)]
        case _:
            return REQUEST.pack(*good)


def send(instance: Instance, chance: random.Random) -> int:
    """Send frames on one connection, whole or in pieces, until the helper hangs up. Returns how many it was sent."""
    with instance.connect() as peer:
        peer.settimeout(0.001)
        for number in range(AT_ONCE):
            data = frame(chance)
            cut = chance.choice([len(data), len(data), chance.randrange(len(data) + 1)])
            try:
                for piece in (data[:cut], data[cut:]):
                    peer.sendall(piece)
                if chance.randrange(2):
                    peer.recv(4096)
            except TimeoutError:
                pass  # there is no answer to half a request
            except (BrokenPipeError, ConnectionResetError):
                return number
    return AT_ONCE


def test_fuzz(instance: Instance) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    memory = sent = rounds = 0
    while sent < FRAMES:
        sent += send(instance, chance)
        rounds += 1
        if rounds % 500 == 0:
            with instance.connect() as peer:
                assert ask(peer, ENERGY), f"seed {seed}"
                assert ask(peer, POWER_UNIT), f"seed {seed}"
        if sent <= FRAMES // 10:
            memory = instance.memory("Private_Dirty")
    assert instance.process.poll() is None, f"seed {seed}"
    grown = instance.memory("Private_Dirty") - memory
    print(f"{sent} frames on {rounds} connections: memory grew by {grown} KiB to {memory + grown} KiB")
    assert grown <= MEMORY_KIB, f"seed {seed}"
    assert instance.log() == ""
    with instance.connect() as peer:
        assert [bool(ask(peer, register)) for register in sorted(REGISTERS)] == [True] * 4
