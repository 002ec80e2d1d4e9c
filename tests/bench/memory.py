"""How much memory a process takes."""

from pathlib import Path


def of(pid: int) -> dict[str, int]:
    """Return resident and proportional bytes of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {"rss_bytes": _bytes(lines["Rss"]), "pss_bytes": _bytes(lines["Pss"])}


def _bytes(text: str) -> int:
    number, unit = text.split()
    assert unit == "kB"
    return int(number) * 1024
