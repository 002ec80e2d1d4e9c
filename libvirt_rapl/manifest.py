"""What `virt-rapl install` has put in place, written down so that `uninstall` takes out that and nothing else.

It stands in /etc, which only root writes: the state directory may belong to virt-rapld's own user.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from libvirt_rapl.errors import VirtRaplError
from libvirt_rapl.files import replace

PATH = "etc/virt-rapl/installed.json"


@dataclass
class Manifest:
    """All paths are relative to the root that was installed under."""

    files: dict[str, str] = field(default_factory=dict)
    """Files and links that are ours, and the digest of what we wrote; see digest()."""
    directories: list[str] = field(default_factory=list)
    """Directories that were not there before, parents first."""

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """Read it; an empty one where nothing is installed. Raises VirtRaplError when it cannot be understood."""
        path = root / PATH
        try:
            manifest = cls(**json.loads(path.read_text(encoding="utf-8")))
            inside = [Path(name) for name in (*manifest.files, *manifest.directories)]
            if any(name.is_absolute() or ".." in name.parts for name in inside):
                raise ValueError("it names a path outside of the root")
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise VirtRaplError(f"cannot read {path}: {error}", "remove it and run `virt-rapl install` anew") from error
        return manifest

    def save(self, root: Path) -> None:
        """Write it, if it is not there so already. Raises OSError."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        if digest(root / PATH) != digest_of(text.encode()):
            replace(root / PATH, text, 0o644)


def digest(path: Path) -> str | None:
    """Tell what is at `path` in a form that differs when it does; None when nothing is there. Raises OSError."""
    try:
        if path.is_symlink():
            return f"link to {path.readlink()}"
        return digest_of(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def digest_of(content: bytes) -> str:
    """Tell what digest() tells of a file with this content."""
    return hashlib.sha256(content).hexdigest()
