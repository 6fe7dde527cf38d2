"""The settings of queues, as clients see them. A queue has the settings that its name begins with."""

import pytest
from running import running_well, until

from darner._records import CHUNK_BYTES

SETTINGS = """
[queues."few-*"]
max_items = 2
[queues."newest*"]
max_items = 2
discard_old_when_full = true
[queues."tiny*"]
max_item_size = 10
[queues."large*"]
max_item_size = 100_000
max_bytes = 150_000
[queues."held*"]
max_open_reads = 3
[queues."impatient*"]
open_timeout = "50ms"
[queues."old*"]
expire_to_queue = "late"
[queues."poison*"]
max_attempts = 2
dead_letter_queue = "dead"
"""


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """One server with these settings for all tests here."""
    directory = tmp_path_factory.mktemp("configured")
    (directory / "darner.toml").write_text(SETTINGS)
    with running_well(directory / "data", "--config", str(directory / "darner.toml")) as server:
        yield server


class TestFull:
    def test_queue_does_not_store(self, client):
        assert [client.set(b"few-1", b"x") for _ in range(3)] == [
            b"STORED\r\n",
            b"STORED\r\n",
            b"NOT_STORED\r\n",
        ]
        assert client.get(b"few-1") == b"x"
        assert client.set(b"few-1", b"x") == b"STORED\r\n"

    def test_queue_that_discards_stores(self, client):
        for data in (b"a", b"b", b"c"):
            assert client.set(b"newest-1", data) == b"STORED\r\n"
        assert client.take_all(b"newest-1") == [b"b", b"c"]

    @pytest.mark.leveldb("the cluster does not count what it discards")
    def test_queue_that_discards_counts_that(self, client):
        for _ in range(3):
            client.set(b"newest-2", b"x")
        assert client.stats()["queue_newest-2_discarded"] == "1"

    def test_queue_stays_in_step_and_counts_what_noreply_hides(self, client):
        before = int(client.stats()["noreply_errors"])
        client.send(b"set few-2 0 0 1 noreply\r\nx\r\n" * 3)
        assert client.ask(b"version\r\n").startswith(b"VERSION")
        assert int(client.stats()["noreply_errors"]) == before + 1

    def test_queue_is_as_full_for_all_at_once(self, client, other):
        client.send(b"set few-3 0 0 1\r\nx\r\n" * 50)
        other.send(b"set few-3 0 0 1\r\nx\r\n" * 50)
        replies = [client.line() for client in (client, other) for _ in range(50)]
        assert replies.count(b"STORED\r\n") == 2
        assert replies.count(b"NOT_STORED\r\n") == 98


class TestTooLarge:
    TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"

    @pytest.mark.parametrize(("queue", "size"), [(b"tiny-1", 11), (b"tiny-2", CHUNK_BYTES + 1)])
    def test_item_is_refused_and_swallowed(self, client, queue, size):
        assert client.set(queue, b"x" * size) == self.TOO_LARGE
        assert client.set(queue, b"x" * 10) == b"STORED\r\n"
        assert client.get(queue) == b"x" * 10

    @pytest.mark.leveldb("max_bytes is refused")
    def test_item_in_chunks_is_refused_when_the_queue_was_filled_meanwhile(self, client, other):
        size = 90_000
        client.send(b"set large-1 0 0 %d\r\n" % size + b"x" * (size - 1))
        assert other.set(b"large-1", b"y" * size) == b"STORED\r\n"
        assert client.ask(b"x\r\n") == b"NOT_STORED\r\n"
        assert client.get(b"large-1") == b"y" * size
        assert client.set(b"large-1", b"x" * size) == b"STORED\r\n"


