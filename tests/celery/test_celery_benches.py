"""The benches of Celery's brokers: that they run, and what they report; their figures are not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("celery")
BENCH = Path(__file__).parents[2] / "bench"

pytestmark = pytest.mark.timeout(240)


def figures(script, tmp_path, *options):
    """Run a bench with darner alone; return what it wrote to its file."""
    file = tmp_path / "figures.json"
    words = [sys.executable, BENCH / script, "--broker", "darner", "--json", file, *options]
    subprocess.run(words, capture_output=True, timeout=220, check=True)
    return json.loads(file.read_text())


def test_the_bench_of_brokers_measures_rates_latency_and_memory(tmp_path):
    options = ["--rounds", "1", "-n", "100", "-c", "2", "--samples", "3", "--waiting", "1000"]
    found = figures("celery_brokers.py", tmp_path, *options)
    assert {title: list(brokers) for title, brokers in found.items()} == {
        title: ["darner"]
        for title in (
            "tasks/s published",
            "tasks/s, concurrency 2",
            "ms until a task begins, median",
            "ms until a task begins, p99",
            "MB with 1,000 waiting",
        )
    }


def test_the_bench_of_crashes_finds_that_nothing_is_lost(tmp_path):
    (found,) = figures("celery_crash.py", tmp_path, "--crash", "worker")
    assert (found["sent"], found["lost"], found["again"]) == (100, 0, 1)
