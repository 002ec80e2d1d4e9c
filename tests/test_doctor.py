"""`virt-rapl doctor`: on a machine of files where all is in order, with each thing broken in turn; and a real one."""

import contextlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from fakes.host import Host, write
from fakes.libvirt import OTHER_UUID, UUID, FakeDomain, FakeLibvirt, definition
from fakes.qemu import GREETING, WITH_RAPL, WITHOUT_RAPL, fake_qemu
from walking import NewGuest, start_enabled, status, wait_until

from libvirt_rapl import doctor, paths
from libvirt_rapl.cli import main
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.doctor import Check, installation, service
from libvirt_rapl.doctor.finding import Finding, State
from libvirt_rapl.doctor.machine import Machine
from libvirt_rapl.domains import inventory
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.domains.run_files import RunState
from libvirt_rapl.energy import ledger, ledger_content
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import who_else_may_write
from libvirt_rapl.helper.records import Record, Registry
from libvirt_rapl.helper.run_directory import RunDirectory
from libvirt_rapl.host import requirements
from libvirt_rapl.host.processes import start_time
from libvirt_rapl.install import activation, installer, packaged, wrappers
from libvirt_rapl.install.installer import install
from libvirt_rapl.install.places import PLACES
from libvirt_rapl.lifecycle import events
from libvirt_rapl.lifecycle.channel_state import NOT_OPEN
from libvirt_rapl.paths import HOOK
from libvirt_rapl.simulator.world import World

QEMU = "usr/bin/qemu-system-x86_64"
PYTHON = "opt/virt-rapl/bin/python"
LEDGER = "var/lib/virt-rapl/ledger.db"
WATCH = "virt-rapl-wrappers.path"
PACKAGE = "opt/virt-rapl/lib/libvirt_rapl"
RULE = "etc/polkit-1/rules.d/60-virt-rapl.rules"
RULES = "etc/apparmor.d/abstractions/libvirt-qemu.d/virt-rapl"
INSTALLER = Path(installer.__file__)
GUIDE = Path(__file__).parent.parent / "docs/troubleshooting.md"
STATUS: dict[str, Any] = {
    "host": {"zones": [{"name": "package-0"}], "since": "2026-01-31T12:00:00+00:00"},
    "domains": [{"uuid": UUID, "reason": None}],
}
NOT_APPLICABLE = {"default-emulator", "channel", "apparmor", "selinux", "exporter"}
"""Of the checks, on the machine of files."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user is shown less")


class Domain(FakeDomain):
    live: str = ""
    """XML of the domain as it runs."""

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return super().XMLDesc(flags) if flags & libvirt.VIR_DOMAIN_XML_INACTIVE else self.live or self.xml


class Libvirt(FakeLibvirt):
    version = 11_003_000

    def getCapabilities(self) -> str:  # noqa: N802
        return "<capabilities/>"

    def getLibVersion(self) -> int:  # noqa: N802
        return self.version

    def listAllDomains(self) -> list[FakeDomain]:  # noqa: N802
        return self.domains


class Patient:
    """The machine of files: QEMU, an installation, a libvirt, a daemon and one domain that reads its energy."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.patch, self.libvirt = root, monkeypatch, Libvirt()
        self.status: dict[str, Any] | None = STATUS
        self.host = Host(root)
        self.host.zone("intel-rapl:0", "package-0", 1)
        write(self.host.powercap / "intel-rapl/enabled", "1\n")
        write(self.host.proc / "self/schedstat", "12 34 56\n")
        write(self.host.proc / "self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n")
        write(self.host.dev / "kvm", "")
        self.qemu(GREETING % (0, 10), WITH_RAPL)
        list(install(root, wrappers.emulators(root)))
        self.touch_wrapper()
        self.run_directory, self.state_directory = root / "run/virt-rapl", root / "var/lib/virt-rapl"
        self.configure()
        self.daemon("libvirtd", time.time() + 10)
        Registry(self.run_directory).create_directory()
        monkeypatch.setattr("libvirt.openReadOnly", lambda _uri: self.libvirt)
        monkeypatch.setattr(inventory, "read_run_state", lambda _name: RunState(7, {0: 8}))
        monkeypatch.setattr(status_socket, "ask", lambda _path: self.status)
        monkeypatch.setattr(service, "closed_directory", lambda *_: None)
        monkeypatch.setattr("libvirt_rapl.systemd.runs", lambda: False)
        monkeypatch.setattr(
            "libvirt_rapl.install.program.PROGRAM", (self.path(PYTHON), self.path(PACKAGE) / "installer.py")
        )
        for name in (PYTHON, f"{PACKAGE}/installer.py", f"{PACKAGE}/hook.py"):
            write(self.path(name), "")
        write(self.run_directory / paths.STATUS_SOCKET, "")
        self.ledger = ledger.Ledger(self.state_directory / "ledger.db", simulated=False, log=pytest.fail)
        self.ledger.load()
        self.domain = self.add("web1")
        self.record(state="ready")
        self.record_event(result="ready")

    @property
    def machine(self) -> Machine:
        return Machine("fake:///", self.root / "etc/virt-rapl/virt-rapl.yaml", self.root)

    def examine(self, *names: str) -> dict[str, list[Check]]:
        """Run these checks, or all, and return their results by name."""
        found: dict[str, list[Check]] = {}
        if names:
            self.patch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in names})
        for check in doctor.examine(self.machine):
            found.setdefault(check.name, []).append(check)
        return found

    def path(self, name: str) -> Path:
        return self.root / name

    def configure(self, **settings: object) -> None:
        settings = {"run_directory": self.run_directory, "state_directory": self.state_directory} | settings
        write(
            self.path("etc/virt-rapl/virt-rapl.yaml"), "".join(f"{key}: {value}\n" for key, value in settings.items())
        )

    def qemu(self, *answers: str) -> None:
        """Let QEMU answer so; its wrapper, if it is there, stays the newer one."""
        self.path("usr/bin").mkdir(parents=True, exist_ok=True)
        fake_qemu(self.path("usr/bin"), *answers).rename(self.path(QEMU))
        self.path("usr/bin/qemu-rapl").unlink()
        if self.path(f"{QEMU}-rapl").exists():
            self.touch_wrapper()

    def touch_wrapper(self) -> None:
        """Let QEMU's wrapper be the newer one of both; clocks of file systems tick coarsely."""
        qemu, wrapper = self.path(QEMU), self.path(f"{QEMU}-rapl")
        while wrapper.stat().st_ctime <= qemu.stat().st_ctime:
            os.utime(wrapper)

    def daemon(self, name: str, since: float) -> None:
        pid = {"libvirtd": 70, "virtqemud": 71}[name]
        write(self.path(f"proc/{pid}/comm"), f"{name}\n")
        write(self.path(f"run/{name}.pid"), f"{pid}\n")
        os.utime(self.path(f"run/{name}.pid"), (since, since))

    def record_event(self, **values: Any) -> None:  # noqa: ANN401
        event = {"time": time.time(), "domain": "web1", "uuid": UUID, "operation": "start", "milliseconds": 9, **values}
        events.record(self.run_directory, events.Event(**event))

    def add(self, name: str, *, enabled: bool = True, running: bool = True, uuid: str = UUID) -> Domain:
        xml = definition(name, uuid, self.path(QEMU))
        xml = (
            Definition.parse(xml).with_registers(socket=str(self.run_directory / f"{uuid}.sock")).xml
            if enabled
            else xml
        )
        domain = Domain(self.libvirt, xml, 4 if running else -1)
        self.libvirt.domains.append(domain)
        return domain

    def record(self, **values: Any) -> None:  # noqa: ANN401
        helper = {"helper_pid": os.getpid(), "helper_start": start_time(os.getpid())}
        settings: dict[str, Any] = {"backend": "native", "owner_uid": 0, "owner_gid": 0, **helper, **values}
        Registry(self.run_directory).write(Record(uuid=UUID, name="web1", **settings))


