"""The native helper and qemu-vmsr-helper answer alike, but for the differences that docs/helper.md lists."""

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import Instance, Rapl, answer, ask

from libvirt_rapl.helper.vmsr.client import probe
from libvirt_rapl.helper.vmsr.protocol import ENERGY, POWER_INFO, POWER_LIMIT, POWER_UNIT, REGISTERS, REQUEST

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def rapl() -> Iterator[Rapl]:
    with Rapl("--packages=2", "--idle-watts=100", "--cpu-watts=0") as rapl:
        yield rapl


def started(rapl: Rapl, backend: str) -> Iterator[Instance]:
    with (
        tempfile.TemporaryDirectory(prefix="virt-rapl-") as directory,
        Instance(rapl, Path(directory), backend=backend) as instance,
    ):
        yield instance


@pytest.fixture(scope="module")
def native(rapl: Rapl) -> Iterator[Instance]:
    yield from started(rapl, "native")


@pytest.fixture(scope="module")
def qemus(rapl: Rapl) -> Iterator[Instance]:
    yield from started(rapl, "qemu")


@pytest.fixture(params=["native", "qemus"])
def helper(request: pytest.FixtureRequest) -> Instance:
    instance = request.getfixturevalue(request.param)
    assert isinstance(instance, Instance)
    return instance


def test_the_three_that_qemu_asks_first(native: Instance, qemus: Instance) -> None:
    answers = []
    for helper in (native, qemus):
        probe(helper.path, 10)
        with helper.connect() as peer:
            answers.append([ask(peer, register) for register in (POWER_UNIT, POWER_LIMIT, POWER_INFO)])
    assert answers[0] == answers[1]


def test_qemus_energy_grows_from_second_to_second(qemus: Instance) -> None:
    """Ours is made for a domain, and grows in test_shaping: here is none."""
    with qemus.connect() as peer:
        values = []
        for _ in range(3):
            values.append(ask(peer, ENERGY) or 0)
            time.sleep(1.05)
        assert 0 < values[0] < values[1] < values[2]


def test_cpus_of_both_packages(helper: Instance) -> None:
    with helper.connect() as peer:
        assert all(ask(peer, ENERGY, cpu=cpu) for cpu in range(os.cpu_count() or 1))


@pytest.mark.parametrize("register", [0, 0x10, 0x1B, 0x607, 0x611 + (1 << 16), 0x619, 0x639, 0xC0000080, 0xFFFFFFFF])
def test_a_register_outside_the_list_ends_the_connection(helper: Instance, register: int) -> None:
    with helper.connect() as peer:
        assert ask(peer, register) is None
    with helper.connect() as peer:
        assert ask(peer, ENERGY)


