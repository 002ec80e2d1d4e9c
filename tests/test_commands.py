"""Programs that are run for what they say: what they get of us, and what they may cost."""

import contextlib
import ctypes
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from walking import wait_until

from libvirt_rapl import commands
from libvirt_rapl.errors import VirtRaplError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="runs it as nobody")
PR_GET_CHILD_SUBREAPER = 37
SLEEP = f"86399.{os.getpid()}"
"""Only processes that are started here sleep for this long, even if these tests run twice at the same time."""


@pytest.fixture
def script() -> Iterator[Path]:
    """A program; what it is to do is written to it. Nobody gets there."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "program"


def put(script: Path, text: str) -> str:
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return str(script)


def ask(script: Path, text: str, question: str = "", timeout: float = 20.0) -> commands.Done:
    return commands.ask(put(script, text), question=question, timeout=timeout)


def sleepers() -> list[int]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if SLEEP in (directory / "cmdline").read_text().split("\0"):
                found.append(int(directory.name))
        except OSError:
            continue
    return found


def test_what_it_is_given_and_what_it_says(script: Path) -> None:
    done = ask(script, "cat; echo words >&2; exit 3", "the question\n")
    assert done == (3, "the question\n", "words\n")


def test_it_has_no_terminal_and_a_session_of_its_own(script: Path) -> None:
    """Run by a shell whose terminal is a pseudo-terminal, as root's is."""
    put(script, "ps -o sid=,tty= -p $$; (: </dev/tty) 2>/dev/null || echo none; tty <&0; readlink /proc/$$/fd/2")
    reader, writer = os.pipe()
    ours = (
        "import os; from libvirt_rapl import commands\n"
        "assert open('/dev/tty')\n"
        f"said = commands.ask({str(script)!r}, question='', timeout=20).stdout\n"
        f"os.write({writer}, f'{{os.getsid(0)}}\\n{{said}}'.encode())"
    )
    main, terminal = os.openpty()
    child = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-c", ours],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        pass_fds=[writer],
    )
    os.close(writer)
    with open(reader) as said:
        lines = said.read().splitlines()
    assert child.wait() == 0
    os.close(main)
    os.close(terminal)
    session, theirs, none, standard_input, standard_error = lines
    assert theirs.split()[0] != session
    assert theirs.split()[1] == "?"
    assert (none, standard_input) == ("none", "not a tty")
    assert "memfd" in standard_error


@pytest.mark.parametrize("root", [True, False])
def test_it_gets_nothing_of_our_environment(script: Path, monkeypatch: pytest.MonkeyPatch, *, root: bool) -> None:
    monkeypatch.setenv("SECRET", "x")
    if not root:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = ask(script, "env; ulimit -c; pwd; ls /proc/self/fd").stdout.splitlines()
    assert {line.split("=")[0] for line in said if "=" in line} <= {*commands.MINIMAL, "PWD", "OLDPWD", "SHLVL", "_"}
    assert {"0", "/"} <= set(said)
    assert set(said[-4:]) == {"0", "1", "2", "3"}, "its own standard files, and the one that `ls` reads"


@needs_root
def test_it_is_nobody(script: Path) -> None:
    before = os.getgroups()
    os.setgroups([4321])
    try:
        assert ask(script, "id -u; id -g; id -G").stdout.split() == ["65534"] * 3
    finally:
        os.setgroups(before)


@needs_root
def test_it_gets_no_rights_by_set_user_id_programs(script: Path) -> None:
    assert "NoNewPrivs:\t1" in ask(script, "cat /proc/self/status").stdout


@pytest.mark.parametrize("stream", ["1", "2"])
def test_what_it_says_has_an_end(script: Path, stream: str) -> None:
    done = ask(script, f"yes | head -c {3 * commands.MOST_BYTES} >&{stream}")
    assert done.status != 0
    assert len(done.stdout if stream == "1" else done.stderr) == commands.MOST_BYTES


LEAVES = {
    "itself": f"exec sleep {SLEEP}",
    "a child": f"sleep {SLEEP} & wait",
    "a child that it leaves": f"sleep {SLEEP} &",
    "one in a session of its own": f"setsid sh -c 'trap \"\" TERM HUP; sleep {SLEEP}' & wait",
    "a daemon": f"setsid sh -c 'setsid sleep {SLEEP} &' &",
}


@pytest.mark.parametrize("how", LEAVES)
def test_nobody_outlives_the_question(script: Path, how: str) -> None:
    if os.geteuid() and how in ("one in a session of its own", "a daemon"):
        pytest.skip("only root runs others' programs")
    try:
        ask(script, f"{LEAVES[how]}\nsleep 0.2", timeout=1.0)
    except TimeoutError:
        assert how in ("itself", "a child", "one in a session of its own")
    assert sleepers() == []


def test_what_we_have_started_otherwise_lives_on(script: Path) -> None:
    ours = subprocess.Popen(["sleep", SLEEP])
    try:
        ask(script, "true")
        assert ours.poll() is None
        assert sleepers() == [ours.pid]
    finally:
        ours.kill()
        ours.wait()


def test_an_end_that_comes_from_outside_ends_it_too(script: Path) -> None:
    """As the hook's deadline, or Ctrl-C."""

    class _LateError(Exception):
        pass

    def late(*_: object) -> None:
        raise _LateError

    before = signal.signal(signal.SIGALRM, late)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(_LateError):
            ask(script, f"sleep {SLEEP} & wait")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sleepers() == []


