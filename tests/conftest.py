"""Fixtures for all tests."""

import contextlib
import itertools
import math
from collections.abc import Iterator

import pytest
import running as servers
from brokers import Data
from cluster_accounts import ClusterAccounts
from leveldbs import open_leveldbs
from lone_queue import LoneQueue
from running import Server, Wire, running, running_well

numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Have the suites that talk to a server run against one before a cluster, too."""
    parser.addoption("--store", choices=["leveldb", "cluster"], default="leveldb")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Leave out what does not hold in a cluster, have what takes long there marked so, and begin with what
    takes long."""
    if config.getoption("--store") == "cluster":
        for item in items:
            if item.get_closest_marker("long_in_cluster") is not None:
                item.add_marker("long")
        kept = [item for item in items if item.get_closest_marker("leveldb") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
    yield
    # What may take longer than others has a timeout of its own: it comes first in each worker's share, or
    # one worker would have it left at the end.
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("timeout") is not None]
    others = [item for item in items if item.get_closest_marker("timeout") is None]
    share = math.ceil(len(others) / workers)
    items[:] = [
        item
        for worker in range(workers)
        for item in (*slow[worker::workers], *others[worker * share : (worker + 1) * share])
    ]


@pytest.fixture(scope="session", autouse=True)
def store(request) -> Iterator[str]:
    """Where servers keep their queues: "leveldb" or "cluster"."""
    store = request.config.getoption("--store")
    if store == "leveldb":
        yield store
        return
    with contextlib.closing(ClusterAccounts()) as servers.CLUSTER:
        yield store


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
