"""The part of the configuration on which the start of a domain depends, remembered, because reading YAML takes long."""

from pathlib import Path
from typing import NamedTuple

from libvirt_rapl import __version__, paths
from libvirt_rapl.choices import Backend, EnergySource, OnFailure
from libvirt_rapl.config_key import files
from libvirt_rapl.remembered import Memory, stamps

CONFIGURATION = Path("/", paths.CONFIGURATION)


class StartSettings(NamedTuple):
    """Keys of libvirt_rapl.config.Config."""

    run_directory: Path
    helper: Backend
    on_failure: OnFailure
    source: EnergySource
    hook_deadline: float


def load(path: Path, memory: Memory) -> StartSettings:
    """Return what is configured, from memory if no file was changed. Raises VirtRaplError as config.load() does."""
    what = f"{', '.join(StartSettings._fields)} in {path}, read by {__version__}"
    seen = stamps([path.parent, path.parent / "conf.d", *files(path)])
    kept = memory.recall(what, seen)
    if kept is None:
        from libvirt_rapl import config

        settings = _settings(config.load(path))
        memory.keep(what, seen, (str(settings.run_directory), *settings[1:]))
        return settings
    run_directory, *others = kept
    return StartSettings(Path(run_directory), *others)


def defaults(path: Path) -> StartSettings:
    """Return the defaults, and `on_failure` as far as it can be read in a configuration that load() rejects."""
    from libvirt_rapl import config

    return _settings(config.Config())._replace(on_failure=config.stated_policy(path))


def _settings(config: object) -> StartSettings:
    return StartSettings(*(getattr(config, key) for key in StartSettings._fields))
