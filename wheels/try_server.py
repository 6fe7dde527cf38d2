"""Whether the darner that is installed works: its version, a server, and an item that outlives a kill -9."""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pymemcache.client.base import Client

import darner

DARNER = Path(sys.executable).with_name("darner")


def start(data: str) -> tuple[subprocess.Popen[str], Client]:
    """A server, and a client of it."""
    process = subprocess.Popen([DARNER, "--data", data, "--port", "0"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"event=listening host=\S+ port=(\d+)", line):
            return process, Client(("127.0.0.1", int(found[1])), default_noreply=False, timeout=10)
    raise SystemExit("the server did not start")


def main() -> None:
    """Raise if something does not work."""
    assert Path(darner.__file__).is_relative_to(sys.prefix), f"not installed: {darner.__file__}"
    version = subprocess.run([DARNER, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    assert version == darner.__version__ == importlib.metadata.version("darner")
    items = [b"hello", bytes(1 << 20)]
    with tempfile.TemporaryDirectory() as data:
        process, client = start(data)
        assert all(client.set("work", item) for item in items)
        process.kill()
        process.communicate()
        process, client = start(data)
        assert [client.get("work") for _ in range(3)] == [*items, None]
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 0
    print(f"darner {version} works on {sys.implementation.name} {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
