"""Fixtures for all tests."""

import itertools

import pytest
from brokers import Data
from leveldbs import open_leveldbs
from lone_queue import LoneQueue
from running import Server, Wire, running, running_well

numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def leaves_no_leveldb_open():
    """Fail a test that leaves a LevelDB open: its memory and descriptors would burden all that follow."""
    before = open_leveldbs()
    yield
    assert open_leveldbs() <= before


@pytest.fixture
def it(tmp_path) -> LoneQueue:
    """A queue without a broker."""
    it = LoneQueue(tmp_path / "data")
    yield it
    it.close()


@pytest.fixture
def data(tmp_path) -> Data:
    """A data directory with its broker."""
    data = Data(tmp_path / "data")
    yield data
    data.close()


@pytest.fixture(params=[True, False], ids=["on disk", "in memory"])
def is_durable(request) -> bool:
    """Whether a queue is on disk; a test with this is run for both."""
    return request.param


@pytest.fixture
def server(tmp_path) -> Server:
    """A server for this test alone."""
    with running(tmp_path / "data") as server:
        yield server


@pytest.fixture
def wire(server) -> Wire:
    """A connection to `server`."""
    wire = server.connect()
    yield wire
    wire.close()


@pytest.fixture(scope="session")
def standing(tmp_path_factory) -> Server:
    """One server for all tests that leave nothing behind but queues of their own."""
    with running_well(tmp_path_factory.mktemp("standing") / "data") as server:
        yield server


@pytest.fixture
def client(standing) -> Wire:
    """A connection to `standing`."""
    client = standing.connect()
    yield client
    client.close()


@pytest.fixture
def other(standing) -> Wire:
    """A second connection to `standing`."""
    other = standing.connect()
    yield other
    other.close()


@pytest.fixture
def queue() -> bytes:
    """The name of a queue that no other test uses."""
    return b"queue%d-" % next(numbers)
