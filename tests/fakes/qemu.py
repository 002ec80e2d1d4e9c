"""An emulator that answers the questions put to it before its domain is given a meter, and says nothing else."""

from pathlib import Path

GREETING = '{"QMP": {"version": {"qemu": {"micro": 2, "minor": %d, "major": %d}, "package": ""}, "capabilities": []}}'
WITH_RAPL = '{"return": [{"name": "rapl", "type": "bool"}, {"name": "device", "type": "string"}], "id": "properties"}'
WITHOUT_RAPL = '{"return": [{"name": "device", "type": "string"}], "id": "properties"}'
WITHOUT_KVM = '{"id": "properties", "error": {"class": "DeviceNotFound", "desc": "..."}}'


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_qemu(directory: Path, *answers: str) -> Path:
    """An emulator, and the wrapper beside it, that answers in this way."""
    script(directory / "qemu-rapl", "exit 1")
    return script(directory / "qemu", "cat >/dev/null\ncat <<'X'\n" + "\n".join(answers) + "\nX")
