"""What clients can make grow in a darner before a cluster, and for how long they may have to wait."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest
from cluster_darners import ACCOUNTS, ClusterDarner, cluster_darners
from cluster_stores import opened, stored, taken
from nats_cluster import NatsCluster, nats_cluster
from nats_node import NatsNode
from running import Wire, resident_bytes

from darner.jetstream import api, family, publishing, store
from darner.jetstream.link import PENDING_BYTES, Link


@pytest.fixture
def node(tmp_path) -> Iterator[NatsCluster]:
    """A cluster of one node."""
    with nats_cluster(tmp_path, 1) as cluster:
        yield cluster


def test_queues_that_nothing_is_set_to_are_kept_in_mind_for_a_bounded_time(node, monkeypatch):
    async def names_kept() -> tuple[int, int]:
        async with opened(Link(node.urls)) as queues:
            for number in range(20):
                assert await stored(queues, b"queue%d" % number) is None
                await taken(queues.steps_to_delete(b"queue%d" % number))
            before = len(queues._families)
            monkeypatch.setattr(store, "IDLE_S", 0.0)
            await asyncio.sleep(0.01)
            queues.tick()
            return before, len(queues._families) + len(queues.visible)

    assert asyncio.run(names_kept()) == (20, 0)


def test_what_waits_to_be_sent_to_a_node_that_reads_nothing_is_bounded(node):
    async def kept() -> int:
        async with opened(Link(node.urls)) as queues:
            assert await stored(queues, b"there") is None
            link = queues._link
            node.nodes[0].pause()
            most = 0
            for _ in range(5 * PENDING_BYTES // 65536):
                link.send("nowhere", bytes(65536))
                await asyncio.sleep(0)
                most = max(most, sum(len(payload) for _, payload, _, _ in link._outbox))
            node.nodes[0].resume()
            # what there was no room for is sent again
            assert await stored(queues, b"there") is None
            return most

    assert PENDING_BYTES / 2 < asyncio.run(kept()) <= PENDING_BYTES


@pytest.fixture
def darner(tmp_path) -> Iterator[tuple[NatsNode, ClusterDarner]]:
    """A darner before one node, with that node."""
    with (
        nats_cluster(tmp_path, 1, sync_interval="always", extra=ACCOUNTS) as cluster,
        cluster_darners(tmp_path, cluster, 1, 30) as (darner,),
    ):
        yield cluster.nodes[0], darner


def sent_until_full(wire: Wire, data: bytes, most: int) -> int:
    """Send this again and again until nothing is sent for a second, or so many bytes are; returns how many
    were."""
    wire.socket.settimeout(1.0)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < most:
            sent += wire.socket.send(data[sent % len(data) :])
    wire.socket.settimeout(30.0)
    return sent


def test_a_connection_has_few_sets_under_way_while_the_cluster_is_silent(darner):
    node, server = darner
    set_ = b"set q 0 0 1000\r\n" + bytes(1000) + b"\r\n"
    with contextlib.closing(server.connect()) as wire:
        assert wire.ask(set_) == b"STORED\r\n"
        before = resident_bytes(server.process)
        node.pause()
        sent = sent_until_full(wire, set_, 256 << 20)
        assert sent < 64 << 20  # most of them in the buffers of the sockets
        assert resident_bytes(server.process) - before < 32 << 20
        node.resume()
        for _ in range(sent // len(set_)):
            assert wire.line() == b"STORED\r\n"


def test_an_item_that_cannot_fit_is_not_kept_as_it_comes(darner):
    _, server = darner
    with contextlib.closing(server.connect()) as wire:
        before = resident_bytes(server.process)
        wire.send(b"set q 0 0 %d\r\n" % (1 << 30))
        for _ in range(256):
            wire.send(bytes(1 << 20))
        assert resident_bytes(server.process) - before < 32 << 20


def test_sets_to_a_cluster_that_is_silent_are_all_given_up_in_the_time_of_one(node, monkeypatch):
    for module in (api, family, publishing, store):
        monkeypatch.setattr(module, "GIVE_UP_S", 1.0)

    async def answers() -> tuple[list[object], float]:
        async with opened(Link(node.urls)) as queues:
            assert await stored(queues, b"there") is None
            node.nodes[0].pause()
            before = time.monotonic()
            names = [b"there", b"new", b"new", b"new+child", b"other"] * 4
            errors = await asyncio.gather(*(stored(queues, name) for name in names))
            took_s = time.monotonic() - before
            node.nodes[0].resume()
            return errors, took_s

    errors, took_s = asyncio.run(answers())
    assert all(errors)
    assert took_s < 4.5
