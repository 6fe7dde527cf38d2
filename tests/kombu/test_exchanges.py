"""Exchanges: who gets what, in one process and in several."""

import kombu
import pytest
from kombu.exceptions import ChannelError
from messaging import drained, publish

from darner.kombu import bindings


@pytest.fixture
def other(connect):
    """Another connection, as of another process."""
    return connect()


def payloads(messages):
    return [message.payload for message in messages]


def send(connection, exchange, key, *bodies):
    producer = connection.Producer(serializer="json")
    for body in bodies:
        producer.publish(body, exchange=exchange, routing_key=key, declare=[exchange])


def declare(connection, *queues):
    return [queue(connection.default_channel).declare() for queue in queues]


class TestDirect:
    def test_a_message_goes_to_all_queues_with_its_key_and_to_no_other(self, connection, other, name):
        exchange = kombu.Exchange(name)
        queues = [kombu.Queue(f"{name}{n}", exchange, routing_key=key) for n, key in enumerate("aab")]
        declare(connection, *queues)
        send(other, exchange, "a", 1)
        send(other, exchange, "c", 2)
        assert [payloads(drained(connection, queue)) for queue in queues] == [[1], [1], []]

    def test_a_queue_that_is_bound_later_is_found_and_one_that_is_unbound_no_more(
        self, connection, other, name
    ):
        exchange = kombu.Exchange(name)
        send(other, exchange, "k", 0)
        queue = kombu.Queue(name, exchange, routing_key="k")
        declare(connection, queue)
        send(other, exchange, "k", 1)
        assert payloads(drained(connection, queue)) == [1]
        queue(connection.default_channel).unbind_from(exchange, "k")
        send(other, exchange, "k", 2)
        assert payloads(drained(other, kombu.Queue(name))) == []

    def test_a_queue_that_is_deleted_is_not_made_again(self, broker, connection, other, name):
        exchange = kombu.Exchange(name)
        queue = kombu.Queue(name, exchange, routing_key="k")
        declare(connection, queue)
        send(other, exchange, "k", 1)
        queue(connection.default_channel).delete()
        send(other, exchange, "k", 2)
        assert f"queue_{name}_items" not in broker.connect().stats()

    def test_a_deleted_exchange_has_no_bindings(self, connection, other, name):
        exchange = kombu.Exchange(name)
        queue = kombu.Queue(name, exchange, routing_key="k")
        declare(connection, queue)
        exchange(connection.default_channel).delete()
        send(other, exchange, "k", 1)
        assert payloads(drained(connection, kombu.Queue(name))) == []

    def test_a_table_that_somebody_deleted_is_read_from_its_start(self, broker, connection, other, name):
        exchange = kombu.Exchange(name)
        declare(connection, kombu.Queue(f"{name}0", exchange, routing_key="k"))
        send(other, exchange, "k", 1)
        assert broker.connect().ask(b"delete %s#bindings\r\n" % name.encode()) == b"DELETED\r\n"
        queue = kombu.Queue(f"{name}1", exchange, routing_key="k")
        declare(connection, queue)
        send(other, exchange, "k", 2)
        assert payloads(drained(connection, queue)) == [2]

    def test_many_bindings_are_found(self, connection, other, name):
        exchange = kombu.Exchange(name)
        queues = [kombu.Queue(f"{name}{n}", exchange, routing_key="k") for n in range(150)]
        declare(connection, *queues)
        send(other, exchange, "k", 1)
        channel = other.default_channel
        assert all(channel._size(queue.name) == 1 for queue in queues)

    def test_a_table_stays_small_however_often_queues_come_and_go(self, broker, connection, other, name):
        exchange = kombu.Exchange(name)
        lasting = kombu.Queue(f"{name}-lasting", exchange, routing_key="k")
        declare(connection, lasting)
        send(other, exchange, "k", 0)
        channel = connection.default_channel
        for number in range(100):
            queue = kombu.Queue(f"{name}-{number}", exchange, routing_key="k")(channel)
            queue.declare()
            queue.delete()
        assert broker.stat(f"queue_{name}#bindings_items") < 2 * bindings._DEAD
        send(other, exchange, "k", 1)
        assert payloads(drained(connection, lasting)) == [0, 1]


