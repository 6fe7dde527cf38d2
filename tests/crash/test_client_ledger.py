"""Servers and workers are killed at random; what was put is compared with what the workers were given.

Six kills for each fleet; with `DARNER_KILLS=200` in the environment 200.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROOF = Path(__file__).parents[2] / "bench" / "single" / "client_ledger.py"
KILLS = int(os.environ.get("DARNER_KILLS", "6"))


def figure(output: str, name: str) -> int:
    """Return a figure of the proof's report."""
    return int(re.search(rf"(\d+) {name}\n", output)[1])


@pytest.mark.parametrize("servers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_nothing_is_lost_and_with_an_id_nothing_is_stored_twice(servers):
    done = subprocess.run(
        [sys.executable, PROOF, "--kills", str(KILLS), "--servers", str(servers), "--seed", "4"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert figure(done.stdout, "kills of a server") + figure(done.stdout, "kills of a worker") == KILLS
    # what the proof is about did happen
    assert figure(done.stdout, "items put again: the reply was lost")
    assert figure(done.stdout, "puts that a server recognized")
    assert figure(done.stdout, "delivered again after a kill")
