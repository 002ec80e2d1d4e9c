"""`virt-rapl exporter`, as a process: it listens or writes, reports that it is ready, and ends at SIGTERM."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libvirt_rapl.cli import main
from libvirt_rapl.daemon.status_socket import serve

STATUS = (Path(__file__).parent / "data/status.json").read_bytes()
PATIENCE = 30
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """A configuration, and what answers in its run directory as virt-rapld does."""
    (tmp_path / "run/daemon").mkdir(parents=True)
    path = tmp_path / "virt-rapl.yaml"
    path.write_text(f"run_directory: {tmp_path}/run\n")
    answerers = serve(tmp_path / "run/daemon/status.sock", lambda: STATUS, print)
    yield path
    answerers.close()


@pytest.fixture
def start(config: Path, tmp_path: Path) -> Iterator[Start]:
    """Start the command and wait until it reports that it is ready."""
    processes: list[subprocess.Popen[str]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(tmp_path / "notify"))
        notifications.settimeout(PATIENCE)

        def start(*options: str) -> "subprocess.Popen[str]":
            command = [sys.executable, "-m", "libvirt_rapl", "--config", str(config), "exporter", *options]
            environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
            processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
            assert notifications.recv(100).startswith(b"READY=1")
            return processes[-1]

        yield start
        for process in processes:
            process.kill()
            process.communicate()


def test_it_serves_what_virt_rapld_measures(start: Start) -> None:
    process = start("--web.listen-address", "127.0.0.1:0")
    assert process.stderr
    (url,) = re.findall(r"http://127.0.0.1:\d+/metrics", process.stderr.readline())
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        text = answer.read().decode()
    assert "virt_rapl_vcpu" not in text
    domain = json.loads(STATUS)["domains"][0]
    assert f'domain="{domain["name"]}",uuid="{domain["uuid"]}",zone="package"' in text
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_it_writes_a_file_instead(start: Start, tmp_path: Path, end: signal.Signals) -> None:
    file = tmp_path / "virt-rapl.prom"
    process = start("--textfile", str(file), "--vcpus")
    assert "virt_rapl_vcpu_energy_joules_total{" in file.read_text()
    process.send_signal(signal.SIGHUP)
    process.send_signal(end)
    assert process.wait(PATIENCE) == 0
    assert not file.exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--web.listen-address", "9762"], "HOST:PORT"),
        (["--web.config.file", "/nowhere/web.yml"], "/nowhere/web.yml"),
        (["--textfile", "/x.prom", "--web.config.file", "x"], "--textfile"),
        (["--textfile", "/nowhere/x.prom"], "/nowhere"),
    ],
)
def test_what_cannot_be_is_an_error_in_a_line(config: Path, options: list[str], word: str) -> None:
    command = [sys.executable, "-m", "libvirt_rapl", "--config", str(config), "exporter", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("virt-rapl: error: ")
    assert hint.startswith("hint: ")
    assert word in error + hint


def test_without_its_packages_it_says_which(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libvirt_rapl.exporter.scrape", None)
    assert main(["--config", str(config), "exporter"]) == 1
    assert "python3-cheroot" in capsys.readouterr().err
