"""The server's memory does not depend on the size of items."""

import re
import subprocess
import sys
from pathlib import Path

LARGE_ITEMS = Path(__file__).parents[2] / "bench" / "single" / "large_items.py"


def test_ten_clients_storing_and_fetching_large_items_keep_the_server_small():
    command = [sys.executable, LARGE_ITEMS, "--clients=10", "--mib=64", "--limit=150"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    # else the measurement has missed the server's work
    assert int(re.findall(r"(\d+) MB at its peak", ended.stdout)[0]) > 20
