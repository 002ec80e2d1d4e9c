"""The configuration: /etc/virt-rapl/virt-rapl.yaml, then conf.d/*.yaml beside it in the order of their names."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from libvirt_rapl.errors import VirtRaplError

DEFAULT_PATH = Path("/etc/virt-rapl/virt-rapl.yaml")

CHOICES = {
    "helper": ("native", "qemu"),
    "on_failure": ("degrade", "refuse"),
    "source": ("auto", "powercap", "msr"),
    "model": ("capacity", "active", "baseline"),
}

EXPECTED = {
    **{key: f"one of {', '.join(choices)}" for key, choices in CHOICES.items()},
    "shaping": "on or off",
    **dict.fromkeys(("run_directory", "state_directory"), "an absolute path"),
    **dict.fromkeys(("interval", "start_deadline"), "seconds from 0.1 to 60"),
    "domains": "a list of names, patterns or UUIDs",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What an operator can choose. Field names are the keys of the file; an absent key keeps the default."""

    helper: str = "native"
    """Backend of the helper instances: `native` (ours) or `qemu` (qemu-vmsr-helper)."""
    on_failure: str = "degrade"
    """When a domain's meter cannot be set up: `degrade` (it starts without RAPL) or `refuse` (it does not start)."""
    source: str = "auto"
    """Where energy is read: `powercap`, `msr`, or `auto` (powercap where it has zones, else MSR)."""
    model: str = "capacity"
    """How energy is given out to domains on the host; see libvirt_rapl.attribution."""
    shaping: bool = True
    """Whether the native helper makes its answers so that a guest counts what its domain is charged."""
    run_directory: Path = Path("/run/virt-rapl")
    """Holds sockets and records. The wrapper and QEMU reach into it, so every user may search it (mode 0711)."""
    state_directory: Path = Path("/var/lib/virt-rapl")
    """Holds the daemon's ledger of energy."""
    interval: float = 1.0
    """Seconds between two samples of the daemon."""
    start_deadline: float = 5.0
    """Seconds a starting domain waits for its helper at most."""
    domains: tuple[str, ...] = ()
    """Domains (name, shell pattern of names, or UUID) that a restore or an incoming migration switches on."""

    def selects(self, name: str, uuid: str) -> bool:
        """Tell whether the operator's `domains` list names this domain."""
        return any(pattern == uuid or fnmatchcase(name, pattern) for pattern in self.domains)


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read the configuration; defaults where the file does not exist.

    Raises VirtRaplError when a file cannot be read, is not YAML, or holds an unknown key or a wrong value.
    """
    config = Config()
    for file in _files(path):
        config = replace(config, **_settings(file))
    return config


def stated_policy(path: Path = DEFAULT_PATH) -> str:
    """Return `on_failure` as far as it can be made out in a configuration that load() does not take."""
    policy = Config.on_failure
    for file in _files(path):
        try:
            stated = yaml.safe_load(file.read_text(encoding="utf-8"))["on_failure"]
        except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
            continue
        policy = stated if stated in CHOICES["on_failure"] else policy
    return policy


def _files(path: Path) -> list[Path]:
    return [path, *sorted((path.parent / "conf.d").glob("*.yaml"))]


def _settings(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise VirtRaplError(f"cannot read {file}: {error}", "make it a UTF-8 text file readable by root") from error
    except yaml.YAMLError as error:
        raise VirtRaplError(f"{file} is not valid YAML: {' '.join(str(error).split())}", f"correct {file}") from error
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise VirtRaplError(f"{file}: expected `key: value` lines", f"correct {file}")
    return {str(key): _checked(file, str(key), value) for key, value in document.items()}


def _checked(file: Path, key: str, value: Any) -> object:  # noqa: ANN401 (whatever YAML makes of it)
    match key:
        case _ if key in CHOICES and value in CHOICES[key]:
            return value
        case "shaping" if isinstance(value, bool):
            return value
        case "run_directory" | "state_directory" if isinstance(value, str) and value.startswith("/"):
            return Path(value)
        case "interval" | "start_deadline" if type(value) in (int, float) and 0.1 <= value <= 60:
            return float(value)
        case "domains" if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    if key in EXPECTED:
        raise VirtRaplError(f"{file}: {key}: expected {EXPECTED[key]}, found {value!r}", f"correct {file}")
    known = ", ".join(field.name for field in fields(Config))
    raise VirtRaplError(f"{file}: unknown key {key!r}", f"known keys: {known}")
