"""What a cluster does not serve is refused by name, at start or when it is asked for."""

import pytest
from nats_cluster import nats_cluster
from old_nats import old_nats
from running import refused


@pytest.fixture
def refused_with(tmp_path):
    """Start a server that does not start with this configuration; return the line it logs."""

    def refused_with(url: str, text: str, *options: str) -> str:
        path = tmp_path / "refused.toml"
        path.write_text(text)
        return refused("--store", url, "--port", "0", "--config", str(path), *options)

    return refused_with


class TestStart:
    def test_before_an_older_nats_server_is_refused_by_node_and_version(self, refused_with):
        with old_nats("2.14.4") as url:
            line = refused_with(url, 'durability = "replicated"\n')
        assert "node n1 of the cluster is nats-server 2.14.4: upgrade it to 2.14.5 or later" in line

    def test_before_nodes_that_do_not_sync_is_refused_unless_that_is_said(self, refused_with, tmp_path):
        extra = """
accounts {
    APP: {jetstream: enabled, users: [{user: app, password: p}]}
    SYS: {users: [{user: sys, password: p}]}
}
system_account: SYS
"""
        with nats_cluster(tmp_path / "nats", 1, extra=extra) as cluster:
            place = cluster.urls[0].removeprefix("nats://")
            line = refused_with(f"nats://app:p@{place}", f'store_system = "nats://sys:p@{place}"\n')
        assert "node n1 of the cluster acknowledges before it syncs: set sync_interval: always" in line
        assert "durability = " in line

    def test_without_store_system_is_refused_unless_that_is_said(self, refused_with):
        line = refused_with("nats://127.0.0.1:1", "")
        assert "needs store_system, to see that the nodes of the cluster sync what they store" in line

    def test_before_a_cluster_that_is_not_there_is_refused(self, refused_with):
        line = refused_with("nats://127.0.0.1:1", 'durability = "replicated"\n')
        assert "cannot reach the cluster at nats://127.0.0.1:1" in line

    def test_with_aliases_is_refused(self, refused_with):
        line = refused_with("nats://127.0.0.1:1", 'durability = "replicated"\n[aliases]\nboth = ["a", "b"]\n')
        assert "is an alias, which a cluster (store) does not serve" in line


class TestQueue:
    @pytest.mark.parametrize(
        ("name", "setting"),
        [(b"bytes", b"max_bytes"), (b"moves", b"expire_to_queue"), (b"ages", b"max_queue_age")],
    )
    @pytest.mark.parametrize("request_", [b"set %s 0 0 1\r\nx\r\n", b"get %s\r\n", b"get %s/open\r\n"])
    def test_with_a_setting_that_is_not_served_is_refused(self, both, name, setting, request_):
        assert both[0].ask(request_ % name) == (
            b"SERVER_ERROR queue %s is not served: %s is not served by a cluster\r\n" % (name, setting)
        )
        assert both[0].stats()["queue_expires"] == "0"
        assert both[0].ask(b"version\r\n").startswith(b"VERSION ")

    def test_with_max_items_takes_no_delay_and_not_more(self, both):
        one, other = both
        assert one.ask(b"set limited/delay=100 0 0 1\r\nx\r\n") == (
            b"SERVER_ERROR queue limited takes no delay: in a cluster one with max_items takes it only with "
            b"discard_old_when_full\r\n"
        )
        assert one.set(b"limited", b"x") == b"STORED\r\n"
        assert other.set(b"limited", b"y") == b"STORED\r\n"
        assert one.set(b"limited", b"z") == b"NOT_STORED\r\n"
        assert one.take_all(b"limited") == [b"x", b"y"]

    def test_that_differs_from_its_parent_in_what_a_family_shares_is_refused(self, both):
        assert both[0].ask(b"get parent+child\r\n") == (
            b"SERVER_ERROR queue parent+child is not served: max_items differs from the parent's: in a "
            b"cluster a family shares it\r\n"
        )


class TestRequest:
    @pytest.mark.parametrize("request_", [b"get %s/cursor=c", b"get %s/cursor=c/t=10", b"delete %s/cursor=c"])
    def test_for_a_cursor_is_refused(self, both, queue, request_):
        one, _ = both
        assert one.ask(request_ % queue + b"\r\n").startswith(
            b"SERVER_ERROR cursors are not served by a cluster"
        )
        assert one.ask(b"version\r\n").startswith(b"VERSION ")

    def test_to_configure_is_refused(self, both):
        assert b"configure is not served by a cluster" in both[0].ask(b"configure q max_items=3\r\n")

    def test_to_sync_is_refused_where_nodes_need_not_sync(self, start):
        wire = start('durability = "replicated"\n').connect()
        assert wire.ask(b"set q/sync 0 0 1\r\nx\r\n") == (
            b'SERVER_ERROR /sync is not served with durability = "replicated"\r\n'
        )
        assert wire.get(b"q") is None

    @pytest.mark.parametrize("size", [(1 << 20) - 2047, 1 << 20, 5 << 20])
    def test_to_set_more_than_max_payload_is_refused_and_its_block_swallowed(self, both, queue, size):
        one, other = both
        assert one.set(queue, bytes(size)) == (
            b"SERVER_ERROR the item has %d bytes, and may have 1046528, the cluster's max_payload less its "
            b"headers\r\n" % size
        )
        assert one.set(queue, bytes(1046528)) == b"STORED\r\n"
        assert other.get(queue) == bytes(1046528)

    def test_to_set_with_limits_that_a_queue_cannot_get_any_more_is_refused_until_it_is_made_anew(
        self, start
    ):
        before = start("").connect()
        before.set(b"q", b"old")
        server = start("[queues.q]\nmax_items = 2\n")
        after = server.connect()
        refused = after.set(b"q", b"new")
        assert refused.startswith(
            b"SERVER_ERROR queue q is there with other settings, and a cluster cannot change"
        )
        assert after.get(b"q") == b"old"
        assert after.ask(b"delete q\r\n") == b"DELETED\r\n"
        replies = [after.set(b"q", b"new") for _ in range(3)]
        assert replies == [b"STORED\r\n", b"STORED\r\n", b"NOT_STORED\r\n"]
