"""The sync client and one server: what each method does."""

import threading
import time

import pytest
from running import until

from darner.client import (
    BadRequestError,
    Client,
    CodecError,
    ItemTooLargeError,
    PutManyError,
    QueueFullError,
    QueueStats,
    ReservationLostError,
    ServerStats,
)


def drain(client: Client, queue: str) -> list[bytes]:
    return list(iter(lambda: client.get(queue), None))


def put_when_waited_for(client: Client, queue: str, value: bytes) -> threading.Thread:
    """Put a value as soon as somebody waits at a queue."""

    def put() -> None:
        until(lambda: queue in (queues := client.queues()) and queues[queue].waiters)
        client.put(queue, value)

    thread = threading.Thread(target=put)
    thread.start()
    return thread


class TestPut:
    def test_is_got_once(self, client, queue):
        client.put(queue, b"x")
        assert client.get(queue) == b"x"
        assert client.get(queue) is None

    @pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 3_000_000])
    def test_of_any_size_comes_back_whole(self, client, queue, size):
        value = bytes(range(256)) * (size // 256) + bytes(size % 256)
        client.put(queue, value)
        client.put(queue, b"behind")
        assert client.get(queue) == value
        assert client.get(queue) == b"behind"

    def test_with_a_delay_is_out_of_sight_until_then(self, client, queue):
        began = time.monotonic()
        client.put(queue, b"late", delay=0.2)
        assert client.get(queue) is None
        assert client.get(queue, timeout=10) == b"late"
        assert time.monotonic() - began >= 0.2

    def test_that_expires_is_dropped(self, client, queue):
        client.put(queue, b"brief", expire=1)
        client.put(queue, b"lasting", expire=100_000_000)
        until(lambda: client.peek(queue).value == b"lasting")
        assert drain(client, queue) == [b"lasting"]

    def test_with_an_id_is_stored_once(self, client, queue):
        for _ in range(3):
            client.put(queue, b"x", id="order-17")
        client.put(queue, b"x", id="order-18")
        assert drain(client, queue) == [b"x", b"x"]

    def test_with_sync_is_stored(self, client, queue):
        client.put(queue, b"x", sync=True, delay=0.001, expire=60, id=b"all")
        assert client.get(queue, timeout=10) == b"x"

    @pytest.mark.parametrize(
        "options", [{"delay": -1}, {"expire": -1}, {"id": "a b"}, {"id": ""}, {"delay": float("nan")}]
    )
    def test_that_makes_no_sense_is_refused_and_nothing_is_stored(self, client, queue, options):
        with pytest.raises(BadRequestError):
            client.put(queue, b"x", **options)
        assert client.get(queue) is None

    def test_of_a_queue_that_is_full_or_of_a_value_too_large_is_an_error(self, client):
        client.put_many("small", [b"1", b"2"])
        with pytest.raises(QueueFullError):
            client.put("small", b"3")
        assert drain(client, "small") == [b"1", b"2"]
        for size in (1001, 100_000, 3_000_000):
            with pytest.raises(ItemTooLargeError):
                client.put("small", bytes(size))
        client.put("small", b"the connection is in step")
        assert drain(client, "small") == [b"the connection is in step"]


class TestPutMany:
    def test_keeps_the_order(self, client, queue):
        values = [b"%d" % number for number in range(1000)]
        client.put_many(queue, values)
        assert drain(client, queue) == values

    def test_of_large_and_small_values_keeps_the_order(self, client, queue):
        values = [bytes([number]) * size for number, size in enumerate([1, 100_000, 2, 3_000_000, 70_000, 5])]
        client.put_many(queue, values)
        assert drain(client, queue) == values

    def test_of_nothing_does_nothing(self, client, queue):
        client.put_many(queue, [])
        client.put_many(queue, [], ids=[])
        assert client.get(queue) is None

    def test_with_ids_stores_each_once(self, client, queue):
        client.put_many(queue, [b"a", b"b"], ids=["1", "2"])
        client.put_many(queue, [b"b", b"c"], ids=["2", "3"])
        assert drain(client, queue) == [b"a", b"b", b"c"]

    def test_wants_an_id_for_each_or_none(self, client, queue):
        with pytest.raises(BadRequestError, match="1 ids for 2 values"):
            client.put_many(queue, [b"a", b"b"], ids=["1"])
        assert client.get(queue) is None

    def test_says_of_each_value_whether_it_was_stored(self, client):
        with pytest.raises(PutManyError, match="2 of 4 values were stored for sure") as raised:
            client.put_many("small", [b"1", b"2", b"3", b"4"])
        assert raised.value.stored == 2
        assert [type(outcome) for outcome in raised.value.outcomes] == [type(None)] * 2 + [QueueFullError] * 2
        assert drain(client, "small") == [b"1", b"2"]

    def test_sends_no_more_once_one_has_failed(self, client):
        with pytest.raises(PutManyError) as raised:
            client.put_many("small", [bytes(900)] * 2000)
        assert raised.value.stored == 2
        assert not isinstance(raised.value.outcomes[-1], QueueFullError)
        assert len(drain(client, "small")) == 2


class TestGet:
    def test_waits_for_an_item(self, client, queue):
        putting = put_when_waited_for(client, queue, b"x")
        assert client.get(queue, timeout=30) == b"x"
        putting.join()

    def test_gives_none_when_nothing_came_in_time(self, client, queue):
        began = time.monotonic()
        assert client.get(queue, timeout=0.1) is None
        assert time.monotonic() - began >= 0.1

    def test_of_several_queues_takes_from_the_first_that_has_an_item(self, client, queue):
        queues = [queue + "urgent", queue + "normal"]
        client.put(queues[1], b"normal")
        client.put(queues[0], b"urgent")
        assert [client.get(queues), client.get(queues), client.get(queues)] == [b"urgent", b"normal", None]

    def test_of_several_queues_waits_at_all(self, client, queue):
        putting = put_when_waited_for(client, queue, b"x")
        assert client.get([queue + "urgent", queue], timeout=30) == b"x"
        putting.join()

    @pytest.mark.parametrize("queues", ["", [], ["a", "a"], "a/open", "a b", b"a\r\n", [7]])
    def test_of_no_queue_is_refused(self, client, queues):
        with pytest.raises(BadRequestError):
            client.get(queues)


class TestPeek:
    def test_leaves_the_item(self, standing, client, queue):
        assert client.peek(queue) is None
        client.put(queue, b"x")
        item = client.peek(queue)
        assert (item.value, item.queue, item.attempts) == (b"x", queue, 0)
        assert item.server == f"127.0.0.1:{standing.port}"
        assert client.get(queue) == b"x"

    def test_of_several_queues_tells_which(self, client, queue):
        client.put(queue, b"x")
        assert client.peek([queue + "urgent", queue]).queue == queue

    def test_of_a_cursor_is_its_next_item(self, client, queue):
        client.put_many(queue, [b"a", b"b"])
        assert client.get(queue + "/cursor=c") == b"a"
        assert client.peek(queue + "/cursor=c").value == b"b"
        assert client.peek(queue).value == b"a"


class TestBrowse:
    @pytest.mark.parametrize("page", [1, 7, 1000])
    def test_gives_all_in_order_and_leaves_them(self, client, queue, page):
        values = [b"%d" % number for number in range(200)]
        client.put_many(queue, values)
        items = list(client.browse(queue, page=page))
        assert [item.value for item in items] == values
        assert [item.id for item in items] == sorted(item.id for item in items)
        assert client.queues()[queue].items == 200

    def test_starts_at_an_id(self, client, queue):
        client.put_many(queue, [b"a", b"b", b"c"])
        first, *_ = client.browse(queue)
        assert [item.value for item in client.browse(queue, start=first.id + 1)] == [b"b", b"c"]

    def test_finds_what_lies_behind_a_gap(self, client, queue):
        client.put_many(queue, [b"%d" % number for number in range(300)], expire=1)
        client.put(queue, b"last")
        until(lambda: client.queues()[queue].expired_items == 300 or client.peek(queue).value == b"last")
        assert [item.value for item in client.browse(queue)] == [b"last"]

    def test_of_an_empty_queue_gives_nothing(self, client, queue):
        assert list(client.browse(queue)) == []

    @pytest.mark.parametrize("options", [{"start": 0}, {"page": 0}])
    def test_from_nowhere_is_refused(self, client, queue, options):
        with pytest.raises(BadRequestError):
            list(client.browse(queue, **options))


class TestReserve:
    def test_closes_the_item_at_the_end(self, client, queue):
        client.put(queue, b"x")
        with client.reserve(queue) as item:
            assert (item.value, item.queue, item.attempts) == (b"x", queue, 0)
            assert item.token == item.id
            assert client.queues()[queue].open_transactions == 1
        assert client.queues()[queue].open_transactions == 0
        assert client.get(queue) is None

    def test_puts_the_item_back_after_an_exception(self, client, queue):
        client.put_many(queue, [b"x", b"y"])
        with pytest.raises(KeyError), client.reserve(queue):
            raise KeyError
        with client.reserve(queue) as item:
            assert (item.value, item.attempts) == (b"x", 1)

    def test_gives_none_when_nothing_came_in_time(self, client, queue):
        with client.reserve(queue, timeout=0.05) as item:
            assert item is None

    def test_waits_for_an_item_at_several_queues(self, client, queue):
        putting = put_when_waited_for(client, queue, b"x")
        with client.reserve([queue + "urgent", queue], timeout=30) as item:
            assert (item.value, item.queue) == (b"x", queue)
        putting.join()
        assert client.get(queue) is None

    def test_retried_comes_again_after_a_pause(self, client, queue):
        client.put(queue, b"x")
        with client.reserve(queue) as item:
            item.retry(delay=0.1)
            assert client.queues()[queue].delayed_items == 1
        with client.reserve(queue, timeout=10) as item:
            assert (item.value, item.attempts) == (b"x", 1)
            item.retry()
        assert client.get(queue) == b"x"

    def test_closed_or_aborted_early_ends_then(self, client, queue):
        client.put_many(queue, [b"x", b"y"])
        with client.reserve(queue) as item:
            item.close()
            with client.reserve(queue) as other:
                other.abort()
                assert client.get(queue) == b"y"
        assert client.get(queue) is None

    def test_ends_once(self, client, queue):
        client.put(queue, b"x")
        with client.reserve(queue) as item:
            item.close()
            for again in (item.close, item.abort, item.retry):
                with pytest.raises(BadRequestError, match="has ended"):
                    again()

    def test_with_a_bad_delay_is_still_held(self, client, queue):
        client.put(queue, b"x")
        with client.reserve(queue) as item:
            with pytest.raises(BadRequestError):
                item.retry(delay=-1)
            item.close()
        assert client.get(queue) is None

    def test_that_went_back_meanwhile_is_lost(self, client):
        client.put("forgetful", b"x")
        with pytest.raises(ReservationLostError), client.reserve("forgetful"):
            assert client.get("forgetful", timeout=10) == b"x"
        client.put("forgetful", b"the connection is in step")
        assert client.get("forgetful") == b"the connection is in step"

    def test_goes_back_if_the_client_closes_with_its_end_only(self, standing, queue):
        with Client(f"127.0.0.1:{standing.port}") as client:
            client.put(queue, b"x")
            with client.reserve(queue) as item:
                client.close()
                item.close()
        with Client(f"127.0.0.1:{standing.port}") as other:
            assert other.get(queue) is None


class TestReserveMany:
    def test_gives_what_there_is_and_closes_all(self, client, queue):
        values = [b"%d" % number for number in range(30)]
        client.put_many(queue, values)
        with client.reserve_many(queue, 20) as items:
            assert [item.value for item in items] == values[:20]
        with client.reserve_many(queue, 20) as items:
            assert [item.value for item in items] == values[20:]
        with client.reserve_many(queue, 20) as items:
            assert items == []

    def test_gives_no_more_than_one_connection_may_hold(self, client, queue):
        client.put_many(queue, [b"%d" % number for number in range(60)])
        with client.reserve_many(queue, 100) as items:
            assert len(items) == 50

    def test_gives_one_of_a_queue_that_lets_one_be_held(self, client):
        client.put_many("one_at_a_time", [b"a", b"b"])
        for value in (b"a", b"b"):
            with client.reserve_many("one_at_a_time", 10) as (item,):
                assert item.value == value

    def test_puts_all_back_in_order_after_an_exception(self, client, queue):
        values = [b"%d" % number for number in range(10)]
        client.put_many(queue, values)
        with pytest.raises(KeyError), client.reserve_many(queue, 10):
            raise KeyError
        assert drain(client, queue) == values

    def test_ends_those_that_have_not_ended(self, client, queue):
        client.put_many(queue, [b"a", b"b", b"c", b"d"])
        with client.reserve_many(queue, 4) as (a, b, c, d):
            c.close()
            a.close()
            b.retry(delay=0.01)
            d.abort()
        assert client.get(queue) == b"d"
        assert client.get(queue, timeout=10) == b"b"

    def test_waits_for_the_first(self, client, queue):
        putting = put_when_waited_for(client, queue, b"x")
        with client.reserve_many(queue, 10, timeout=30) as items:
            assert [item.value for item in items] == [b"x"]
        putting.join()

    def test_of_several_queues_takes_the_urgent_first(self, client, queue):
        queues = [queue + "urgent", queue]
        client.put_many(queue, [b"1", b"2"])
        client.put_many(queues[0], [b"3", b"4"])
        with client.reserve_many(queues, 10) as items:
            assert [item.value for item in items] == [b"3", b"4", b"1", b"2"]
            assert [item.queue for item in items] == [queues[0]] * 2 + [queue] * 2
        assert client.get(queues) is None

    def test_of_large_items_gives_each_whole(self, client, queue):
        values = [bytes([number]) * 300_000 for number in range(20)]
        client.put_many(queue, values)
        with client.reserve_many(queue, 20) as items:
            assert [item.value for item in items] == values

    def test_of_none_is_refused(self, client, queue):
        with pytest.raises(BadRequestError):
            client.reserve_many(queue, 0)


class TestFigures:
    def test_of_queues_are_typed(self, client, queue):
        client.put_many(queue, [b"abc", b"de"])
        stats = client.queues()[queue]
        assert isinstance(stats, QueueStats)
        assert (stats.name, stats.items, stats.bytes, stats.total_items) == (queue, 2, 5, 2)

    def test_of_the_server_are_typed(self, standing, client):
        stats = client.stats()
        assert isinstance(stats, ServerStats)
        assert stats.pid == standing.process.pid
        assert stats.curr_connections >= 1
        assert stats.extra["threads"] == "1"


class TestAdministration:
    def test_flush_discards_what_waits(self, client, queue):
        client.put_many(queue, [b"a", b"b"])
        client.flush(queue)
        assert client.get(queue) is None

    def test_delete_drops_a_queue_or_a_cursor(self, client, queue):
        client.put_many(queue, [b"a", b"b"])
        assert client.get(queue + "/cursor=c") == b"a"
        client.delete(queue + "/cursor=c")
        assert client.get(queue + "/cursor=c") == b"a"
        client.delete(queue)
        assert queue not in client.queues()

    def test_configure_changes_settings_and_raises_what_is_wrong(self, client, queue):
        client.configure(queue, max_items=1, discard_old_when_full=True, max_age="5m", sync="never")
        client.put_many(queue, [b"a", b"b"])
        assert drain(client, queue) == [b"b"]
        client.configure(queue, discard_old_when_full=None)
        client.put(queue, b"a")
        with pytest.raises(QueueFullError):
            client.put(queue, b"b")
        with pytest.raises(BadRequestError, match="max_items is 0"):
            client.configure(queue, max_items=0)
        for wrong in ({"max_age": "5 m"}, {"a b": 1}, {"max_age": "1\r\nflush_all"}):
            with pytest.raises(BadRequestError, match="no settings"):
                client.configure(queue, **wrong)
        client.configure(queue + "+child")
        assert queue + "+child" in client.queues()

    def test_status_is_asked_and_set(self, client):
        assert client.status() == "up"
        try:
            assert client.status("readonly") == "readonly"
            assert client.status() == "readonly"
        finally:
            assert client.status("up") == "up"
        with pytest.raises(BadRequestError):
            client.status("down")


class TestCodec:
    @pytest.mark.parametrize("codec", ["json", "pickle"])
    def test_gives_back_what_was_put(self, standing, queue, codec):
        value = {"order": 17, "to": ["Zoë"]}
        with Client(f"127.0.0.1:{standing.port}", codec=codec) as client:
            client.put_many(queue, [value, value])
            assert client.get(queue) == value
            with client.reserve(queue) as item:
                assert item.value == value

    def test_error_has_the_bytes_that_were_taken(self, standing, client, queue):
        client.put(queue, b"no json")
        with (
            Client(f"127.0.0.1:{standing.port}", codec="json") as reader,
            pytest.raises(CodecError) as raised,
        ):
            reader.get(queue)
        assert raised.value.data == b"no json"
