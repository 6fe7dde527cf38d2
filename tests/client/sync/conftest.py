"""A server for the tests of the clients."""

import itertools

import pytest
from running import Server, configured

from darner.client import Client

numbers = itertools.count(1)

SETTINGS = """
[queue_defaults]
max_open_reads = 50
[queues.one_at_a_time]
max_open_reads = 1
[queues.small]
max_items = 2
max_item_size = 1000
[queues.forgetful]
open_timeout = "10ms"
"""


@pytest.fixture(scope="session")
def standing(tmp_path_factory) -> Server:
    """One server for all tests that leave nothing behind but queues of their own."""
    with configured(tmp_path_factory.mktemp("clients"), SETTINGS) as server:
        yield server
        assert server.stop() == 0
    assert "Traceback" not in server.log


@pytest.fixture
def client(standing) -> Client:
    with Client(f"127.0.0.1:{standing.port}") as client:
        yield client


@pytest.fixture
def queue() -> str:
    """The name of a queue that no other test uses."""
    return f"work{next(numbers)}-"
