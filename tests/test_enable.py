"""enable, disable, inject and strip as the user runs them, and the questions put to the emulator."""

import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import pytest
from fakes.libvirt import OTHER_UUID, UUID, FakeDomain, FakeLibvirt, definition, failure
from fakes.qemu import GREETING, WITH_RAPL, WITHOUT_KVM, WITHOUT_RAPL, fake_qemu, script

from libvirt_rapl.cli import main
from libvirt_rapl.domains import emulator, names
from libvirt_rapl.domains.channel import PORT
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.domain import Domain, every_domain, lookup
from libvirt_rapl.domains.emulator import is_volatile
from libvirt_rapl.errors import NoRegistersError, VirtRaplError
from libvirt_rapl.host.topology import Processor
from libvirt_rapl.lifecycle import events, live, live_plan
from libvirt_rapl.simulator.world import World


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that the unprivileged user of the emulator can reach; tmp_path is root's only."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def qemu(directory: Path) -> Path:
    return fake_qemu(directory, GREETING % (1, 9), '{"return": {}}', WITH_RAPL, '{"return": {}}')


def parts(xml: str) -> tuple[bool, bool]:
    """Return whether registers and channel are there."""
    found = Definition.parse(xml)
    return found.has_registers, found.channel is not None


# The emulator.


def test_an_emulator_that_can(qemu: Path) -> None:
    emulator.check(str(qemu))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([GREETING % (0, 9), WITH_RAPL], "QEMU 9.0.2 at .* is too old"),
        ([GREETING % (2, 8), WITHOUT_RAPL], "QEMU 8.2.2 at .* is too old"),
        ([GREETING % (0, 10), WITHOUT_RAPL], "built without RAPL"),
        ([GREETING % (0, 10), WITHOUT_KVM], "built without RAPL"),
        ([GREETING % (0, 10)], "does not answer as QEMU does"),
        (["usage: ..."], "does not answer as QEMU does"),
        (["[]"], "does not answer as QEMU does"),
        ([""], "does not answer as QEMU does: it said nothing"),
    ],
)
def test_an_emulator_that_cannot(directory: Path, answers: list[str], message: str) -> None:
    path = fake_qemu(directory, *answers)
    with pytest.raises(VirtRaplError, match=message) as caught:
        emulator.check(str(path))
    assert caught.value.hint


def test_what_an_emulator_says_last_is_reported(directory: Path) -> None:
    path = script(directory / "qemu", "echo 'no' >&2; echo 'library' >&2; exit 1")
    with pytest.raises(VirtRaplError, match="does not answer as QEMU does: no library"):
        emulator.check(str(path))


def test_a_script_that_says_something_before_qemu_answers(directory: Path) -> None:
    answers = (GREETING % (1, 9), '{"return": {}}', WITH_RAPL)
    emulator.check(str(fake_qemu(directory, "starting QEMU, 1 of 2", "[1]", "", "7", *answers)))


def test_a_script_that_chooses_an_accelerator(directory: Path) -> None:
    qemu = "echo 'qemu: The -accel and \"-machine accel=\" options are incompatible' >&2; exit 1"
    path = script(directory / "qemu", qemu)
    with pytest.raises(VirtRaplError, match="are incompatible") as caught:
        emulator.check(str(path))
    assert "-enable-kvm" in caught.value.hint


@pytest.mark.e2e
def test_a_script_that_chooses_an_accelerator_and_real_qemu(world: World) -> None:
    own = world.path("/usr/bin/own-qemu")
    script(own, f'echo hello; exec {emulator.installed()} "$@"')
    program = [
        sys.executable,
        "-I",
        "-c",
        "from libvirt_rapl.domains import emulator; emulator.check_rapl('/usr/bin/own-qemu')",
    ]
    try:
        world.run(program)
        script(own, f'exec {emulator.installed()} -enable-kvm "$@"')
        with pytest.raises(VirtRaplError, match="does not answer as QEMU does"):
            world.run(program)
    finally:
        own.unlink()


def test_an_emulator_that_hangs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "TIMEOUT", 0.3)
    path = script(directory / "qemu", "exec sleep 60")
    with pytest.raises(VirtRaplError, match="did not answer"):
        emulator.check(str(path))


def test_an_emulator_that_cannot_be_run(directory: Path) -> None:
    with pytest.raises(VirtRaplError, match="No such file"):
        emulator.check(str(directory / "qemu"))
    (directory / "qemu").touch(0o644)
    for mode in (0o644, 0o700) if os.geteuid() == 0 else (0o644,):  # only root's emulators are run as somebody else
        (directory / "qemu").chmod(mode)
        with pytest.raises(VirtRaplError, match="Permission denied") as caught:
            emulator.check(str(directory / "qemu"))
        assert caught.value.hint.endswith(f"chmod a+rx {directory}/qemu")


def test_an_emulator_without_wrapper(qemu: Path) -> None:
    wrapper = Path(f"{qemu}-rapl")
    for mode in (0o750, 0o751, 0o754):  # a script has to be read as well
        wrapper.chmod(mode)
        with pytest.raises(VirtRaplError, match="not every user may run") as caught:
            emulator.check(str(qemu))
        assert caught.value.hint == f"chmod 755 {wrapper}"
    wrapper.unlink()
    with pytest.raises(VirtRaplError, match="no emulator wrapper") as caught:
        emulator.check(str(qemu))
    assert caught.value.hint == "run `virt-rapl install`"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
@pytest.mark.parametrize("place", ["program", "directory", "group", "link", "set-user-ID", "set-group-ID"])
def test_an_emulator_that_others_can_change_is_not_run(directory: Path, place: str) -> None:
    ran = directory / "ran"
    ran.mkdir(0o777)
    ran.chmod(0o777)
    (directory / "bin").mkdir()
    path = script(directory / "bin/qemu", f"touch {ran}/it")
    if place == "program":
        os.chown(path, 1234, 0)
    elif place == "directory":
        os.chown(directory / "bin", 1234, 0)
    elif place == "group":
        (directory / "bin").chmod(0o775)
    elif place == "link":
        os.chown(directory / "bin", 1234, 0)
        path = directory / "link"
        path.symlink_to("bin/qemu")
    else:
        path.chmod(0o4755 if place == "set-user-ID" else 0o2755)
    for ask in (emulator.check, emulator.version):
        with pytest.raises(VirtRaplError, match="is not run to be asked") as caught:
            ask(str(path))
        assert caught.value.hint
    assert not any(ran.iterdir())


