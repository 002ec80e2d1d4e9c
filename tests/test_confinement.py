"""What a confined process may still do, tried from inside: see confined.py."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confined import ALLOWED

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.helper import confinement

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's privileges")
SYS_RAWIO = 1 << confinement.CAP_SYS_RAWIO


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a file of ours and, if we are root, one of another user."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "theirs").touch(0o600)
    if os.geteuid() == 0:
        os.chown(tmp_path / "theirs", 4321, 4321)
    return tmp_path


@pytest.fixture
def theirs() -> Iterator[int]:
    """A process of another user."""
    process = subprocess.Popen(["sleep", "60"], user=4321, cwd="/")
    yield process.pid
    process.kill()
    process.wait()


def confined(place: Path, scenario: str, *arguments: object) -> Any:  # noqa: ANN401  any JSON
    command = [sys.executable, str(Path(__file__).with_name("confined.py")), scenario, *map(str, arguments)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr}


@needs_root
@pytest.mark.parametrize("registers", [True, False])
def test_of_roots_privileges_at_most_the_one_for_registers_is_left(
    place: Path, theirs: int, *, registers: bool
) -> None:
    found = confined(place, "after_giving_up_privileges", registers, theirs)
    kept = found["before"]["CapPrm"] & SYS_RAWIO if registers else 0
    bounding = found["before"]["CapBnd"] & SYS_RAWIO
    expected = {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": bounding, "CapAmb": 0, "NoNewPrivs": 1}
    assert found["after"] == expected
    assert found["program"] == expected, "also of a program that root executes"
    assert ALLOWED not in found["attempts"].values(), found["attempts"]


@needs_root
def test_who_cannot_give_up_privileges_is_not_confined_in_silence(place: Path) -> None:
    assert confined(place, "as_nobody")["give up"] == "EPERM"


@needs_root
@pytest.mark.parametrize("keep", [True, False])
def test_programs_of_a_daemon_do_not_get_its_capabilities(place: Path, *, keep: bool) -> None:
    found = confined(place, "a_daemon_and_its_programs", keep)
    assert found["ours"]["CapEff"] & SYS_RAWIO
    assert found["program"]["CapEff"] == (0 if keep else SYS_RAWIO)


def limited(before: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return what is to become of these limits, each soft and hard."""
    most = {
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": confinement.DESCRIPTORS,
        "RLIMIT_DATA": confinement.DATA_BYTES,
        "RLIMIT_FSIZE": confinement.FILE_BYTES,
    }
    return {
        name: [most[name] if hard == resource.RLIM_INFINITY else min(most[name], hard)] * 2
        for name, (_, hard) in before.items()
    }


@pytest.mark.parametrize("lower", [{}, {"RLIMIT_NOFILE": 100, "RLIMIT_FSIZE": 1000}])
def test_resources_are_limited_and_no_limit_is_raised(place: Path, lower: dict[str, int]) -> None:
    found = confined(place, "limits", *(f"{name}={number}" for name, number in lower.items()))
    assert found["after"] == limited(found["before"])
    assert lower.items() <= {name: soft for name, (soft, _) in found["after"].items()}.items()


def test_the_programs_descriptor_has_a_number_that_no_other_file_gets(place: Path) -> None:
    found = confined(place, "program")
    assert found["new"] == [found["descriptor"]]
    expected = limited(found["before"])
    first_too_high = expected["RLIMIT_NOFILE"][0] - 1
    assert found["descriptor"] == first_too_high
    assert found["after"] == {**expected, "RLIMIT_NOFILE": [first_too_high] * 2}
    assert not found["inherited"]


@needs_root
@pytest.mark.parametrize("as_qemu", [False, True])
def test_the_filter_leaves_reading_and_answering(place: Path, *, as_qemu: bool) -> None:
    found = confined(place, "filtered", as_qemu)
    assert set(found["allowed"].values()) == {ALLOWED}, found["allowed"]
    assert (set(found["of_qemu"].values()) == {ALLOWED}) is as_qemu, found["of_qemu"]
    assert as_qemu or ALLOWED not in found["of_qemu"].values(), found["of_qemu"]
    wrong = {name: result for name, result in found["forbidden"].items() if result != "ENOSYS"}
    assert not wrong, "these are not refused as if the kernel did not have them"
    assert "Bad file descriptor" in found["stderr"].splitlines()[-1], "what the executed program itself has tried"
    assert (place / "file").read_text() == "text"
    assert (place / "file").stat().st_mtime == 2
    assert sorted(path.name for path in place.iterdir()) == ["file", "theirs"]


def library(monkeypatch: pytest.MonkeyPatch, **results: int) -> list[str]:
    """Have a libseccomp whose functions return these results, else 0; return which system calls it gets rules for."""
    ruled: list[str] = []
    names: list[str] = []

    def resolve(name: bytes) -> int:
        names.append(name.decode())
        return -1 if name == b"faccessat2" else len(names) - 1

    def rule(_context: object, _action: int, number: int, *_comparisons: object) -> int:
        ruled.append(names[number])
        return results.get("seccomp_rule_add_array", 0)

    stand_in = SimpleNamespace(
        seccomp_init=lambda _action: 1,
        seccomp_syscall_resolve_name=resolve,
        seccomp_rule_add_array=rule,
        seccomp_load=lambda _context: results.get("seccomp_load", 0),
        seccomp_release=lambda _context: None,
    )
    monkeypatch.setattr(confinement, "seccomp", lambda: stand_in)
    return ruled


@pytest.mark.parametrize("function", ["seccomp_rule_add_array", "seccomp_load"])
def test_a_filter_that_cannot_be_put_in_place_is_an_error(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    library(monkeypatch, **{function: -22})
    with pytest.raises(OSError, match="seccomp"):
        confinement.filter_system_calls(3)


def test_a_system_call_that_an_old_library_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ruled = library(monkeypatch)
    confinement.filter_system_calls(3)
    assert {"read", "faccessat", "execveat"} <= set(ruled)
    assert "faccessat2" not in ruled


def test_a_library_that_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "_LIBSECCOMP", "libseccomp-of-nobody.so.2")
    with pytest.raises(VirtRaplError, match="libseccomp-of-nobody") as caught:
        confinement.seccomp()
    assert "apt install" in caught.value.hint
