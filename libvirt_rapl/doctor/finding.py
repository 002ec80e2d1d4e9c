"""What a check reports."""

from typing import Final, Literal, NamedTuple

from libvirt_rapl import systemd

State = Literal["ok", "warning", "failed", "skipped"]
"""`skipped`: not applicable, or this user may not check it."""
OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


class Finding(NamedTuple):
    """One line with what was found, and one with what to do if it is not as it should be."""

    state: State
    message: str
    hint: str = ""


HOST_METERING_ONLY = Finding(SKIPPED, "this processor's guests have no registers")


def to_start(verb: str) -> str:
    """Return how virt-rapld is started here: `verb` is systemctl's (`restart`, `enable --now`)."""
    if systemd.runs():
        unmask = "systemctl unmask virt-rapld; " if systemd.unit_property("virt-rapld", "LoadState") == "masked" else ""
        return f"{unmask}systemctl {verb} virt-rapld"
    return "end it, and run `virt-rapl daemon` anew" if verb == "restart" else "run `virt-rapl daemon`"


def journal() -> str:
    """Return where virt-rapld has logged what is wrong."""
    return "`journalctl -u virt-rapld` says why" if systemd.runs() else "the output of `virt-rapl daemon` says why"
