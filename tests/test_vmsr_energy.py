"""How a helper reads counters: files of powercap, or registers, and what a package has counted in all."""

import contextlib
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from libvirt_rapl.helper.vmsr import energy
from libvirt_rapl.helper.vmsr.energy import Package, Zone, boot_nanoseconds
from libvirt_rapl.helper.vmsr.registers import Counter

SECOND = 1_000_000_000
WRAP = 262_143_328_851
UNIT = Fraction(1_000_000, 1 << 14).as_integer_ratio()
REGISTER = 0x611


class Files:
    """Counters of powercap and of registers, and the time, all set by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = 1000 * SECOND
        self.opened = contextlib.ExitStack()

    def powercap(self, text: str, name: str = "energy_uj") -> Zone:
        (self.directory / name).write_text(text)
        return Zone(Counter(0, str(self.directory / name), 0, WRAP, 1000), UNIT)

    def register(self, *values: int, name: str = "msr") -> Zone:
        with (self.directory / name).open("wb") as written:
            written.seek(REGISTER)
            for value in values:
                written.write(value.to_bytes(8, "little"))
        file = self.opened.enter_context((self.directory / name).open("rb"))
        return Zone(Counter(3, file.fileno(), REGISTER, WRAP, 1000), UNIT)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    files = Files(tmp_path)
    monkeypatch.setattr(energy, "boot_nanoseconds", lambda: files.now)
    with files.opened:
        yield files


@pytest.mark.parametrize(("text", "microjoules"), [("0\n", 0), ("262143328850\n", 262_143_328_850)])
def test_a_file_of_powercap_holds_microjoules(files: Files, text: str, microjoules: int) -> None:
    assert files.powercap(text).read() == microjoules


@pytest.mark.parametrize(
    ("value", "microjoules"),
    [(0, 0), (1, 61), (1 << 14, 1_000_000), ((1 << 32) - 1, 262_143_999_938), (0xABCDEF << 32 | 1 << 14, 1_000_000)],
)
def test_the_lower_half_of_a_register_holds_units(files: Files, value: int, microjoules: int) -> None:
    zone = files.register(value, 5)
    assert (zone.read(), zone.package, zone.name, zone.kind) == (microjoules, 3, "package-3", "package")


@pytest.mark.parametrize(("text", "error"), [(None, OSError), ("", ValueError), ("?\n", ValueError), ("5\n", None)])
def test_a_counter_is_closed_however_it_was_read(files: Files, text: str | None, error: type[Exception] | None) -> None:
    zone, register = files.powercap(text or ""), files.register(5)
    if text is None:
        (files.directory / "energy_uj").unlink()
    before = set(Path("/proc/self/fd").iterdir())
    register.read()
    if error:
        with pytest.raises(error):
            zone.read()
    else:
        assert zone.read() == 5
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_package_has_counted_what_its_dies_have(files: Files) -> None:
    dies = [files.powercap("1000000\n"), files.powercap("500\n", "die-1"), files.register(1 << 14)]
    package = Package(dies)
    assert package.microjoules == 2_000_500
    files.now += SECOND
    files.powercap("1000007\n")
    files.powercap("600\n", "die-1")
    files.register(3 << 14)
    assert package.advance(files.now) == package.microjoules == 4_000_607
    assert package.advance(files.now) == 4_000_607


@pytest.mark.parametrize(
    ("texts", "totals"),
    [
        (["262143328850", "10"], [262_143_328_850 + 11]),  # it wrapped
        (["5000000", "10", "1010"], [5_000_000, 5_001_000]),  # it was set back
        (["10", "?", "3000", "4000"], [10, 10, 1010]),  # it could not be read
        (["10", "262143328851", "3000", "4000"], [10, 10, 1010]),  # it showed more than it can
    ],
)
def test_what_a_broken_count_hides_is_left_out(files: Files, texts: list[str], totals: list[int]) -> None:
    package = Package([files.powercap(texts[0])])
    seen = []
    for text in texts[1:]:
        files.now += SECOND
        files.powercap(text)
        seen.append(package.advance(files.now))
    assert seen == totals


@pytest.mark.parametrize("text", ["x1", "-1", "262143328851"])
def test_a_package_does_not_begin_with_a_counter_that_cannot_be(files: Files, text: str) -> None:
    with pytest.raises(ValueError, match="1"):
        Package([files.powercap(text)])


def test_time_goes_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {time.CLOCK_MONOTONIC: 5, time.CLOCK_BOOTTIME: 7}
    with monkeypatch.context() as patch:
        patch.setattr(time, "clock_gettime_ns", clocks.get)
        now = boot_nanoseconds()
    assert now == 7