class TestTopic:
    def test_a_message_goes_to_the_queues_whose_pattern_its_key_matches(self, connection, other, name):
        exchange = kombu.Exchange(name, type="topic")
        keys = ["a.*", "a.#", "#", "b.*"]
        queues = [kombu.Queue(f"{name}{n}", exchange, routing_key=key) for n, key in enumerate(keys)]
        declare(connection, *queues)
        send(other, exchange, "a.b", 1)
        send(other, exchange, "a.b.c", 2)
        assert [payloads(drained(connection, queue)) for queue in queues] == [[1], [1, 2], [1, 2], []]


class TestFanout:
    def test_all_bound_queues_get_a_message(self, connection, other, name):
        exchange = kombu.Exchange(name, type="fanout")
        queues = [kombu.Queue(f"{name}{n}", exchange) for n in range(2)]
        send(other, exchange, "", 0)
        declare(connection, *queues)
        send(other, exchange, "", 1)
        assert [payloads(drained(connection, queue)) for queue in queues] == [[1], [1]]

    def test_an_exchange_that_nothing_is_bound_to_keeps_nothing(self, broker, connection, name):
        exchange = kombu.Exchange(name, type="fanout")
        send(connection, exchange, "", 1, 2)
        assert broker.stat(f"queue_{name}#fanout_items") == 0

    def test_a_queue_and_an_exchange_may_have_one_name(self, connection, name):
        exchange = kombu.Exchange(name, type="fanout")
        queue = kombu.Queue(name, exchange)
        declare(connection, queue)
        send(connection, exchange, "", 1)
        publish(connection, kombu.Queue(name), 2)
        assert sorted(payloads(drained(connection, queue))) == [1, 2]

    def test_a_queue_is_counted_purged_and_deleted_with_what_an_exchange_gave_it(
        self, broker, connection, name
    ):
        exchange = kombu.Exchange(name, type="fanout")
        queue = kombu.Queue(name, exchange)(connection.default_channel)
        queue.declare()
        send(connection, exchange, "", 1, 2)
        assert queue.queue_declare(passive=True).message_count == 2
        assert queue.purge() == 2
        queue.delete()
        send(connection, exchange, "", 3)
        assert f"queue_{name}#fanout+{name}_items" not in broker.connect().stats()


class TestPriorities:
    def test_more_urgent_messages_come_first(self, connection, other, name):
        queue = kombu.Queue(name, max_priority=9)
        for priority in (0, 5, 9, 5, None, 12):
            publish(other, queue, priority, priority=priority)
        assert payloads(drained(connection, queue)) == [9, 12, 5, 5, 0, None]

    def test_a_queue_without_them_has_all_messages_in_their_order(self, broker, connection, name):
        queue = kombu.Queue(name)
        for priority in (1, 9, 5):
            publish(connection, queue, priority, priority=priority)
        assert broker.stat(f"queue_{name}_items") == 3
        assert payloads(drained(connection, queue)) == [1, 9, 5]

    def test_counting_purging_and_deleting_cover_all(self, broker, connection, name):
        queue = kombu.Queue(name, max_priority=9)(connection.default_channel)
        for priority in range(10):
            publish(connection, queue, priority, priority=priority)
        undeclared = kombu.Queue(name)(connection.channel())
        assert undeclared.queue_declare(passive=True).message_count == 10
        assert undeclared.purge() == 10
        undeclared.delete()
        assert not [each for each in broker.connect().stats() if each.startswith(f"queue_{name}")]


class TestQueues:
    def test_a_passive_declaration_finds_no_queue_that_is_not_there(self, connection, name):
        with pytest.raises(ChannelError, match="NOT_FOUND"):
            connection.default_channel.queue_declare(name, passive=True)

    def test_one_that_is_not_empty_or_is_used_is_not_deleted_if_that_matters(self, connection, other, name):
        queue = kombu.Queue(name)(connection.default_channel)
        publish(connection, queue, 1)
        queue.delete(if_empty=True)
        (message,) = drained(other, kombu.Queue(name), ack=False)
        queue.delete(if_unused=True)
        message.requeue()
        assert payloads(drained(other, kombu.Queue(name))) == [1]
