"""Messages and queues: what is published is received, acknowledged or put back."""

import contextlib
import os
import signal
import threading
import time

import kombu
import pytest
from kombu.asynchronous.hub import Hub
from messaging import drained, publish
from running import configured, running, until

from darner.client.errors import ConnectionLostError, NotPermittedError


def payloads(messages):
    return [message.payload for message in messages]


@pytest.fixture
def queue(name):
    return kombu.Queue(name)


class TestAClosedChannel:
    @pytest.mark.parametrize("declares", [True, False])
    def test_is_replaced_when_something_is_published_over_it(self, connection, queue, declares):
        producer = connection.Producer()
        publish(connection, queue, 1)
        producer.channel.close()
        producer.publish(2, routing_key=queue.name, declare=[queue] if declares else [], retry=True)
        assert payloads(drained(connection, queue)) == [1, 2]

    def test_is_a_lost_connection(self, connection, queue):
        channel = connection.default_channel
        channel.close()
        with pytest.raises(connection.recoverable_connection_errors):
            channel.basic_publish(channel.prepare_message("x"), "", queue.name)
        with pytest.raises(connection.recoverable_connection_errors):
            channel.queue_bind(queue.name, "exchange")


class TestDelivery:
    def test_messages_come_in_their_order_with_all_that_they_have(self, connection, queue):
        publish(connection, queue, *range(250))
        publish(connection, queue, "é", headers={"a": 1}, correlation_id="c", content_encoding="utf-8")
        found = drained(connection, queue)
        assert payloads(found) == [*range(250), "é"]
        assert found[-1].headers == {"a": 1}
        assert found[-1].properties["correlation_id"] == "c"
        assert found[-1].delivery_info["routing_key"] == queue.name
        assert connection.default_channel.queue_declare(queue.name, passive=True).message_count == 0

    def test_a_body_of_any_bytes_and_size_comes_as_it_was(self, connection, queue):
        body = os.urandom(3_000_000)
        connection.Producer().publish(body, routing_key=queue.name, declare=[queue])
        message = queue(connection.default_channel).get()
        assert message.body == body
        assert message.content_type == "application/data"

    def test_an_item_that_is_no_message_comes_as_its_bytes(self, broker, connection, queue):
        wire = broker.connect()
        for data in (b"hello", b"[1]\nbody", b'{"properties": 1}\n', b""):
            wire.set(queue.name.encode(), data)
        wire.close()
        channel = connection.default_channel
        got = [queue(channel).get() for _ in range(4)]
        assert [bytes(message.body) for message in got] == [
            b"hello",
            b"[1]\nbody",
            b'{"properties": 1}\n',
            b"",
        ]

    def test_a_queue_may_have_any_name(self, connection, name):
        names = [f"{name} a/b", f"{name}+c", f"{name}#1", f"{name}%20", f"{name}é"]
        queues = [kombu.Queue(each, max_priority=3) for each in names]
        for number, queue in enumerate(queues):
            publish(connection, queue, number)
        for number, queue in enumerate(queues):
            assert payloads(drained(connection, queue)) == [number]

    def test_queues_of_a_consumer_have_their_turns(self, connection, name):
        queues = [kombu.Queue(f"{name}-{letter}") for letter in "ab"]
        for queue in queues:
            publish(connection, queue, *[queue.name[-1]] * 10)
        order = "".join(payloads(drained(connection, *queues, prefetch_count=1)))
        assert order[:10].count("a") == 5

    def test_an_expired_message_does_not_come(self, connection, queue):
        publish(connection, queue, "old", expiration=0.5)
        publish(connection, queue, "new")
        # memcached's expiry has whole seconds
        until(lambda: connection.default_channel._size(queue.name) < 2, seconds=5)
        assert payloads(drained(connection, queue)) == ["new"]


class TestCallbacks:
    def test_one_that_raises_costs_no_other_message(self, connection, queue):
        publish(connection, queue, *range(20))
        found = []

        def fail_once(body, message):
            found.append(body)
            message.ack()
            if body == 3:
                raise OSError("once")

        with connection.Consumer([queue], callbacks=[fail_once]):
            while len(found) < 20:
                with contextlib.suppress(OSError):
                    connection.drain_events(timeout=5)
        assert sorted(found) == list(range(20))


class TestGet:
    def test_several_messages_are_held_though_a_connection_may_hold_one(self, tmp_path, queue):
        with running(tmp_path / "data") as server:
            url = f"darner://127.0.0.1:{server.port}"
            with kombu.Connection(url, transport_options={"configure": False}) as connection:
                publish(connection, queue, 1, 2, 3)
                get = queue(connection.default_channel).get
                assert payloads([get(), get(), get()]) == [1, 2, 3]
                assert get() is None

    def test_one_that_is_refused_says_so(self, tmp_path, queue):
        with configured(tmp_path, 'deny = ["get", "gets"]\n') as server:
            connection = kombu.Connection(f"darner://127.0.0.1:{server.port}")
            with connection, pytest.raises(NotPermittedError):
                queue(connection.default_channel).get()