@contextlib.contextmanager
def new_patient() -> Iterator[Patient]:
    # Not tmp_path, which is root's only: QEMU is asked as another user.
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        Path(name).chmod(0o755)
        yield Patient(Path(name), monkeypatch)


@pytest.fixture
def patient() -> Iterator[Patient]:
    with new_patient() as patient:
        yield patient


@needs_root
def test_all_is_in_order(patient: Patient) -> None:
    found = patient.examine()
    assert list(found) == list(doctor.CHECKS)
    states = {name: {check.state for check in checks} for name, checks in found.items()}
    assert states == {name: {"skipped" if name in NOT_APPLICABLE else "ok"} for name in found}
    assert not any(check.hint for checks in found.values() for check in checks)
    assert found["domains"][0].message == "domains: 1; in order: active: 1"
    assert "11.3.0, libvirtd" in found["libvirt"][0].message


def remove(name: str) -> Callable[[Patient], object]:
    return lambda patient: patient.path(name).unlink()


def text(name: str, content: str) -> Callable[[Patient], object]:
    return lambda patient: write(patient.path(name), content)


def mode(name: str, bits: int) -> Callable[[Patient], object]:
    return lambda patient: patient.path(name).chmod(bits)


def configured(**settings: object) -> Callable[[Patient], object]:
    return lambda patient: patient.configure(**settings)


def both(*breaks: Callable[[Patient], object]) -> Callable[[Patient], object]:
    return lambda patient: [apply(patient) for apply in breaks]


def replaced(name: str, old: str, new: str) -> Callable[[Patient], object]:
    return lambda patient: write(patient.path(name), patient.path(name).read_text().replace(old, new))


def in_memory(patient: Patient) -> None:
    patient.patch.setattr(
        "libvirt_rapl.domains.emulator.is_volatile", lambda directory, _root: "opt" in directory.parts
    )


def amd(patient: Patient) -> None:
    patient.host.processor("AuthenticAMD", 25, 1)


def no_zones(patient: Patient) -> None:
    (patient.host.powercap / "intel-rapl:0/name").unlink()


def zeros(patient: Patient) -> None:
    for cpu in range(2):
        patient.host.registers(cpu, {0x700: 0})  # and all below


def upgrade_qemu(patient: Patient) -> None:
    qemu, wrapper = patient.path(QEMU), patient.path(f"{QEMU}-rapl")
    while qemu.stat().st_ctime <= wrapper.stat().st_ctime:  # clocks of file systems tick coarsely
        os.utime(qemu)


def no_libvirt(patient: Patient) -> None:
    def refuse(_uri: str) -> None:
        raise libvirt.libvirtError("no such socket")

    patient.patch.setattr("libvirt.openReadOnly", refuse)
    patient.patch.setattr(os, "geteuid", lambda: 0)  # to others it is no failure


def libvirt_version(number: int) -> Callable[[Patient], object]:
    return lambda patient: setattr(patient.libvirt, "version", number)


def hook_after_libvirt(patient: Patient) -> None:
    patient.daemon("libvirtd", time.time() - 60)
    patient.path("run/virt-rapl/events.jsonl").unlink()


def no_helper_program(patient: Patient) -> None:
    patient.configure(helper="qemu")
    patient.patch.setattr(requirements, "QEMU_HELPER_PATH", "/nowhere")


def helper_of_qemu(patient: Patient) -> None:
    patient.configure(helper="qemu")
    patient.patch.setattr(installation, "qemu_helper", lambda: "/usr/bin/qemu-vmsr-helper")


def no_seccomp(patient: Patient) -> None:
    patient.patch.setattr("libvirt_rapl.helper.confinement._LIBSECCOMP", "libno.so.2")


def link_of_run_directory(patient: Patient) -> None:
    patient.run_directory.rename(patient.path("run/elsewhere"))
    patient.run_directory.symlink_to("elsewhere")


def full_disk(directory: str) -> Callable[[Patient], object]:
    def fill(patient: Patient) -> None:
        space = os.statvfs(patient.root)
        full = os.statvfs_result([*space[:4], 0, *space[5:]])
        patient.patch.setattr(os, "statvfs", lambda path: full if str(path).endswith(directory) else space)

    return fill


def no_daemon(patient: Patient) -> None:
    (patient.run_directory / paths.STATUS_SOCKET).unlink()


def closed_home(patient: Patient) -> None:
    patient.patch.setattr(service, "closed_directory", lambda *_: Path("/root"))


def dead_daemon(patient: Patient) -> None:
    patient.status = None


def hanging_daemon(patient: Patient) -> None:
    patient.status = None
    patient.patch.setattr(status_socket, "listens", lambda _path: True)


def daemon_reports(**host: object) -> Callable[[Patient], object]:
    def report(patient: Patient) -> None:
        patient.status = {**STATUS, "host": {**STATUS["host"], **host}}

    return report


def channel(state: str) -> Callable[[Patient], object]:
    def report(patient: Patient) -> None:
        patient.status = {**STATUS, "domains": [{**domain, "channel": state} for domain in STATUS["domains"]]}

    return report


def with_systemd(unit: str = "", state: str = "", user: str = "root") -> Callable[[Patient], object]:
    """Let systemd run and return this for a unit; `user` is the one that virt-rapld is to have."""

    def systemctl(*arguments: str, timeout: float) -> str:  # noqa: ARG001
        asked = arguments[-1] == unit and (("--property=LoadState" in arguments) == (state in ("masked", "not-found")))
        return state if asked else ""

    def run(patient: Patient) -> None:
        patient.patch.setattr("libvirt_rapl.systemd.runs", lambda: True)
        patient.patch.setattr("libvirt_rapl.systemd.systemctl", systemctl)
        patient.patch.setattr(service, "USER", user)

    return run


