"""The machine that is looked at: its directories, configuration and libvirt, each read once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from libvirt_rapl import domains, installer, status_socket
from libvirt_rapl.config import DEFAULT_PATH, Config, load
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host.cpus import processor


@dataclass
class Machine:
    """What the checks share."""

    uri: str
    """libvirt's."""
    config_path: Path = DEFAULT_PATH
    root: Path = Path("/")

    @property
    def sys(self) -> Path:
        """Where sysfs is."""
        return self.root / "sys"

    @property
    def proc(self) -> Path:
        """Where /proc is."""
        return self.root / "proc"

    @property
    def dev(self) -> Path:
        """Where devices are."""
        return self.root / "dev"

    @cached_property
    def config(self) -> Config:
        """The configuration; defaults where it is wrong, which is a check's to tell."""
        try:
            return load(self.config_path)
        except VirtRaplError:
            return Config()

    @cached_property
    def emulators(self) -> list[Path]:
        """The QEMUs that are installed."""
        return [self.root / path for path in installer.EMULATORS if (self.root / path).exists()]

    @cached_property
    def items(self) -> list[installer.Item]:
        """What `virt-rapl install` would put in place."""
        return list(installer.items(self.root))

    def item(self, target: str) -> installer.Item:
        """Return what would be put in place there."""
        return next(item for item in self.items if item.target == target)

    @cached_property
    def can_serve_guests(self) -> bool:
        """Whether QEMU gives guests RAPL on such a processor at all."""
        return processor(self.proc).vendor == "GenuineIntel"

    def connect(self) -> Any:  # noqa: ANN401  libvirt-python has no types
        """Return a connection that only reads. Raises VirtRaplError."""
        if isinstance(self._connection, VirtRaplError):
            raise self._connection
        return self._connection

    @cached_property
    def _connection(self) -> Any:  # noqa: ANN401
        """The connection or why there is none: a libvirt that hangs shall hold us up once."""
        try:
            return domains.connect(self.uri, read_only=True)
        except VirtRaplError as error:
            return error

    @cached_property
    def status(self) -> dict[str, Any] | None:
        """What virt-rapld tells; None when it does not answer."""
        return status_socket.ask(self.config.run_directory / status_socket.NAME)
