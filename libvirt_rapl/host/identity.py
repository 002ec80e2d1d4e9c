"""Which host this is, as guests may know it: neither its name nor its machine-id can be found out from it."""

import hmac
import os
import re
from pathlib import Path

MACHINE_ID = re.compile(r"[0-9a-f]{32}")
PURPOSE = b"org.virt-rapl.energy.0 host"
"""Other programs that derive an id from the machine-id derive another one; machine-id(5) asks for that."""
DIGITS = 12


def opaque_id(root: Path = Path("/")) -> str:
    """Return DIGITS hexadecimal digits that stay the same on this host and that another host hardly has.

    Where there is no machine-id they are made of the host's name, which somebody can then guess and compare.
    """
    try:
        known = (root / "etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        known = ""
    key = known if MACHINE_ID.fullmatch(known) and int(known, 16) else os.uname().nodename
    return hmac.digest(key.encode(errors="surrogateescape"), PURPOSE, "sha256").hex()[:DIGITS]