def another_qemu(patient: Patient) -> None:
    """One that is no QEMU with RAPL, and has no wrapper; a domain without a meter names it."""
    write(patient.path("opt/qemu/qemu"), "#!/bin/sh\n")
    patient.path("opt/qemu/qemu").chmod(0o755)
    domain = patient.add("db", enabled=False, uuid=OTHER_UUID)
    xml = domain.xml.replace(str(patient.path(QEMU)), "/opt/qemu/qemu")
    domain.xml = xml.replace("<devices>", "<os><type arch='x86_64'>hvm</type></os><devices>")


def wrapped(patient: Patient) -> None:
    another_qemu(patient)
    shutil.copy(patient.path(f"{QEMU}-rapl"), patient.path("opt/qemu/qemu-rapl"))


def by_default(path: str = "/usr/local/bin:/usr/bin", taken: str = QEMU) -> Callable[[Patient], None]:
    """The wrapper is to be the default emulator; this is the PATH of libvirtd, and what libvirt takes."""

    def change(patient: Patient) -> None:
        list(install(patient.root, wrappers.emulators(patient.root), default_emulator=f"/{QEMU}"))
        write(patient.path("proc/70/environ"), f"PATH={path}\0")
        guests = f"<guest><arch name='x86_64'><emulator>/{taken}</emulator></arch></guest>"
        patient.patch.setattr(patient.libvirt, "getCapabilities", lambda: f"<capabilities>{guests}</capabilities>")

    return change


def other_default(patient: Patient) -> None:
    patient.path(paths.DEFAULT_EMULATOR).unlink()
    patient.path(paths.DEFAULT_EMULATOR).symlink_to(f"/{QEMU}")


def planted_mark(patient: Patient) -> None:
    """A mark that names a program: running it leaves a trace."""
    write(patient.path("opt/planted"), f"#!/bin/sh\ntouch {patient.path('opt/ran')}\n")
    patient.path("opt/planted").chmod(0o755)
    patient.path("opt").chmod(0o777)
    emulator = f'emulator="{patient.path(QEMU)}"'
    assert emulator in patient.domain.xml
    patient.domain.xml = patient.domain.xml.replace(emulator, f'emulator="{patient.path("opt/planted")}"')


def packaged_here(patient: Patient) -> None:
    """Let a package have put in place what `virt-rapl install` did."""
    list(packaged.stage(patient.root))
    shutil.rmtree(patient.path("etc/systemd/system"))


def masked(patient: Patient) -> None:
    unit = patient.path("etc/systemd/system/virt-rapld.service")
    unit.unlink()
    unit.symlink_to("/dev/null")


def packaged_and_masked(patient: Patient) -> None:
    packaged_here(patient)
    patient.path("etc/systemd/system").mkdir()
    patient.path("etc/systemd/system/virt-rapld.service").symlink_to("/dev/null")


def another_user(patient: Patient) -> None:
    patient.patch.setattr(os, "geteuid", lambda: 1000)


def older_ledger_aside(patient: Patient) -> None:
    write(patient.state_directory / "ledger.db.aside-20260131T120000", "")


def older_ledgers_parts_aside(patient: Patient) -> None:
    for part in ("wal", "shm"):
        write(patient.state_directory / f"ledger.db.aside-20260131T120000-{part}", "")


def two_packages(patient: Patient) -> None:
    patient.host.place(2, 1)
    patient.host.busy(dict.fromkeys(range(3), 0))


def transient(patient: Patient) -> None:
    """One that runs with its meter, and whose next start cannot concern us: it has none."""
    edited(patient)
    patient.domain.persistent = False


def ends_meanwhile(patient: Patient) -> None:
    gone = patient.add("db", uuid=OTHER_UUID)
    patient.patch.setattr(gone, "XMLDesc", lambda _flags: patient.libvirt.lookupByName("gone"))


def two_more(patient: Patient) -> None:
    for number in range(2):
        patient.add(f"db{number}", enabled=False, uuid=f"{OTHER_UUID[:-1]}{number}")


def ledger_is_pipe(patient: Patient) -> None:
    patient.path(LEDGER).unlink()
    os.mkfifo(patient.path(LEDGER))


def wrapper_is_pipe(patient: Patient) -> None:
    patient.path(f"{QEMU}-rapl").unlink()
    os.mkfifo(patient.path(f"{QEMU}-rapl"), 0o755)


def simulated_ledger(patient: Patient) -> None:
    with sqlite3.connect(patient.state_directory / "ledger.db") as database:
        database.execute("UPDATE ledger SET simulated = 1")
        ledger_content.seal(database)
    database.close()


def fifo_for_a_ledger(patient: Patient) -> None:
    (patient.state_directory / "ledger.db").unlink()
    os.mkfifo(patient.state_directory / "ledger.db")


def changed_total(patient: Patient) -> None:
    with sqlite3.connect(patient.state_directory / "ledger.db") as database:
        database.execute("INSERT INTO total VALUES ('idle', -1, 'package', 1)")
    database.close()


