"""Debian's Redis, the control beside darner."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import until

REDIS = shutil.which("redis-server")


class RedisServer:
    """A Redis with the same port in each of its lives. It logs each write before it replies."""

    def __init__(self, data: Path, port: int) -> None:
        self.port = port
        self._command = [
            REDIS, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), "--save", "",
            "--appendonly", "yes", "--logfile", str(data / "log"),
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(self._command)
        until(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(100) == b"+PONG\r\n"
        return False

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def redis_server(port: int) -> Iterator[RedisServer]:
    """Start a Redis, and kill it at the end; skip the test where there is none."""
    if REDIS is None:
        pytest.skip("there is no redis-server")
    with tempfile.TemporaryDirectory() as data:
        server = RedisServer(Path(data), port)
        try:
            yield server
        finally:
            server.kill()
