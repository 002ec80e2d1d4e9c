"""The wheel of this tree, built from a copy so that nothing is written beside the sources."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def build(directory: Path) -> Path:
    """Build the wheel in this directory and return its path."""
    copy = directory / "tree"
    copy.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "libvirt_rapl", "hooks", "etc"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True)
        else:
            shutil.copy(source, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(copy)]
    subprocess.run(command, check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel
