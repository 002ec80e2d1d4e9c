"""The configuration: /etc/virt-rapl/virt-rapl.yaml, then conf.d/*.yaml beside it in the order of their names."""

from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import who_else_may_write
from libvirt_rapl.selection import EXPECTED as EXPECTED_DOMAINS
from libvirt_rapl.selection import Selection

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
    "interval": "seconds from 0.1 to 60",
    "hook_deadline": "seconds from 1 to 10",
    "domains": EXPECTED_DOMAINS,
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
    hook_deadline: float = 5.0
    """Seconds that each operation of the hook, for which libvirt and the domain wait, takes at most; from 1 to 10."""
    domains: Selection = field(default_factory=Selection)
    """Domains that shall have a meter without being asked for one by one: see libvirt_rapl.policy. None by default."""


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read the configuration; defaults where the file does not exist.

    Raises VirtRaplError when a file cannot be read, can be written by others than root and us, is not YAML, or holds an
    unknown key or a wrong value.
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
            _check_writers(file)
            stated = yaml.safe_load(file.read_text(encoding="utf-8"))["on_failure"]
        except (OSError, VirtRaplError, ValueError, TypeError, LookupError, yaml.YAMLError):
            continue
        policy = stated if stated in CHOICES["on_failure"] else policy
    return policy


def _files(path: Path) -> list[Path]:
    return [path, *sorted((path.parent / "conf.d").glob("*.yaml"))]


def _check_writers(file: Path) -> None:
    """Who writes the configuration tells root's processes what to do: nobody but root and we may."""
    for place in (file.parent, file):
        if other := who_else_may_write(place):
            hint = f"look what it says, then: chown root:root {place} && chmod go-w {place}"
            raise VirtRaplError(f"{place} is not followed: {other}", hint)


def _settings(file: Path) -> dict[str, Any]:
    try:
        _check_writers(file)
        lines = _lines(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise VirtRaplError(f"cannot read {file}: {error}", "make it a UTF-8 text file readable by root") from error
    except yaml.YAMLError as error:
        raise VirtRaplError(f"{file} is not valid YAML: {' '.join(str(error).split())}", f"correct {file}") from error
    if lines is None:
        raise VirtRaplError(f"{file}: expected `key: value` lines", f"correct {file}")
    settings: dict[str, Any] = {}
    for number, key, value in lines:
        if key in settings:
            raise VirtRaplError(f"{file}:{number}: {key} is set a second time", "keep one of the two lines")
        settings[key] = _checked(f"{file}:{number}", key, value)
    return settings


def _lines(text: str) -> list[tuple[int, str, object]] | None:
    """Return line number, key and value of each setting; None when the text is something else than settings."""
    loader = yaml.SafeLoader(text)
    try:
        document = loader.get_single_node()
        if document is None:
            return []
        if not isinstance(document, yaml.MappingNode):
            return None
        return [
            (
                key.start_mark.line + 1,
                str(loader.construct_object(key, deep=True)),
                loader.construct_object(value, deep=True),
            )
            for key, value in document.value
        ]
    finally:
        loader.dispose()


def _checked(place: str, key: str, value: Any) -> object:  # noqa: ANN401 (whatever YAML makes of it)
    """Return the value as Config holds it. `place` is where it stands, for the error: FILE:LINE."""
    match key:
        case _ if key in CHOICES and value in CHOICES[key]:
            return value
        case "shaping" if isinstance(value, bool):
            return value
        case "run_directory" | "state_directory" if isinstance(value, str) and value.startswith("/"):
            return Path(value)
        case "interval" if type(value) in (int, float) and 0.1 <= value <= 60:
            return float(value)
        case "hook_deadline" if type(value) in (int, float) and 1 <= value <= 10:
            return float(value)
        case "domains" if (chosen := Selection.parse(value)) is not None:
            return chosen
    if key in EXPECTED:
        raise VirtRaplError(f"{place}: {key}: expected {EXPECTED[key]}, found {value!r}", f"correct {place}")
    known = [known.name for known in fields(Config)]
    near = get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
    raise VirtRaplError(f"{place}: unknown key {key!r}", hint)