def test_where_an_emulator_can_have_no_wrapper(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in memory, unless all is there; nor where nothing can be written. Where it is missing that is the reason."""
    path = fake_qemu(directory, GREETING % (1, 9), WITH_RAPL)
    emulator.check_place(str(path))
    monkeypatch.setattr(emulator, "is_volatile", lambda *_: True)
    with pytest.raises(VirtRaplError, match=r"can have no wrapper: .*tmpfs") as caught:
        emulator.check(str(path))
    assert "<emulator>" in caught.value.hint
    Path(f"{path}-rapl").unlink()
    monkeypatch.setattr(emulator, "is_volatile", lambda *_: False)
    read_only = os.statvfs_result([*os.statvfs(directory)[:8], os.ST_RDONLY, 255])
    monkeypatch.setattr(os, "statvfs", lambda _: read_only)
    with pytest.raises(VirtRaplError, match="cannot be written to"):
        emulator.check(str(path))
    Path(f"{path}-rapl").touch(0o755)
    emulator.check_place(str(path))


def test_a_wrapper_is_not_put_where_everybody_may_add_files(directory: Path) -> None:
    """As in /tmp: what is there belongs to root, and what is not there yet to whoever comes first."""
    (directory / "bin").mkdir()
    path = fake_qemu(directory / "bin", GREETING % (1, 9), WITH_RAPL)
    emulator.check(str(path))
    (directory / "bin").chmod(0o1777)
    with pytest.raises(VirtRaplError, match="can have no wrapper") as caught:
        emulator.check(str(path))
    assert "chmod go-w" in caught.value.hint


def test_what_is_in_memory(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    device = Path("/proc").stat().st_dev
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /proc rw,noatime shared:1 - %s none rw\n"
    for kind in ("tmpfs", "ramfs"):
        mounts.write_text("22 1 254:0 / / rw - ext4 /dev/vda rw\n" + line % kind)
        assert is_volatile(Path("/proc"), tmp_path, mounts)
    assert not is_volatile(Path("/proc"), Path("/proc"), mounts)
    assert not is_volatile(tmp_path, Path("/proc"), mounts)
    mounts.write_text(line % "overlay")
    assert not is_volatile(Path("/proc"), tmp_path, mounts)


@pytest.mark.e2e
def test_the_real_emulator_can(world: World) -> None:
    program = "from libvirt_rapl.domains import emulator; emulator.check(emulator.installed())"
    world.run([sys.executable, "-I", "-c", program])


# enable and disable, on a libvirt that keeps definitions as they are.


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    fake = FakeLibvirt()
    monkeypatch.setattr("libvirt.open", lambda _uri: fake)
    return fake


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "virt-rapl.yaml").write_text("run_directory: /run/elsewhere\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["--config", str(tmp_path / "virt-rapl.yaml"), *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """What is recorded as events, none of which are written to the machine's own directory and journal."""
    recorded: list[tuple[str, str, str]] = []

    def record(_: Path, event: events.Event) -> None:
        recorded.append((event.operation, event.result, event.reason))

    monkeypatch.setattr(events, "record", record)
    return recorded


def test_enable_twice_and_disable_twice(fake: FakeLibvirt, qemu: Path, run: Run) -> None:
    original = definition("web", UUID, qemu)
    web = fake.add(original)
    assert run("enable", "web") == (0, "web: enabled; takes effect at the next start\n", "")
    assert f"rapl-helper-socket=/run/elsewhere/{UUID}.sock" in web.xml
    assert f"<emulator>{qemu}-rapl</emulator>" in web.xml
    assert "s&lt;cret" in web.xml
    assert run("enable", UUID.upper()) == (0, "web: already enabled\n", "")
    assert run("disable", UUID) == (0, "web: disabled; takes effect at the next start\n", "")
    assert Definition.parse(original).difference(Definition.parse(web.xml)) == ""
    assert run("disable", "web") == (0, "web: not enabled\n", "")
    assert fake.defined == 2


@pytest.mark.parametrize("claimed", ["/opt/planted", "", "/usr/bin/qemu-system-x86_64"])
def test_the_mark_names_no_emulator(fake: FakeLibvirt, qemu: Path, run: Run, claimed: str) -> None:
    """It is metadata, which the owner of the domain can write: <emulator> says which program is asked."""
    marked = Definition.parse(definition("web", UUID, qemu)).with_registers(socket=f"/run/elsewhere/{UUID}.sock").xml
    lying = marked.replace(f'emulator="{qemu}"', f'emulator="{claimed}"')
    assert (lying == marked, Definition.parse(lying).is_marked) == (False, True)
    assert Definition.parse(lying).emulator() == f"{qemu}-rapl"
    assert Definition.parse(lying.replace(f"{qemu}-rapl", "/opt/own-rapl")).emulator() == "/opt/own-rapl"
    assert Definition.parse(definition("web", UUID, Path("/opt/own-rapl"))).emulator() == "/opt/own-rapl"
    web = fake.add(lying)
    assert run("enable", "web")[0] == 0
    assert Definition.parse(web.xml).emulator() == str(qemu), "it is mended"


def test_enable_warns_of_what_may_keep_the_domain_from_starting(
    fake: FakeLibvirt, qemu: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, uuid in (("web", UUID), ("db", OTHER_UUID)):
        fake.add(definition(name, uuid, qemu))
    missing = VirtRaplError("no rule", "add one")
    monkeypatch.setattr("libvirt_rapl.domains.security_modules.missing_rules", lambda path: [missing] if path else [])
    status, out, err = run("enable", "web", "db")
    assert (status, out.count("enabled")) == (0, 2)
    assert err.splitlines() == ["virt-rapl: warning: no rule", "hint: add one"]
    assert run("enable", "--via", "channel", "web")[::2] == (0, ""), "which needs none"


def test_enable_warns_of_a_group_that_the_channel_does_not_reach(fake: FakeLibvirt, qemu: Path, run: Run) -> None:
    label = "<seclabel type='static' model='dac' relabel='yes'><label>1:2</label></seclabel></domain>"
    fake.add(definition("web", UUID, qemu).replace("</domain>", label))
    assert run("enable", "--via", "registers", "web")[::2] == (0, "")
    status, out, err = run("enable", "--via", "channel", "web")
    assert (status, out.count("enabled")) == (0, 1)
    assert err.startswith("virt-rapl: warning: web: its definition gives QEMU a group of its own")
    assert "docs/channel.md" in err.splitlines()[1]


@pytest.mark.parametrize("left", ["all but the mark", "argument", "wrapper"])
def test_disable_takes_nothing_without_the_mark(fake: FakeLibvirt, qemu: Path, run: Run, left: str) -> None:
    original = definition("web", UUID, qemu)
    injected = Definition.parse(original).with_registers(socket=f"/run/elsewhere/{UUID}.sock").xml
    before, _, rest = injected.partition("<metadata>")
    xml = before.rstrip() + rest.partition("</metadata>")[2]
    if left == "argument":
        xml = xml.replace(f"{qemu}-rapl", str(qemu))
    elif left == "wrapper":
        xml = original.replace(f"{qemu}<", f"{qemu}-rapl<")
    web = fake.add(xml)
    status, out, err = run("disable", "web")
    assert (status, out, web.xml, fake.defined) == (0, "web: not enabled\n", xml, 0)
    assert (f"{qemu}-rapl" in err) == (left != "argument")
    if left != "all but the mark":
        assert run("enable", "web")[0] == 1
        assert web.xml == xml
        return
    assert run("enable", "web")[:2] == (0, "web: enabled; takes effect at the next start\n")
    assert run("disable", "web") == (0, "web: disabled; takes effect at the next start\n", "")
    assert Definition.parse(original).difference(Definition.parse(web.xml)) == ""


@pytest.mark.parametrize("command", ["enable", "disable"])
def test_a_reader_that_has_gone_stops_nothing(
    fake: FakeLibvirt, qemu: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name, uuid in (("web", UUID), ("db", OTHER_UUID)):
        xml = definition(name, uuid, qemu)
        fake.add(
            Definition.parse(xml).with_registers(socket=f"/run/elsewhere/{uuid}.sock").xml
            if command == "disable"
            else xml
        )
    monkeypatch.setattr("libvirt_rapl.cli._forget_output", lambda: None)

    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    assert run(command, "web", "db")[0] == 0
    assert fake.defined == 2


def test_disable_warns_that_the_configuration_chooses_the_domain(
    fake: FakeLibvirt, qemu: Path, run: Run, tmp_path: Path
) -> None:
    for name, uuid in (("web", UUID), ("other", OTHER_UUID)):
        fake.add(Definition.parse(definition(name, uuid, qemu)).with_registers(socket=f"/s/{uuid}.sock").xml)
    (tmp_path / "virt-rapl.yaml").write_text("domains:\n  include: ['*']\n  exclude: [other]\n")
    status, out, err = run("disable", "web", "other")
    assert (status, out.count("disabled")) == (0, 2)
    warning, hint = err.splitlines()
    assert warning == "virt-rapl: warning: web is chosen by `domains` in the configuration: virt-rapld enables it again"
    assert hint.startswith("hint: put it under `exclude` there")
    (tmp_path / "virt-rapl.yaml").write_text("domains: all\n")
    assert run("disable", "web") == (0, "web: not enabled\n", ""), "a mistake in it is no reason not to disable"


def test_those_that_the_configuration_chooses_or_excludes(
    fake: FakeLibvirt, qemu: Path, run: Run, tmp_path: Path
) -> None:
    numbers = iter(range(10))

    def add(name: str, *, domain_type: str = "kvm", persistent: bool = True) -> FakeDomain:
        xml = definition(name, f"{UUID[:-1]}{next(numbers)}", qemu, domain_type=domain_type)
        return fake.add(xml, number=-1 if persistent else 1, persistent=persistent)

    web, excluded, other = add("web1"), add("web-test"), add("db")
    add("web-cannot", domain_type="lxc")
    add("web-transient", persistent=False)
    excluded.xml = Definition.parse(excluded.xml).with_registers(socket="/s").xml
    configuration = tmp_path / "virt-rapl.yaml"
    tenant = "<metadata><t:tenant xmlns:t='urn:t' tier='gold'/></metadata>"
    web.xml = web.xml.replace("<vcpu>", f"{tenant}<vcpu>")
    configuration.write_text("domains: ['urn:t tenant@tier': silver]\n")
    assert run("enable", "--chosen", "--dry-run") == (0, "", "")
    configuration.write_text("domains: ['urn:t tenant@tier': gold]\n")
    assert run("enable", "--chosen", "--dry-run")[1].startswith("--- web1 (now)\n")
    configuration.write_text("domains: {include: ['web*'], exclude: [web-test, db]}\n")

    status, out, err = run("enable", "--chosen", "--dry-run")
    assert (status, fake.defined, out.splitlines()[:2]) == (0, 0, ["--- web1 (now)", "+++ web1 (new)"])
    assert "\n--- " not in out
    warning, hint, would = err.splitlines()
    assert warning.startswith("virt-rapl: warning: web-cannot: ")
    assert hint.startswith("hint: ")
    assert would == "virt-rapl: web1 would be enabled"
    assert run("enable", "--chosen")[:2] == (0, "web1: enabled; takes effect at the next start\n")
    assert run("enable", "--chosen")[:2] == (0, "")

    assert run("disable", "--excluded", "--dry-run")[1].startswith("--- web-test (now)\n")
    assert run("disable", "--excluded") == (0, "web-test: disabled; takes effect at the next start\n", "")
    assert run("disable", "--excluded") == (0, "", "")
    assert [Definition.parse(domain.xml).is_marked for domain in (web, excluded, other)] == [True, False, False]
    assert "--live needs the domains' names" in run("enable", "--chosen", "--live")[2]

    configuration.write_text("domains: all\n")
    assert [run(*command)[0] for command in (("enable", "--chosen"), ("disable", "--excluded"))] == [1, 1]


@pytest.mark.parametrize("via", ["auto", "registers", "channel", "both"])
def test_those_that_are_chosen_on_a_host_whose_guests_have_no_registers(
    fake: FakeLibvirt, qemu: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, via: str
) -> None:
    monkeypatch.setattr("libvirt_rapl.host.requirements.processor", lambda _: Processor("AuthenticAMD", 25, 1))
    web = fake.add(definition("web", UUID, qemu))
    for chosen in ("domains: ['web*']\n", ""):
        (tmp_path / "virt-rapl.yaml").write_text(f"{chosen}via: {via}\n")
        status, _, err = run("enable", "--chosen")
        assert (status, "Intel hosts only" in err) == (0, bool(chosen) and via in ("registers", "both"))
    assert parts(web.xml) == (False, via in ("auto", "channel"))


@pytest.mark.parametrize(
    ("code", "alive", "status", "said"),
    [
        (libvirt.VIR_ERR_NO_DOMAIN, True, 0, ""),
        (libvirt.VIR_ERR_INTERNAL_ERROR, True, 0, "virt-rapl: warning: bad: "),
        (libvirt.VIR_ERR_INTERNAL_ERROR, False, 1, "virt-rapl: error: "),
    ],
)
def test_of_those_that_are_chosen_one_that_cannot_be_read_is_left_out_while_libvirt_answers(
    fake: FakeLibvirt,
    qemu: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    *,
    alive: bool,
    status: int,
    said: str,
) -> None:
    error = libvirt.libvirtError("no")
    error.err = (code, 0, "no", 0, None, None, None, 0, 0)

    def fails(_flags: int) -> str:
        raise error

    bad = fake.add(definition("bad", OTHER_UUID, qemu))
    monkeypatch.setattr(FakeDomain, "name", lambda domain: "bad" if domain is bad else "web")
    monkeypatch.setattr(FakeDomain, "UUIDString", lambda domain: OTHER_UUID if domain is bad else UUID)
    monkeypatch.setattr(bad, "XMLDesc", fails, raising=False)
    monkeypatch.setattr(fake, "isAlive", lambda: int(alive), raising=False)
    web = fake.add(definition("web", UUID, qemu))
    (tmp_path / "virt-rapl.yaml").write_text("domains: ['*']\n")
    got, _, err = run("enable", "--chosen")
    assert (got, Definition.parse(web.xml).is_marked) == (status, status == 0), err
    assert err.startswith(said)
    assert bool(err) == bool(said)
    assert err.count("virt-rapl: ") <= 1


@pytest.mark.parametrize("alive", [True, False])
def test_of_those_that_are_chosen_one_that_libvirt_does_not_accept_is_left_out_while_it_answers(
    fake: FakeLibvirt, qemu: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """As it does not with a machine type that has no PCI."""
    fake.add(definition("microvm", OTHER_UUID, qemu, domain_type="qemu"))
    web = fake.add(definition("web", UUID, qemu, domain_type="qemu"))
    accepts = fake.defineXML

    def define(xml: str) -> None:
        if "microvm" in xml:
            raise failure("XML error: No PCI buses available")
        accepts(xml)

    monkeypatch.setattr(fake, "defineXML", define)
    monkeypatch.setattr(fake, "isAlive", lambda: int(alive))
    (tmp_path / "virt-rapl.yaml").write_text("domains: ['*']\n")
    status, _, err = run("enable", "--chosen")
    assert (status, Definition.parse(web.xml).is_marked) == (0 if alive else 1, alive)
    kind = "warning" if alive else "error"
    assert err.splitlines() == [
        f"virt-rapl: {kind}: libvirt does not accept the definition of microvm: XML error: No PCI buses available",
        "hint: its machine type has no PCI, and so it cannot have the energy channel",
    ]
    assert run("enable", "web", "microvm")[0] == 1, "what is named is wanted"


@pytest.mark.parametrize("arguments", [["enable"], ["disable"], ["enable", "--chosen", "web"]])
def test_named_or_by_the_configuration(run: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2


def test_a_running_domain_is_mentioned(fake: FakeLibvirt, qemu: Path, run: Run) -> None:
    fake.add(definition("web", UUID, qemu), number=4)
    assert "it is running now" in run("enable", "web")[1]


def test_dry_run_prints_the_difference_and_changes_nothing(fake: FakeLibvirt, qemu: Path, run: Run) -> None:
    web = fake.add(definition("web", UUID, qemu))
    status, out, _ = run("enable", "--dry-run", "web")
    assert status == 0
    assert out.startswith("--- web (now)\n+++ web (new)\n@@ ")
    assert f"-    <emulator>{qemu}</emulator>\n+    <emulator>{qemu}-rapl</emulator>\n" in out
    assert fake.defined == 0
    web.xml = Definition.parse(web.xml).with_registers(socket="/s").xml
    status, out, _ = run("disable", "--dry-run", "web")
    assert f"-    <emulator>{qemu}-rapl</emulator>\n+    <emulator>{qemu}</emulator>\n" in out
    assert fake.defined == 0


@pytest.mark.parametrize("trouble", ["missing", "refused", "emulator", "transient"])
def test_all_are_checked_before_any_is_changed(fake: FakeLibvirt, qemu: Path, run: Run, trouble: str) -> None:
    fake.add(definition("good", UUID, qemu))
    if trouble == "refused":
        fake.add(definition("bad", OTHER_UUID, qemu, domain_type="lxc"))
    elif trouble == "emulator":
        fake.add(definition("bad", OTHER_UUID, qemu.parent / "none"))
    elif trouble == "transient":
        fake.add(definition("bad", OTHER_UUID, qemu), persistent=False, number=1)
    status, out, err = run("enable", "good", "bad")
    assert (status, out) == (1, "")
    assert err.startswith("virt-rapl: error: ")
    assert "bad" in err.splitlines()[0]
    assert err.splitlines()[1].startswith("hint: ")
    assert fake.defined == 0


def test_without_libvirt(run: Run) -> None:
    status, out, err = run("--connect", "nonsense:///", "enable", "web")
    assert (status, out) == (1, "")
    assert err.startswith("virt-rapl: error: cannot connect to libvirt at nonsense:///: ")
    assert err.count("\n") == 2


def test_domains_of_libvirts_test_driver() -> None:
    connection = connect("test:///default")
    (test,) = every_domain(connection)
    assert (test.name, test.state, test.active, test.persistent) == ("test", "running", True, True)
    assert lookup(connection, test.uuid.upper()) == lookup(connection, "test") == test
    assert (test.live().name, test.live().uuid) == ("test", test.uuid)
    test.handle.destroy()
    assert lookup(connection, "test").state == "shut off"
    assert lookup(connection, "test").id is None
    for unknown in ("nothing", OTHER_UUID, "", "1"):
        with pytest.raises(VirtRaplError, match="there is no domain"):
            lookup(connection, unknown)
    with pytest.raises(VirtRaplError, match="does not accept the definition"):
        test.define(Definition.parse("<domain/>"))


@pytest.mark.e2e
@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "<metadata/>",
        "<metadata><n:x xmlns:n='urn:n' a='1&#10;2'> text <n:b/> more</n:x></metadata><title>Zürich — 漢字</title>",
        "<metadata>text <a:a xmlns:a='urn:a'/> <b:b xmlns:b='urn:b'/> more</metadata>",
    ],
)
@pytest.mark.parametrize("arguments", ["", "<q:arg value='-S'/><q:env name='A' value=' * '/><q:arg value=''/>"])
def test_disable_gives_back_what_libvirt_showed(world: World, metadata: str, arguments: str) -> None:
    extra = f"<q:commandline xmlns:q='{names.QEMU}'>{arguments}</q:commandline>"
    xml = definition("round-trip", UUID, Path(emulator.installed()), more=metadata + extra)
    xml = xml.replace("<vcpu>", "<memory>65536</memory><os><type arch='x86_64'>hvm</type></os><vcpu>")
    world.run(["virsh", "define", "/dev/stdin"], input=xml)
    try:
        show = ["virsh", "dumpxml", "--inactive", "--security-info", "round-trip"]
        before = world.run(show).stdout
        assert "s&lt;cret" in before
        world.run(["virt-rapl", "enable", "--dry-run", "round-trip"])
        assert world.run(show).stdout == before
        world.run(["virt-rapl", "enable", "round-trip"])
        during = world.run(show).stdout
        assert Definition.parse(during).is_marked
        assert world.run(["virt-rapl", "enable", "round-trip"]).stdout == "round-trip: already enabled\n"
        assert world.run(show).stdout == during
        world.run(["virt-rapl", "disable", "round-trip"])
        assert world.run(show).stdout == before
    finally:
        world.run(["virsh", "undefine", "round-trip"])


ONE_PORT = "<controller type='pci' index='1' model='pcie-root-port'/>"
ONE_AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
NO_OTHERS = "<controller type='usb' model='none'/><memballoon model='none'/>"
DISK = "<disk type='file'><source file='/none'/><target dev='vda' bus='virtio'/></disk>"
ON_ROOT = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk><video><model type='vga'/></video>"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("machine", "devices"),
    [
        ("pc", ""),
        ("pc", NO_OTHERS),
        ("pc", "<controller type='virtio-serial' index='1'/>"),
        ("pc", "<console type='pty'><target type='virtio'/></console>"),
        ("q35", ""),
        ("q35", ONE_AGENT),
        ("q35", NO_OTHERS),
        ("q35", NO_OTHERS + ON_ROOT),
        ("q35", NO_OTHERS + ONE_PORT),
        ("q35", NO_OTHERS + ONE_PORT + DISK),
        ("q35", ONE_AGENT + "<controller type='virtio-serial' index='0' ports='2'/>"),
    ],
    ids=[
        "PCI",
        "bare",
        "second controller",
        "console",
        "PCI Express",
        "agent",
        "bare PCI Express",
        "all on the root",
        "a port is free",
        "no port left",
        "controller full",
    ],
)
@pytest.mark.parametrize("via", ["channel", "both"])
def test_disable_takes_out_what_libvirt_added_for_the_channel(
    world: World, machine: str, devices: str, via: str
) -> None:
    name = "round-trip"
    xml = definition(name, UUID, Path(emulator.installed())).replace("</devices>", f"{devices}</devices>")
    xml = xml.replace(
        "<vcpu>", f"<memory>65536</memory><os><type arch='x86_64' machine='{machine}'>hvm</type></os><vcpu>"
    )
    world.run(["virsh", "define", "/dev/stdin"], input=xml)
    try:
        show = ["virsh", "dumpxml", "--inactive", "--security-info", name]
        before = world.run(show).stdout
        world.run(["virt-rapl", "enable", "--via", via, name])
        during = Definition.parse(world.run(show).stdout)
        assert during.channel_is_ours
        assert world.run(["virt-rapl", "enable", "--via", via, name]).stdout == f"{name}: already enabled\n"
        world.run(["virt-rapl", "disable", name])
        assert world.run(show).stdout == before
    finally:
        world.run(["virsh", "undefine", name])


# The filters, as processes: in a locale where nothing but us makes the output UTF-8.


ON_PROCESSOR = """
import sys
from libvirt_rapl.domains import emulator
from libvirt_rapl.cli import main
from libvirt_rapl.host.topology import Processor
from libvirt_rapl.host import requirements
requirements.processor = lambda _: Processor(sys.argv[1], 6, 142)
emulator.is_volatile = lambda *_: False
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def virt_rapl(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "virt-rapl.yaml").write_text("run_directory: /run/elsewhere\n")

    def virt_rapl(command: str, xml: str | bytes, vendor: str = "GenuineIntel") -> tuple[int, str, str]:
        configuration = str(tmp_path / "virt-rapl.yaml")
        done = subprocess.run(
            [sys.executable, "-c", ON_PROCESSOR, vendor, "--config", configuration, *command.split()],
            input=xml.encode() if isinstance(xml, str) else xml,
            capture_output=True,
            env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            timeout=30,
            check=False,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return virt_rapl


VirtRapl = Callable[..., tuple[int, str, str]]


def test_inject_and_strip(virt_rapl: VirtRapl, qemu: Path) -> None:
    xml = definition("Zürich", UUID, qemu)
    status, injected, err = virt_rapl("inject", xml)
    assert (status, err) == (0, "")
    assert injected == Definition.parse(xml).with_registers(socket=f"/run/elsewhere/{UUID}.sock").xml
    assert virt_rapl("strip", injected) == (0, Definition.parse(injected).strip().xml, "")
    assert virt_rapl("strip", xml) == (0, xml, "")


def test_inject_makes_a_uuid_where_there_is_none(virt_rapl: VirtRapl, qemu: Path) -> None:
    xml = definition("web", UUID, qemu).replace(f"  <uuid>{UUID}</uuid>\n", "")
    status, injected, err = virt_rapl("inject", xml)
    assert (status, err) == (0, "")
    made = Definition.parse(injected).uuid
    assert f"  <name>web</name>\n  <uuid>{made}<!-- made by virt-rapl --></uuid>\n" in injected
    assert Definition.parse(injected).helper_socket == f"/run/elsewhere/{made}.sock"
    assert virt_rapl("strip", injected) == (0, Definition.parse(xml).rewritten, "")


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "utf-16"])
def test_the_filters_write_the_encoding_that_they_read(
    qemu: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
    encoding: str,
) -> None:
    configuration = tmp_path / "virt-rapl.yaml"
    configuration.write_text("run_directory: /run/elsewhere\n")

    def filtered(command: str, xml: bytes) -> bytes:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(xml)))
        assert main(["--config", str(configuration), command]) == 0
        return capsysbinary.readouterr().out

    xml = f"<?xml version='1.0' encoding='{encoding}'?>\n" + definition("Zürich", UUID, qemu)
    injected = filtered("inject", xml.encode(encoding))
    assert f"<emulator>{qemu}-rapl</emulator>" in injected.decode(encoding)
    assert Definition.parse(xml).difference(Definition.parse(filtered("strip", injected).decode(encoding))) == ""


def test_inject_on_a_processor_whose_guests_have_no_meter(virt_rapl: VirtRapl, qemu: Path) -> None:
    xml = definition("web", UUID, qemu)
    with_registers = Definition.parse(xml).with_registers(socket=f"/run/elsewhere/{UUID}.sock")
    for via, expected in (("auto", Definition.parse(xml).with_channel()), ("registers", with_registers)):
        status, injected, err = virt_rapl(f"inject --via {via}", xml, "AuthenticAMD")
        assert (status, injected) == (0, expected.xml)
        assert err.startswith("virt-rapl: warning: ")
        assert "Intel hosts only" in err
    Path(f"{qemu}-rapl").unlink()
    status, injected, err = virt_rapl("inject --via registers", xml, "AuthenticAMD")
    assert (status, injected) == (1, "")
    assert "wrapper" in err


@pytest.mark.parametrize("vendor", ["GenuineIntel", "AuthenticAMD"])
def test_inject_for_another_machine(virt_rapl: VirtRapl, vendor: str) -> None:
    """An orchestrator need not have the emulator, nor the domain name one that exists here; nor does its CPU count."""
    status, injected, err = virt_rapl("inject", definition("web", UUID, Path("/opt/elsewhere/qemu")), vendor)
    assert (status, err) == (0, "")
    assert "<emulator>/opt/elsewhere/qemu-rapl</emulator>" in injected


@pytest.mark.parametrize("configured", ["registers", "channel", "both"])
@pytest.mark.parametrize("option", ["", "registers", "channel", "both", "auto"])
def test_inject_by_the_option_or_else_by_the_configuration(
    virt_rapl: VirtRapl, qemu: Path, tmp_path: Path, configured: str, option: str
) -> None:
    (tmp_path / "virt-rapl.yaml").write_text(f"via: {configured}\n")
    status, injected, _ = virt_rapl(f"inject --via {option}" if option else "inject", definition("web", UUID, qemu))
    has = {"registers": (True, False), "channel": (False, True), "both": (True, True), "auto": (True, False)}
    assert (status, parts(injected)) == (0, has[option or configured])


@pytest.mark.parametrize("command", ["inject", "strip"])
@pytest.mark.parametrize("xml", ["", "<domain", "<domain>\ufffe</domain>", "<a/>", b"<domain>\xe9</domain>"])
def test_what_is_no_domain_xml_gives_no_output(virt_rapl: VirtRapl, command: str, xml: str | bytes) -> None:
    status, out, err = virt_rapl(command, xml)
    assert (status, out) == (1, "")
    assert err.startswith("virt-rapl: error: ")


def test_two_documents_at_once(virt_rapl: VirtRapl, qemu: Path) -> None:
    """As `virt-install --print-xml` prints them."""
    one = definition("web", UUID, qemu)
    for both in (one + one, f"<?xml version='1.0'?>\n{one}<!-- then -->\n<?xml version='1.0'?>\n{one}"):
        for command in ("inject", "strip"):
            status, out, err = virt_rapl(command, both)
            assert (status, out) == (1, "")
            assert "virt-install --print-xml" in err.splitlines()[1]


def test_what_can_be_mended_is_reported_last(
    fake: FakeLibvirt, run: Run, virt_rapl: VirtRapl, monkeypatch: pytest.MonkeyPatch
) -> None:
    xml = definition("web", UUID, Path("/nowhere/qemu"), domain_type="qemu")
    assert "type 'qemu'" in virt_rapl("inject --via registers", xml.replace(f"<uuid>{UUID}</uuid>", ""))[2]
    fake.add(xml)
    assert "type 'qemu'" in run("enable", "--via", "registers", "web")[2]
    monkeypatch.setattr("libvirt_rapl.host.requirements.processor", lambda _: Processor("AuthenticAMD", 25, 1))
    error, hint = run("enable", "--via", "both", "web")[2].splitlines()
    assert "Intel hosts only" in error
    assert "`via: auto` in the configuration" in hint


def test_inject_refuses_as_enable_does(virt_rapl: VirtRapl, qemu: Path) -> None:
    refused = definition("web", UUID, qemu, domain_type="lxc")
    without_uuid = definition("web", UUID, qemu).replace(UUID, "")
    Path(f"{qemu}-rapl").unlink()
    without_wrapper = definition("web", UUID, qemu)
    for xml in (refused, without_uuid, without_wrapper):
        status, out, err = virt_rapl("inject", xml)
        assert (status, out) == (1, "")
        assert err.startswith("virt-rapl: error: ")
        assert "\nhint: " in err


# By registers, or by the channel.


@pytest.mark.parametrize(
    ("via", "vendor", "domain_type", "has", "said"),
    [
        ("auto", "GenuineIntel", "kvm", (True, False), "enabled;"),
        ("auto", "GenuineIntel", "qemu", (False, True), "enabled, by the channel (the domain is of type 'qemu');"),
        ("auto", "AuthenticAMD", "kvm", (False, True), "enabled, by the channel (QEMU gives guests RAPL on Intel "),
        ("registers", "GenuineIntel", "kvm", (True, False), "enabled;"),
        ("channel", "GenuineIntel", "kvm", (False, True), "enabled, by the channel;"),
        ("both", "GenuineIntel", "kvm", (True, True), "enabled, by registers and by the channel;"),
    ],
)
def test_what_a_domain_gets(
    fake: FakeLibvirt,
    qemu: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    via: str,
    vendor: str,
    domain_type: str,
    has: tuple[bool, bool],
    said: str,
) -> None:
    monkeypatch.setattr("libvirt_rapl.host.requirements.processor", lambda _: Processor(vendor, 6, 1))
    web = fake.add(definition("web", UUID, qemu, domain_type=domain_type))
    before = Definition.parse(web.xml).rewritten
    (tmp_path / "virt-rapl.yaml").write_text(f"via: {via}\n")
    for command in (["enable"], ["enable", "--via", via]):
        status, out, err = run(*command, "--dry-run", "web")
        assert (status, Definition.parse(web.xml).rewritten) == (0, before)
        assert err.startswith(f"virt-rapl: web would be {said.rstrip(';')}")
        assert (PORT in out, "rapl=true" in out) == (has[1], has[0])
        assert run(*command, "web")[1].startswith(f"web: {said}")
        changed = Definition.parse(web.xml)
        assert (changed.has_registers, changed.channel is not None) == has
        assert run(*command, "web")[1] == "web: already enabled\n"
        assert run("disable", "web")[0] == 0
        assert Definition.parse(web.xml).rewritten == before


def test_via_is_all_that_a_domain_has_then_but_auto_leaves_the_owners_choice(
    fake: FakeLibvirt, qemu: Path, run: Run
) -> None:
    web = fake.add(definition("web", UUID, qemu))
    for via, has in (
        ("both", (True, True)),
        ("auto", (True, True)),
        ("channel", (False, True)),
        ("auto", (False, True)),
        ("registers", (True, False)),
        ("auto", (True, False)),
    ):
        assert run("enable", "--via", via, "web")[0] == 0
        changed = Definition.parse(web.xml)
        assert (changed.has_registers, changed.channel is not None) == has


def test_a_running_domain_gets_the_channel_and_loses_it(
    fake: FakeLibvirt, qemu: Path, run: Run, recorded: list[tuple[str, str, str]]
) -> None:
    web = fake.add(definition("web", UUID, qemu), number=4)
    before = Definition.parse(web.xml).rewritten
    live = ("enable", "--live", "--via", "channel")
    assert run(*live, "--dry-run", "web")[1].endswith("web: gets its channel without a pause\n")
    assert (web.running, fake.defined, recorded) == ("", 0, [])
    assert run(*live, "web") == (0, "web: has its channel now\n", "")
    assert recorded == [("attach", "active", "")]
    for xml in (web.running, web.xml):
        assert Definition.parse(xml).channel
        assert Definition.parse(xml).channel_is_ours
    for dry in ((), ("--dry-run",)):
        assert run(*live, *dry, "web") == (0, "web: its channel is already there\n", "")
    assert "would be detached" in run("disable", "--dry-run", "web")[1]
    web.number = -1
    assert "detached" not in run("disable", "--dry-run", "web")[1]
    web.number = 4
    status, out, err = run("disable", "web")
    assert (status, out, err) == (0, "web: disabled\nweb: its channel is detached\n", "")
    assert recorded == [("attach", "active", ""), ("detach", "ended", "")]
    assert Definition.parse(web.xml).rewritten == before
    running = Definition.parse(web.running)
    assert (running.channel, running.is_marked) == (None, False)


@pytest.mark.parametrize("via", ["auto", "channel"])
def test_a_channel_of_the_owners_is_said_to_be_used_and_to_stay(
    fake: FakeLibvirt, qemu: Path, run: Run, via: str
) -> None:
    web = fake.add(Definition.parse(definition("web", UUID, qemu)).with_channel().xml)
    web.xml = before = re.sub("<metadata>.*</metadata>", "", web.xml, flags=re.DOTALL)
    used = "web: has a channel of its own, which is used as it is\n"
    assert run("enable", "--via", via, "web") == (0, used, "")
    assert run("disable", "web") == (0, "web: not enabled; its channel is not ours and stays\n", "")
    assert web.xml == before


def without_channel(xml: str) -> str:
    """Return what somebody else leaves who detaches the channel alone."""
    found, count = re.subn("<channel.*?</channel>", "", xml, flags=re.DOTALL)
    assert count == 1
    return found


def test_a_channel_that_somebody_else_has_detached(fake: FakeLibvirt, qemu: Path, run: Run) -> None:
    """The controller that was attached for it is still there."""
    web = fake.add(definition("web", UUID, qemu), number=4)
    live = ("enable", "--live", "--via", "channel", "web")
    assert run(*live)[0] == 0
    web.running = without_channel(web.running)
    assert run(*live) == (0, "web: has its channel now\n", "")
    assert Definition.parse(web.running).channel
    web.running = without_channel(web.running)
    assert run("disable", "web")[::2] == (0, "")
    running = Definition.parse(web.running)
    assert (running.is_marked, "virtio-serial" in web.running) == (False, True)
    assert run("disable", "web") == (0, "web: not enabled\n", "")


def test_what_else_has_a_mark_as_it_runs_keeps_it(fake: FakeLibvirt, qemu: Path, run: Run) -> None:
    web = fake.add(definition("web", UUID, qemu), number=4)
    web.running = Definition.parse(web.xml).with_registers(socket="/s").xml
    assert run("enable", "--live", "--via", "channel", "web")[0] == 0
    running = Definition.parse(web.running)
    assert (running.has_registers, running.channel_is_ours) == (True, True)
    disabled = "web: disabled; takes effect at the next start (it is running now, as it was started)\n"
    assert run("disable", "web") == (0, f"{disabled}web: its channel is detached\n", "")
    running = Definition.parse(web.running)
    assert (running.has_registers, running.channel_is_ours, running.channel) == (True, False, None)


def test_a_transient_domain_gets_the_channel_and_loses_it(fake: FakeLibvirt, qemu: Path, run: Run) -> None:
    web = fake.add(definition("web", UUID, qemu), number=4, persistent=False)
    assert "`virt-rapl enable --live --via channel`" in run("enable", "web")[2]
    assert run("enable", "--live", "--via", "channel", "web")[:2] == (0, "web: has its channel now\n")
    assert run("disable", "web") == (0, "web: its channel is detached\n", "")
    assert Definition.parse(web.running).channel is None
    assert run("disable", "web")[0] == 1


@pytest.mark.parametrize(
    ("number", "more", "message"),
    [(-1, "", "the domain does not run"), (4, "<devices><controller type='pci' index='0'/></devices>", "No more")],
)
def test_the_channel_cannot_be_attached(
    fake: FakeLibvirt,
    qemu: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    recorded: list[tuple[str, str, str]],
    number: int,
    more: str,
    message: str,
) -> None:
    web = fake.add(definition("web", UUID, qemu, more=more), number=number)
    before = web.xml

    def full(*_: object) -> None:
        raise failure("No more available PCI slots")

    monkeypatch.setattr(FakeDomain, "attachDeviceFlags", full)
    status, out, err = run("enable", "--live", "--via", "channel", "web")
    assert (status, out, web.xml, web.running) == (1, "", before, "")
    assert err.startswith("virt-rapl: error: web: ")
    assert message in err
    assert "hint: " in err
    failed = [(operation, result) for operation, result, reason in recorded if message in reason]
    assert failed == ([("attach", "failed")] if number >= 0 else [])


def test_all_are_checked_before_any_channel_is_attached(fake: FakeLibvirt, qemu: Path, run: Run) -> None:
    """As it runs a domain may have what its definition has not."""
    web, db = fake.add(definition("web", UUID, qemu), number=4), fake.add(definition("db", OTHER_UUID, qemu), number=5)
    theirs = f"<channel type='unix'><source mode='connect' path='/q'/><target type='virtio' name='{PORT}'/></channel>"
    db.running = db.xml.replace("</devices>", f"{theirs}</devices>")
    status, out, err = run("enable", "--live", "--via", "channel", "web", "db")
    assert (status, out, web.running, fake.defined) == (1, "", "", 0)
    assert err.startswith(f"virt-rapl: error: db: the domain has a channel {PORT} to which virt-rapl cannot connect")


# Registers of a running domain: here only what is planned; test_live.py has how it is saved and restored.


@dataclass
class Switched:
    """What `enable --live` would do to running domains, and those whose guest has registers already."""

    restored: list[str] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    refuses: dict[str, type[VirtRaplError]] = field(default_factory=dict)


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> Switched:
    switched = Switched()

    def plan(domain: Domain, enable: Callable[[], None], _: object) -> live_plan.Plan:
        if domain.name in switched.refuses:
            raise switched.refuses[domain.name]("it cannot now", "wait")
        return live_plan.Plan(domain=domain, enable=enable, persistent=True, used_bytes=1, bytes_per_second=1.0)

    def switch_on(plan: live_plan.Plan, *_: object) -> None:
        switched.restored.append(plan.domain.name)
        plan.enable()

    monkeypatch.setattr(live_plan, "plan", plan)
    monkeypatch.setattr(live, "switch_on", switch_on)
    monkeypatch.setattr(live, "is_active", lambda domain, _: domain.name in switched.active)
    return switched


def test_a_running_domain_gets_registers_once_all_are_planned(
    fake: FakeLibvirt, qemu: Path, run: Run, switched: Switched
) -> None:
    web, db = fake.add(definition("web", UUID, qemu), number=4), fake.add(definition("db", OTHER_UUID, qemu), number=5)
    live = ("enable", "--live", "web", "db")
    switched.refuses["db"] = VirtRaplError
    assert run(*live) == (1, "", "virt-rapl: error: db: it cannot now\nhint: wait\n")
    assert switched.restored == []
    switched.refuses.clear()
    status, out, err = run(*live, "--dry-run")
    assert (status, err, fake.defined, switched.restored) == (0, "", 0, [])
    assert re.findall("^(--- .*|.*: pauses)", out, re.MULTILINE) == [
        "--- web (now)",
        "--- db (now)",
        "web: pauses",
        "db: pauses",
    ]
    status, out, err = run(*live)
    assert (status, err, [line.partition(" for ")[0] for line in out.splitlines()]) == (
        0,
        "",
        ["web: pauses", "db: pauses"],
    )
    assert switched.restored == ["web", "db"]
    assert [parts(each.xml) for each in (web, db)] == [(True, False)] * 2
    switched.active = {"web"}
    assert run(*live)[1].startswith("web: its meter is already active\ndb: pauses")
    assert switched.restored == ["web", "db", "db"]


@pytest.mark.parametrize(
    ("via", "before", "active", "restored", "after"),
    [
        ("auto", "nothing", False, True, (True, False)),
        ("both", "nothing", False, True, (True, True)),
        ("auto", "channel", False, False, (False, True)),
        ("registers", "channel", False, True, (True, False)),
        ("both", "channel", False, True, (True, True)),
        ("both", "registers", True, False, (True, True)),
        ("channel", "registers", True, False, (False, True)),
        ("registers", "registers", True, False, (True, False)),
    ],
    ids=[
        "auto",
        "both",
        "its owner's choice",
        "registers",
        "registers, too",
        "registers are active",
        "channel instead",
        "nothing to do",
    ],
)
@pytest.mark.parametrize("persistent", [True, False])
def test_what_a_running_domain_gets(
    fake: FakeLibvirt,
    qemu: Path,
    run: Run,
    switched: Switched,
    persistent: bool,
    via: str,
    before: str,
    active: bool,
    restored: bool,
    after: tuple[bool, bool],
) -> None:
    plain = Definition.parse(definition("web", UUID, qemu))
    socket = f"/run/elsewhere/{UUID}.sock"
    made = {"nothing": plain, "registers": plain.with_registers(socket=socket), "channel": plain.with_channel()}
    web = fake.add(made[before].xml, number=4, persistent=persistent)
    switched.active = {"web"} if active else set()
    status, out, err = run("enable", "--live", "--via", via, "web")
    assert (status, err, bool(switched.restored)) == (0, "", restored)
    assert ("pauses" in out) == restored
    assert ("its meter is already active" in out) == (via == before == "registers")
    attached = after[1] and before != "channel"
    assert ("has its channel now" in out) == attached
    assert parts(web.running) == (before == "registers", True) if attached else web.running == ""
    if persistent:
        assert parts(web.xml) == after


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("where", ["definition", "as it runs"])
def test_a_running_domain_that_can_have_no_registers_gets_the_channel(
    fake: FakeLibvirt, qemu: Path, run: Run, switched: Switched, persistent: bool, where: str
) -> None:
    xml, reason = definition("web", UUID, qemu), "it cannot now"
    if where == "definition":
        xml, reason = xml.replace("<vcpu>2<", "<vcpu current='1'>2<"), "the domain's number of vCPUs can grow"
    else:
        switched.refuses["web"] = NoRegistersError
    web = fake.add(xml, number=4, persistent=persistent)
    live = ("enable", "--live", "web")
    assert f"web: gets its channel without a pause ({reason}" in run(*live, "--dry-run")[1]
    assert web.running == ""
    for via in ("registers", "both"):
        status, out, err = run(*live, "--via", via)
        assert (status, out) == (1, "")
        assert err.startswith(f"virt-rapl: error: web: {reason}")
    status, out, err = run(*live)
    assert (status, err, switched.restored) == (0, "", [])
    assert out.startswith(f"web: has its channel now ({reason}")
    assert Definition.parse(web.running).channel


@pytest.mark.usefixtures("switched")
def test_a_domain_that_is_undefined_while_it_gets_its_meter(
    fake: FakeLibvirt, qemu: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = fake.add(definition("web", UUID, qemu), number=4)

    def undefined(plan: live_plan.Plan, *_: object) -> None:
        web.persistent = False
        plan.enable()

    monkeypatch.setattr(live, "switch_on", undefined)
    status, _, err = run("enable", "--live", "web")
    assert (status, fake.defined) == (1, 0)
    assert "it was undefined meanwhile" in err
