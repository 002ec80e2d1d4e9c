"""The probe, against helpers that answer well, badly, late and not at all."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libvirt_rapl.helper.vmsr.client import probe
from libvirt_rapl.helper.vmsr.protocol import POWER_INFO, POWER_LIMIT, POWER_UNIT, REPLY, REQUEST

FIRST_THREE = [POWER_UNIT, POWER_LIMIT, POWER_INFO]
GOOD = {POWER_UNIT: 0xA0E03, POWER_LIMIT: 1 << 63, POWER_INFO: 1}
TIMEOUT = 0.1


@contextmanager
def helper(path: Path, answer: Callable[[int], bytes | None]) -> Iterator[list[tuple[int, int, int]]]:
    """Serve one peer: `answer` returns the reply for a register; None: hang up. Gives what the peer asked."""
    asked: list[tuple[int, int, int]] = []

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(TimeoutError):
            peer.settimeout(5)
            while request := peer.recv(REQUEST.size, socket.MSG_WAITALL):
                asked.append(REQUEST.unpack(request))
                if (reply := answer(asked[-1][0])) is None:
                    return
                peer.send(reply)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            thread.join(10)
    assert not thread.is_alive(), "the probe has closed its socket"


def test_it_asks_for_the_three_registers_in_the_order_of_qemu_as_a_thread_of_its_own(tmp_path: Path) -> None:
    with helper(tmp_path / "socket", lambda register: REPLY.pack(GOOD[register])) as asked:
        probe(tmp_path / "socket", 10)
    assert asked == [(register, 0, os.getpid()) for register in FIRST_THREE]


@pytest.mark.parametrize("register", FIRST_THREE)
@pytest.mark.parametrize(
    ("reply", "error"),
    [(REPLY.pack(0), ValueError), (b"", TimeoutError), (b"half", ConnectionError), (None, ConnectionError)],
    ids=["zero", "silence", "half a reply", "hang up"],
)
def test_a_bad_answer_to_any_of_them_is_an_error(
    tmp_path: Path, register: int, reply: bytes | None, error: type[Exception]
) -> None:
    def answer(asked: int) -> bytes | None:
        return reply if asked == register else REPLY.pack(GOOD[asked])

    words = "timed out" if error is TimeoutError else f"{register:#x}"
    with helper(tmp_path / "socket", answer) as asked, pytest.raises(error, match=words):
        probe(tmp_path / "socket", TIMEOUT)
    assert [each[0] for each in asked] == FIRST_THREE[: FIRST_THREE.index(register) + 1]


@pytest.mark.parametrize("left", [True, False], ids=["left by a helper that ended", "none"])
def test_a_socket_that_nobody_serves_is_an_error(tmp_path: Path, *, left: bool) -> None:
    if left:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
    with pytest.raises(ConnectionRefusedError if left else FileNotFoundError):
        probe(tmp_path / "socket", 10)
