"""The emulator wrapper under every shell: what reaches the emulator, and what is said where RAPL is left out.

The emulator here is a script that prints its arguments, each ended by a zero byte.
"""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

WRAPPER = Path(__file__).parent.parent / "hooks" / "qemu-system-rapl"
UUID = "2b3c4d5e-6f70-4a81-92b3-c4d5e6f70819"
ODD = [
    "",
    " ",
    "a b",
    "a\nb\n",
    "'",
    '"',
    "*",
    "?",
    "$HOME",
    "`id`",
    "$(id)",
    "\\",
    "\\n",
    "a\\\\",
    "é",
    ";",
    "-",
    "--",
    "&",
]


@dataclass
class Bench:
    """A wrapper beside an emulator, and a run directory."""

    shell: list[str]
    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / f"{UUID}.sock"

    @property
    def options(self) -> str:
        return f"rapl=true,rapl-helper-socket={self.socket}"

    def word(self, state: str, pid: str = "", socket: Path | str | None = None) -> None:
        """Leave the hook's word."""
        (self.directory / "words" / f"{UUID}.state").write_text(f"{state}\n{pid}\n{socket or self.socket}\n")

    def run(self, *arguments: str, uuid: str | None = UUID) -> tuple[list[str], str]:
        """Return the arguments the emulator got, except for the domain's UUID, and what was said on stderr."""
        identity = ["-uuid", uuid] if uuid else []
        done = subprocess.run(
            [*self.shell, str(self.directory / "qemu-rapl"), *identity, *arguments],
            capture_output=True,
            timeout=10,
            check=True,
        )
        got = done.stdout.decode().split("\0")[:-1]
        assert got[: len(identity)] == identity
        return got[len(identity) :], done.stderr.decode()