@needs_root
def test_what_it_leaves_of_ours_is_as_before(script: Path) -> None:
    """Limits and descriptors, children that run as nobody for another reason, and whose orphans are ours."""
    limits, descriptors = (4096, resource.getrlimit(resource.RLIMIT_CORE)[1]), list(Path("/proc/self/fd").iterdir())
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, limits)
    other = subprocess.Popen(["sleep", SLEEP], user=commands.NOBODY, cwd="/")
    try:
        assert ask(script, "ulimit -c; sleep 0 &").stdout == "0\n"
        assert commands.run(put(script, "ulimit -c"), timeout=20) == "0\n"
        assert resource.getrlimit(resource.RLIMIT_CORE) == limits
        assert other.poll() is None
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
        other.kill()
        other.wait()
    assert list(Path("/proc/self/fd").iterdir()) == descriptors
    adopts = ctypes.c_int(-1)
    ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(adopts), 0, 0, 0)
    assert adopts.value == 0


@needs_root
def test_who_asks_at_the_same_time_gets_an_answer_too(script: Path) -> None:
    """The first one to be done ends what its own program has left, and not the other's program."""
    first, second = (script.with_name(name) for name in ("first", "second"))
    put(first, "sleep 0.1")
    put(second, "sleep 0.3; echo done")
    asking = threading.Thread(target=commands.ask, args=[str(first)], kwargs={"question": "", "timeout": 20})
    asking.start()
    assert commands.ask(str(second), question="", timeout=20).stdout == "done\n"
    asking.join()


@needs_root
def test_nothing_is_loaded_in_the_child(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It might wait for a lock that another thread held when we forked."""
    ask(script, "true")

    def load(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert "NoNewPrivs:\t1" in ask(script, "cat /proc/self/status").stdout


@needs_root
@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError])
def test_a_thread_of_ours_that_ends_meanwhile_harms_nothing(
    script: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """As the one that has opened libvirt: of a thread that ends, Linux refuses to open the list or to read it."""
    read_text, ending = Path.read_text, [error, error]

    def read(path: Path, *arguments: str, **options: str) -> str:
        if path.name == "children" and ending:
            raise ending.pop()
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read)
    ask(script, f"sleep {SLEEP} &")
    assert not ending
    assert sleepers() == []


@contextlib.contextmanager
def standard_input(descriptor: int) -> Iterator[None]:
    """Have another standard input meanwhile; pytest's is empty."""
    before = os.dup(0)
    os.dup2(descriptor, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_what_is_started_outlives_us_and_holds_nothing_of_ours(script: Path, tmp_path: Path) -> None:
    """Libvirt waits for every process that has the hook's output, and a terminal ends those of its session."""
    shown = "ps -o sid= -p $$; pwd; echo $SECRET; echo error >&2; cd /proc/$$/fd; readlink 0 1 2"
    output = tmp_path / "log"
    with output.open("wb") as file, script.parent.joinpath("input").open("w+b") as ours, standard_input(ours.fileno()):
        pid = commands.start(put(script, shown), environment={"SECRET": "x", "PATH": os.environ["PATH"]}, output=file)
    os.waitpid(pid, 0)
    session, directory, secret, error, *files = output.read_text().split()
    assert (session, directory, secret, error) == (str(pid), "/", "x", "error")
    assert files == ["/dev/null", str(output), str(output)]


def test_a_deadline_that_has_passed_leaves_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def run(_command: tuple[str, ...], _question: str, timeout: float) -> commands.Done:
        given.append(timeout)
        return commands.Done(0, "", "")

    monkeypatch.setattr(commands, "_run", run)
    for timeout in (-1.0, 0.0, 5.0):
        commands.run("true", timeout=timeout)
    assert given[0] == given[1] > 0
    assert given[2] == 5.0


def test_the_systems_own_have_our_environment_and_an_end(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert commands.run(put(script, "echo $SECRET; cat"), timeout=20) == "x\n"
    with pytest.raises(VirtRaplError, match="failed: no luck") as caught:
        commands.run(put(script, "echo no; echo no luck >&2; exit 1"), timeout=20, hint="try again")
    assert caught.value.hint == "try again"
    with pytest.raises(VirtRaplError, match="timed out"):
        commands.run(put(script, f"sleep {SLEEP} & wait"), timeout=0.3)
    with pytest.raises(VirtRaplError, match="No such file"):
        commands.run(str(script.parent / "none"), timeout=20)
    commands.run(put(script, f"trap '' TERM; sleep {SLEEP} &"), timeout=20)
    try:  # They have been killed; nobody waits for what is not our child.
        wait_until(lambda: not sleepers(), 30, "what the programs had started has ended")
    finally:
        for pid in sleepers():
            os.kill(pid, signal.SIGKILL)


def test_each_is_logged_as_it_can_be_pasted_for_who_debugs(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda _, line: logged.append(line))
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    program = put(script, "true")
    with open(os.devnull, "wb") as nothing:

        def run_all() -> None:
            commands.run(program, "it's", timeout=20)
            commands.ask(program, "a b", question="", timeout=20)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(commands.start(program, "", environment={}, output=nothing), 0)

        run_all()
        assert (capsys.readouterr().err, logged) == ("", [])
        monkeypatch.setenv("VIRT_RAPL_DEBUG", "1")
        run_all()
        lines = capsys.readouterr().err.splitlines()
        assert [shlex.split(line) for line in lines] == [["+", program, word] for word in ("it's", "a b", "")]
        assert logged == lines, "libvirt drops what a hook says on stderr"
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
        run_all()
        assert logged == lines, "stderr is the journal"