@pytest.mark.parametrize("cpu", [1000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_cpu_beyond_the_host_reads_0(helper: Instance, cpu: int) -> None:
    with helper.connect() as peer:
        assert [ask(peer, register, cpu=cpu) for register in REGISTERS] == [0] * 4
        assert ask(peer, ENERGY)


def test_a_thread_of_another_process_reads_0(helper: Instance) -> None:
    with helper.connect() as peer:
        assert [ask(peer, POWER_UNIT, tid=tid) for tid in (1, os.getppid(), helper.pid)] == [0] * 3
        assert ask(peer, POWER_UNIT)


def test_every_thread_of_the_peer_may_be_named(helper: Instance) -> None:
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    with helper.connect() as peer:
        assert all(ask(peer, POWER_UNIT, tid=thread.native_id) for thread in threads)
    done.set()
    for thread in threads:
        thread.join()


def test_a_request_in_pieces(helper: Instance) -> None:
    with helper.connect() as peer:
        for byte in REQUEST.pack(POWER_UNIT, 0, os.getpid()):
            peer.sendall(bytes([byte]))
            time.sleep(0.01)
        assert answer(peer)


def test_requests_sent_at_once_are_answered_in_order(helper: Instance) -> None:
    with helper.connect() as peer:
        wanted = [ask(peer, register) for register in (POWER_UNIT, POWER_LIMIT, POWER_INFO)]
        peer.sendall(
            b"".join(REQUEST.pack(register, 0, os.getpid()) for register in (POWER_UNIT, POWER_LIMIT, POWER_INFO))
        )
        assert [answer(peer) for _ in wanted] == wanted


def test_two_connections_side_by_side(helper: Instance) -> None:
    with helper.connect() as first, helper.connect() as second:
        first.sendall(REQUEST.pack(POWER_UNIT, 0, os.getpid())[:5])
        assert ask(second, POWER_UNIT)
        first.sendall(REQUEST.pack(POWER_UNIT, 0, os.getpid())[5:])
        assert answer(first)


@pytest.mark.parametrize("size", [0, 1, 11])
def test_a_peer_that_goes_away_half_way(helper: Instance, size: int) -> None:
    with helper.connect() as peer:
        peer.sendall(b"\x06" * size)
    with helper.connect() as peer:
        peer.sendall(REQUEST.pack(POWER_UNIT, 0, os.getpid()))  # and does not wait for the answer
    with helper.connect() as peer:
        assert ask(peer, POWER_UNIT)


def test_a_peer_that_is_killed(helper: Instance) -> None:
    script = "import socket, sys; peer = socket.socket(socket.AF_UNIX); peer.connect(sys.argv[1]); print(flush=True)"
    command = [sys.executable, "-c", f"{script}; sys.stdin.read()", str(helper.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as peer:
        assert peer.stdout
        peer.stdout.readline()
        peer.kill()
    with helper.connect() as other:
        assert ask(other, POWER_UNIT)


def test_numbers_are_in_native_byte_order(helper: Instance) -> None:
    with helper.connect() as peer:
        peer.sendall(struct.pack("=III", POWER_UNIT, 0, os.getpid()))
        (unit,) = struct.unpack("=Q", peer.recv(8, socket.MSG_WAITALL))
        assert unit >> 8 & 0x1F == 14


class TestDifferences:
    """Each is a row of the table in docs/helper.md."""

    def test_energy_asked_again_at_once(self, native: Instance, qemus: Instance) -> None:
        assert changes(native) <= 2
        assert changes(qemus) > 2

    def test_a_thread_that_is_not_there_any_more(self, native: Instance, qemus: Instance) -> None:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        for helper, answers in ((native, True), (qemus, False)):
            with helper.connect() as peer:
                for tid in (thread.native_id, 0x7FFFFFFF, 0xFFFFFFFF):
                    assert bool(ask(peer, POWER_UNIT, tid=tid)) == answers

    def test_energy_is_made_for_the_domain(self, native: Instance, qemus: Instance) -> None:
        with native.connect() as ours, qemus.connect() as theirs:
            before = [ask(peer, ENERGY) for peer in (ours, theirs)]
            time.sleep(1.05)
            after = [ask(peer, ENERGY) for peer in (ours, theirs)]
        assert before[0] == after[0] == 1  # a process without vCPUs is owed nothing
        assert before[1] != after[1]

    def test_a_process_with_a_third_connection(self, native: Instance, qemus: Instance) -> None:
        assert [answered(helper, connections=3) for helper in (native, qemus)] == [2, 3]

    def test_who_never_asks(self, native: Instance, qemus: Instance) -> None:
        with native.connect() as ours, qemus.connect() as theirs:
            assert answer(ours) is None  # it hangs up after a few seconds
            theirs.settimeout(0.1)
            with pytest.raises(TimeoutError):
                answer(theirs)

    def test_a_flood(self, native: Instance, qemus: Instance) -> None:
        for helper, all_at_once in ((native, False), (qemus, True)):
            with helper.connect() as peer:
                peer.sendall(REQUEST.pack(POWER_UNIT, 0, os.getpid()) * 100)
                until = time.monotonic() + 1
                answers = 0
                peer.settimeout(0.2)
                while time.monotonic() < until and answers < 100:
                    try:
                        answers += bool(answer(peer))
                    except TimeoutError:
                        continue
                assert (answers == 100) == all_at_once

    def test_sigterm_while_somebody_is_served(self, rapl: Rapl) -> None:
        for backend, serves_on in (("native", True), ("qemu", False)):
            for helper in started(rapl, backend):
                with helper.connect() as peer:
                    assert ask(peer, POWER_UNIT)
                    helper.process.terminate()
                    time.sleep(0.5)
                    assert (ask(peer, POWER_UNIT) is not None) == serves_on


def changes(helper: Instance) -> int:
    """Count the values of the energy register in a third of a second."""
    with helper.connect() as peer:
        values = set()
        for _ in range(12):
            values.add(ask(peer, ENERGY))
            time.sleep(0.03)
    return len(values)


def answered(helper: Instance, connections: int) -> int:
    peers = [helper.connect() for _ in range(connections)]
    try:
        return sum(ask(peer, POWER_UNIT) is not None for peer in peers)
    finally:
        for peer in peers:
            peer.close()