@pytest.fixture(params=["dash", "bash --posix", "busybox sh"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    words = tmp_path / "words"
    words.mkdir()
    wrapper = WRAPPER.read_text()
    assert "words=/run/virt-rapl\n" in wrapper
    (tmp_path / "qemu-rapl").write_text(wrapper.replace("words=/run/virt-rapl\n", f"words={words}\n"))
    emulator = tmp_path / "qemu"
    emulator.write_text("#!/bin/sh\n[ $# -eq 0 ] || printf '%s\\0' \"$@\"\n")
    emulator.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # so that a `*` would find something
    with socket.socket(socket.AF_UNIX) as helper:
        helper.bind(f"{UUID}.sock")
        yield Bench(request.param.split(), tmp_path)


def test_merged_into_libvirts_own(bench: Bench) -> None:
    bench.word("ready")
    got, said = bench.run("-accel", "kvm", "-accel", f"kvm,{bench.options}", "-S")
    assert (got, said) == (["-accel", f"kvm,{bench.options}", "-S"], "")


def test_the_word_is_enough(bench: Bench) -> None:
    """The domain's XML may be somebody else's, who may not find anything of ours in it."""
    bench.word("ready")
    got, said = bench.run("-name", "a", "-accel", "kvm", *ODD)
    assert (got, said) == (["-name", "a", "-accel", f"kvm,{bench.options}", *ODD], "")
    got, said = bench.run("-machine", "pc,accel=kvm,usb=off", *ODD)
    assert (got, said) == (["-machine", "pc,usb=off", *ODD, "-accel", f"kvm,{bench.options}"], "")


@pytest.mark.parametrize(
    "argument",
    [
        "kvm,rapl=true,rapl-helper-socket=/run/virt-rapl/3c3c4d5e-6f70-4a81-92b3-c4d5e6f70819.sock",
        f"kvm,rapl=true,rapl-helper-socket=/run/elsewhere/{UUID}.sock",
        "kvm,rapl=true",
    ],
    ids=["clone", "another host's", "edited"],
)
@pytest.mark.parametrize("own", [["-accel", "kvm"], ["-machine", "q35,accel=kvm"]])
def test_the_socket_is_the_words(bench: Bench, argument: str, own: list[str]) -> None:
    bench.word("ready")
    got, said = bench.run(*own, "-accel", argument)
    assert (got[-2:], said) == (["-accel", f"kvm,{bench.options}"], "")


def test_without_the_domains_uuid_there_is_no_word(bench: Bench) -> None:
    bench.word("ready")
    (bench.directory / "words" / ".state").write_text(f"ready\n\n{bench.socket}\n")
    assert bench.run("-accel", "kvm", uuid=None) == (["-accel", "kvm"], "")
    assert bench.run("-accel", "kvm", "-uuid", "../x", uuid=None) == (["-accel", "kvm", "-uuid", "../x"], "")


def test_the_word_of_another_domain_is_none(bench: Bench) -> None:
    bench.word("ready")
    clone = UUID.replace("2b", "3c")
    assert bench.run("-accel", "kvm", uuid=clone) == (["-accel", "kvm"], "")
    got, said = bench.run("-accel", "kvm", "-accel", f"kvm,{bench.options}", uuid=clone)
    assert got == ["-accel", "kvm"]
    assert "left no state" in reason(said)


def test_options_after_the_socket_are_no_part_of_its_path(bench: Bench) -> None:
    bench.word("ready")
    got, said = bench.run("-accel", "kvm", "-accel", f"kvm,{bench.options},notify-vmexit=run")
    assert (got, said) == (["-accel", f"kvm,{bench.options},notify-vmexit=run"], "")


def test_dirty_ring_and_every_other_argument_stay(bench: Bench) -> None:
    bench.word("ready")
    before, between, after = ["-name", *ODD], ["-device", *reversed(ODD)], [*ODD, *ODD, "-msg", "timestamp=on", ""]
    got, said = bench.run(
        *before, "-accel", "kvm,dirty-ring-size=4096", *between, "-accel", f"kvm,{bench.options}", *after
    )
    assert got == [*before, "-accel", f"kvm,dirty-ring-size=4096,{bench.options}", *between, *after]
    assert said == ""


def test_a_hundred_arguments(bench: Bench) -> None:
    bench.word("ready")
    many = [f"-o{number}" for number in range(200)]
    assert bench.run(*many, "-accel", "kvm", *many, "-accel", f"kvm,{bench.options}")[0] == [
        *many,
        "-accel",
        f"kvm,{bench.options}",
        *many,
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-machine", "none,accel=kvm:tcg", "-qmp", "stdio"],
        ["-machine", "pc,accel=kvm", *ODD, "-enable-kvm"],
        ["-accel", "kvm", *ODD],
        ["-accel", "kvm", "-accel", "kvm,device=/dev/rapl=kvm"],
        ["-accel", "tcg", "-accel", "kvm,rapl=true,rapl-helper-socket=/nowhere.sock"],
        ["-accel", "kvm,rapl=true,rapl-helper-socket=/nowhere.sock"],
    ],
)
def test_nothing_to_merge_passes_untouched(bench: Bench, arguments: list[str]) -> None:
    assert bench.run(*arguments) == (arguments, "")


LIKE_A_LOG_MESSAGE = (
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\+\d{4}: \d+: warning : virt-rapl: the domain starts without RAPL: (.*)\n"
)
"""libvirt does not quote such a line when QEMU does not start."""


def reason(said: str) -> str:
    """Return why RAPL was left out, from the one line that says it."""
    found = re.fullmatch(LIKE_A_LOG_MESSAGE, said)
    assert found, said
    return found[1]


@pytest.mark.parametrize("option", ["-machine", "-M", "--machine"])
@pytest.mark.parametrize(
    ("value", "rest"),
    [
        ("pc-i440fx-5.2,accel=kvm,usb=off,dump-guest-core=off", "pc-i440fx-5.2,usb=off,dump-guest-core=off"),
        ("q35,accel=kvm", "q35"),
        ("accel=kvm,type=pc", "type=pc"),
        ("accel=kvm", ""),
        ("pc,note=$HOME `id` *,accel=kvm,b='\"", "pc,note=$HOME `id` *,b='\""),
    ],
)
def test_the_form_of_an_older_libvirt(bench: Bench, option: str, value: str, rest: str) -> None:
    bench.word("ready")
    ours = ["-accel", f"kvm,{bench.options}"]
    assert bench.run(option, value, *ODD, *ours, "-msg", "a b") == ([option, rest, *ODD, *ours, "-msg", "a b"], "")
    assert bench.run(*ours, "-S", option, value) == ([*ours, "-S", option, rest], "")
    bench.word("degraded: no disk")
    got, said = bench.run(option, value, *ODD, *ours, "-msg", "a b")
    assert got == [option, value, *ODD, "-msg", "a b"]
    assert "no disk" in reason(said)


@pytest.mark.parametrize(
    "way",
    [
        ["-machine", "pc,accel=kvm:tcg"],
        ["-machine", "pc,accel=tcg"],
        ["-machine", "pc,accel=kvm,accel=tcg"],
        ["-machine", "pc,a=b,,accel=kvm"],
        ["-machine", "pc,accel=kvm", "-machine", "accel=kvm"],
        ["-machine", "pc,accel=kvm", "-machine", "accel=tcg"],
        ["-machine", "pc", "-enable-kvm"],
        ["--enable-kvm"],
    ],
)
def test_beside_what_qemu_takes_no_accel(bench: Bench, way: list[str]) -> None:
    bench.word("ready")
    got, said = bench.run(*way, *ODD, "-accel", f"kvm,{bench.options}", "-S")
    assert got == [*way, *ODD, "-S"]
    assert way[-1] in reason(said)


@pytest.mark.parametrize("other", [["-machine", "pc,usb=off"], ["-name", "-enable-kvm"], ["-M", "x,myaccel=kvm"]])
def test_beside_libvirts_own_nothing_else_matters(bench: Bench, other: list[str]) -> None:
    bench.word("ready")
    got, said = bench.run(*other, "-accel", "kvm", "-accel", f"kvm,{bench.options}", *other)
    assert (got, said) == ([*other, "-accel", f"kvm,{bench.options}", *other], "")


@pytest.mark.parametrize("odd", ["-accel", "kvm,rapl=true", "-accel:kvm,rapl=true", "-uuid", "-uuid:x", "-accel kvm"])
def test_values_that_look_like_options(bench: Bench, odd: str) -> None:
    bench.word("ready")
    got, said = bench.run("-name", odd, "-accel", "kvm", "-append", odd, "-accel", f"kvm,{bench.options}", "-k", odd)
    assert got == ["-name", odd, "-accel", f"kvm,{bench.options}", "-append", odd, "-k", odd]
    assert said == ""


def test_merged_into_the_first_of_several(bench: Bench) -> None:
    bench.word("ready")
    got, _ = bench.run("-accel", "kvm", "-accel", "kvm,xen-version=1", "-accel", f"kvm,{bench.options}")
    assert got == ["-accel", f"kvm,{bench.options}", "-accel", "kvm,xen-version=1"]


def test_only_the_first_with_rapl_is_ours(bench: Bench) -> None:
    bench.word("ready")
    theirs = "kvm,rapl=true,rapl-helper-socket=/theirs.sock"
    got, _ = bench.run("-accel", "kvm", "-accel", f"kvm,{bench.options}", "-accel", theirs)
    assert got == ["-accel", f"kvm,{bench.options}", "-accel", theirs]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (None, "the hook has left no state"),
        ("", "the hook has left no state"),
        ("degraded\n\n{}\n", "not ready (degraded)"),
        ("nonsense *\n\n{}\n", "not ready (nonsense *)"),
        ("ready\n4711\n{}\n", "the hook did not run"),
        ("refuse\n4711\n{}\n", "the hook did not run"),
        ("ready\n", "another version"),
        ("ready\n\n\n", "another version"),
    ],
)
def test_left_out_when_the_helper_is_not_ready(bench: Bench, word: str | None, why: str) -> None:
    if word is not None:
        (bench.directory / "words" / f"{UUID}.state").write_text(word.format(bench.socket))
    got, said = bench.run("-accel", "kvm", "-accel", f"kvm,{bench.options}", "-S", "")
    assert got == ["-accel", "kvm", "-S", ""]
    assert why in reason(said)
    got, said = bench.run("-accel", "kvm", "-S")  # of an XML without our argument
    assert got == ["-accel", "kvm", "-S"]
    assert (why in reason(said)) if word else not said


