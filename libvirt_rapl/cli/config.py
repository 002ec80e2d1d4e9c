"""Look at the configuration: /etc/virt-rapl/virt-rapl.yaml and conf.d/*.yaml beside it.

check reports every mistake in the files. show prints what is in force and where each value comes from.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from libvirt_rapl.cli import aligned, fail
from libvirt_rapl.config import KEYS, Config, read
from libvirt_rapl.config_file import as_yaml
from libvirt_rapl.config_key import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("action", choices=("check", "show"), help="look for mistakes, or print what is in force")


def run(options: argparse.Namespace) -> int:
    """Check or show."""
    return _check(options.config) if options.action == "check" else _show(options.config)


def _check(path: Path) -> int:
    _, mistakes = read(path)
    for mistake in mistakes:
        fail(mistake.message, mistake.hint)
    if mistakes:
        return 1
    found = [str(file) for file in files(path) if file.exists()]
    print(f"no mistakes in {', '.join(found)}" if found else f"there is no {path}: all defaults")
    return 0


def _show(path: Path) -> int:
    settings, mistakes = read(path)
    if mistakes:
        raise mistakes[0]  # nothing is in force
    rows = []
    for field in fields(Config):
        setting = settings.get(field.name)
        written = as_yaml(setting.written) if setting else KEYS[field.name].default or _shown(field.default)
        rows.append((f"{field.name}: {written}", f"# {setting.place if setting else 'default'}"))
    print("\n".join(aligned(rows, right=())))
    return 0


def _shown(value: object) -> str:
    """Return a default as one would write it in the file."""
    return as_yaml(str(value) if isinstance(value, Path) else value)
