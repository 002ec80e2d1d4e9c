"""The two C programs of the benchmark: stand-ins for QEMU processes, and the bare reads that a sample takes."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

HERE = Path(__file__).parent

LOADS = {
    "usual": (0, 1, 2, 3, 4, 7),
    "every thread": tuple(range(9)),
    "asleep": (),
}
"""Threads of each stand-in that run between two samples: usual are main thread, four vCPUs, and the guest's meter."""


class Cost(NamedTuple):
    """What one sample of the C program took and read."""

    cpu_ns: int
    ran_ns: int
    threads: int


class Program:
    """A C program beside this file that reads lines and answers with lines; compiled when it is started."""

    def __init__(self, directory: Path, name: str, *arguments: str) -> None:
        self._binary = binary = directory / name
        if not binary.exists():
            subprocess.run(["cc", "-O2", "-pthread", "-o", binary, HERE / f"{name}.c"], check=True)
        self._process = subprocess.Popen([binary, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()  # which ends it
        self._process.wait()
        self._process.stdout.close()

    def send(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._binary} ended")
        return line.strip()


class Herd(Program):
    """Stand-ins for QEMU: processes of nine threads, named as QEMU's, that sleep until they are ordered to run."""

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(directory, "herd", str(count))
        self.pids = [int(self.answer()) for _ in range(count)]

    def run(self, threads: Iterable[int]) -> None:
        """Let these threads of each run for about 20 microseconds, and wait until they sleep again."""
        self.send(" ".join(map(str, threads)))
        self.answer()


def vcpu_tids(pid: int) -> dict[int, int]:
    """Return the thread of each vCPU by its number, as libvirt has them of a QEMU; here it is found by names."""
    names = {int(task.name): (task / "comm").read_text() for task in Path(f"/proc/{pid}/task").iterdir()}
    return {int(name[4:].partition("/")[0]): tid for tid, name in names.items() if name.startswith("CPU ")}


class Reads(Program):
    """The reads of one sample in C; see reads.c."""

    def __init__(self, directory: Path, what: str, zones: Iterable[Path], pids: Iterable[int]) -> None:
        super().__init__(directory, "reads", what, *map(str, zones))
        self.send("".join(f"{pid}\n" for pid in pids))
        self.answer()

    def sample(self, *, listing: bool) -> Cost:
        self.send("list" if listing else "sample")
        return Cost(*map(int, self.answer().split()))
