"""Fixtures for all tests."""

import itertools
from pathlib import Path

import pytest
from benches import Bench
from brokers import Data
from running import Server, Wire, running

numbers = itertools.count(1)


@pytest.fixture
def it(tmp_path) -> Bench:
    """A queue by itself."""
    it = Bench(tmp_path / "data")
    yield it
    it.close()


@pytest.fixture
def data(tmp_path) -> Data:
    """A data directory and its broker."""
    data = Data(tmp_path / "data")
    yield data
    data.close()


@pytest.fixture
def server(tmp_path) -> Server:
    with running(tmp_path / "data") as server:
        yield server


@pytest.fixture
def wire(server) -> Wire:
    wire = server.connect()
    yield wire
    wire.close()


@pytest.fixture(scope="session")
def standing(tmp_path_factory) -> Server:
    """One server for all tests that leave it as they found it but for queues of their own; whatever
    they did to it, it must have logged no traceback."""
    with running(Path(tmp_path_factory.mktemp("standing")) / "data") as server:
        yield server
        code = server.stop()
    assert "Traceback" not in server.log
    assert code == 0


@pytest.fixture
def client(standing) -> Wire:
    client = standing.connect()
    yield client
    client.close()


@pytest.fixture
def other(standing) -> Wire:
    other = standing.connect()
    yield other
    other.close()


@pytest.fixture
def queue() -> bytes:
    """The name of a queue nobody else uses."""
    return b"queue%d-" % next(numbers)
