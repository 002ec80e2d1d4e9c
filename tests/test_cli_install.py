"""`virt-rapl install` and `virt-rapl uninstall` on a machine of which nothing is real: what is done, in which order."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from fakes.libvirt import UUID, FakeLibvirt, definition

from libvirt_rapl import paths
from libvirt_rapl.cli import install as install_command
from libvirt_rapl.cli import main, uninstall
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.domain import Domain
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.install import activation, default_emulator, packaged, still_needed, wrappers
from libvirt_rapl.install.manifest import Manifest
from libvirt_rapl.install.still_needed import Dependent, Reason

DEFAULT, OTHER = "/usr/bin/qemu-system-x86_64", "/opt/qemu"


class System:
    """What is on the machine, and what was done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.packaged = False
        self.needed: list[Dependent] = []
        self.snapshots: list[str] = []
        self.libvirt = True
        self.refusals: dict[str, VirtRaplError] = {}
        self.changeable: dict[Path, str] = {}
        self.has_default = False
        self.default_trouble: VirtRaplError | None = None
        self.path_trouble: VirtRaplError | None = None

    def check_default(self, _connection: object) -> str:
        if self.default_trouble:
            raise self.default_trouble
        self.done.append("asked libvirt")
        return "libvirt takes it"

    def note(self, what: str, *, dry_run: bool = False) -> list[str]:
        """Note what was done, unless it is only to be said; return a line about it."""
        self.done += [] if dry_run else [what]
        return [f"{'would be ' if dry_run else ''}{what}"]

    def step(self, what: str) -> Iterator[activation.Step]:
        """Yield one step on the running system, and one that says what was kept."""
        yield what, lambda: self.note(what)
        yield "kept      the ledger", lambda: None

    def connect(self, _uri: str, *, read_only: bool = False) -> FakeLibvirt:
        if not self.libvirt:
            raise VirtRaplError("cannot connect to libvirt", "start it")
        self.done += [] if read_only else ["looked"]
        return FakeLibvirt()


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    system = System()

    def install(
        _root: Path, emulators: Iterable[str], *, wrappers_only: bool, default_emulator: str | None, dry_run: bool
    ) -> list[str]:
        kind = "wrappers" if wrappers_only else "all"
        default = f"default {default_emulator}" if default_emulator else ""
        return system.note(" ".join(filter(None, ["installed", kind, *emulators, default])), dry_run=dry_run)

    def emulators(_root: Path, named: Iterable[str] = ()) -> list[str]:
        return [DEFAULT, *named]

    def check_path() -> None:
        if system.path_trouble:
            raise system.path_trouble

    def load(_root: Path) -> Manifest:
        system.done.append("read")
        return Manifest(files={})

    def uninstalled(_root: Path, *, dry_run: bool) -> list[str]:
        return system.note("removed", dry_run=dry_run)

    def disable(dependent: Dependent) -> None:
        system.done.append(f"disabled {dependent.domain.name}")

    manifest = tmp_path / "installed.json"
    manifest.touch()
    for place, name, stand_in in (
        (paths, "MANIFEST", str(manifest).lstrip("/")),
        (packaged, "owns", lambda _root: system.packaged),
        (packaged, "stage", lambda _root, *, dry_run: system.note("staged", dry_run=dry_run)),
        (default_emulator, "is_installed", lambda _root: system.has_default),
        (default_emulator, "check_path", check_path),
        (default_emulator, "check", system.check_default),
        (emulator, "check_rapl", lambda path: system.done.append(f"checked {path}")),
        (emulator, "check_place", lambda _path: None),
        (emulator, "installed", lambda: DEFAULT),
        (wrappers, "emulators", emulators),
        (wrappers, "refusal", lambda _root, path: system.refusals.get(path)),
        (wrappers, "refresh", lambda _root, *, dry_run: system.note("refreshed", dry_run=dry_run)),
        (install_command, "install", install),
        (install_command, "changeable_program", lambda: system.changeable),
        (install_command, "closed_directory", lambda *_: None),
        (activation, "after_install", lambda: system.step("used")),
        (activation, "before_uninstall", lambda: system.step("stopped")),
        (activation, "after_uninstall", lambda _config: system.step("forgotten by systemd")),
        (Manifest, "load", load),
        (uninstall, "uninstall", uninstalled),
        (uninstall, "forget", lambda _root: system.note("forgotten")),
        (uninstall, "sweep", lambda _tree: system.note("swept")),
        (still_needed, "find", lambda _connection: system.needed),
        (still_needed, "old_snapshots", lambda *_: system.snapshots),
        (still_needed, "disable", disable),
    ):
        monkeypatch.setattr(place, name, stand_in)
    monkeypatch.setattr("libvirt_rapl.domains.connection.connect", system.connect)
    monkeypatch.setattr("libvirt_rapl.domains.named_emulators.named_emulators", lambda _connection: [OTHER])
    monkeypatch.setattr("libvirt_rapl.domains.security_modules.missing_rules", lambda _path: [])
    monkeypatch.delenv("DPKG_MAINTSCRIPT_PACKAGE", raising=False)
    return system


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["--config", str(tmp_path / "none.yaml"), *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def needs(why: Reason, name: str = "web") -> Dependent:
    handle = FakeLibvirt().add(definition(name, UUID, Path(DEFAULT)))
    return Dependent(Domain(name=name, uuid=UUID, id=None, state="shut off", handle=handle), why)


# Installing.


def test_what_is_installed_is_used(system: System, run: Run) -> None:
    assert run("install")[0] == 0
    assert system.done == [f"installed all {DEFAULT} {OTHER}", "refreshed", "used"]


def test_the_default_emulator_is_opt_in_and_stays(system: System, run: Run) -> None:
    status, out, _ = run("install", "--default-emulator")
    all_installed = f"installed all {DEFAULT} {OTHER} default {DEFAULT}"
    assert (status, "checked   libvirt takes it" in out) == (0, True)
    assert system.done == [f"checked {DEFAULT}", all_installed, "refreshed", "used", "asked libvirt"]
    system.done, system.has_default = [], True
    assert run("install")[0] == 0
    assert system.done == [all_installed, "refreshed", "used", "asked libvirt"]
    system.done = []
    assert run("install", "--no-default-emulator")[0] == 0
    assert system.done == [f"installed all {DEFAULT} {OTHER}", "refreshed", "used"]


def test_it_goes_with_a_warning_of_snapshots(system: System, run: Run) -> None:
    system.has_default, system.snapshots = True, ["web/then"]
    status, _, said = run("install", "--no-default-emulator")
    assert (status, "warning: web/then: this snapshot has the default emulator" in said) == (0, True)
    assert system.done == [f"installed all {DEFAULT} {OTHER}", "refreshed", "used"]


def test_a_libvirt_that_does_not_take_it_fails_only_who_asked_for_it(system: System, run: Run) -> None:
    system.default_trouble = VirtRaplError("libvirt takes another", "restart it")
    status, _, said = run("install", "--default-emulator")
    assert (status, "error: libvirt takes another" in said) == (1, True)
    system.has_default = True
    status, _, said = run("install")
    assert (status, "warning: libvirt takes another\nhint: restart it" in said) == (0, True)


def test_under_another_root_the_default_emulator_stays_as_it_is(system: System, run: Run, tmp_path: Path) -> None:
    status, _, said = run("install", "--prefix-root", str(tmp_path), "--default-emulator")
    assert (status, "on this machine" in said, system.done) == (1, True, [])
    system.has_default = True
    assert run("install", "--prefix-root", str(tmp_path))[0] == 0
    assert system.done == [f"installed all {DEFAULT} default {DEFAULT}", "refreshed"]


def test_a_libvirt_that_would_not_find_it_changes_nothing(system: System, run: Run) -> None:
    system.path_trouble = VirtRaplError("libvirtd looks elsewhere", "do this")
    status, _, said = run("install", "--default-emulator")
    assert (status, "libvirtd looks elsewhere" in said) == (1, True)
    assert not any(done.startswith("installed") for done in system.done)


@pytest.mark.parametrize("why", still_needed.BY_DEFAULT)
def test_the_default_emulator_stays_while_domains_have_it(system: System, run: Run, why: Reason) -> None:
    system.has_default, system.needed = True, [needs(why)]
    status, _, said = run("install", "--no-default-emulator")
    assert (status, f"web {why}" in said, system.done) == (1, True, [])
    assert "hint: shut down those that run, then for each name QEMU itself in its <emulator>" in said
    status, _, said = run("uninstall")
    assert (status, f"web {why}" in said) == (1, True)
    system.done = []
    may_be_changed = why != Reason.RUNS_BY_DEFAULT
    assert run("uninstall", "--disable-domains")[0] == int(not may_be_changed)
    assert ("disabled web" in system.done) == may_be_changed


def test_a_dry_run_only_says_what_would_be_done(system: System, run: Run) -> None:
    status, out, _ = run("install", "--dry-run")
    assert (status, system.done) == (0, [])
    assert out.splitlines() == [
        f"would be installed all {DEFAULT} {OTHER}",
        "would be refreshed",
        "would be used",
        "kept      the ledger",
    ]


def test_below_another_root_this_system_is_not_asked_or_changed(system: System, run: Run, tmp_path: Path) -> None:
    system.changeable = {Path("/opt"): "everybody may write it"}
    assert run("install", "--prefix-root", str(tmp_path))[0] == 0
    assert system.done == [f"installed all {DEFAULT}", "refreshed"]


def test_without_libvirt_the_usual_emulators_get_their_wrappers(system: System, run: Run) -> None:
    system.libvirt = False
    assert run("install")[0] == 0
    assert system.done[0] == f"installed all {DEFAULT}"


def test_beside_a_package_other_emulators_get_wrappers(system: System, run: Run) -> None:
    system.packaged = True
    status, out, _ = run("install")
    assert status == 0
    assert packaged.NOT_OURS in out
    assert system.done[0] == f"installed wrappers {OTHER}"


def test_an_emulator_that_can_have_no_wrapper_is_mentioned_and_the_rest_installed(system: System, run: Run) -> None:
    system.refusals = {OTHER: VirtRaplError("it is in memory", "name another")}
    status, _, err = run("install")
    assert (status, err) == (0, "virt-rapl: warning: it is in memory\nhint: name another\n")
    assert system.done[0] == f"installed all {DEFAULT}"


def test_a_program_that_others_can_change_is_installed_by_force_only(system: System, run: Run) -> None:
    system.changeable = {Path("/opt"): "everybody may write it"}
    status, _, err = run("install")
    assert (status, system.done) == (1, [])
    assert "/opt" in err
    assert "--force" in err
    assert run("install", "--force")[0] == 0


def test_a_package_is_staged_below_a_directory(system: System, run: Run, tmp_path: Path) -> None:
    status, _, err = run("install", "--package", "--dry-run")
    assert (status, system.done) == (1, [])
    assert "--prefix-root" in err
    assert run("install", "--package", "--prefix-root", str(tmp_path))[0] == 0
    assert system.done == ["staged"]


# Uninstalling.

LAST = ["stopped", "removed", "forgotten by systemd", "forgotten"]


@pytest.mark.parametrize(
    ("reasons", "options", "status", "done", "said"),
    [
        ([], [], 0, LAST, ""),
        ([Reason.ENABLED], [], 1, [], "--disable-domains"),
        ([Reason.ENABLED], ["--disable-domains"], 0, ["stopped", "disabled web", *LAST[1:]], ""),
        ([Reason.ENABLED], ["--force"], 0, LAST, "install virt-rapl again"),
        ([Reason.BY_DEFAULT], ["--force"], 0, LAST, "name QEMU itself in its <emulator>"),
        ([Reason.ENABLED], ["--force", "--disable-domains"], 0, ["stopped", "disabled web", *LAST[1:]], ""),
        ([Reason.SAVED], ["--disable-domains"], 0, ["stopped", "disabled web", *LAST[1:]], ""),
        ([Reason.RUNS], [], 1, [], "shut down"),
        ([Reason.RUNS], ["--disable-domains"], 1, [], "shut down"),
        ([Reason.RUNS, Reason.ENABLED], ["--disable-domains"], 1, [], "shut down"),
        ([Reason.RUNS], ["--force"], 0, LAST, "web runs"),
        ([Reason.UNMARKED], ["--disable-domains"], 1, [], "virsh edit"),
        ([Reason.ENABLED], ["--disable-domains", "--dry-run"], 0, [], ""),
        ([], ["--dry-run"], 0, [], ""),
    ],
)
def test_no_domain_is_left_that_needs_what_is_removed(
    system: System, run: Run, reasons: list[Reason], options: list[str], status: int, done: list[str], said: str
) -> None:
    """virt-rapld is stopped first, because it would enable domains again; a second run still knows all files."""
    system.needed = [needs(why) for why in reasons]
    got, out, err = run("uninstall", *options)
    assert (got, system.done) == (status, ["read", "looked", *done])
    assert said in err
    assert bool(said) == bool(err)
    if "--dry-run" in options:
        assert "would be removed" in out.splitlines()
        assert bool(reasons) == ("would be disabled web, which is enabled" in out.splitlines())


def test_a_snapshot_that_needs_the_wrapper_is_mentioned(system: System, run: Run) -> None:
    system.snapshots = ["web/then"]
    status, _, err = run("uninstall")
    assert (status, system.done) == (0, ["read", "looked", *LAST])
    assert err.startswith("virt-rapl: warning: web/then: ")


@pytest.mark.parametrize(("options", "status", "done"), [([], 1, []), (["--force"], 0, LAST)])
def test_where_libvirt_does_not_answer(
    system: System, run: Run, options: list[str], status: int, done: list[str]
) -> None:
    system.libvirt = False
    got, _, err = run("uninstall", *options)
    assert (got, system.done) == (status, ["read", *done])
    assert ("--force" in err) == (status == 1)


def test_a_manifest_that_cannot_be_read_ends_it_before_anything_is_done(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_root: Path) -> Manifest:
        raise VirtRaplError("cannot read it")

    monkeypatch.setattr(Manifest, "load", broken)
    assert run("uninstall", "--disable-domains", "--force")[0] == 1
    assert system.done == []


def test_a_step_that_fails_leaves_the_record_of_what_is_installed(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise VirtRaplError("no luck")

    monkeypatch.setattr(activation, "after_uninstall", lambda _config: iter([("forgotten by systemd", fails)]))
    status, out, _ = run("uninstall")
    assert (status, system.done) == (1, ["read", "looked", "stopped", "removed"])
    assert "forgotten by systemd" not in out, "what was not done is not said"


def test_below_another_root_no_domain_of_this_machine_matters(system: System, run: Run, tmp_path: Path) -> None:
    system.needed = [needs(Reason.RUNS)]
    root = tmp_path / "root"
    there = root / paths.MANIFEST
    there.parent.mkdir(parents=True)
    there.touch()
    assert run("uninstall", "--prefix-root", str(root))[0] == 0
    assert system.done == ["read", "removed", "forgotten"]


@pytest.mark.parametrize("by_dpkg", [True, False])
def test_what_a_package_has_is_left_to_it(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch, *, by_dpkg: bool
) -> None:
    system.packaged = True
    monkeypatch.setattr(paths, "MANIFEST", "none")
    if by_dpkg:
        monkeypatch.setenv("DPKG_MAINTSCRIPT_PACKAGE", "virt-rapl")
    status, out, _ = run("uninstall")
    assert (status, system.done) == (0, ["read", "looked", "stopped", "swept"])
    assert (packaged.NOT_OURS in out) != by_dpkg
