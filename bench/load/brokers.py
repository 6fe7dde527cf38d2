"""Brokers that a bench of Celery starts itself: darner, and Redis if it is installed."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import click
import psutil  # type: ignore[import-untyped,unused-ignore]

from darner.client import Client
from load.servers import free_port
from single.own_server import OwnServer

REDIS = shutil.which("redis-server")
# By default Redis writes a snapshot from time to time; with `aof` it logs each write before it replies, so
# that it loses nothing when it is killed.
NAMES = ("darner", "redis", "redis-aof")
START_S = 30.0
BATCH = 1_000
QUEUE = "celery"


class Broker(Protocol):
    """A broker with the same port in each of its lives."""

    name: str
    port: int
    url: str

    def start(self) -> None:
        """Start it, and wait until it serves."""

    def kill(self) -> None:
        """End it by SIGKILL."""

    def resident_bytes(self) -> int:
        """Return its resident memory."""

    def multiply(self, count: int) -> None:
        """Put the one message that waits so many times more."""

    def waiting(self) -> int:
        """Return how many messages wait in the queue of Celery."""


class Darner:
    """A darner of the bench's own."""

    name = "darner"

    def __init__(self, directory: Path, port: int, configuration: str = "") -> None:
        self.port = port
        self._address = f"127.0.0.1:{port}"
        self.url = f"darner://{self._address}"
        self._server = OwnServer(directory, configuration, port=port)

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self._listening = self._server.start()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._server.kill()

    def resident_bytes(self) -> int:
        """Return its resident memory."""
        return self._listening.resident_bytes()

    def multiply(self, count: int) -> None:
        """Put the one message that waits so many times more."""
        with Client(self._address) as client:
            item = client.peek(QUEUE)
            assert item is not None
            for at in range(0, count, BATCH):
                client.put_many(QUEUE, [item.value] * min(BATCH, count - at))

    def waiting(self) -> int:
        """Return how many messages wait in the queue of Celery."""
        with Client(self._address) as client:
            return client.queues()[QUEUE].items


class Redis:
    """Debian's Redis."""

    def __init__(self, directory: Path, port: int, *, appends: bool) -> None:
        self.name = "redis-aof" if appends else "redis"
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        assert REDIS
        self._command = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
        self._command += ["--logfile", str(directory / "log"), "--appendonly", "yes" if appends else "no"]
        directory.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self._process = subprocess.Popen(self._command)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > deadline:
                raise click.ClickException("redis-server does not start")
            time.sleep(0.01)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(100) == b"+PONG\r\n"
        return False

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait()

    def resident_bytes(self) -> int:
        """Return its resident memory."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def multiply(self, count: int) -> None:
        """Put the one message that waits so many times more."""
        from redis import Redis as Client  # noqa: PLC0415  # installed where there is a Redis to measure

        with Client(port=self.port) as client:
            message = client.lindex(QUEUE, 0)
            assert message is not None
            for at in range(0, count, BATCH):
                client.lpush(QUEUE, *[message] * min(BATCH, count - at))

    def waiting(self) -> int:
        """Return how many messages wait in the queue of Celery."""
        from redis import Redis as Client  # noqa: PLC0415

        with Client(port=self.port) as client:
            return int(client.llen(QUEUE))


def available(names: Sequence[str]) -> list[str]:
    """Return those of these brokers that can run here, and say which cannot."""
    if REDIS is None and (missing := [name for name in names if name.startswith("redis")]):
        click.echo(f"there is no redis-server: not run: {', '.join(missing)}", err=True)
    return [name for name in names if name == "darner" or REDIS is not None]


@contextlib.contextmanager
def running(name: str, data_in: Path | None, configuration: str = "") -> Iterator[Broker]:
    """Start a broker with data of its own in a new directory inside this one; end it and delete that."""
    with tempfile.TemporaryDirectory(prefix="darner-bench-", dir=data_in) as own:
        broker: Broker
        if name == "darner":
            broker = Darner(Path(own), free_port(), configuration)
        else:
            broker = Redis(Path(own), free_port(), appends=name == "redis-aof")
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()
