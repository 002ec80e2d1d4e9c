"""The shell part of the hook: when it wakes Python, what Python gets, and what libvirt gets back.

Python here is a script that notes its arguments and standard input, and ends as the test wants.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import libvirt
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from walking import wait_until

from libvirt_rapl import paths
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.helper.vmsr.serving import qemu_pid
from libvirt_rapl.lifecycle import chosen, events
from libvirt_rapl.selection import Selection

HOOK = Path(__file__).parent.parent / "hooks" / "qemu"
MARK = "    <rapl:rapl xmlns:rapl=\"urn:libvirt-rapl:mark:1\" emulator='/usr/bin/qemu-system-x86_64'/>\n"
UUID = "2b3c4d5e-6f70-4a81-92b3-c4d5e6f70819"
START = f"<domain type='kvm' id='3'>\n  <name>a \\n é</name>\n  <uuid>{UUID}</uuid>\n"
HEAD = f"{START}  <title>  two  blanks </title>\n"
TAIL = "  <memory unit='KiB'>65536</memory>\n\n\t<devices>\\\\ %s $HOME `id` \\c</devices>\n</domain>\n\n"
UNMARKED = f"{HEAD}  <metadata>\n    <a:b xmlns:a='urn:a'/>\n  </metadata>\n{TAIL}"
MARKED = f"{HEAD}  <metadata>\n{MARK}  </metadata>\n{TAIL}"
ARGUMENT = f"<qemu:arg value='kvm,rapl=true,rapl-helper-socket=/run/virt-rapl/{UUID}.sock'/>"
WITH_REGISTERS = MARKED.replace("</domain>", f"{ARGUMENT}\n</domain>")
OTHER = "00000000-0000-4000-8000-000000000000"
CDATA = f"<![CDATA[\n  <memory unit='KiB'>1</memory>\n  </metadata>\n  <uuid>{OTHER}</uuid>\n]]>"
HIDDEN = [
    f"<metadata>\n    <a:b xmlns:a='urn:a'>{CDATA}</a:b>\n{MARK}  </metadata>",
    f"<metadata>\n    <a:b xmlns:a='urn:a'><metadata xmlns=''>\n  </metadata>\n  </a:b>\n{MARK}  </metadata>",
    f"<description>\n  &lt;memory\n  &lt;uuid></description>\n  <metadata>\n{MARK}  </metadata>",
    f"<genid>{OTHER}</genid>\n  <metadata>\n{MARK}  </metadata>",
    f"<metadata> about memory <a:b xmlns:a='urn:a'/>\n{MARK}  </metadata>",
    "<metadata xmlns:r='urn:libvirt-rapl:mark:1'>\n    <r:rapl emulator='/q'/>\n  </metadata>",
]
"""Metadata with our mark, between what looks as if it were the end of it, or another domain's UUID."""
LARGE = [
    "    <a:b/>\n" * (1 << 18),
    f"    <a:b>{'x' * (2 << 20)}</a:b>\n",
    f"    <a:b>{'urn:libvirt-rapl:mark:' * (1 << 16)}</a:b>\n",
    "    <memory>\n" * (1 << 17),
]
STARTER = "/opt/libvirt_rapl/without_site.py"
WOKEN = ["-I", "-S", STARTER, "libvirt_rapl.lifecycle.hook"]
"""What Python gets before the hook's own arguments."""
ALWAYS_ZERO = ["started", "stopped", "release", "reconnect"]


HUNDREDTHS = """#!/bin/sh
for argument; do
    shift
    case $argument in [0-9]) argument=0.0$argument ;; [0-9][0-9]) argument=0.$argument ;; esac
    set -- "$@" "$argument"
done
exec {} "$@"
"""