class TestOpenReads:
    CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"

    def fill(self, client, queue):
        for number in range(5):
            client.set(queue, b"%d" % number)

    def test_may_be_several_and_no_more(self, client):
        self.fill(client, b"held-1")
        assert [client.get(b"held-1/open") for _ in range(3)] == [b"0", b"1", b"2"]
        assert client.ask(b"get held-1/open\r\n") == self.CLOSE_FIRST
        assert client.ask(b"get held-1\r\n") == self.CLOSE_FIRST
        assert client.ask(b"get held-1/peek held-1/close held-1/open held-1/open\r\n") == self.CLOSE_FIRST
        assert client.get(b"held-1/close/open") == b"3"
        assert client.get(b"held-1/close") is None
        assert client.get(b"held-1/open") == b"4"

    def test_are_closed_and_aborted_oldest_first(self, client):
        self.fill(client, b"held-2")
        for _ in range(3):
            client.get(b"held-2/open")
        client.get(b"held-2/close")
        client.get(b"held-2/abort")
        assert client.get(b"held-2/open") == b"1"

    def test_go_back_in_order_when_the_connection_ends(self, standing, client):
        self.fill(client, b"held-3")
        holder = standing.connect()
        for _ in range(3):
            holder.get(b"held-3/open")
        holder.get(b"held-3/abort")
        holder.get(b"held-3/open")
        holder.close()
        until(lambda: standing.stat("queue_held-3_open_transactions") == 0)
        assert [client.get(b"held-3") for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]

    def test_that_last_too_long_are_taken_back_and_nothing_is_left_to_close(self, client, other):
        client.set(b"impatient-1", b"x")
        assert client.get(b"impatient-1/open") == b"x"
        assert other.get(b"impatient-1/t=5000/open") == b"x"
        assert client.get(b"impatient-1/close") is None
        assert other.get(b"impatient-1/close") is None
        assert client.get(b"impatient-1") is None

    def test_that_come_back_too_often_go_to_the_dead_letter_queue(self, client):
        client.set(b"poison-1", b"x")
        for _ in range(2):
            assert client.get(b"poison-1/open") == b"x"
            client.get(b"poison-1/abort")
        assert client.get(b"poison-1") is None
        assert client.get(b"dead/t=5000") == b"x"


class TestExpired:
    @pytest.mark.leveldb("expire_to_queue is refused")
    def test_items_go_where_the_settings_say(self, client):
        client.set(b"old-1", b"x", exptime=-1)
        assert client.get(b"late/t=5000") == b"x"

    @pytest.mark.leveldb("the cluster does not count expired items")
    def test_items_are_swept_without_anybody_fetching(self, standing, client):
        client.set(b"swept", b"head")
        client.set(b"swept", b"x", exptime=-1)
        client.set(b"swept", b"tail")
        until(lambda: standing.stat("queue_swept_expired_items") == 1)
        assert [client.get(b"swept") for _ in range(3)] == [b"head", b"tail", None]

    # the sweep may be faster than the command, which then counts less

    @pytest.mark.leveldb("the cluster does not count expired items")
    def test_items_are_flushed_and_counted(self, client):
        client.send(b"set f1 0 0 1\r\nx\r\n" + b"set f1 0 -1 1\r\nx\r\n" * 3000 + b"flush_expired f1\r\n")
        assert [client.line() for _ in range(3001)] == [b"STORED\r\n"] * 3001
        assert 0 <= int(client.line()) <= 3000
        stats = client.stats()
        assert (stats["queue_f1_items"], stats["queue_f1_expired_items"]) == ("1", "3000")

    @pytest.mark.leveldb("the cluster does not count expired items")
    def test_items_of_all_queues_are_flushed_and_counted(self, client):
        client.send(b"set f2 0 -1 1\r\nx\r\nset f3 0 -1 1\r\nx\r\nFLUSH_ALL_EXPIRED\r\nflush_expired f2\r\n")
        assert [client.line() for _ in range(2)] == [b"STORED\r\n"] * 2
        assert 0 <= int(client.line()) <= 2
        assert client.line() == b"0\r\n"
        stats = client.stats()
        assert (stats["queue_f2_items"], stats["queue_f3_items"]) == ("0", "0")

    @pytest.mark.leveldb("expire_to_queue is refused")
    def test_items_that_move_are_counted_too(self, client):
        client.send(b"set old-2 0 -1 1\r\nx\r\n" * 1000 + b"flush_expired old-2\r\n")
        assert [client.line() for _ in range(1000)] == [b"STORED\r\n"] * 1000
        assert 0 <= int(client.line()) <= 1000
        stats = client.stats()
        assert (stats["queue_old-2_items"], stats["queue_late_items"]) == ("0", "1000")
        client.ask(b"flush late\r\n")

    def test_flush_of_a_queue_that_is_not_there_makes_none(self, client):
        assert client.ask(b"flush_expired nowhere\r\n") == b"0\r\n"
        assert "queue_nowhere_items" not in client.stats()

    @pytest.mark.parametrize(
        "line", [b"flush_expired", b"flush_expired a b", b"flush_expired a/b", b"flush_all_expired a"]
    )
    def test_flush_with_bad_arguments_is_refused(self, client, line):
        assert client.ask(line + b"\r\n").startswith(b"CLIENT_ERROR bad ")
