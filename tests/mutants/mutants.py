"""Put small mistakes into the code, one at a time, and see which of them the tests do not notice.

Beside this file is a list for each room. It names files and, for each, the `tests` that notice mistakes in it: files in
tests/, the quickest first. A mutant replaces the text `old`, which stands exactly once in its file, by `new`; `what` is
wrong then. In a copy of the tree those tests run, as far as they are fast, until one fails; with --e2e, also the
end-to-end test that a mutant names. Survivors are printed, and then the exit status is 1.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml

ROOT = Path(__file__).parent.parent.parent
LISTS = Path(__file__).parent.glob("*.yaml")
SECONDS = 300.0
"""A mutant that makes the tests hang is noticed, too: that is how long they may take."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One small mistake."""

    id: str
    file: str
    tests: str
    """Files in tests/ that test this file, the quickest first; separated by spaces."""
    old: str
    new: str
    what: str
    """What is wrong then."""
    e2e: str = ""
    """The end-to-end test that notices it, where no fast one can."""
    equivalent: str = ""
    """Why nothing can notice it: then it is not run."""

    @property
    def room(self) -> str:
        """Where its file is: a package of libvirt_rapl, `ground`, or `hooks`."""
        first, *rest = self.file.removeprefix("libvirt_rapl/").split("/")
        return first if rest else "ground"


def main() -> int:
    """Run the mutants that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", metavar="ID", nargs="*", help="an id, or several without their number (default: all)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="how many at a time")
    parser.add_argument("--e2e", action="store_true", help="run also those that only an end-to-end test notices")
    options = parser.parse_args()
    chosen = [each for each in load() if not options.ids or {each.id, each.id.rstrip("0123456789")} & set(options.ids)]
    run = [mutant for mutant in chosen if not mutant.equivalent and (options.e2e or not mutant.e2e)]
    with copies(options.jobs) as free, ThreadPoolExecutor(options.jobs) as pool:
        noticed = dict(zip(run, pool.map(lambda mutant: is_noticed(mutant, free), run), strict=True))
    report(chosen, noticed)
    return 0 if all(noticed.values()) else 1


def load() -> list[Mutant]:
    """Read the list. Ends the program where a mutant does not fit the code any more."""
    mutants = [
        Mutant(file=part["file"], tests=part["tests"], **each)
        for room in sorted(LISTS)
        for part in yaml.safe_load(room.read_text(encoding="utf-8"))
        for each in part["mutants"]
    ]
    twice = [name for name, count in Counter(mutant.id for mutant in mutants).items() if count > 1]
    stale = [each.id for each in mutants if (ROOT / each.file).read_text(encoding="utf-8").count(each.old) != 1]
    if twice or stale:
        sys.exit(f"ids that stand twice: {twice}; whose text is not in its file exactly once: {stale}")
    return mutants


@contextmanager
def copies(count: int) -> Iterator["SimpleQueue[Path]"]:
    """Give copies of the tree, each with a Python that imports it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    free: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        Path(directory).chmod(0o755)  # some tests run emulators as a user without rights
        for number in range(count):
            copy = Path(directory, str(number))
            for name in filter(None, names.split("\0")):
                if os.path.lexists(ROOT / name):
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
            make_python(copy)
            free.put(copy)
        yield free


def make_python(copy: Path) -> None:
    """Make a .venv with the libraries of ours, in which the package is the copy's."""
    python = str(copy / ".venv/bin/python")
    make = [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages"]
    subprocess.run([*make, str(copy / ".venv")], check=True)
    ask = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    ours = subprocess.run([sys.executable, *ask[1:]], stdout=subprocess.PIPE, check=True, text=True).stdout
    there = subprocess.run(ask, stdout=subprocess.PIPE, check=True, text=True).stdout
    Path(there.strip(), "ours.pth").write_text(f"{copy}\n{ours}", encoding="utf-8")
    command = copy / ".venv/bin/virt-rapl"
    command.write_text(f"#!{python}\nimport sys\nfrom libvirt_rapl.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)


def is_noticed(mutant: Mutant, free: "SimpleQueue[Path]") -> bool:
    """Run the mutant's tests with it; print what came of it."""
    copy, began = free.get(), time.monotonic()
    file = copy / mutant.file
    original = file.read_text(encoding="utf-8")
    try:
        file.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
        noticed = tests_fail(copy, mutant)
    finally:
        file.write_text(original, encoding="utf-8")
        free.put(copy)
    said = "noticed " if noticed else "SURVIVES"
    print(f"{said} {mutant.id:8} {time.monotonic() - began:5.1f} s  {mutant.file}: {mutant.what}", flush=True)
    return noticed


def tests_fail(copy: Path, mutant: Mutant) -> bool:
    """Return whether a test fails. Ends the program where they cannot run at all."""
    tests = [f"tests/{name}" for name in (mutant.e2e or mutant.tests).split()]
    marks = "e2e" if mutant.e2e else "not e2e and not slow"
    command = [
        str(copy / ".venv/bin/python"),
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-m",
        marks,
    ]
    try:
        done = subprocess.run([*command, *tests], cwd=copy, timeout=SECONDS, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return True
    finally:
        end_processes(copy)
    if done.returncode not in (0, 1, 2):  # 2: what they import cannot be imported
        sys.exit(f"{mutant.id}: pytest ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.returncode != 0


def end_processes(copy: Path) -> None:
    """Kill what the tests have left behind, as they may where the code is wrong."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(f"{copy}/") in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def report(chosen: list[Mutant], noticed: dict[Mutant, bool]) -> None:
    """Print a table by room."""
    print(f"\n{'room':12} mutants  run  noticed  equivalent")
    for room in [*sorted({mutant.room for mutant in chosen}), "all"]:
        there = [mutant for mutant in chosen if room in (mutant.room, "all")]
        run = [mutant for mutant in there if mutant in noticed]
        equivalent = sum(bool(mutant.equivalent) for mutant in there)
        print(f"{room:12} {len(there):7}  {len(run):3}  {sum(noticed[mutant] for mutant in run):7}  {equivalent:10}")


if __name__ == "__main__":
    sys.exit(main())