class Guard:
    def __init__(self, shell: list[str], directory: Path) -> None:
        self.shell, self.directory = shell, directory
        self.python, self.hook, self.seen = directory / "python", directory / "hook", directory / "seen"
        text = HOOK.read_text().replace("@PYTHON@", str(self.python)).replace("@STARTER@", STARTER)
        self.hook.write_text(text)
        self.noted, self.configuration = directory / "run" / paths.CHOSEN, directory / "configuration"
        for path, instead in (
            ("/run/virt-rapl", directory / "run"),
            ("/etc/virt-rapl", self.configuration),
            (f"/{paths.DEFAULT_EMULATOR}", directory / "default"),
            (f"/{paths.SYSTEMD}", directory / "systemd"),
        ):
            text = self.hook.read_text()
            assert path in text
            self.hook.write_text(text.replace(path, str(instead)))
        self.wakes("exit 0")

    def note(self, selection: Selection) -> None:
        """Have the wrapper as the default emulator, and patterns that are newer than the configuration."""
        self.configuration.mkdir(exist_ok=True)
        self.noted.parent.mkdir(exist_ok=True)
        (self.directory / "default").unlink(missing_ok=True)
        (self.directory / "default").symlink_to("qemu-rapl")
        self.noted.write_text("".join(f"{line}\n" for line in chosen.lines(selection, "auto")))
        self.age()

    def age(self) -> None:
        """Make the configuration older than the patterns."""
        for path in (self.configuration, *self.configuration.rglob("*")):
            os.utime(path, (1_000_000_000, 1_000_000_000))

    def wakes(self, ending: str, *, importable: bool = True) -> None:
        """Make a Python whose module ends in this way; `importable`: whether our code can be imported."""
        self.python.write_text(
            "#!/bin/sh\n"
            f"[ $# -gt 4 ] || exit {int(not importable)}\n"
            f"printf '%s\\0' \"$@\" >{self.seen}.argv\ncat >{self.seen}.stdin\n{ending}\n"
        )
        self.python.chmod(0o755)

    def quick_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put a timeout(1) before the real one for which a second is a hundredth of one."""
        quick = self.directory / "timeout"
        quick.write_text(HUNDREDTHS.format(shutil.which("timeout")))
        quick.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.directory}:{os.environ['PATH']}")

    def with_systemd(self, monkeypatch: pytest.MonkeyPatch, does: str = "") -> Path:
        """Let systemd run here; return where a systemctl that does this writes its arguments at the end."""
        (self.directory / "systemd").mkdir()
        systemctl, told = self.directory / "bin/systemctl", self.directory / "told"
        systemctl.parent.mkdir()
        systemctl.write_text(f'#!/bin/sh\n{does}\necho "$*" >>{told}\n')
        systemctl.chmod(0o755)
        monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
        return told

    def run(self, *arguments: str, xml: str = MARKED, sigpipe: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the hook; `sigpipe`: whether SIGPIPE ends a process of it, which it does unless libvirt's does not."""
        return subprocess.run(
            [*self.shell, str(self.hook), *arguments],
            restore_signals=sigpipe,
            input=xml,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=10,
            check=False,
        )

    def got(self) -> tuple[list[str], str] | None:
        """Return what Python was woken with; None when it was left asleep."""
        try:
            argv = Path(f"{self.seen}.argv").read_text().split("\0")[:-1]
            return argv, Path(f"{self.seen}.stdin").read_bytes().decode()
        except FileNotFoundError:
            return None


@pytest.fixture(params=["dash", "bash --posix", "busybox sh"])
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Guard:
    return Guard(request.param.split(), tmp_path)


