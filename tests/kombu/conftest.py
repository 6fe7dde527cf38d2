"""Connections of kombu to a real server."""

import contextlib
import itertools

import kombu
import pytest
from running import configured

import darner.kombu  # noqa: F401, for its aliases

numbers = itertools.count(1)
SETTINGS = """
[queue_defaults]
max_open_reads = 1000
[queues."*#fanout"]
fanout_only = true
"""


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """One server for all tests that leave nothing behind but queues of their own."""
    with configured(tmp_path_factory.mktemp("broker"), SETTINGS) as server:
        yield server


@pytest.fixture
def connect(broker):
    """Return what connects to `broker`; all connections are closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(**options):
            url = f"darner://127.0.0.1:{broker.port}"
            return stack.enter_context(kombu.Connection(url, transport_options=options))

        yield connect


@pytest.fixture
def connection(connect):
    """A connection to `broker`."""
    return connect()


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"name{next(numbers)}"
