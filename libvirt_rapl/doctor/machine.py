"""The machine that is checked: its directories, configuration and libvirt, each read once."""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from libvirt_rapl import paths
from libvirt_rapl.config import DEFAULT_PATH, Config, load
from libvirt_rapl.daemon import status_socket
from libvirt_rapl.domains.connection import connect
from libvirt_rapl.domains.emulator import INSTALL
from libvirt_rapl.domains.named_emulators import named_emulators
from libvirt_rapl.domains.names import DEFAULT_EMULATOR
from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.host.topology import processor
from libvirt_rapl.install import packaged, places, wrappers
from libvirt_rapl.install.qemu_group import qemu_group
from libvirt_rapl.tree import Tree


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

    @property
    def tree(self) -> Tree:
        """Its files, which others may be able to change."""
        return Tree(self.root)

    @cached_property
    def config(self) -> Config:
        """The configuration; defaults if it is wrong, which a check of its own reports."""
        try:
            return load(self.config_path)
        except VirtRaplError:
            return Config()

    @cached_property
    def emulators(self) -> list[Path]:
        """The QEMUs that are to have a wrapper: the usual ones, and those that libvirt and domains name."""
        named = []
        with contextlib.suppress(VirtRaplError):  # another check reports what is wrong with libvirt
            named = named_emulators(self.connect())
        return [self.root / path.lstrip("/") for path in wrappers.emulators(self.root, named)]

    @cached_property
    def items(self) -> list[places.Item]:
        """What `virt-rapl install` or a package would put in place."""
        names = [f"/{path.relative_to(self.root)}" for path in self.emulators]
        emulators = [name for name in names if not wrappers.refusal(self.root, name)]
        if packaged.owns(self.root):
            return packaged.in_place(emulators)
        return list(places.items_for(self.root, places.shipped_items(emulators, qemu_group(self.root))))

    @cached_property
    def is_installed(self) -> bool:
        """Whether anything of ours is in place; a configuration alone may be older, or left by an uninstallation."""
        return any((self.root / item.target).exists() for item in self.items if not item.keep)

    def item(self, target: str) -> places.Item:
        """Return what would be put in place there."""
        return next(item for item in self.items if item.target == target)

    def to_install(self, emulator: str = DEFAULT_EMULATOR) -> str:
        """Return how our files are put in place anew: a package has only the usual emulator's wrapper."""
        return packaged.REINSTALL if packaged.owns(self.root) and emulator == DEFAULT_EMULATOR else INSTALL

    def remedy(self, error: VirtRaplError, emulator: str) -> str:
        """Return an error's hint; if that is to install, how that is done here for this emulator."""
        return self.to_install(emulator) if error.hint == INSTALL else error.hint

    @cached_property
    def can_serve_guests(self) -> bool:
        """Whether QEMU gives guests RAPL on such a processor at all."""
        return processor(self.proc).vendor == "GenuineIntel"

    def connect(self) -> Any:  # noqa: ANN401  libvirt-python has no types
        """Return a connection that only reads. Raises VirtRaplError."""
        if isinstance(self._connection, VirtRaplError):
            raise self._connection
        return self._connection

    def libvirt_version(self) -> tuple[int, int, int]:
        """Return libvirt's version. Raises VirtRaplError."""
        number = self.connect().getLibVersion()
        return number // 1_000_000, number // 1000 % 1000, number % 1000

    @property
    def can_enable(self) -> bool:
        """Whether what the configuration's `domains` choose can have what `via` says."""
        return self.can_serve_guests or self.config.via in ("auto", "channel")

    @cached_property
    def _connection(self) -> Any:  # noqa: ANN401
        """The connection, or the error: a libvirt that hangs must delay us only once."""
        try:
            return connect(self.uri, read_only=True)
        except VirtRaplError as error:
            return error

    @cached_property
    def status(self) -> dict[str, Any] | None:
        """What virt-rapld reports; None when it does not answer."""
        return status_socket.ask(self.config.run_directory / paths.STATUS_SOCKET)