def newer_ledger(patient: Patient) -> None:
    with sqlite3.connect(patient.state_directory / "ledger.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


def event(**values: object) -> Callable[[Patient], object]:
    return lambda patient: patient.record_event(**values)


def record(**values: object) -> Callable[[Patient], object]:
    return lambda patient: patient.record(**values)


def growable(patient: Patient) -> None:
    patient.domain.xml = patient.domain.xml.replace("<vcpu>2</vcpu>", "<vcpu current='1'>2</vcpu>")


def argument(patient: Patient) -> None:
    own = "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-accel'/></q:commandline>"
    patient.domain.xml = patient.domain.xml.replace("</domain>", f"{own}</domain>")


def channel_from_the_next_start_on(patient: Patient) -> None:
    plain(patient)
    patient.domain.live = patient.domain.xml
    patient.domain.xml = Definition.parse(patient.domain.xml).with_channel().xml


def channel_that_nobody_reads(patient: Patient) -> None:
    channel_from_the_next_start_on(patient)
    patient.domain.live = re.sub("(<source mode=.bind.)/>", r"\1 path='/run/1.sock'/>", patient.domain.xml)
    waiting = {"channel": "waiting", "channel_reason": NOT_OPEN}
    patient.status = {**STATUS, "domains": [{**domain, **waiting} for domain in STATUS["domains"]]}


def edited(patient: Patient) -> None:
    patient.domain.xml = patient.domain.xml.replace("-rapl</emulator>", "</emulator>")


def not_yet(patient: Patient) -> None:
    patient.domain.live = definition("web1", UUID, patient.path(QEMU))


def plain(patient: Patient) -> None:
    patient.domain.xml = definition("web1", UUID, patient.path(QEMU))


def refused(patient: Patient) -> None:
    patient.status = {**STATUS, "domains": [{"uuid": UUID, "reason": "something took its meter out 5 times"}]}


def with_apparmor(*breaks: Callable[[Patient], object]) -> Callable[[Patient], object]:
    return both(
        text("sys/module/apparmor/parameters/enabled", "Y\n"),
        text("sys/kernel/security/apparmor/profiles", "man (enforce)\n/usr/sbin/libvirtd (enforce)\n"),
        text("etc/apparmor.d/abstractions/libvirt-qemu", "include if exists <abstractions/libvirt-qemu.d>\n"),
        *breaks,
    )


def rules_shipped(patient: Patient) -> None:
    patient.patch.setitem(PLACES, "etc/tmpfiles.d", "etc/apparmor.d/abstractions/libvirt-qemu.d")


def with_selinux(enforcing: str, module: str) -> Callable[[Patient], object]:
    return both(
        text("sys/fs/selinux/enforce", enforcing),
        text(f"var/lib/selinux/targeted/active/modules/400/{module}/cil", ""),
        text("var/lib/selinux/final/note", ""),
    )


def never_installed(patient: Patient) -> None:
    for item in patient.machine.items:
        if not item.keep:
            patient.path(item.target).unlink()


BROKEN: list[tuple[str, Callable[[Patient], object], str, str]] = [
    ("installation", never_installed, "failed", "virt-rapl is not installed"),
    ("configuration", configured(helper="nobody"), "failed", "helper: expected one of native, qemu"),
    ("configuration", mode("etc/virt-rapl/virt-rapl.yaml", 0o666), "failed", "everybody may write it"),
    ("processor", amd, "warning", "Intel hosts only; they can have it by the channel"),
    ("registers", amd, "skipped", "guests have no registers"),
    ("rapl", amd, "skipped", "guests have no registers"),
    ("cpus", amd, "skipped", "guests have no registers"),
    ("energy", no_zones, "failed", "shows no RAPL zones"),
    ("energy", text("sys/class/powercap/virt-rapl-simulator/truth", ""), "warning", "SIMULATED"),
    ("registers", another_user, "skipped", "may not check whether a helper reads registers"),
    ("registers", no_zones, "failed", "neither RAPL registers nor powercap zones"),
    ("registers", configured(helper="qemu"), "failed", "qemu-vmsr-helper reads registers only"),
    ("registers", both(configured(helper="qemu"), zeros), "failed", "registers only: .* reads 0"),
    ("rapl", remove("sys/class/powercap/intel-rapl/enabled"), "failed", "RAPL is not enabled"),
    ("cpus", text("sys/devices/system/cpu/cpu2/online", "0\n"), "failed", "CPU 2 is not"),
    ("kvm", remove("dev/kvm"), "failed", "no /dev/kvm"),
    ("qemu", both(amd, remove(QEMU)), "skipped", "guests have no registers"),
    ("helper", both(amd, no_helper_program), "skipped", "guests have no registers"),
    (
        "virt-rapld",
        both(amd, no_daemon, configured(domains="{include: [web1]}", via="registers")),
        "warning",
        "does not run",
    ),
    ("domains", both(amd, lambda patient: patient.record(reason="it is AMD's")), "warning", "it is AMD's"),
    ("domains", amd, "failed", "web1: gets no meter at its next start: .* Intel hosts only"),
    (
        "domains",
        both(amd, configured(domains="{include: [web1]}", via="registers")),
        "warning",
        "`domains` enable none",
    ),
    ("clock", text("proc/self/schedstat", "0 0 0\n"), "warning", "clock ticks"),
    ("clock", remove("proc/self/schedstat"), "warning", "clock ticks"),
    ("clock", text("proc/cmdline", "ro nohz=off\n"), "warning", "nohz=off"),
    ("processes", text("proc/self/mountinfo", "2 7 0:2 / /proc rw - proc proc rw,hidepid=2\n"), "failed", "hidepid"),
    ("helper", no_helper_program, "failed", "qemu-vmsr-helper is not installed"),
    ("helper", helper_of_qemu, "warning", "when a thread of QEMU ends"),
    ("helper", no_seccomp, "failed", "libno.so.2 is missing"),
    ("qemu", remove(QEMU), "failed", "there is no QEMU"),
    ("qemu", lambda patient: patient.qemu(GREETING % (0, 9), WITH_RAPL), "failed", "QEMU 9.0.2 .* too old"),
    ("qemu", lambda patient: patient.qemu(GREETING % (0, 10), WITHOUT_RAPL), "failed", "built without RAPL"),
    ("default-emulator", by_default("/usr/bin"), "failed", "where /usr/local/bin is not"),
    ("default-emulator", by_default("/usr/bin:/usr/local/bin"), "failed", "libvirtd finds .* before"),
    ("default-emulator", by_default(), "failed", "libvirt takes .* and not"),
    ("default-emulator", by_default(taken=paths.DEFAULT_EMULATOR), "ok", "libvirt takes /usr/local/bin/"),
    ("default-emulator", both(by_default(), remove(paths.DEFAULT_EMULATOR)), "failed", "is gone or leads nowhere"),
    ("default-emulator", both(by_default(), remove(f"{QEMU}-rapl")), "failed", "is gone or leads nowhere"),
    ("default-emulator", both(by_default(), other_default), "failed", "is not virt-rapl's link any more"),
    ("wrapper", remove(QEMU), "skipped", "no QEMU to wrap"),
    ("wrapper", remove(f"{QEMU}-rapl"), "failed", "no emulator wrapper"),
    ("wrapper", mode(f"{QEMU}-rapl", 0o700), "failed", "not every user may run"),
    (
        "wrapper",
        both(another_qemu, mode("opt/qemu", 0o775)),
        "warning",
        "/opt/qemu/qemu can have no wrapper: others than root can change .*opt/qemu: group",
    ),
    ("wrapper", both(wrapped, in_memory), "warning", "can have no wrapper: .*tmpfs"),
    ("wrapper", both(wrapped, lambda patient: with_apparmor()(patient)), "warning", "AppArmor .* /opt/qemu/qemu-rapl"),
    ("wrapper", both(wrapped, text("sys/fs/selinux/enforce", "1")), "warning", "SELinux labels /opt/qemu/qemu-rapl"),
    ("wrapper", another_qemu, "warning", "no emulator wrapper .*opt/qemu/qemu-rapl"),
    ("qemu", another_qemu, "warning", "/opt/qemu/qemu"),
    ("wrapper", text(f"{QEMU}-rapl", "#!/bin/sh\n"), "warning", "is not the wrapper of virt-rapl"),
    ("wrapper", wrapper_is_pipe, "warning", "is not the wrapper of virt-rapl"),
    ("wrapper", upgrade_qemu, "warning", "older than its QEMU"),
    ("wrapper", with_systemd(WATCH, "inactive\n"), "warning", f"{WATCH} does not run"),
    ("libvirt", no_libvirt, "failed", "cannot connect to libvirt"),
    ("libvirt", both(no_libvirt, another_user), "skipped", "cannot connect to libvirt"),
    ("libvirt", lambda patient: patient.daemon("virtqemud", 0), "warning", "both run"),
    ("hook", remove(HOOK), "failed", "there is no hook"),
    ("hook", mode(HOOK, 0o644), "failed", "not executable"),
    ("hook", text(HOOK, "#!/bin/sh\n"), "failed", "is not the hook of virt-rapl"),
    ("hook", replaced(HOOK, "libvirt_rapl.lifecycle.hook", "another"), "failed", "is not the hook of virt-rapl"),
    ("hook", replaced(HOOK, "python='", "python='/gone"), "failed", "which is gone"),
    ("hook", replaced(HOOK, "set -u", "set -eu"), "warning", "not the hook of this virt-rapl"),
    ("libvirt", libvirt_version(6_004_000), "failed", "6.4.0 is older than 6.5"),
    ("hook-seen", hook_after_libvirt, "warning", "it may not know it"),
    ("hook-seen", remove(HOOK), "skipped", "there is no hook"),
    ("files", remove("etc/systemd/system/virt-rapl-helper@.service"), "warning", "virt-rapl-helper@.service"),
    ("files", text("etc/systemd/system/virt-rapld.service", "[Unit]\n"), "warning", "virt-rapld.service"),
    ("files", remove("etc/virt-rapl/virt-rapl.yaml"), "warning", "virt-rapl.yaml"),
    ("files", remove("usr/local/share/bash-completion/completions/virt-rapl"), "warning", "completions/virt-rapl"),
    ("files", remove("usr/local/share/zsh/site-functions/_virt-rapl"), "warning", "_virt-rapl"),
    ("files", text(RULES, "# bad\n"), "warning", RULES),
    ("files", both(packaged_here, text("etc/systemd/system/virt-rapld.service", "")), "warning", "not the package's"),
    ("files", masked, "warning", "not as virt-rapl .*virt-rapld.service"),
    *(
        ("files", mode(name, 0o777), "failed", f"others than root can change .*{name}")
        for name in (
            *("etc/libvirt/hooks/qemu.d", HOOK, "etc/systemd/system/virt-rapld.service"),
            *("opt", "opt/virt-rapl/bin", PYTHON, PACKAGE, f"{PACKAGE}/hook.py"),
        )
    ),
    ("apparmor", with_apparmor(text("etc/apparmor.d/abstractions/libvirt-qemu", "")), "failed", "does not include"),
    (
        "apparmor",
        with_apparmor(rules_shipped),
        "failed",
        "missing: etc/apparmor.d/abstractions/libvirt-qemu.d/",
    ),
    ("selinux", with_selinux("1", "other"), "failed", "enforcing and has not got our module"),
    ("selinux", with_selinux("0", "other"), "warning", "permissive and has not got our module"),
    ("run-directory", mode("run/virt-rapl", 0o755), "failed", "has mode 0755"),
    (
        "run-directory",
        mode("run/virt-rapl", 0o777),
        "failed",
        "is not used: /.*/run/virt-rapl: everybody",
    ),
    ("run-directory", mode("run", 0o775), "failed", "is not used: /.*/run: group"),
    (
        "run-directory",
        both(text("run/virt-rapl/libvirt-sock", ""), mode("run/virt-rapl", 0o755)),
        "failed",
        "not virt-rapl's own, libvirt-sock is in it",
    ),
    ("run-directory", link_of_run_directory, "failed", "is a link"),
    ("run-directory", full_disk("run/virt-rapl"), "failed", "is full"),
    ("run-directory", configured(run_directory=f"/run/{'x' * 100}"), "failed", "longer than 107 bytes"),
    ("virt-rapld", no_daemon, "warning", "does not run: no totals"),
    ("virt-rapld", both(no_daemon, configured(domains="['*']")), "failed", "nothing enables"),
    ("virt-rapld", both(no_daemon, closed_home), "failed", "cannot be run: /root is not open to all"),
    ("virt-rapld", both(no_daemon, with_systemd(user="virt-rapl-gone")), "failed", "there is no user virt-rapl-gone"),
    ("virt-rapld", dead_daemon, "failed", "has died"),
    ("virt-rapld", hanging_daemon, "failed", "does not answer"),
    ("virt-rapld", daemon_reports(trouble="no /sys"), "warning", "no /sys"),
    ("virt-rapld", daemon_reports(zones=[{"name": "dram-0", "lost_intervals": 2}]), "warning", "lost of dram-0"),
    ("virt-rapld", lambda patient: patient.add("db", uuid=OTHER_UUID), "failed", "does not know db: it has lost"),
    (
        "virt-rapld",
        both(daemon_reports(trouble="not allowed"), lambda patient: patient.add("db", uuid=OTHER_UUID)),
        "failed",
        "does not know db: not allowed",
    ),
    ("virt-rapld", with_systemd("virt-rapld", "disabled\n"), "warning", "does not start at boot"),
    ("ledger", remove(LEDGER), "failed", "virt-rapld runs and cannot make .*ledger.db"),
    ("ledger", both(remove(LEDGER), dead_daemon), "skipped", "virt-rapld makes it"),
    ("ledger", text(LEDGER, "no database" * 100), "failed", "cannot be read"),
    ("ledger", ledger_is_pipe, "failed", "ledger.db is no regular file"),
    ("ledger", newer_ledger, "failed", "has version 99"),
    ("ledger", changed_total, "failed", "cannot be read: it does not hold what was written"),
    ("ledger", fifo_for_a_ledger, "failed", "cannot be read: ledger.db is no regular file"),
    ("ledger", text(LEDGER, ""), "failed", "cannot be read: it is empty"),
    ("ledger", mode(LEDGER, 0o644), "warning", "others may read"),
    ("ledger", full_disk("var/lib/virt-rapl"), "failed", "is full"),
    ("ledger", simulated_ledger, "warning", "holds simulated energy and is not used"),
    ("ledger", older_ledger_aside, "warning", "aside-20260131T120000"),
    (
        "channel",
        both(channel("connected"), with_systemd("virt-rapl-channel.service", "failed")),
        "failed",
        "virt-rapl-channel does not run",
    ),
    ("exporter", with_systemd("virt-rapl-exporter.service", "failed"), "failed", "does not run"),
    ("events", event(result="failed", reason="out of luck"), "warning", "start of web1: out of luck"),
    (
        "events",
        both(event(result="failed", reason="first"), event(result="failed", reason="last")),
        "warning",
        ": last",
    ),
    ("events", event(result="refuse", reason="no helper"), "warning", "1 operations .* start of web1: no helper"),
    ("domains", no_libvirt, "skipped", "libvirt cannot be asked"),
    ("domains", record(state="degraded", reason="no luck"), "failed", "web1: runs without its meter: no luck"),
    ("domains", record(state="ready", helper_pid=1), "failed", "web1: runs without its meter: its helper ended"),
    ("domains", remove(f"run/virt-rapl/{UUID}.json"), "failed", "web1: .*: the hook did not run"),
    ("domains", record(state="ready", qemu_version="99.0.0"), "warning", "web1: QEMU 99.0.0 is not known"),
    ("domains", growable, "failed", "web1: gets no meter at its next start: .* can grow"),
    ("domains", both(plain, argument), "skipped", "web1: is not enabled, and could not have a meter: .* -accel"),
    ("domains", edited, "failed", "web1: gets no meter at its next start: its emulator is not the wrapper"),
    ("domains", remove(f"{QEMU}-rapl"), "failed", "web1: gets no meter at its next start: there is no .* wrapper"),
    ("domains", not_yet, "warning", "web1: is enabled, but was started before"),
    ("domains", both(plain, argument, configured(domains="[web1]")), "failed", "web1: .* choose it, but .* -accel"),
    (
        "domains",
        both(plain, growable, configured(domains="[web1]", via="both")),
        "failed",
        "web1: .* choose it, but .* can grow",
    ),
    ("domains", channel_from_the_next_start_on, "warning", "web1: has the channel only from its next start on"),
    ("domains", channel_that_nobody_reads, "warning", "web1: its channel is waiting: nothing in the guest"),
    ("domains", both(plain, configured(domains="[web1]")), "warning", "web1: .* choose it, but it is not enabled"),
    ("domains", both(plain, configured(domains="[web1]"), refused), "warning", "took its meter out 5 times"),
]


@pytest.mark.parametrize("name", doctor.CHECKS)
def test_what_is_broken_is_reported_with_its_remedy(name: str) -> None:
    for _, breaks, state, message in (case for case in BROKEN if case[0] == name):
        with new_patient() as patient:
            breaks(patient)
            found = patient.examine(name)[name]
        assert any(check.state == state and re.search(message, check.message) for check in found), (message, found)
        assert all(check.hint for check in found if check.state in ("warning", "failed"))
        assert not any("\n" in check.message + check.hint for check in found)


@pytest.mark.parametrize(("name", "states"), [("domains", {"failed", "ok"}), ("wrapper", {"ok"}), ("qemu", {"ok"})])
def test_a_program_that_metadata_names_is_not_run(patient: Patient, name: str, states: set[str]) -> None:
    planted_mark(patient)
    assert {check.state for check in patient.examine(name)[name]} == states
    assert not patient.path("opt/ran").exists()


def test_a_domain_that_cannot_be_read_is_one_domains_trouble(patient: Patient) -> None:
    broken = patient.add("web2", enabled=False, running=False, uuid=OTHER_UUID)
    unreadable = broken.xml.replace("</domain>", "<metadata><y xmlns='a<b'/></metadata></domain>")
    patient.patch.setattr(broken, "XMLDesc", lambda _flags: unreadable)
    patient.status = {**STATUS, "domains": [*STATUS["domains"], {"uuid": OTHER_UUID, "reason": None}]}
    found = patient.examine()
    assert [(check.state, check.message.partition(":")[0]) for check in found["domains"]] == [
        ("failed", "web2"),
        ("ok", "domains"),
    ]
    assert {check.state for name, checks in found.items() for check in checks if name != "domains"} <= {"ok", "skipped"}


@needs_root
def test_what_was_never_installed_is_one_finding(patient: Patient) -> None:
    never_installed(patient)
    patient.libvirt.domains.clear()
    patient.status = None
    (patient.run_directory / paths.STATUS_SOCKET).unlink()
    found = patient.examine()
    assert [name for name, checks in found.items() if {check.state for check in checks} - {"ok"}] == ["installation"]
    assert found["installation"][0].hint == "run `virt-rapl install`"


def test_a_host_of_amd_is_in_order_but_for_one_warning(patient: Patient) -> None:
    amd(patient)
    patient.libvirt.domains.clear()
    patient.add("web1", enabled=False)
    found = [check for checks in patient.examine().values() for check in checks]
    assert [check.name for check in found if check.state not in ("ok", "skipped")] == ["processor"]
    assert next(check.hint for check in found if check.name == "processor").startswith(
        "`virt-rapl enable --via channel`"
    )


def test_of_domains_that_are_chosen_where_none_can_have_a_meter_there_is_one_line(patient: Patient) -> None:
    amd(patient)
    patient.libvirt.domains.clear()
    patient.configure(domains="{include: ['*']}", via="registers")
    for number in range(3):
        patient.add(f"web{number}", enabled=False, running=False)
    assert [check.state for check in patient.examine("domains")["domains"]] == ["warning", "ok"]


@pytest.mark.parametrize("operation", ["live", "attach", "detach"])
def test_a_command_that_failed_is_no_trouble_of_the_hook(patient: Patient, operation: str) -> None:
    patient.record_event(operation=operation, result="failed", reason="no slot")
    message = "the hook's operations of the last 24 hours: 1, none failed"
    assert [(found.state, found.message) for found in patient.examine("events")["events"]] == [("ok", message)]


def test_each_check_can_fail_and_has_its_entry_in_the_guide() -> None:
    assert {name for name, *_ in BROKEN} == set(doctor.CHECKS)
    assert re.findall(r"^## (\S+)$", GUIDE.read_text(), re.MULTILINE) == list(doctor.CHECKS)


REMEDIES: list[tuple[str, Callable[[Patient], object], str]] = [
    ("virt-rapld", no_daemon, "run `virt-rapl daemon`"),
    ("virt-rapld", both(no_daemon, with_systemd("virt-rapld", "inactive")), "systemctl enable --now virt-rapld"),
    ("virt-rapld", both(no_daemon, with_systemd("virt-rapld", "masked")), "systemctl unmask virt-rapld; systemctl en"),
    ("virt-rapld", both(no_daemon, with_systemd("virt-rapld", "failed")), "`journalctl -u virt-rapld` says why"),
    ("virt-rapld", both(no_daemon, with_systemd("virt-rapld", "activating")), "`journalctl -u virt-rapld` says why"),
    ("virt-rapld", both(no_daemon, with_systemd(user="virt-rapl-gone")), "run `virt-rapl install`"),
    ("virt-rapld", both(no_daemon, closed_home), "chmod o+x /root, or install virt-rapl where every user can read it"),
    ("virt-rapld", daemon_reports(trouble="not allowed"), "the output of `virt-rapl daemon` says why"),
    (
        "virt-rapld",
        both(daemon_reports(trouble="no"), with_systemd("polkit", "masked")),
        "systemctl unmask polkit: libv",
    ),
    ("virt-rapld", both(daemon_reports(trouble="no"), with_systemd("polkit", "not-found")), "install polkit"),
    ("virt-rapld", both(daemon_reports(trouble="no"), with_systemd("polkit", "loaded")), "`journalctl -u virt-rapld`"),
    ("hook", both(packaged_here, remove(HOOK)), "dpkg --force-confmiss --install"),
    ("wrapper", both(packaged_here, remove(f"{QEMU}-rapl")), "reinstall the package"),
    ("wrapper", mode(f"{QEMU}-rapl", 0o700), "chmod 755 "),
    ("domains", remove(f"{QEMU}-rapl"), "run `virt-rapl install`"),
    ("kvm", remove("dev/kvm"), "modprobe kvm_intel"),
    ("kvm", both(amd, remove("dev/kvm")), "modprobe kvm_amd"),
    ("virt-rapld", dead_daemon, "end it, and run `virt-rapl daemon` anew"),
    ("virt-rapld", both(dead_daemon, with_systemd()), "systemctl restart virt-rapld"),
    ("hook-seen", hook_after_libvirt, "kill -HUP $(cat /run/libvirtd.pid), which"),
    ("hook-seen", both(hook_after_libvirt, with_systemd()), "systemctl reload libvirtd, which"),
    ("domains", both(plain, configured(domains="[web1]"), with_systemd()), "give virt-rapld the right to manage: sed"),
    (
        "domains",
        both(plain, configured(domains="[web1]"), with_systemd(), replaced(RULE, '// "org', '"org')),
        "see virt-rapld above",
    ),
]


@needs_root
def test_remedies_are_those_of_this_host() -> None:
    for name, breaks, hint in REMEDIES:
        with new_patient() as patient:
            breaks(patient)
            check = patient.examine(name)[name][0]
        assert hint in check.hint, check


@pytest.mark.parametrize(("trouble", "state"), [(OSError(5, "no luck"), "failed"), (ValueError("no luck"), "failed")])
def test_what_nobody_has_foreseen_is_one_checks_trouble(patient: Patient, trouble: Exception, state: str) -> None:
    def fail(_: object) -> Any:  # noqa: ANN401
        raise trouble

    patient.patch.setattr(events, "read", fail)
    found = patient.examine("kvm", "events", "domains")
    assert [checks[0].state for checks in found.values()] == ["ok", state, "ok"]
    assert "no luck" in found["events"][0].message


def test_a_broken_configuration_is_one_checks_trouble(patient: Patient) -> None:
    patient.configure(helper="nobody")
    found = patient.examine("configuration", "energy", "registers")
    assert [checks[0].state for checks in found.values()] == ["failed", "ok", "ok"]


def test_what_a_check_has_found_before_it_failed_is_shown(patient: Patient) -> None:
    def check(_: Machine) -> Iterator[Finding]:
        yield Finding("ok", "one")
        raise VirtRaplError("two", "mend it")

    patient.patch.setattr(doctor, "CHECKS", {"energy": check})
    assert [(found.state, found.message) for found in doctor.examine(patient.machine)] == [
        ("ok", "one"),
        ("failed", "two"),
    ]


def test_the_wrapper_of_an_emulator_that_no_package_knows_comes_from_us(patient: Patient) -> None:
    packaged_here(patient)
    patient.path(f"{QEMU}-rapl").unlink()
    another_qemu(patient)
    usual, other = patient.examine("wrapper")["wrapper"]
    assert "reinstall the package" in usual.hint
    assert other.hint == "run `virt-rapl install`"


def test_a_ledger_that_a_user_may_not_read_is_not_damaged(patient: Patient) -> None:
    def fail(_: Path) -> Any:  # noqa: ANN401
        raise ledger_content.DamagedError("unable to open database file")

    patient.patch.setattr(ledger, "summary", fail)
    patient.patch.setattr(os, "access", lambda *_: False)
    assert [check.state for check in patient.examine("ledger")["ledger"]] == ["skipped"]


def test_a_record_that_a_user_may_not_read_is_not_missing(patient: Patient) -> None:
    opened = Path.open

    def closed(path: Path, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        if path.name == f"{UUID}.json":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    patient.patch.setattr(Path, "open", closed)
    assert [check.state for check in patient.examine("domains")["domains"]] == ["skipped"]


def test_the_size_of_the_ledger(patient: Patient) -> None:
    with patient.path(LEDGER).open("ab") as file:
        size = file.tell()
    assert f", {size // 1024} KiB" in patient.examine("ledger")["ledger"][0].message


@pytest.mark.parametrize(("seconds", "expected"), [(50.0, 50.0), (-1000.0, 0.0)], ids=["reloaded", "only started"])
def test_when_libvirt_last_looked_for_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: float
) -> None:
    """systemd knows of a reload, in microseconds of the monotonic clock; the PID file only of the start."""
    write(tmp_path / "pid", "70\n")
    started = time.time() - 100
    os.utime(tmp_path / "pid", (started, started))
    changed = time.monotonic() - 100 + seconds
    monkeypatch.setattr(activation, "pid_of", lambda *_: 70)
    monkeypatch.setattr(activation, "pid_file", lambda _: str(tmp_path / "pid").lstrip("/"))
    monkeypatch.setattr("libvirt_rapl.systemd.runs", lambda: True)
    monkeypatch.setattr(
        "libvirt_rapl.systemd.systemctl", lambda *_, timeout: f"{changed * 1e6 if timeout else 0:.0f}\n"
    )
    assert installation._last_look(Machine("fake:///"), "libvirtd") == pytest.approx(started + expected, abs=2)


def test_of_many_files_that_others_can_change_a_few_are_named(patient: Patient) -> None:
    for number in range(9):
        write(patient.path(f"{PACKAGE}/{number}.py"), "")
        mode(f"{PACKAGE}/{number}.py", 0o666)(patient)
    (check,) = patient.examine("files")["files"]
    assert f"{PACKAGE}/2.py and 6 more" in check.message
    assert f"chmod go-w {patient.path(PACKAGE)}/0.py" in check.hint


OTHERWISE: list[tuple[str, Callable[[Patient], object], str]] = [
    ("energy", configured(source="powercap"), "powercap shows package-0"),
    ("registers", configured(source="auto"), "helpers read powercap"),
    (
        "registers",
        lambda patient: patient.host.registers(0, {0x606: 0xA0E03, 0x610: 1, 0x611: 5, 0x614: 1}),
        "helpers read the CPUs' registers",
    ),
    ("registers", zeros, "helpers read powercap"),
    ("clock", text("proc/cmdline", "ro my-nohz=off-key\n"), "in nanoseconds"),
    ("cpus", two_packages, "CPUs: 3, all online; packages: 2"),
    ("qemu", no_libvirt, "has RAPL"),
    ("libvirt", libvirt_version(6_005_000), "libvirt 6.5.0, libvirtd"),
    ("libvirt", libvirt_version(10_010_007), "libvirt 10.10.7, libvirtd"),
    ("files", packaged_and_masked, "files are in place"),
    ("ledger", older_ledgers_parts_aside, "totals of 0 domains"),
    ("domains", transient, "active: 1"),
    ("domains", ends_meanwhile, "domains: 2; in order: active: 1"),
    ("domains", lambda patient: patient.add("db", uuid=OTHER_UUID, running=False), "active: 1, pending: 1"),
    ("domains", two_more, "off: 2"),
    ("hook-seen", both(hook_after_libvirt, event(result="ready")), "has called the hook"),
    ("hook-seen", remove("run/libvirtd.pid"), "it looks when it starts"),
    ("libvirt", both(remove("run/libvirtd.pid"), lambda patient: patient.daemon("virtqemud", 0)), "virtqemud"),
    ("run-directory", text("run/virt-rapl/libvirt-sock", ""), "QEMU can reach its sockets"),
    ("apparmor", with_apparmor(), "our rules are in place"),
    ("apparmor", with_apparmor(text("sys/kernel/security/apparmor/profiles", "man (enforce)\n")), "not confine"),
    ("selinux", with_selinux("1", "virt_rapl"), "has our module"),
    ("domains", lambda patient: patient.add("db", enabled=False, uuid=OTHER_UUID), "off: 1"),
    ("events", event(time=1.0, result="failed"), "none failed"),
]


@needs_root
def test_what_is_in_order_otherwise() -> None:
    for name, makes, message in OTHERWISE:
        with new_patient() as patient:
            makes(patient)
            (check,) = patient.examine(name)[name]
        assert check.state == "ok", check
        assert message in check.message


def test_what_a_user_may_not_see_is_reported_and_no_failure(patient: Patient) -> None:
    def forbid(_: object) -> Any:  # noqa: ANN401
        raise PermissionError(13, "Permission denied", "/x")

    patient.patch.setattr(os, "geteuid", lambda: 1000)
    patient.patch.setattr(events, "read", forbid)
    patient.patch.setattr("libvirt_rapl.host.powercap.PowercapZone.read", forbid)
    patient.patch.setattr(RunDirectory, "stranger", forbid)
    found = patient.examine()
    assert found["run-directory"][0].state == "ok"
    for name in ("energy", "events"):
        (check,) = found[name]
        assert (check.state, check.hint) == ("skipped", "run as root")
        assert "/x" in check.message


def test_a_libvirt_that_hangs_holds_us_up_once(patient: Patient) -> None:
    asked = []

    def hang(_uri: str, *, read_only: bool) -> None:
        asked.append(read_only)
        raise VirtRaplError("libvirt does not answer", "restart it")

    patient.patch.setattr("libvirt_rapl.doctor.machine.connect", hang)
    found = patient.examine()
    assert found["libvirt"][0].message == "libvirt does not answer"
    assert asked == [True]


@needs_root
def test_lines_document_and_exit_status(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("libvirt_rapl.cli.doctor.Machine", lambda *_: patient.machine)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"failed: 0, warning: 0, ok: {len(doctor.CHECKS) - 5}, skipped: 5"
    patient.path("dev/kvm").unlink()
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("failed   kvm: there is no /dev/kvm")
    assert lines[at + 1].strip().startswith("hint: modprobe kvm_intel")
    assert main(["doctor", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert all(list(check) == ["name", "state", "message", "hint"] for check in document["checks"])
    assert [check["name"] for check in document["checks"] if check["state"] == "failed"] == ["kvm"]


@pytest.mark.parametrize(
    ("states", "status"),
    [(["ok", "skipped"], 0), (["ok", "warning"], 0), (["failed", "ok"], 1), (["warning", "failed", "failed"], 1)],
)
def test_only_what_has_failed_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], states: list[State], status: int
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _: [Check("kvm", state, "it is", "mend it") for state in states])
    assert main(["doctor"]) == status
    assert capsys.readouterr().out.count("hint: mend it") == len(states)
    assert main(["doctor", "--json"]) == status


def test_another_machines_libvirt_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--connect", "test:///default", "doctor"]) == 1
    assert "this machine" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_real_host(world: World, new_guest: NewGuest) -> None:
    """Everything is in order after install, enable and start; then one thing after another is broken and mended."""

    def examine(*broken: str) -> str:
        """Return the messages of the checks that failed, which must be these, and of those that warn."""
        done = world.run(["virt-rapl", "doctor", "--json"], check=False)
        checks = json.loads(done.stdout)["checks"]
        if any(map(who_else_may_write, [INSTALLER, *INSTALLER.parents])):  # a checkout may be somebody's own
            checks = [check for check in checks if check["name"] != "files"]
        failed = {check["name"] for check in checks if check["state"] == "failed"}
        assert (failed, done.returncode) == (set(broken), 1 if broken else 0), done.stdout
        messages = {check["name"]: check["message"] for check in checks if check["state"] in ("failed", "warning")}
        assert "SIMULATED" in messages.pop("energy")
        messages.pop("events", "")  # other tests have made operations of the hook fail
        return " ".join(f"{name}: {message}" for name, message in messages.items())

    name = new_guest(50)
    start_enabled(world, name)
    daemon = world.popen(["virt-rapl", "daemon"])
    try:
        wait_until(world.path("/run/virt-rapl/daemon/status.sock").exists, 30, "virt-rapld answers")
        assert examine() == ""
        hook = "/etc/libvirt/hooks/qemu.d/virt-rapl"
        world.run(["chmod", "644", hook])
        assert f"{hook} is not executable" in examine("hook")
        world.run(["chmod", "755", hook])
        world.run(["touch", "/usr/bin/qemu-system-x86_64"])
        assert examine().startswith("wrapper: ")
        world.run(["touch", "/usr/bin/qemu-system-x86_64-rapl"])
        definition = world.run(["virsh", "dumpxml", "--inactive", name]).stdout
        grown = re.sub(r"<vcpu( placement='static')?>1</vcpu>", "<vcpu current='1'>2</vcpu>", definition)
        world.run(["virsh", "define", "/dev/stdin"], input=grown)
        assert f"{name}: gets no meter at its next start: the domain's number of vCPUs can grow" in examine("domains")
        world.run(["virsh", "define", "/dev/stdin"], input=definition)
        assert examine() == ""
        world.run(["sh", "-c", f"kill -KILL {status(world, name)['helper']['pid']}"])
        wait_until(lambda: status(world, name)["vrapl"] == "degraded", 30, "the end of the helper is seen")
        assert f"{name}: runs without its meter: its helper ended" in examine("domains")
    finally:
        daemon.terminate()
        daemon.communicate(timeout=60)
        shutil.rmtree(world.path("/run/virt-rapl/daemon"))
