"""What the options and the arguments of queues change."""

import datetime
import socket
import threading

import kombu
import pytest
from messaging import drained, publish
from running import configured, until

from darner.client.errors import ConnectionLostError, QueueFullError


def payloads(messages):
    return [message.payload for message in messages]


class TestSettings:
    def test_a_declared_queue_lets_a_connection_hold_many(self, tmp_path, name):
        with (
            configured(tmp_path, "") as server,
            kombu.Connection(f"darner://127.0.0.1:{server.port}") as connection,
        ):
            queue = kombu.Queue(name)
            publish(connection, queue, *range(100))
            assert payloads(drained(connection, queue, ack=False, prefetch_count=100)) == list(range(100))
            # one asks, one holds, and one waits
            assert server.stat("curr_connections") <= 4

    def test_arguments_become_settings(self, broker, connection, name):
        queue = kombu.Queue(name, max_length=2, expires=3600, message_ttl=60, max_priority=1)
        publish(connection, queue, 1, 2, 3)
        assert payloads(drained(connection, queue)) == [2, 3]
        wire = broker.connect()
        wire.send(b"dump_config %s\r\n" % name.encode())
        config = b"".join(iter(wire.line, b"END\r\n"))
        for setting in (b"max_items=2", b"max_queue_age=3600000", b"max_age=60000"):
            assert setting in config

    def test_a_queue_that_refuses_says_so(self, connection, name):
        queue = kombu.Queue(name, queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        publish(connection, queue, 1)
        with pytest.raises(QueueFullError):
            publish(connection, queue, 2)

    def test_what_the_operator_has_decided_stays_and_the_rest_holds(self, tmp_path, name):
        with (
            configured(tmp_path, f'[queues."{name}"]\nmax_open_reads = 2\n') as server,
            kombu.Connection(f"darner://127.0.0.1:{server.port}") as connection,
        ):
            queue = kombu.Queue(name, max_length=3)
            publish(connection, queue, *range(5))
            assert payloads(drained(connection, queue, ack=False, prefetch_count=3)) == [2, 3, 4]


class TestTemporaryQueues:
    @pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
    def test_one_ends_by_itself_and_no_message_makes_it_again(self, broker, connect, name, kind):
        ours, theirs = connect(), connect()
        exchange = kombu.Exchange(name, type=kind)
        queue = kombu.Queue(name, exchange, routing_key="k", auto_delete=True, expires=0.5)
        producer = theirs.Producer(exchange=exchange, serializer="json", auto_declare=True)
        with ours.Consumer([queue], callbacks=[lambda body, message: found.append(body)], no_ack=True):
            found = []
            producer.publish("here", routing_key="k")
            ours.drain_events(timeout=10)
        assert found == ["here"]
        ours.release()

        def ended():
            producer.publish("nobody", routing_key="k")
            left = {each for each in broker.connect().stats() if each.startswith(f"queue_{name}")}
            return not {
                each for each in left if not each.startswith((f"queue_{name}#b", f"queue_{name}#fanout_"))
            }

        until(ended, seconds=20)
        assert not broker.stat(f"queue_{name}#fanout_items")

    def test_one_may_have_priorities(self, connect, name):
        ours, theirs = connect(), connect()
        exchange = kombu.Exchange(name)
        queue = kombu.Queue(name, exchange, routing_key="k", auto_delete=True, max_priority=9)
        producer = theirs.Producer(exchange=exchange, routing_key="k", serializer="json")
        for priority in (3, 9, 6, 0):
            producer.publish(priority, priority=priority, declare=[queue])
        assert payloads(drained(ours, queue)) == [9, 6, 3, 0]

    def test_a_consumer_that_is_there_keeps_it(self, connect, name):
        ours, theirs = connect(), connect()
        exchange = kombu.Exchange(name)
        queue = kombu.Queue(name, exchange, routing_key="k", auto_delete=True, expires=0.3)
        found = []
        with ours.Consumer([queue], callbacks=[lambda body, message: found.append(body)], no_ack=True):
            with pytest.raises(TimeoutError):
                ours.drain_events(timeout=1.5)
            theirs.Producer(exchange=exchange).publish("still", routing_key="k")
            ours.drain_events(timeout=10)
        assert found == ["still"]


class TestDedup:
    def test_a_message_that_is_sent_again_is_stored_once(self, connect, name):
        connection, queue = connect(dedup=True), kombu.Queue(name)
        publish(connection, queue, 1, 1, correlation_id="a")
        publish(connection, queue, 1, correlation_id="b")
        publish(connection, queue, 2, 2)
        assert payloads(drained(connection, queue)) == [1, 1, 2, 2]


class TestReplyTimeout:
    def test_a_server_that_does_not_reply_is_a_lost_connection(self, name):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            thread = threading.Thread(target=silent.accept, daemon=True)
            thread.start()
            url = f"darner://127.0.0.1:{silent.getsockname()[1]}"
            with (
                kombu.Connection(url, transport_options={"reply_timeout": 0.2}) as connection,
                pytest.raises(ConnectionLostError) as error,
            ):
                connection.Producer().publish("x", routing_key=name)
            # kombu takes one for a queue without messages
            assert not isinstance(error.value, TimeoutError)


class TestETA:
    def send(self, connection, queue, ahead_s):
        at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead_s)
        publish(connection, queue, ahead_s, headers={"eta": at.isoformat()})

    def test_a_task_that_is_far_ahead_waits_in_the_server(self, broker, connect, name):
        connection, queue = connect(eta_as_delay=60), kombu.Queue(name)
        self.send(connection, queue, 3600)
        self.send(connection, queue, 30)
        assert payloads(drained(connection, queue)) == [30]
        assert broker.stat(f"queue_{name}_delayed_items") == 1

    def test_it_comes_when_it_is_due(self, connect, name):
        connection, queue = connect(eta_as_delay=1), kombu.Queue(name)
        self.send(connection, queue, 1.2)
        assert payloads(drained(connection, queue)) == []
        until(lambda: queue(connection.default_channel).get(), seconds=10)

    def test_without_the_option_all_come_at_once(self, connection, name):
        queue = kombu.Queue(name)
        self.send(connection, queue, 3600)
        assert payloads(drained(connection, queue)) == [3600]