def test_left_out_when_the_state_cannot_be_read(bench: Bench) -> None:
    (bench.directory / "words" / f"{UUID}.state").mkdir()
    got, said = bench.run("-accel", "kvm", "-accel", f"kvm,{bench.options}")
    assert got == ["-accel", "kvm"]
    assert said.count("\n") == 1


def test_left_out_when_the_socket_is_gone(bench: Bench) -> None:
    bench.word("ready")
    bench.socket.unlink()
    bench.socket.touch()  # a file is no socket
    got, said = bench.run("-accel", "kvm", "-accel", f"kvm,{bench.options}")
    assert got == ["-accel", "kvm"]
    assert "is gone" in said


def test_the_reason_is_given_without_a_clock_that_can_be_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The confinement of QEMU may not let date(1) run."""
    bench.shell[0] = shutil.which(bench.shell[0]) or ""
    monkeypatch.setenv("PATH", "/nowhere")
    got, said = bench.run("-accel", "kvm", "-accel", f"kvm,{bench.options}")
    assert got == ["-accel", "kvm"]
    assert "left no state" in reason(said)


def test_merged_when_the_owner_wants_refusal(bench: Bench) -> None:
    """QEMU then fails by itself: the socket does not answer."""
    bench.word("refuse")
    bench.socket.unlink()
    assert bench.run("-accel", "kvm", "-accel", f"kvm,{bench.options}") == (["-accel", f"kvm,{bench.options}"], "")


def test_exit_status_is_the_emulators(bench: Bench) -> None:
    (bench.directory / "qemu").write_text("#!/bin/sh\nexit 7\n")
    assert subprocess.run([*bench.shell, bench.directory / "qemu-rapl"], check=False).returncode == 7


def test_by_the_name_that_libvirt_looks_for(bench: Bench) -> None:
    """It is a link to the wrapper of an emulator that distributions have."""
    wrapper = bench.directory / "qemu-rapl"
    known = f" {bench.directory / 'none'} {bench.directory / 'qemu'} ''; do"
    text, count = re.subn(r" /usr/bin/qemu-system-x86_64 .* ''; do", known, wrapper.read_text())
    assert count == 1
    wrapper.write_text(text)
    link = bench.directory / "local" / "qemu-system-x86_64"
    link.parent.mkdir()
    link.symlink_to(wrapper)
    bench.word("ready")
    command = [*bench.shell, str(link), "-uuid", UUID, "-accel", "kvm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    assert (done.stdout.split("\0")[-2], done.stderr) == (f"kvm,{bench.options}", "")


def test_must_bear_its_name(bench: Bench) -> None:
    (bench.directory / "wrapper").write_bytes(WRAPPER.read_bytes())
    done = subprocess.run([*bench.shell, "./wrapper"], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 127
    assert "must be called" in done.stderr
