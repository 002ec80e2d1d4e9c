"""What a check tells."""

from typing import Final, Literal, NamedTuple

from libvirt_rapl import systemd

State = Literal["ok", "warning", "failed", "skipped"]
"""`skipped`: not applicable, or not to be seen by this user."""
OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


class Finding(NamedTuple):
    """One line of what was found, and one of what to do where it is not as it should be."""

    state: State
    message: str
    hint: str = ""


HOST_METERING_ONLY = Finding(SKIPPED, "this processor's guests have no meter of their own")


def to_start(verb: str) -> str:
    """Return how virt-rapld is started here: `verb` is what systemctl is told to do."""
    if systemd.runs():
        unmask = "systemctl unmask virt-rapld; " if systemd.unit_property("virt-rapld", "LoadState") == "masked" else ""
        return f"{unmask}systemctl {verb} virt-rapld"
    return "end it, and run `virt-rapl daemon` anew" if verb == "restart" else "run `virt-rapl daemon`"


def journal() -> str:
    """Return where virt-rapld has told what is wrong."""
    return "`journalctl -u virt-rapld` tells why" if systemd.runs() else "what `virt-rapl daemon` printed tells why"
