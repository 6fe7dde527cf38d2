"""The cluster that other tests fail on purpose: it starts fast, and each failure is one."""

import asyncio
import contextlib
import socket
import time

import pytest
from nats_cluster import NatsCluster, nats_cluster
from reserved_ports import reserved_ports
from running import until
from tcp_links import tcp_links

nats = pytest.importorskip("nats")
PUBLISH_S = 3
STREAM = {"name": "s", "subjects": ["s.>"]}


def use(*urls, work):
    """Run `await work(jetstream)` on a connection to one of these servers, and return what it gives."""

    async def connected():
        client = await nats.connect(list(urls), connect_timeout=2, max_reconnect_attempts=1)
        try:
            return await work(client.jetstream(timeout=2))
        finally:
            await client.close()

    return asyncio.run(connected())


def add_stream(cluster: NatsCluster) -> None:
    async def add(js):
        is_added = False
        while not is_added:
            # nobody answers what is asked while nodes that have just started elect their leader
            with contextlib.suppress(nats.errors.TimeoutError):
                await js.add_stream(**STREAM, num_replicas=len(cluster.nodes))
                is_added = True

    use(*cluster.urls, work=add)


def publish(*urls: str) -> int:
    async def publish(js):
        deadline = time.monotonic() + PUBLISH_S
        while True:
            try:
                return (await js.publish("s.a", b"x", timeout=PUBLISH_S)).seq
            except nats.js.errors.NoStreamResponseError:
                # the stream's leader may not have told this node yet that it has the stream
                if time.monotonic() > deadline:
                    raise

    return use(*urls, work=publish)


@pytest.mark.alone
def test_one_node_serves_within_two_seconds(tmp_path):
    began = time.monotonic()
    with nats_cluster(tmp_path, 1) as cluster:
        assert time.monotonic() - began < 2
        add_stream(cluster)
        assert publish(*cluster.urls) == 1


@pytest.mark.alone
@pytest.mark.parametrize("can_cut", [False, True])
def test_three_nodes_serve_within_five_seconds(tmp_path, can_cut):
    began = time.monotonic()
    with nats_cluster(tmp_path, can_cut=can_cut) as cluster:
        assert time.monotonic() - began < 5
        add_stream(cluster)
        assert publish(*cluster.urls) == 1
        assert cluster.leader_of("s") in cluster.nodes


def test_the_sync_interval_and_other_settings_reach_the_server(tmp_path):
    with nats_cluster(tmp_path, 1, sync_interval="always", extra="max_payload: 4321\n") as cluster:
        node = cluster.nodes[0]
        assert node.ask("/jsz")["config"]["sync_always"] is True
        assert node.ask("/varz")["max_payload"] == 4321


def test_a_leader_that_is_killed_or_paused_is_replaced(tmp_path):
    with nats_cluster(tmp_path) as cluster:
        add_stream(cluster)
        first = cluster.leader_of("s")
        first.kill()
        second = cluster.leader_of("s")
        assert second is not first
        first.start()
        cluster.wait_until_ready()
        second.pause()
        third = cluster.leader_of("s")
        assert third is not second
        until(lambda: _publishes(third.url))
        second.resume()
        cluster.wait_until_ready()
        assert cluster.meta_leader() in cluster.nodes


def test_a_node_that_is_isolated_stores_nothing_until_it_is_healed(tmp_path):
    with nats_cluster(tmp_path, can_cut=True) as cluster:
        add_stream(cluster)
        lonely = cluster.leader_of("s")
        cluster.isolate(lonely)
        with pytest.raises(nats.errors.Error):
            publish(lonely.url)
        others = [node for node in cluster.nodes if node is not lonely]
        until(lambda: _publishes(others[0].url))
        cluster.heal()
        cluster.wait_until_ready()
        assert publish(lonely.url) > 1


def _publishes(url: str) -> bool:
    with contextlib.suppress(nats.errors.Error):
        return publish(url) > 0
    return False


def test_a_node_comes_back_with_the_disk_that_it_had(tmp_path):
    with nats_cluster(tmp_path / "nodes", 1) as cluster:
        node = cluster.nodes[0]
        add_stream(cluster)
        publish(node.url)
        node.copy_disk(tmp_path / "copy")
        assert publish(node.url) == 2
        node.stop()
        node.restore_disk(tmp_path / "copy")
        cluster.start()
        assert publish(node.url) == 2


def test_all_nodes_are_restarted_one_by_one(tmp_path):
    with nats_cluster(tmp_path) as cluster:
        add_stream(cluster)
        publish(*cluster.urls)
        before = {node.name: node.process.pid for node in cluster.nodes}
        cluster.restart_each()
        assert not before.items() & {node.name: node.process.pid for node in cluster.nodes}.items()
        # the others may not know yet who leads
        assert publish(cluster.leader_of("s").url) == 2


def test_a_node_that_cannot_start_says_why(tmp_path):
    with (
        pytest.raises(AssertionError, match=r"nats\.conf:5"),
        nats_cluster(tmp_path, 1, extra="max_payload: none\n"),
    ):
        pass


@pytest.mark.parametrize("loses", [False, True])
def test_a_cut_link_holds_back_what_is_sent_until_it_is_healed_or_loses_it(loses):
    with (
        reserved_ports(2) as (port, target),
        tcp_links() as links,
        socket.create_server(("127.0.0.1", target)) as server,
    ):
        link = links.open(port, target)
        with socket.create_connection(("127.0.0.1", port), 5) as sender, server.accept()[0] as receiver:
            receiver.settimeout(5)
            sender.sendall(b"before")
            assert receiver.recv(100) == b"before"
            links.cut(link)
            sender.sendall(b"during")
            receiver.settimeout(0.1)
            with pytest.raises(TimeoutError):
                receiver.recv(100)
            links.heal(link, loses=loses)
            receiver.settimeout(5)
            assert _received(receiver) == (b"" if loses else b"during")
        with socket.create_connection(("127.0.0.1", port), 5) as sender, server.accept()[0] as receiver:
            sender.sendall(b"after")
            assert receiver.recv(100) == b"after"


def _received(connection: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(100)
    return b""
