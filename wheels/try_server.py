"""Whether the darner that is installed works: its version, a server with metrics, and an item that outlives
a kill -9."""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from pymemcache.client.base import Client

import darner

DARNER = Path(sys.executable).with_name("darner")


def start(data: str) -> tuple[subprocess.Popen[str], Client, str]:
    """A server, a client of it, and where its metrics are."""
    config = Path(data, "darner.toml")
    config.write_text("metrics_port = 0\n")
    command = [DARNER, "--data", f"{data}/queues", "--port", "0", "--config", config]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    ports = []
    for line in process.stderr:
        if found := re.search(r'event=(?:listening|"serving metrics") host=\S+ port=(\d+)', line):
            ports.append(int(found[1]))
        if len(ports) == 2:
            client = Client(("127.0.0.1", ports[1]), default_noreply=False, timeout=10)
            return process, client, f"http://127.0.0.1:{ports[0]}/metrics"
    raise SystemExit("the server did not start")


def main() -> None:
    """Raise if something does not work."""
    assert Path(darner.__file__).is_relative_to(sys.prefix), f"not installed: {darner.__file__}"
    version = subprocess.run([DARNER, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    assert version == darner.__version__ == importlib.metadata.version("darner")
    items = [b"hello", bytes(1 << 20)]
    with tempfile.TemporaryDirectory() as data:
        process, client, _ = start(data)
        assert all(client.set("work", item) for item in items)
        process.kill()
        process.communicate()
        process, client, metrics = start(data)
        with urllib.request.urlopen(metrics, timeout=10) as response:
            assert b'darner_queue_items{queue="work"} 2.0\n' in response.read()
        assert [client.get("work") for _ in range(3)] == [*items, None]
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 0
    print(f"darner {version} works on {sys.implementation.name} {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
