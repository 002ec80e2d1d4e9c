"""How often who gets an answer, by a clock that the test sets."""

import pytest

from libvirt_rapl.helper.vmsr.pace import WINDOW_SECONDS, Bucket, Windows
from libvirt_rapl.helper.vmsr.protocol import ENERGY


class Registers:
    """Two packages of two CPUs, whose registers grow at each reading, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.readings: list[tuple[int, int]] = []

    def read(self, register: int, cpu: int) -> int:
        self.readings.append((register, cpu))
        return 1000 + len(self.readings)

    def package_of(self, cpu: int) -> int:
        if cpu > 3:
            raise OSError("no such CPU")
        return cpu // 2

    def clock(self) -> float:
        return self.now


@pytest.fixture
def registers() -> Registers:
    return Registers()


@pytest.fixture
def windows(registers: Registers) -> Windows:
    return Windows(registers.read, registers.package_of, registers.clock)


def test_no_such_cpu_is_an_error_and_costs_nothing(registers: Registers, windows: Windows) -> None:
    with pytest.raises(OSError, match="no such CPU"):
        windows.read(ENERGY, 4)
    assert not registers.readings


def test_the_reader_sees_qemus_windows(registers: Registers, windows: Windows) -> None:
    """QEMU asks at the end of a window and again at the start of the next, some 0.1 ms later."""
    answers = []
    for _ in range(5):
        answers.append(windows.read(ENERGY, 0))
        registers.now += 1.0
        answers.append(windows.read(ENERGY, 0))
        registers.now += 0.0001
    assert answers == [1001 + n for n in range(10)]


def test_who_asks_in_between_gets_the_last_answer(registers: Registers, windows: Windows) -> None:
    start = windows.read(ENERGY, 0)
    for _ in range(8):
        registers.now += 0.1
        assert windows.read(ENERGY, 1) == start
    registers.now += 0.2
    assert windows.read(ENERGY, 0) == start + 1


def test_however_it_is_asked_the_reader_is_asked_twice_a_window(registers: Registers, windows: Windows) -> None:
    for _ in range(10_000):
        registers.now += 0.001
        windows.read(ENERGY, 0)
    assert len(registers.readings) <= 2 * (10 / WINDOW_SECONDS + 1)


def test_starts_and_ends_that_were_confused_are_right_again_after_a_window(
    registers: Registers, windows: Windows
) -> None:
    windows.read(ENERGY, 0)  # somebody asked once before QEMU's thread began
    registers.now += 5.0
    windows.read(ENERGY, 0)  # its start is taken for an end,
    registers.now += 1.0
    windows.read(ENERGY, 0)  # its end for a start,
    registers.now += 0.0001
    windows.read(ENERGY, 0)  # so its next start goes unseen,
    for _ in range(3):
        before = len(registers.readings)
        registers.now += 1.0
        windows.read(ENERGY, 0)
        registers.now += 0.0001
        windows.read(ENERGY, 0)
        assert len(registers.readings) == before + 2  # and all that follow are seen as they are


def test_packages_have_windows_of_their_own(registers: Registers, windows: Windows) -> None:
    for cpu in (0, 2):
        windows.read(ENERGY, cpu)
    registers.now += 1.0
    for cpu in (0, 3):
        windows.read(ENERGY, cpu)
    assert [cpu for _, cpu in registers.readings] == [0, 2, 0, 3]


def test_a_reading_that_fails_leaves_the_window_as_it_was(registers: Registers) -> None:
    def read(register: int, cpu: int) -> int:
        if registers.read(register, cpu) == 1001:
            raise OSError("gone")
        return 7

    windows = Windows(read, registers.package_of, registers.clock)
    with pytest.raises(OSError, match="gone"):
        windows.read(ENERGY, 0)
    assert windows.read(ENERGY, 0) == windows.read(ENERGY, 0) == 7


def test_a_bucket_gives_what_it_holds_and_then_what_drips_in() -> None:
    bucket = Bucket(3, 2, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.25) == 0.25
    assert bucket.take(0.5) == 0.0
    assert [bucket.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
