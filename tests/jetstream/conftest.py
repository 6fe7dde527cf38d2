"""Servers before a cluster of one node."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import running as servers
from cluster_accounts import ClusterAccounts
from running import DARNER, Server, Wire

Start = Callable[..., Server]
QUEUES = """\
ack_wait = "1s"
[queues.bytes]
max_bytes = 1000
[queues.moves]
expire_to_queue = "late"
[queues.ages]
max_queue_age = "1s"
[queues.limited]
max_items = 2
[queues.parent]
max_items = 2
[queues."parent+child"]
max_items = 3
[queues.many]
max_open_reads = 10
[queues.tried]
max_attempts = 2
dead_letter_queue = "dead"
[queues.short]
open_timeout = "300ms"
"""


@pytest.fixture(scope="session")
def accounts() -> Iterator[ClusterAccounts]:
    """A node with an account for each test."""
    if servers.CLUSTER is not None:
        yield servers.CLUSTER
        return
    with contextlib.closing(ClusterAccounts()) as accounts:
        yield accounts


@contextlib.contextmanager
def starting(accounts: ClusterAccounts, directory: Path) -> Iterator[Start]:
    """Give what starts servers of one account, each with its own configuration; they share all queues."""
    started: list[Server] = []
    numbers = itertools.count()

    def start(text: str = QUEUES, command: tuple[str, ...] = (DARNER,)) -> Server:
        path = directory / f"darner{next(numbers)}.toml"
        path.write_text(text)
        server = Server(directory / "queues", "--config", str(path), command=command, cluster=accounts)
        started.append(server)
        return server

    try:
        yield start
    finally:
        for server in started:
            if server.process.poll() is None:
                server.kill()


@pytest.fixture
def start(accounts, tmp_path) -> Iterator[Start]:
    """What starts servers of one account for this test."""
    with starting(accounts, tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def pair(accounts, tmp_path_factory) -> Iterator[tuple[Server, Server]]:
    """Two servers before the same queues, for all tests that leave nothing behind but queues of their own."""
    with starting(accounts, tmp_path_factory.mktemp("pair")) as start:
        yield start(), start()


@pytest.fixture
def both(pair) -> Iterator[tuple[Wire, Wire]]:
    """Connections to two servers."""
    wires = tuple(server.connect() for server in pair)
    yield wires
    for wire in wires:
        wire.close()
