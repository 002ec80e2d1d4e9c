"""The configuration file: what it accepts, and what it says about what it does not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from libvirt_rapl import config
from libvirt_rapl.cli import main
from libvirt_rapl.config import Config, load, read, stated_policy
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


def test_only_files_of_yaml_are_read_and_of_several_mistakes_the_first_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, "interval: 2\n")
    (tmp_path / "conf.d").mkdir()
    for name in ("10.yaml~", "10.yml", "10.yaml.dpkg-old", "README"):
        (tmp_path / "conf.d" / name).write_text("interval: 0\n")
    assert load(path).interval == 2
    for name, text in (("20.yaml", "model: fair\n"), ("10.yaml", "helper: x\nsource: x\n")):
        (tmp_path / "conf.d" / name).write_text(text)
    with pytest.raises(VirtRaplError, match=r"10.yaml:1: helper"):
        load(path)


LISTS = (
    "a list of names, patterns, UUIDs, `title: PATTERN`, `metadata: NAMESPACE [ELEMENT]` and `PLACE: PATTERN`, where "
    "PLACE is nova.project, nova.project_id, nova.flavor or `NAMESPACE PATH`, or include: and exclude: with such lists"
)
RUN = "a directory of its own, such as /run/virt-rapl"
STATE = "a directory of its own, such as /var/lib/virt-rapl"
KEYS = (
    "helper, on_failure, source, model, run_directory, state_directory, history, interval, hook_deadline, domains, "
    "via, labels, tariff, carbon, pue"
)


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("helper: natvie", 1, "helper: expected one of native, qemu, found natvie", "did you mean native?"),
        ("on_failure: no", 1, "on_failure: expected one of degrade, refuse, found false", ""),
        (
            "source: [powercap]",
            1,
            "source: expected one of auto, powercap, msr, found [powercap]",
            "did you mean powercap?",
        ),
        ("model: fair", 1, "model: expected one of capacity, active, baseline, found fair", ""),
        ("model:", 1, "model: expected one of capacity, active, baseline, found null", ""),
        *(
            (f"run_directory: {path}", 1, f"run_directory: expected {RUN}, found {path}", "")
            for path in (
                "run",
                "/",
                "/etc",
                "/run/",
                "/run/.",
                "/run/../etc",
                "/run/x/../../etc",
                "//run/x",
                '"/run/a\\0"',
            )
        ),
        ("state_directory: 1", 1, f"state_directory: expected {STATE}, found 1", ""),
        ("state_directory: /var", 1, f"state_directory: expected {STATE}, found /var", ""),
        ("interval: 0.05", 1, "interval: expected seconds from 0.1 to 60, found 0.05", ""),
        ("model: active\n\ninterval: 61", 3, "interval: expected seconds from 0.1 to 60, found 61", ""),
        ("hook_deadline: 0.9", 1, "hook_deadline: expected seconds from 1 to 10, found 0.9", ""),
        ("hook_deadline: 11", 1, "hook_deadline: expected seconds from 1 to 10, found 11", ""),
        ("hook_deadline: yes", 1, "hook_deadline: expected seconds from 1 to 10, found true", ""),
        ("domains: web", 1, f"domains: expected {LISTS}, found web", ""),
        ("domains: ['']", 1, f"domains: expected {LISTS}, found ''", ""),
        ("domains:\n- title: 3", 2, f"domains: expected {LISTS}, found {{title: 3}}", ""),
        ("domains:\n- web\n- titel: x", 3, f"domains: expected {LISTS}, found {{titel: x}}", "did you mean title?"),
        (
            "domains:\n- nova.flavour: x",
            2,
            f"domains: expected {LISTS}, found {{nova.flavour: x}}",
            "did you mean nova.flavor?",
        ),
        ("domains:\n  includes: [a]", 2, f"domains: expected {LISTS}, found includes", "did you mean include?"),
        ("domains:\n  include: [a]\n  exclude: b", 3, f"domains: expected {LISTS}, found b", ""),
        ("# ours\nhelpers: native", 2, "unknown key 'helpers'", "did you mean helper?"),
        ("on-failure: refuse", 1, "unknown key 'on-failure'", "did you mean on_failure?"),
        ("x: 1", 1, "unknown key 'x'", f"known keys: {KEYS}"),
        ("[a]: b", 1, "unknown key '[a]'", f"known keys: {KEYS}"),
        ("null: 1", 1, "unknown key 'null'", f"known keys: {KEYS}"),
        ("- helper", 1, "expected `key: value` lines", "correct {file}"),
        ("helper:\n- [", 3, "not valid YAML: expected the node content, but found '<stream end>'", ""),
        ("helper: native\n\thelper: x", 2, "not valid YAML: found character '\\t' that cannot start any token", ""),
        ("interval: 2001-99-99", 1, "not valid YAML: month must be in 1..12", ""),
        ("model: active\ninterval: !x 1", 2, "not valid YAML: could not determine a constructor for the tag '!x'", ""),
    ],
)
def test_what_is_wrong_is_reported_exactly(tmp_path: Path, text: str, line: int, message: str, hint: str) -> None:
    file = write(tmp_path, text + "\n")
    with pytest.raises(VirtRaplError) as caught:
        load(file)
    assert caught.value.message == f"{file}:{line}: {message}"
    assert caught.value.hint == (hint.format(file=file) or f"correct {file}:{line}")


def test_a_key_that_is_set_twice(tmp_path: Path) -> None:
    file = write(tmp_path, "model: active\ninterval: 2\nmodel: active\n")
    with pytest.raises(VirtRaplError) as caught:
        load(file)
    assert caught.value.message == f"{file}:3: model is set a second time"
    assert caught.value.hint == f"keep one of the two lines; the first is {file}:1"


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        (b"helper: native\n# \xff", ":2", "not UTF-8: invalid start byte"),
        (b"helper: native\nmodel: \0", ":2", "not valid YAML: special characters are not allowed: '\\x00'"),
        (b"[" * 1000, "", "not valid YAML: nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_as_yaml(tmp_path: Path, content: bytes, place: str, message: str) -> None:
    path = tmp_path / "virt-rapl.yaml"
    path.write_bytes(content)
    with pytest.raises(VirtRaplError) as caught:
        load(path)
    assert (caught.value.message, caught.value.hint) == (f"{path}{place}: {message}", f"correct {path}{place}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("interval: 0.1", 0.1),
        ("interval: 60", 60),
        ("hook_deadline: 1", 1),
        ("hook_deadline: 10", 10),
        ("run_directory: /run/x", Path("/run/x")),
        ("run_directory: /run/x/", Path("/run/x")),
        ("state_directory: /srv/näher 2", Path("/srv/näher 2")),
        ("domains: []", Selection()),
        ("helper: 'qemu'", "qemu"),
        ("interval: 0x3_2", 50),
    ],
)
def test_what_is_just_right_is_accepted(tmp_path: Path, text: str, value: object) -> None:
    found = getattr(load(write(tmp_path, text)), text.partition(":")[0])
    assert (found, type(found) is int) == (value, False)


def test_no_depth_is_too_much(tmp_path: Path) -> None:
    for depth in range(50, 1000, 100):
        _, (mistake,) = read(write(tmp_path, "domains: " + "[" * depth + "]" * depth))
        assert mistake.message.startswith(f"{tmp_path}/virt-rapl.yaml")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("gone.yaml")


def test_what_comes_through_a_pipe_is_checked() -> None:
    """As the Ansible role has it checked before it is written."""
    command = [sys.executable, "-m", "libvirt_rapl", "--config", "/dev/stdin", "config", "check"]
    for text, status in (("interval: 2", 0), ("interval: 0", 1)):
        assert subprocess.run(command, input=text, text=True, check=False).returncode == status


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is not a regular file"),
        (os.mkdir, "is not a regular file"),
        (link_to_nothing, "is a link to gone.yaml, .* not there"),
    ],
)
@pytest.mark.parametrize("name", ["virt-rapl.yaml", "conf.d/10.yaml"])
def test_what_is_no_file_is_reported(tmp_path: Path, name: str, make: Callable[[Path], None], message: str) -> None:
    (tmp_path / "conf.d").mkdir()
    make(tmp_path / name)
    with pytest.raises(VirtRaplError, match=f"{name} {message}") as caught:
        load(tmp_path / "virt-rapl.yaml")
    assert caught.value.hint


def test_who_may_not_read_the_file_reads_who_may(tmp_path: Path, shut_out: Callable[[], None]) -> None:
    path = write(tmp_path, "interval: 2\n")
    shut_out()
    with pytest.raises(VirtRaplError) as caught:
        load(path)
    assert caught.value.message == f"cannot read {path}: Permission denied"
    assert caught.value.hint == f"run the command as root, or let others read the file: chmod a+r {path}"


def test_check_reports_every_mistake_of_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "helper: other\nintervall: 2\ninterval: 61\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/10.yaml").write_text("- helper\n")
    (tmp_path / "conf.d/20.yaml").write_text("model: fair\n")
    assert main(["--config", str(path), "config", "check"]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 2)[1] for line in printed[::2]] == ["error"] * 5
    assert [line.split(": ")[2] for line in printed[::2]] == [
        *(f"{path}:{line}" for line in (1, 2, 3)),
        f"{tmp_path}/conf.d/10.yaml:1",
        f"{tmp_path}/conf.d/20.yaml:1",
    ]
    assert printed[3] == "hint: did you mean interval?"


def test_check_names_what_it_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "virt-rapl.yaml"
    assert main(["--config", str(path), "config", "check"]) == 0
    assert capsys.readouterr().out == f"there is no {path}: all defaults\n"
    write(tmp_path, "helper: qemu\n")
    assert main(["--config", str(path), "config", "check"]) == 0
    assert capsys.readouterr().out == f"no mistakes in {path}\n"


def test_show_prints_what_is_in_force_and_whence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "helper: qemu\n\nmodel: active\ninterval: 2\n")
    (tmp_path / "conf.d").mkdir()
    window = "{from: 22:00, to: '6:00', price: 0.2}"
    (tmp_path / "conf.d/10.yaml").write_text(
        f"interval: 5\ndomains:\n- web*\n- title: 'a: b'\ntariff: {{currency: EUR, price: 0.3, windows: [{window}]}}\n"
    )
    assert main(["--config", str(path), "config", "show"]) == 0
    shown = capsys.readouterr().out
    lines = [tuple(part.strip() for part in line.split("  #")) for line in shown.splitlines()]
    assert lines == [
        ("helper: qemu", f"{path}:1"),
        ("on_failure: degrade", "default"),
        ("source: auto", "default"),
        ("model: active", f"{path}:3"),
        ("run_directory: /run/virt-rapl", "default"),
        ("state_directory: /var/lib/virt-rapl", "default"),
        ("history: {quarter_hours: 35, hours: 400}", "default"),
        ("interval: 5", f"{tmp_path}/conf.d/10.yaml:1"),
        ("hook_deadline: 5.0", "default"),
        ("domains: [web*, {title: 'a: b'}]", f"{tmp_path}/conf.d/10.yaml:2"),
        ("via: auto", "default"),
        ("labels: {}", "default"),
        (
            "tariff: {currency: EUR, price: 0.3, windows: [{from: '22:00', price: 0.2, to: '6:00'}]}",
            f"{tmp_path}/conf.d/10.yaml:5",
        ),
        ("carbon: off", "default"),
        ("pue: 1.0", "default"),
    ]
    in_force = load(path)
    (tmp_path / "conf.d/10.yaml").unlink()
    path.write_text(shown)
    assert load(path) == in_force, "it is a configuration itself"


def test_show_refuses_a_configuration_that_is_not_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(write(tmp_path, "model: fair\n")), "config", "show"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "model: expected one of" in shown.err


def test_every_choice_is_accepted(tmp_path: Path) -> None:
    for key, choices in ((name, key.words) for name, key in config.KEYS.items() if key.expected.startswith("one of")):
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
        ("on_failure: degrade\non_failure: refuse\n", "", "refuse"),
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
@pytest.mark.parametrize(("mode", "who"), [(0o757, "everybody"), (0o775, "group 4321, or those that its ACL names,")])
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
    assert caught.value.message == f"{tmp_path / place} is not used: {who} may write it"
    assert caught.value.hint.endswith(f"chmod go-w {tmp_path / place}")
    assert stated_policy(path) == ("refuse" if "conf.d" in place else "degrade")


@pytest.mark.parametrize(
    "value", ["!!bool x", "!!timestamp x", "!!int x", "!!float x", "!!null x", "!!set x", "!!python/name:os"]
)
def test_a_tag_that_does_not_fit_is_a_mistake_of_its_line_only(tmp_path: Path, value: str) -> None:
    path = tmp_path / "virt-rapl.yaml"
    path.write_text(f"on_failure: refuse\ninterval: {value}\n")
    with pytest.raises(VirtRaplError, match=f"{path}:2: "):
        load(path)
    assert stated_policy(path) == "refuse"


def test_a_sticky_directory_does_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, "interval: 2\n")
    tmp_path.chmod(0o1777)
    assert load(path).interval == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_a_file_of_somebody_elses_is_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path, "interval: 2\n")
    os.chown(path, 1234, 0)
    with pytest.raises(VirtRaplError, match="it belongs to user 1234"):
        load(path)
