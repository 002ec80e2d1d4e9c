"""What is sent to systemd, and what is asked of it, whether it answers or not."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from libvirt_rapl import paths, systemd
from libvirt_rapl.errors import VirtRaplError


@pytest.fixture
def directory() -> Iterator[str]:
    with TemporaryDirectory() as name:
        yield name


@pytest.fixture
def bin_directory(directory: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a systemctl of the test's is put; it is the only program."""
    monkeypatch.setenv("PATH", directory)
    return Path(directory)


def systemctl(place: Path, text: str) -> None:
    (place / "systemctl").write_text(f"#!/bin/sh\n{text}\n")
    (place / "systemctl").chmod(0o755)


def test_whether_it_is_this_machines_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "system"
    monkeypatch.setattr(paths, "SYSTEMD", str(place).lstrip("/"))
    assert not systemd.runs()
    place.touch()
    assert not systemd.runs()
    place.unlink()
    place.mkdir()
    assert systemd.runs()


@pytest.mark.parametrize("address", ["{}/notify", "@virt-rapl-{}"])
def test_a_message_reaches_a_systemd_that_listens(
    directory: str, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    address = address.format(directory)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")  # nobody has started us
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(address.replace("@", "\0"))
        notify.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        systemd.notify("READY=1")
        assert notify.recv(100) == b"READY=1"
    systemd.notify("WATCHDOG=1")  # nobody is there any more


def test_a_systemd_that_reads_nothing_holds_nobody_up(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{directory}/notify"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    kind = socket.SOCK_DGRAM
    with socket.socket(socket.AF_UNIX, kind) as notify, socket.socket(socket.AF_UNIX, kind) as other:
        notify.bind(address)
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"x", address)
        sender = threading.Thread(target=systemd.notify, args=["WATCHDOG=1"], daemon=True)
        sender.start()
        sender.join(10)
        assert not sender.is_alive()


def test_a_property_is_what_systemctl_prints(bin_directory: Path) -> None:
    systemctl(bin_directory, 'echo "$*"')
    assert systemd.unit_property("a.service", "ActiveState") == "show --property=ActiveState --value a.service"
    systemctl(bin_directory, "echo active; exit 1")
    assert systemd.unit_property("a.service", "ActiveState") == ""
    (bin_directory / "systemctl").unlink()
    assert systemd.unit_property("a.service", "ActiveState") == ""


def test_what_systemctl_cannot_do_is_reported(bin_directory: Path) -> None:
    systemctl(bin_directory, "echo 'Unit a.service not found.' >&2; exit 5")
    with pytest.raises(VirtRaplError, match=r"`systemctl start a.service` failed: Unit a.service not found") as caught:
        systemd.systemctl("start", "a.service", timeout=20)
    assert "virt-rapl install" in caught.value.hint
