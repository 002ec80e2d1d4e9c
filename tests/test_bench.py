"""The benchmark runs and prints what it promises. No test checks what it measures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench/bench.py"


@pytest.mark.slow
@pytest.mark.needs("prometheus-node-exporter")
def test_a_tiny_benchmark(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = [
        "--domains",
        "2,3",
        "--ticks",
        "2",
        "--seconds",
        "0.5",
        "--guests",
        "0",
        "--starts",
        "0",
        "--days",
        "1",
        "--json",
        str(figures),
    ]
    done = subprocess.run([sys.executable, BENCH, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(figures.read_text())
    samples = document["samples"]
    assert [(each["domains"], each["load"]) for each in samples] == [
        (2, "usual"),
        (3, "usual"),
        (3, "every thread"),
        (3, "asleep"),
    ]
    for each in samples:
        assert {"read", "attribute", "count", "ours", "c_same", "c_all", "psutil"} == each["microseconds"].keys()
        assert {"rss_bytes", "pss_bytes"} < each["memory"].keys()
        # The meter, and C in both ways, have read of the processes that they ran the same.
        assert len(each["ran_ns"]) == 2
        assert all(len(set(sums)) == 1 for sums in each["ran_ns"])
        assert (min(map(min, each["ran_ns"])) > 0) == (each["load"] != "asleep")
    assert {"time_r_squared", "bytes_per_domain"} < document["growth"].keys()
    assert all(each["percent_of_a_core"] > 0 and each["rss_bytes"] > 0 for each in document["daemon"])
    assert "3 domains of 4 vCPUs (9 threads each, load usual) at 1 Hz cost" in done.stdout
    assert [each["followed"] for each in document["daemon"]] == ["", "", "documents", "guests' lines"]
    assert document["channels"]["rss_bytes"] > 0
    assert "lines to 3 guests of 4 vCPUs" in done.stdout
    assert document["history"]["bytes"] > 0
    assert "1 days of history of 3 domains" in done.stdout
    assert document["scrapes"]["scrape_ms"]["ours"]["median"] > 0
    assert "a scrape of 3 domains" in done.stdout
    assert document["top"]["cpu_seconds"] > 0
    assert document["top"]["bytes"] > 0
    assert "virt-rapl top with 3 domains costs" in done.stdout