class TestPrefetch:
    def test_no_more_messages_are_held_than_it_says(self, broker, connection, queue):
        publish(connection, queue, *range(10))
        assert payloads(drained(connection, queue, ack=False, prefetch_count=3)) == [0, 1, 2]
        assert broker.stat(f"queue_{queue.name}_open_transactions") == 3
        assert connection.default_channel._size(queue.name) == 7

    def test_a_message_that_is_acknowledged_makes_room_for_the_next(self, connection, queue):
        publish(connection, queue, *range(300))
        assert payloads(drained(connection, queue, prefetch_count=4)) == list(range(300))

    def test_it_works_with_a_server_that_lets_a_connection_hold_one_message(self, tmp_path, queue):
        with running(tmp_path / "data") as server:
            url = f"darner://127.0.0.1:{server.port}"
            with kombu.Connection(url, transport_options={"configure": False}) as connection:
                publish(connection, queue, *range(20))
                assert payloads(drained(connection, queue, ack=False, prefetch_count=5)) == [0, 1, 2, 3, 4]

    def test_new_messages_come_while_others_are_held(self, connect, queue):
        ours, theirs = connect(), connect()
        publish(theirs, queue, 0)
        found = []
        with ours.Consumer([queue], callbacks=[lambda body, message: found.append(body)], prefetch_count=50):
            for number in range(10):
                ours.drain_events(timeout=10)
                publish(theirs, queue, number + 1)
        assert found == list(range(10))


class TestAcknowledgements:
    def test_a_rejected_message_is_gone(self, connection, queue):
        publish(connection, queue, 1)
        drained(connection, queue, ack=False)[0].reject()
        connection.release()
        assert drained(connection, queue) == []

    def test_a_requeued_message_is_the_next_and_says_how_often_it_came(self, connection, queue):
        publish(connection, queue, 1, 2)
        message = queue(connection.default_channel).get()
        assert not message.delivery_info["redelivered"]
        message.requeue()
        again = queue(connection.default_channel).get()
        assert again.payload == 1
        assert again.delivery_info["redelivered"]
        assert again.headers["x-delivery-count"] == 1

    def test_messages_that_are_requeued_together_keep_their_order(self, connection, queue):
        publish(connection, queue, *range(4))
        for message in drained(connection, queue, ack=False):
            message.requeue()
        assert payloads(drained(connection, queue)) == [0, 1, 2, 3]

    def test_a_requeued_message_comes_to_another_consumer_at_once(self, connect, queue):
        ours, theirs = connect(), connect()
        publish(ours, queue, 1)
        message = queue(ours.default_channel).get()
        message.requeue()
        # ours does nothing more
        until(lambda: queue(theirs.default_channel).get(), seconds=5)

    def test_what_a_channel_held_goes_back_in_its_order_when_it_is_closed(self, connect, queue):
        ours, theirs = connect(), connect()
        publish(ours, queue, *range(5))
        held = drained(ours, queue, ack=False)
        held[1].ack()
        ours.release()
        assert payloads(drained(theirs, queue)) == [0, 2, 3, 4]

    def test_one_for_a_connection_that_was_lost_removes_nothing(self, connect, queue):
        ours, theirs = connect(), connect()
        publish(ours, queue, 1)
        (message,) = drained(ours, queue, ack=False)
        ours.release()
        (again,) = drained(theirs, queue, ack=False)
        with pytest.raises(ConnectionLostError):
            message.ack()
        again.requeue()
        assert payloads(drained(theirs, queue)) == [1]

    def test_those_of_another_thread_count(self, connection, queue):
        publish(connection, queue, *range(100))
        messages = drained(connection, queue, ack=False)
        threads = [threading.Thread(target=message.ack) for message in messages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: connection.default_channel._size(queue.name) == 0, seconds=5)

    def test_multiple_acknowledges_all_up_to_it(self, connection, queue):
        publish(connection, queue, *range(4))
        drained(connection, queue, ack=False)[2].ack(multiple=True)
        connection.release()
        assert payloads(drained(connection, queue)) == [3]


class TestHub:
    def test_it_drives_a_consumer_without_polling(self, connect, queue):
        ours, theirs = connect(), connect()
        hub, found = Hub(), []
        with ours.Consumer([queue], callbacks=[lambda body, message: (found.append(body), message.ack())]):
            ours.register_with_event_loop(hub)
            for number in range(3):
                publish(theirs, queue, number)
                until(lambda number=number: hub.run_once() or len(found) > number)
            ours.transport.unregister_from_event_loop(ours, hub)
        hub.close()
        assert found == [0, 1, 2]


class TestForks:
    def test_a_child_does_not_keep_what_its_parent_held(self, connect, queue):
        ours, theirs = connect(), connect()
        publish(ours, queue, 1)
        drained(ours, queue, ack=False)
        child = os.fork()
        if not child:
            signal.pause()
        try:
            ours.release()
            until(lambda: queue(theirs.default_channel).get(), seconds=5)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def test_a_child_publishes_over_a_connection_of_its_own(self, connection, queue):
        publish(connection, queue, 1)
        child = os.fork()
        if not child:
            try:
                publish(connection, queue, 2)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        publish(connection, queue, 3)
        assert payloads(drained(connection, queue)) == [1, 2, 3]


class TestRestarts:
    def test_a_consumer_is_told_that_the_server_has_gone(self, tmp_path, queue):
        with running(tmp_path / "data") as server:
            connection = kombu.Connection(f"darner://127.0.0.1:{server.port}")
            with connection.Consumer([queue], callbacks=[print]):
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.1)
                server.kill()
                with pytest.raises(connection.connection_errors):
                    connection.drain_events(timeout=30)

    def test_time_out_is_kept(self, connection, queue):
        with connection.Consumer([queue], callbacks=[print]):
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.2)
            assert 0.2 <= time.monotonic() - begun < 10