@pytest.mark.parametrize("operation", ["start", *ALWAYS_ZERO])
def test_a_marked_domain_wakes_python_with_all_of_its_xml(guard: Guard, operation: str) -> None:
    done = guard.run("a domain", operation, "begin", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    woken = ([*WOKEN, "a domain", operation, "begin", "-"], MARKED)
    if operation == "started":
        wait_until(lambda: guard.got() == woken, 30, "Python has read all")
    assert guard.got() == woken


def test_systemd_starts_the_helper_while_python_starts(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = guard.directory / "go-on"
    os.mkfifo(go_on)
    told = guard.with_systemd(monkeypatch, f"timeout 20 cat {go_on} >{guard.directory}/read")
    guard.wakes(f'echo "$VIRT_RAPL_UNIT_STARTS" >{guard.seen}.env')
    assert guard.run("a", "start", "begin", "-", xml=WITH_REGISTERS).returncode == 0
    assert Path(f"{guard.seen}.env").read_text() == "yes\n"
    assert not told.exists(), "nobody waits for it"
    go_on.write_text("go on\n")
    wait_until(lambda: told.exists() and told.read_text() == f"start virt-rapl-helper@{UUID}.service\n", 30, "told")


@pytest.mark.parametrize("why", ["no systemd", "a plan is left", "unmarked", "marked for a channel", *ALWAYS_ZERO])
def test_otherwise_python_starts_the_helper(guard: Guard, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    told = guard.with_systemd(monkeypatch)
    guard.wakes(f'echo "$VIRT_RAPL_UNIT_STARTS" >{guard.seen}.env')
    if why == "no systemd":
        (guard.directory / "systemd").rmdir()
    (guard.directory / "run").mkdir()
    (guard.directory / "run" / f"{UUID}.{'plan' if why == 'a plan is left' else 'json'}").touch()
    xml = {"unmarked": UNMARKED, "marked for a channel": MARKED}.get(why, WITH_REGISTERS)
    assert guard.run("a", why if why in ALWAYS_ZERO else "start", "begin", "-", xml=xml).returncode == 0
    noted = Path(f"{guard.seen}.env")
    wait_until(lambda: noted.exists() and noted.read_text() == "\n", 30, "Python was woken")
    assert not told.exists()


@pytest.mark.parametrize(
    ("directory", "left", "wakes"), [("run", True, True), ("run", False, False), ("other", False, True)]
)
def test_release_has_nothing_to_do_if_stopped_has_left_no_record(
    guard: Guard, directory: str, left: bool, wakes: bool
) -> None:
    """In the run directory of the domain, if that is the default one; Python knows others."""
    argument = f"<qemu:arg value='kvm,rapl=true,rapl-helper-socket={guard.directory}/{directory}/{UUID}.sock'/>"
    xml = MARKED.replace("</domain>", f"{argument}\n</domain>")
    (guard.directory / "run").mkdir()
    if left:
        (guard.directory / f"run/{UUID}.json").touch()
    assert guard.run("a", "release", "end", "-", xml=xml).returncode == 0
    assert guard.got() == (([*WOKEN, "a", "release", "end", "-"], xml) if wakes else None)


def test_libvirt_does_not_wait_until_the_processes_of_a_domain_are_recorded(guard: Guard) -> None:
    """It waits for whoever has its pipes, which run() reads to their end."""
    go_on, done = guard.directory / "go-on", guard.directory / "done"
    os.mkfifo(go_on)
    guard.wakes(f"read line <{go_on}\ntouch {done}")
    assert guard.run("a", "started", "begin", "-").returncode == 0
    assert not done.exists()
    go_on.write_text("go on\n")
    wait_until(done.exists, 30, "Python ends")


def test_the_wrapper_sees_at_once_that_a_start_is_over(guard: Guard) -> None:
    """With the state of a start, the next one would be taken for one at which the hook has run."""
    state = guard.directory / "run" / f"{UUID}.state"
    guard.run("a", "started", "begin", "-")
    assert not state.exists()
    state.parent.mkdir(exist_ok=True)
    for word in ("ready", "degraded:  it\\ has a reason "):
        state.write_text(f"{word}\n\n/run/a.sock\n")
        guard.run("a", "started", "begin", "-")
        assert state.read_text() == f"{word}\n-\n/run/a.sock\n"
        assert qemu_pid(str(state)) is None
        assert stat.S_IMODE(state.stat().st_mode) == 0o644  # QEMU's user reads it
    assert [path.name for path in state.parent.iterdir()] == [state.name]


@pytest.mark.parametrize("word", ["ready\n100\n/run/a.sock\n", "ready\n"], ids=["with a PID", "of another version"])
def test_a_word_that_the_wrapper_does_not_believe_stays(guard: Guard, word: str) -> None:
    state = guard.directory / "run" / f"{UUID}.state"
    state.parent.mkdir()
    state.write_text(word)
    guard.run("a", "started", "begin", "-")
    assert state.read_text() == word


def test_a_word_that_cannot_be_changed_is_removed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the disk is full: without it, the wrapper leaves RAPL out."""
    state = guard.directory / "run" / f"{UUID}.state"
    state.parent.mkdir()
    state.write_text("ready\n\n/run/a.sock\n")
    (guard.directory / "mv").write_text("#!/bin/sh\nexit 1\n")
    (guard.directory / "mv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{guard.directory}:{os.environ['PATH']}")
    guard.run("a", "started", "begin", "-")
    assert list(state.parent.iterdir()) == []


def test_a_python_that_fails_while_libvirt_goes_on_is_an_event(guard: Guard) -> None:
    (guard.directory / "run").mkdir()
    guard.wakes("exit 3")
    done = guard.run("a", "started", "begin", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    recorded = guard.directory / "run" / paths.EVENTS
    wait_until(lambda: recorded.exists() and recorded.read_text().endswith("\n"), 30, "it is recorded")
    (event,) = events.read(guard.directory / "run")
    assert (event.domain, event.operation, event.result) == ("a", "started", "failed")
    assert event.reason == "Python ended with status 3"


def test_what_records_processes_runs_once_more_if_it_was_killed(guard: Guard) -> None:
    (guard.directory / "run").mkdir()
    first, second = guard.directory / "first", guard.directory / "second"
    guard.wakes(f"[ ! -e {first} ] || exec touch {second}\nmv {guard.seen}.stdin {first}\nkill -9 $$")
    assert guard.run("a", "started", "begin", "-").returncode == 0
    wait_until(second.exists, 30, "it runs again")
    assert guard.got() == ([*WOKEN, "a", "started", "begin", "-"], MARKED)
    (event,) = events.read(guard.directory / "run")
    assert (event.result, event.reason) == ("failed", "Python ended with status 137")


@pytest.mark.parametrize("operation", ["start", "stopped", "restore"])
@pytest.mark.parametrize("ignored", ["", "trap '' TERM; "], ids=["", "ignores SIGTERM"])
def test_a_python_that_hangs_is_ended(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, operation: str, ignored: str
) -> None:
    guard.quick_timeout(monkeypatch)
    ended_by_itself = guard.directory / "ended-by-itself"
    guard.wakes(f"{ignored}sleep 2 >/dev/null 2>&1; touch {ended_by_itself}")
    done = guard.run("a", operation, "begin", "-")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"failed at {operation} of a" in done.stderr
    assert not ended_by_itself.exists()


@pytest.mark.parametrize("operation", ["start", *ALWAYS_ZERO])
@pytest.mark.parametrize("xml", [UNMARKED, HEAD + TAIL, START + TAIL, START + TAIL + MARK, "", HEAD])
def test_other_domains_leave_it_asleep(guard: Guard, operation: str, xml: str) -> None:
    done = guard.run("a", operation, "begin", "-", xml=xml)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert guard.got() is None


@pytest.mark.parametrize("metadata", HIDDEN)
def test_no_metadata_hides_the_mark_or_names_another_domain(guard: Guard, metadata: str) -> None:
    xml = f"{START}  {metadata}\n{TAIL}"
    assert guard.run("a", "start", "begin", "-", xml=xml).returncode == 0
    assert guard.got() == ([*WOKEN, "a", "start", "begin", "-"], xml)
    guard.python.unlink()
    directory = guard.directory / "run"
    directory.mkdir()
    for uuid in (UUID, OTHER):
        (directory / f"{uuid}.state").touch()
    guard.run("a", "start", "begin", "-", xml=xml)
    assert {path.name for path in directory.iterdir()} == {f"{OTHER}.state", paths.EVENTS}


@pytest.mark.parametrize("large", LARGE, ids=["lines", "one line", "like the mark", "like its end"])
@pytest.mark.parametrize("mark", ["", MARK])
def test_large_metadata(guard: Guard, large: str, mark: str) -> None:
    """Megabytes of it: what costs more than a line's worth a line would not end within the guard's ten seconds."""
    xml = f"{START}  <metadata>\n{large}{mark}  </metadata>\n{TAIL}"
    assert guard.run("a", "start", "begin", "-", xml=xml).returncode == 0
    wants = ([*WOKEN, "a", "start", "begin", "-"], xml)
    assert guard.got() == (wants if mark else None)


@pytest.mark.parametrize("unmarked", [UNMARKED, START + TAIL])
@pytest.mark.parametrize("operation", ["start", *ALWAYS_ZERO])
@pytest.mark.parametrize("suffix", ["json", "state"])
def test_a_domain_without_the_mark_may_have_a_helper(guard: Guard, operation: str, unmarked: str, suffix: str) -> None:
    """It may have lost its mark, or be chosen; at a start it is one that an earlier run has left."""
    (guard.directory / "run").mkdir()
    (guard.directory / f"run/{UUID}.{suffix}").touch()
    guard.run("a", operation, "begin", "-", xml=unmarked)
    woken = ([*WOKEN, "a", operation, "begin", "-"], unmarked)
    if operation == "started":
        wait_until(lambda: guard.got() == woken, 30, "Python has read all")
    assert guard.got() == woken


TITLED = f"{START}  <title>t</title>\n{TAIL}"
FLAVOR = "<nova:instance xmlns:nova='http://openstack.org/xmlns/1.1'><nova:flavor name='m1.green'/></nova:instance>"
NOVA = f"{START}  <metadata>\n    {FLAVOR}\n  </metadata>\n{TAIL}"
SPLIT = NOVA.replace("m1.green'/>", "m1.red'>gr<!-- e -->een</nova:flavor>")


@pytest.mark.parametrize(
    ("include", "name", "xml", "woken"),
    [
        ([], "web1", NOVA, False),
        (["web1"], "web1", START + TAIL, True),
        (["web1"], "web12", START + TAIL, False),
        (["web*"], "web1", START + TAIL, True),
        (["web?"], "web", START + TAIL, True),  # Python decides
        (["web[0-9]"], "web1", START + TAIL, True),
        (["a b$(id)`id`'\"\\é"], "a b$(id)`id`'\"\\é", START + TAIL, True),
        (["-n", "x$1"], "web1", START + TAIL, False),
        ([UUID.upper()], "web1", START + TAIL, True),
        ([UUID.replace("-", "")], "web1", START + TAIL, True),
        ([OTHER], "web1", START + TAIL, False),
        ([{"title": "x"}], "web1", TITLED, True),
        ([{"title": "x"}], "web1", START + TAIL, False),
        ([{"title": "*"}], "web1", START + TAIL, True),
        ([{"title": ""}], "web1", START + TAIL, True),
        (["a*b*c*d"], "axbxcxd", START + TAIL, True),
        (["a*b*c*d"], "axcxd", START + TAIL, False),
        ([{"http://openstack.org/xmlns/1.1 instance/flavor": "green"}], "web1", SPLIT, True),
        ([{"metadata": "http://openstack.org/xmlns/1.1 instance"}], "web1", NOVA, True),
        ([{"metadata": "http://openstack.org/xmlns/1.0"}], "web1", NOVA, False),
        ([{"http://openstack.org/xmlns/1.1 instance/flavor@name": "m1.green"}], "web1", NOVA, True),
        ([{"http://openstack.org/xmlns/1.1 instance/flavor@name": "m1 g[a-z]een & 'x'"}], "web1", NOVA, True),
        ([{"http://openstack.org/xmlns/1.1 instance/flavor@name": "m1.gr[a-z]en"}], "web1", NOVA, True),
        ([{"http://openstack.org/xmlns/1.1 instance/flavor@name": "m1.red"}], "web1", NOVA, False),
        ([{"nova.flavor": "m1.green"}], "web1", NOVA, False),
        (["other", "*"], "web1", START + TAIL, True),
    ],
)
def test_a_domain_that_may_be_chosen_wakes_it(
    guard: Guard, include: list[object], name: str, xml: str, woken: bool
) -> None:
    selection = Selection.parse(include)
    assert selection
    guard.note(selection)
    assert guard.run(name, "start", "begin", "-", xml=xml).returncode == 0
    assert (guard.got() is not None) == woken
    for operation in ALWAYS_ZERO:
        guard.seen.with_suffix(".argv").unlink(missing_ok=True)
        guard.run(name, operation, "begin", "-", xml=xml)
        assert guard.got() is None


@pytest.mark.parametrize(
    ("include", "name", "xml"),
    [
        (["*" + "a*" * 20 + "b"], "a" * 200, START + TAIL),
        (
            [{"http://openstack.org/xmlns/1.1 instance/flavor@name": "a i e o x and more"}],
            "web1",
            NOVA.replace("m1.green", "a i e o x " * 2000),
        ),
        (
            [{"http://openstack.org/xmlns/1.1 instance/flavor@name": "green 2"}],
            "web1",
            NOVA.replace(FLAVOR, (FLAVOR + "\n    ") * 2000),
        ),
    ],
    ids=["name", "metadata", "many namespaces"],
)
def test_no_pattern_takes_long(guard: Guard, include: list[object], name: str, xml: str) -> None:
    """Any number of ways to match would not end within the guard's ten seconds."""
    selection = Selection.parse(include)
    assert selection
    guard.note(selection)
    guard.run(name, "start", "begin", "-", xml=xml)


# What a domain may be called, and what its XML may say: with what is special in XML, in patterns, or in sh.
WORDS = st.text(st.sampled_from("ab1.-_ &<>'\"\\$`(){}[]*?!|;#~%é\u00a0日"), min_size=1, max_size=5).filter(str.strip)
SPACES = ("urn:a", "http://x.org/a?b&c[1]", "urn:a'b\"c$(id)*")


@st.composite
def in_pieces(draw: st.DrawFn, text: str) -> str:
    """Return XML that says this text, and not always in one piece."""
    at = draw(st.integers(0, len(text)))
    front, back = escape(text[:at]), escape(text[at:])
    cdata = f"<![CDATA[{text[at:]}]]>" if "]]>" not in text else back
    return front + draw(st.sampled_from([back, f"<!-- x -->{back}", f"<?x y?>{back}", cdata]))


@st.composite
def metadata(draw: st.DrawFn, text: str, namespace: str) -> str:
    """Return metadata with this text, twice, in this namespace, as it is declared on one element or another."""
    declared = f" xmlns:p={quoteattr(namespace)}"
    on = [draw(st.integers(0, 2)) == place for place in range(3)]
    on[2] = on[2] or not any(on[:2])
    outer, middle, inner = (declared if here else "" for here in on)
    tenant = f"<p:tenant{inner} tier={quoteattr(text)}>{draw(in_pieces(text))}</p:tenant>"
    shop = f"<p:shop{middle or inner}>{tenant}</p:shop>"
    return f"<metadata{outer}><q xmlns='urn:q'>x</q>{shop}</metadata>"


@st.composite
def choices(draw: st.DrawFn, name: str, text: str, namespace: str) -> object:
    """Return an item of the configuration that may choose a domain with these."""

    def pattern(text: str) -> str:
        start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        instead = draw(st.sampled_from(["*", "?" * (end - start), "[!z]" * (end - start), text[start:end]]))
        return text[:start] + instead + text[end:]

    return draw(
        st.sampled_from(
            [
                pattern(name) if pattern(name).strip() else name,
                {"title": pattern(text)},
                {"title": "*"},
                {"metadata": f"{namespace} shop"},
                {f"{namespace} shop/tenant": pattern(" ".join(text.split()))},
                {f"{namespace} shop/tenant@tier": pattern(" ".join(text.split()))},
            ]
        )
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_chosen_wakes_it(guard: Guard, data: st.DataObject) -> None:
    """However libvirt writes it: its test driver writes XML as its drivers for real machines do."""
    name, text, namespace = data.draw(WORDS), data.draw(WORDS), data.draw(st.sampled_from(SPACES))
    told = data.draw(metadata(text, namespace)) if data.draw(st.booleans()) else ""
    title = f"<title>{escape(text)}</title>" if data.draw(st.booleans()) else ""
    description = f"<domain type='test'><name>{escape(name)}</name>{title}{told}<memory>1024</memory>"
    connection = libvirt.open("test:///default")
    try:
        domain = connection.defineXML(f"{description}<os><type>hvm</type></os></domain>")
        xml = domain.XMLDesc()
    finally:
        connection.close()
    item = data.draw(choices(name, text, namespace))
    selection = Selection.parse([item])
    assert selection, item
    guard.note(selection)
    guard.seen.with_suffix(".argv").unlink(missing_ok=True)
    done = guard.run(name, "start", "begin", "-", xml=xml)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    is_chosen = selection.selects(Definition.parse(xml).traits)
    event(f"chosen: {is_chosen}, woken: {guard.got() is not None}")
    if is_chosen:
        assert guard.got() is not None, (item, xml)


def test_patterns_older_than_the_configuration_do_not_count(guard: Guard) -> None:
    conf_d = guard.configuration / "conf.d"
    conf_d.mkdir(parents=True)
    main, more = guard.configuration / "virt-rapl.yaml", conf_d / "10.yaml"
    changes: list[tuple[Callable[[], object], Path]] = [
        (main.touch, main),
        (more.touch, more),
        (more.unlink, conf_d),
        (main.unlink, guard.configuration),
    ]
    for change, newer in changes:
        guard.note(Selection())
        guard.run("a", "start", "begin", "-", xml=UNMARKED)
        assert guard.got() is None
        change()
        guard.age()
        later = guard.noted.stat().st_mtime + 5  # some shells know whole seconds only
        os.utime(newer, (later, later))
        guard.run("a", "start", "begin", "-", xml=UNMARKED)
        assert guard.got() is not None
        guard.seen.with_suffix(".argv").unlink()


def test_where_no_patterns_are_noted_python_decides(guard: Guard) -> None:
    guard.note(Selection())
    guard.noted.unlink()
    guard.run("a", "start", "begin", "-", xml=UNMARKED)
    assert guard.got() is not None


def test_patterns_from_the_future_do_not_count(guard: Guard) -> None:
    """As when the clock was set back since: a change of the configuration would not be newer."""
    guard.note(Selection())
    later = guard.noted.stat().st_mtime + 100
    os.utime(guard.noted, (later, later))
    guard.run("a", "start", "begin", "-", xml=UNMARKED)
    assert guard.got() is not None


def test_without_the_default_emulator_nobody_is_chosen_so(guard: Guard) -> None:
    selection = Selection.parse(["*"])
    assert selection
    guard.note(selection)
    (guard.directory / "default").unlink()
    guard.run("a", "start", "begin", "-", xml=UNMARKED)
    assert guard.got() is None


@pytest.mark.parametrize("arguments", [["a", "prepare", "begin", "-"], ["a", "attach", "begin", "-"], ["a", "new"], []])
def test_other_operations_leave_it_asleep(guard: Guard, arguments: list[str]) -> None:
    done = guard.run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert guard.got() is None


@pytest.mark.parametrize("operation", ["restore", "migrate"])
@pytest.mark.parametrize("xml", [MARKED, UNMARKED])
def test_restore_and_migrate_always_wake_it_and_pass_its_xml_on(guard: Guard, operation: str, xml: str) -> None:
    guard.wakes(f"cat <<'X'\n{MARKED}X\nexit 0")
    done = guard.run("a", operation, "begin", "-", xml=xml)
    assert (done.returncode, done.stdout, done.stderr) == (0, MARKED.rstrip("\n") + "\n", "")
    assert guard.got() == ([*WOKEN, "a", operation, "begin", "-"], xml)


@pytest.mark.parametrize("operation", ["restore", "migrate"])
def test_no_output_means_unchanged(guard: Guard, operation: str) -> None:
    assert guard.run("a", operation, "begin", "-").stdout == ""


@pytest.mark.parametrize("operation", ["restore", "migrate"])
@pytest.mark.parametrize("ending", ["echo '<domain'; exit 1", "echo '<domain'; kill -9 $$"])
def test_a_failed_filter_changes_nothing(guard: Guard, operation: str, ending: str) -> None:
    guard.wakes(ending)
    done = guard.run("a", operation, "begin", "-")
    assert (done.returncode, done.stdout) == (0, "")
    assert "virt-rapl: " in done.stderr


def test_a_refused_start_is_passed_through(guard: Guard) -> None:
    guard.wakes("echo 'virt-rapl: a is not started without RAPL: no helper' >&2; exit 1")
    done = guard.run("a", "start", "begin", "-")
    assert (done.returncode, done.stderr) == (1, "virt-rapl: a is not started without RAPL: no helper\n")


@pytest.mark.parametrize("operation", ALWAYS_ZERO)
def test_a_failure_never_kills_a_running_domain(guard: Guard, operation: str) -> None:
    guard.wakes("exit 1")
    assert guard.run("a", operation, "begin", "-").returncode == 0


@pytest.mark.parametrize("operation", ["start", "stopped", "release", "reconnect", "restore", "migrate"])
@pytest.mark.parametrize("sigpipe", [True, False])
def test_without_python_domains_live_on(guard: Guard, operation: str, sigpipe: bool) -> None:
    guard.python.unlink()
    xml = MARKED + "<!-- more than a pipe holds -->" * 10_000
    done = guard.run("a", operation, "begin", "-", xml=xml, sigpipe=sigpipe)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"virt-rapl: {guard.python} failed at {operation} of a (status 127)")
    assert done.stderr.count("\n") == 1


def test_without_python_no_word_of_an_earlier_run_is_left_for_the_wrapper(guard: Guard) -> None:
    guard.python.unlink()
    state = guard.directory / "run" / f"{UUID}.state"
    state.parent.mkdir()
    state.write_text("ready\n")
    guard.run("a", "reconnect", "begin", "-")
    assert state.exists()
    guard.run("a", "start", "begin", "-")
    assert not state.exists()


@pytest.mark.parametrize("ending", ["exit 1", "exit 126", "kill -9 $$"])
def test_a_python_that_lost_our_code_lets_domains_start(guard: Guard, ending: str) -> None:
    guard.wakes(ending, importable=False)
    done = guard.run("a", "start", "begin", "-")
    assert done.returncode == 0
    assert f"virt-rapl: {guard.python} failed at start of a" in done.stderr


def test_a_python_that_hangs_as_it_reads_our_code_lets_domains_start(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a file system of a network that is gone."""
    guard.quick_timeout(monkeypatch)
    guard.python.write_text("#!/bin/sh\n[ $# -gt 4 ] || { sleep 2 >/dev/null 2>&1; exit 0; }\nexit 1\n")
    assert guard.run("a", "start", "begin", "-").returncode == 0


@pytest.mark.parametrize("memory", ["  <memory unit='KiB'>1</memory>", "  <maxMemory slots='2'>2</maxMemory>"])
@pytest.mark.parametrize("operation", ["start", *ALWAYS_ZERO])
def test_of_a_domain_without_metadata_no_more_than_the_beginning_is_read(
    guard: Guard, operation: str, memory: str
) -> None:
    """However long the rest is, and however slowly it comes."""
    command = [*guard.shell, str(guard.hook), "a", operation, "begin", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, encoding="utf-8") as hook:
        assert hook.stdin is not None
        hook.stdin.write(f"{START}{memory}\n")
        hook.stdin.flush()
        assert hook.wait(timeout=10) == 0
    assert guard.got() is None


def test_a_killed_python_lets_domains_start(guard: Guard) -> None:
    guard.wakes("kill -9 $$")
    assert guard.run("a", "start", "begin", "-").returncode == 0


def test_what_python_could_not_do_is_an_event(guard: Guard) -> None:
    run_directory = guard.directory / "run"
    guard.python.unlink()
    guard.run("a domain", "start", "begin", "-")
    assert not run_directory.exists()
    run_directory.mkdir()
    for name in ("a domain", 'a"b', "a\\b"):
        assert guard.run(name, "start", "begin", "-").returncode == 0
    assert (run_directory / paths.EVENTS).stat().st_mode & 0o777 == 0o600
    (event,) = events.read(run_directory)
    assert (event.domain, event.operation, event.result, event.reason) == (
        "a domain",
        "start",
        "failed",
        "Python ended with status 127",
    )
