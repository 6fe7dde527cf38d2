"""Debian's Redis, the control beside darner."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def redis_port() -> Iterator[int]:
    """Start a Redis, and kill it at the end; gives its port. Skip the test where there is none."""
    brokers = pytest.importorskip("load.brokers")
    pytest.importorskip("redis")
    if brokers.REDIS is None:
        pytest.skip("there is no redis-server")
    with brokers.running("redis-aof", None) as redis:
        yield redis.port
