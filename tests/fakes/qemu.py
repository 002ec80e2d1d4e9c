"""An emulator that answers the questions put to it before its domain is given a meter, and says nothing else."""

import subprocess
from pathlib import Path

GREETING = '{"QMP": {"version": {"qemu": {"micro": 2, "minor": %d, "major": %d}, "package": ""}, "capabilities": []}}'
WITH_RAPL = '{"return": [{"name": "rapl", "type": "bool"}, {"name": "device", "type": "string"}], "id": "properties"}'
WITHOUT_RAPL = '{"return": [{"name": "device", "type": "string"}], "id": "properties"}'
WITHOUT_KVM = '{"id": "properties", "error": {"class": "DeviceNotFound", "desc": "..."}}'


def script(path: Path, text: str) -> Path:
    """Make a program. Another process writes it: if a thread of ours starts something meanwhile, its child has all of
    our open files for a moment, and what anybody has open for writing cannot be run.
    """
    write = ["sh", "-c", 'cat >"$0" && chmod 755 "$0"', str(path)]
    subprocess.run(write, input=f"#!/bin/sh\n{text}\n", text=True, check=True)
    return path


def fake_qemu(directory: Path, *answers: str) -> Path:
    """An emulator, and the wrapper beside it, that answers in this way."""
    script(directory / "qemu-rapl", "exit 1")
    return script(directory / "qemu", "cat >/dev/null\ncat <<'X'\n" + "\n".join(answers) + "\nX")
