"""The configuration file: what it accepts, and what it says about what it does not."""

import os
from pathlib import Path

import pytest

from libvirt_rapl.config import CHOICES, Config, load, stated_policy
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.selection import Selection, Selector


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "virt-rapl.yaml"
    path.write_text(text)
    return path


def test_the_shipped_file_says_the_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, (Path(__file__).parent.parent / "etc/virt-rapl.yaml").read_text())) == Config()


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "none.yaml") == Config()


def test_later_files_override(tmp_path: Path) -> None:
    path = write(tmp_path, "helper: qemu\non_failure: refuse\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.yaml").write_text("on_failure: degrade\nhook_deadline: 2\n")
    (tmp_path / "conf.d" / "20.yaml").write_text("run_directory: /run/elsewhere\ndomains: [web*]\n")
    assert load(path) == Config(
        helper="qemu",
        hook_deadline=2.0,
        run_directory=Path("/run/elsewhere"),
        domains=Selection((Selector("name", "web*"),)),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("helper: other", "helper: expected one of native, qemu, found 'other'"),
        ("on_failure: no", "on_failure: expected one of degrade, refuse, found False"),
        ("source: [powercap]", "source: expected one of auto, powercap, msr, found ['powercap']"),
        ("model: fair", "model: expected one of capacity, active, baseline, found 'fair'"),
        ("run_directory: run", "run_directory: expected an absolute path"),
        ("state_directory: lib", "state_directory: expected an absolute path"),
        ("interval: 0.05", "interval: expected seconds from 0.1 to 60"),
        ("interval: 61", "interval: expected seconds from 0.1 to 60"),
        ("hook_deadline: 0.9", "hook_deadline: expected seconds"),
        ("hook_deadline: 11", "hook_deadline: expected seconds from 1 to 10"),
        ("hook_deadline: yes", "hook_deadline: expected seconds"),
        ("domains: web", "domains: expected a list"),
        ("# ours\nhelpers: native", "virt-rapl.yaml:2: unknown key 'helpers'"),
        ("model: active\n\ninterval: 61", "virt-rapl.yaml:3: interval: expected seconds"),
        ("model: active\ninterval: 2\nmodel: active", "virt-rapl.yaml:3: model is set a second time"),
        ("[a]: b", "virt-rapl.yaml:1: unknown key"),
        ("- helper", "expected `key: value` lines"),
        ("helper: [", "not valid YAML"),
        ("helper: \udcff", "cannot read"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_the_file(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "virt-rapl.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(VirtRaplError) as caught:
        load(path)
    assert told in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("intervall: 2", "did you mean interval?"),
        ("on-failure: refuse", "did you mean on_failure?"),
        ("x: 1", "known keys: helper, "),
    ],
)
def test_a_mistyped_key(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(VirtRaplError) as caught:
        load(write(tmp_path, text))
    assert caught.value.hint.startswith(hint)


def test_every_choice_is_accepted(tmp_path: Path) -> None:
    for key, choices in CHOICES.items():
        for choice in choices:
            assert getattr(load(write(tmp_path, f"{key}: {choice}")), key) == choice


@pytest.mark.parametrize(
    ("main", "more", "policy"),
    [
        ("helper: nope\non_failure: refuse\n", "", "refuse"),
        ("on_failure: refuse\n", "helper: [", "refuse"),
        ("helper: [", "on_failure: refuse\n", "refuse"),
        ("on_failure: refuse\n", "on_failure: degrade\nsource: nope\n", "degrade"),
        ("on_failure: refuse\n", "on_failure: nope\n", "refuse"),
        ("- on_failure", "\udcff", "degrade"),
    ],
)
def test_the_policy_holds_beside_mistakes(tmp_path: Path, main: str, more: str, policy: str) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.yaml").write_bytes(more.encode(errors="surrogateescape"))
    assert stated_policy(write(tmp_path, main)) == policy


def test_no_file_states_no_policy(tmp_path: Path) -> None:
    assert stated_policy(tmp_path / "none.yaml") == "degrade"


@pytest.mark.parametrize("place", [".", "virt-rapl.yaml", "conf.d", "conf.d/10.yaml"])
@pytest.mark.parametrize(("mode", "who"), [(0o757, "everybody"), (0o775, "group 4321")])
def test_what_others_may_write_is_not_followed(tmp_path: Path, place: str, mode: int, who: str) -> None:
    path = write(tmp_path, "on_failure: refuse\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/10.yaml").write_text("interval: 2\n")
    assert load(path).interval == 2
    if os.geteuid() == 0:
        os.chown(tmp_path / place, 0, 4321)
    else:
        who = who.replace("4321", str(os.getegid()))
    (tmp_path / place).chmod(mode)
    with pytest.raises(VirtRaplError) as caught:
        load(path)
    assert caught.value.message == f"{tmp_path / place} is not followed: {who} may write it"
    assert caught.value.hint.endswith(f"chmod go-w {tmp_path / place}")
    assert stated_policy(path) == ("refuse" if "conf.d" in place else "degrade")


def test_a_group_of_roots_and_a_sticky_directory_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, "interval: 2\n")
    tmp_path.chmod(0o1777)
    if os.geteuid() == 0:
        path.chmod(0o664)
    assert load(path).interval == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_a_file_of_somebody_elses_is_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path, "interval: 2\n")
    os.chown(path, 1234, 0)
    with pytest.raises(VirtRaplError, match="it belongs to user 1234"):
        load(path)
