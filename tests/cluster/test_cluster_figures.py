"""Bytes and order over a cluster: rows of docs/scale-out.md."""

import re

import pytest
from nats_cluster import nats_cluster
from programs import program
from running import Wire

pytest.importorskip("nats")
CONFIG = """
durability = "replicated"
replicas = 1
port = 0
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with nats_cluster(tmp_path_factory.mktemp("nodes"), 1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ports(cluster, tmp_path_factory):
    """The ports of two darners."""
    path = tmp_path_factory.mktemp("darners") / "darner.toml"
    path.write_text(f'store = "{cluster.urls[0]}"\n{CONFIG}')
    with program("-m", "darner", "--config", path) as one, program("-m", "darner", "--config", path) as other:
        found = []
        for started in (one, other):
            started.wait_for("data in a cluster")
            found.append(int(re.search(r"event=listening host=\S+ port=(\d+)", started.output)[1]))
        yield found


@pytest.fixture
def wire(ports):
    wire = Wire(ports[0])
    yield wire
    wire.close()


@pytest.fixture
def other(ports):
    wire = Wire(ports[1])
    yield wire
    wire.close()


def test_bytes_are_those_that_the_stream_takes(wire):
    assert wire.set(b"bytes", b"x" * 100) == b"STORED\r\n"
    assert int(wire.stats()["queue_bytes_bytes"]) > 100


def test_an_aborted_item_comes_before_those_that_were_never_fetched(wire, other):
    for item in (b"1", b"2", b"3"):
        assert wire.set(b"order", item) == b"STORED\r\n"
    assert wire.get(b"order/open") == b"1"
    assert other.get(b"order/open") == b"2"
    wire.send(b"get order/abort\r\n")
    assert wire.line() == b"END\r\n"
    assert wire.get(b"order/t=5000") == b"1"
    other.send(b"get order/abort\r\n")
    assert other.line() == b"END\r\n"
    # a get by way of the other darner may be at the cluster before the abort is
    assert [other.get(b"order/t=5000") for _ in range(2)] == [b"2", b"3"]
