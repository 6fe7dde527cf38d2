"""Dramatiq's own workers on a real server: what is processed, in which order, and what a kill leaves."""

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import dramatiq
import pytest
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Middleware
from library_workers import assert_next_worker_takes_over, library_working
from running import configured, running, until

from darner.client import Client
from darner.client.errors import QueueFullError
from darner.dramatiq import DarnerBroker

TASKS = '''
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dramatiq

from darner.dramatiq import DarnerBroker

dramatiq.set_broker(DarnerBroker("URL", max_priority=9))


def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")


@dramatiq.actor
def echo(value):
    say(value)


@dramatiq.actor
def hold(value):
    """End once there is the file `go`."""
    say("began", value)
    while not Path("go").exists():
        time.sleep(0.01)
    say("ended", value)


@dramatiq.actor(max_retries=2, min_backoff=100, max_backoff=100)
def fail(value):
    say("tried", value)
    raise ValueError("that is nothing")
'''


class Project:
    """A program that sends messages, and the workers that it starts."""

    def __init__(self, directory, url, stack):
        self.directory = directory
        self._stack = stack
        (directory / "tasks.py").write_text(TASKS.replace("URL", url))
        self.broker = DarnerBroker(url, max_priority=9)
        self.broker.declare_queue("default")
        stack.callback(self.broker.close)

    def send(self, actor, *arguments, delay=None, **options):
        """Send a message for each argument."""
        for argument in arguments:
            message = dramatiq.Message("default", actor, (argument,), {}, options)
            self.broker.enqueue(message, delay=delay)

    def worker(self, *options, name="worker"):
        words = ("tasks", "--processes=1", *options)
        return self._stack.enter_context(library_working(self.directory, "dramatiq", *words, name=name))


@pytest.fixture
def project(tmp_path, server):
    with contextlib.ExitStack() as stack:
        yield Project(tmp_path, f"darner://127.0.0.1:{server.port}", stack)


@pytest.fixture
def broker(server):
    broker = DarnerBroker(f"127.0.0.1:{server.port}")
    broker.declare_queue("default")
    yield broker
    broker.close()


def message(*arguments, **options):
    return dramatiq.Message("default", "actor", arguments, {}, options)


def test_messages_are_processed_and_removed_once_they_are(project):
    project.send("echo", *range(100))
    it = project.worker()
    assert sorted(map(int, it.said(100))) == list(range(100))
    project.broker.join("default", timeout=10_000)


def test_a_message_of_a_higher_broker_priority_goes_first(project):
    for number in (0, 5, 9, 99, -1):
        project.send("echo", number, broker_priority=number)
    assert project.worker("--threads=1").said(5) == ["9", "99", "5", "0", "-1"]


def test_a_message_that_is_delayed_waits_in_the_server(server, project):
    it = project.worker()
    began = time.monotonic()
    project.send("echo", "late", delay=1000)
    project.send("echo", "early", delay=300)
    assert server.stat("queue_default_delayed_items") == 2
    assert it.said(2) == ["early", "late"]
    assert time.monotonic() - began >= 1


def test_a_message_that_fails_is_retried_after_a_delay_and_then_a_dead_letter(server, project):
    project.send("fail", "x")
    it = project.worker()
    assert it.said(3) == ["tried x"] * 3
    project.broker.join("default", timeout=10_000)
    with Client(f"127.0.0.1:{server.port}") as client:
        dead = dramatiq.Message.decode(client.get("default.XQ"))
    assert (dead.args, dead.options["retries"]) == (("x",), 2)


def test_the_messages_of_a_worker_that_is_killed_go_to_the_next_one_within_a_second(server, project):
    project.send("hold", *"abc")
    assert_next_worker_takes_over(server, b"default", project)


def test_workers_go_on_by_themselves_when_the_server_was_killed_and_nothing_is_lost(tmp_path):
    path = tmp_path / "darner.sock"
    with running(tmp_path / "data", "--socket", str(path)) as server, contextlib.ExitStack() as stack:
        project = Project(tmp_path, f"darner+unix://{path}", stack)
        project.send("hold", "held")
        it = project.worker()
        assert it.said(1) == ["began held"]
        project.send("echo", "delayed", delay=1000)
        server.kill()
        with pytest.raises(BrokerConnectionError):
            project.send("echo", "refused")
        server.start()
        project.send("echo", "later")
        assert sorted(it.said(3)) == ["began held", "delayed", "later"]
        (tmp_path / "go").touch()
        assert it.said(2) == ["ended held", "ended held"]  # at least once
        project.broker.join("default", timeout=10_000)
        it.wait_for_log("went back, and will be processed again")


def test_a_worker_that_is_told_to_end_finishes_what_it_does_and_puts_the_rest_back(server, project):
    project.send("hold", *range(4))
    it = project.worker("--threads=1")
    assert it.said(1) == ["began 0"]
    until(lambda: server.stat("queue_default_open_transactions") == 2)  # twice as many as threads
    it.process.terminate()
    it.wait_for_log("Shutting down...")
    (project.directory / "go").touch()
    assert it.said(1) == ["ended 0"]
    assert it.ended() == 0
    assert server.stat("queue_default_items") == 3
    next_one = project.worker("--threads=1", name="next")
    assert next_one.said(6)[::2] == ["began 1", "began 2", "began 3"]


class TestConsumer:
    def test_has_no_more_messages_in_hand_than_its_prefetch(self, broker):
        for number in range(3):
            broker.enqueue(message(number))
        consumer = broker.consume("default", prefetch=2, timeout=10)
        first, second = next(consumer), next(consumer)
        assert next(consumer) is None
        consumer.ack(first)
        assert next(consumer).args == (2,)
        consumer.nack(second)
        assert next(consumer) is None  # there is no more

    def test_acknowledges_in_another_thread_while_it_waits(self, broker, server):
        broker.enqueue(message(0))
        consumer = broker.consume("default", prefetch=2, timeout=30_000)
        first = next(consumer)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(next, consumer)
            until(lambda: server.waiters(b"default"))
            consumer.ack(first)
            assert server.stat("queue_default_open_transactions") == 0
            broker.enqueue(message(1))
            assert waiting.result().args == (1,)

    def test_puts_messages_back_in_their_order(self, broker):
        for number in range(4):
            broker.enqueue(message(number))
        consumer = broker.consume("default", prefetch=4, timeout=10)
        held = [next(consumer) for _ in range(3)]
        consumer.requeue(held[1:])
        consumer.close()
        again = broker.consume("default", prefetch=4, timeout=10)
        assert [next(again).args for _ in range(3)] == [(1,), (2,), (3,)]

    def test_moves_what_it_cannot_decode_to_the_dead_letters(self, broker, server):
        with Client(f"127.0.0.1:{server.port}") as client:
            client.put("default", b"{")
            assert next(broker.consume("default", timeout=10)) is None
            assert client.get("default.XQ") == b"{"
        broker.join("default", timeout=1000)

    def test_makes_a_message_a_dead_letter_again_that_was_moved_back(self, broker, server):
        broker.enqueue(message())
        consumer = broker.consume("default", timeout=1000)
        with Client(f"127.0.0.1:{server.port}") as client:
            for _ in range(2):
                consumer.nack(next(consumer))
                client.put("default", client.get("default.XQ"))

    def test_gives_a_message_back_whose_retry_cannot_be_enqueued(self, broker, server):
        broker.enqueue(message())
        consumer = broker.consume("default", timeout=3000)
        held = next(consumer)
        with Client(f"127.0.0.1:{server.port}") as client:
            client.status("readonly")
            with pytest.raises(Exception, match="refused"):
                broker.enqueue(held, delay=1)
            client.status("up")
        consumer.ack(held)
        assert server.stat("queue_default_delayed_items") == 1
        assert next(consumer).message_id == held.message_id

    def test_gives_a_message_back_that_cannot_be_a_dead_letter(self, tmp_path):
        text = '[queues."default.XQ"]\nmax_items = 1\n'
        with configured(tmp_path, text) as server:
            broker = DarnerBroker(f"127.0.0.1:{server.port}")
            broker.declare_queue("default")
            for _ in range(2):
                broker.enqueue(message())
            consumer = broker.consume("default", prefetch=2, timeout=3000)
            for each in (next(consumer), next(consumer)):
                consumer.nack(each)
            assert next(consumer) is not None
            assert server.stat("queue_default.XQ_items") == 1
            broker.close()

    @pytest.mark.parametrize(("settings", "connections"), [("", 1), ("deny = ['configure']\n", 5)])
    def test_holds_what_it_prefetches_on_one_connection_unless_the_server_denies_it(
        self, tmp_path, settings, connections
    ):
        with configured(tmp_path, settings) as server:
            broker = DarnerBroker(f"127.0.0.1:{server.port}")
            broker.declare_queue("default")
            for number in range(5):
                broker.enqueue(message(number))
            consumer = broker.consume("default", prefetch=5, timeout=10)
            held = [next(consumer) for _ in range(5)]
            assert server.stat("curr_connections") == connections + 1
            assert [each.args for each in held] == [(number,) for number in range(5)]
            broker.close()


class TestBroker:
    def test_flushes_what_waits_is_delayed_or_has_died(self, broker, server):
        broker.enqueue(message())
        broker.enqueue(message(), delay=60_000)
        consumer = broker.consume("default", timeout=10)
        consumer.nack(next(consumer))
        broker.enqueue(message())
        broker.flush_all()
        broker.join("default", timeout=0)
        assert server.stat("curr_items") == 0

    def test_joins_until_what_is_worked_on_has_ended(self, broker):
        broker.enqueue(message())
        held = next(consumer := broker.consume("default", timeout=10))
        with pytest.raises(dramatiq.QueueJoinTimeout, match="default"):
            broker.join("default", timeout=10)
        consumer.ack(held)
        broker.join("default", timeout=10)

    def test_tells_who_sends_that_a_queue_is_full(self, tmp_path):
        with configured(tmp_path, "[queue_defaults]\nmax_items = 1\n") as server:
            broker = DarnerBroker(f"127.0.0.1:{server.port}")
            broker.declare_queue("default")
            broker.enqueue(message())
            with pytest.raises(QueueFullError):
                broker.enqueue(message())
            broker.close()

    def test_passes_over_a_server_of_a_fleet_that_is_down(self, tmp_path):
        with running(tmp_path / "one") as one, running(tmp_path / "two") as two:
            broker = DarnerBroker([f"127.0.0.1:{each.port}" for each in (one, two)])
            broker.declare_queue("default")
            one.kill()
            for number in range(4):
                broker.enqueue(message(number))
            consumer = broker.consume("default", prefetch=4, timeout=1000)
            assert [next(consumer).args[0] for _ in range(4)] == [0, 1, 2, 3]
            broker.close()

    def test_tells_its_middleware_what_happens(self, broker):
        seen = []

        class Witness(Middleware):
            def before_enqueue(self, broker, message, delay):
                seen.append(("before_enqueue", delay))

            def after_declare_queue(self, broker, queue_name):
                seen.append(("after_declare_queue", queue_name))

            def after_declare_delay_queue(self, broker, queue_name):
                seen.append(("after_declare_delay_queue", queue_name))

        broker.add_middleware(Witness())
        broker.declare_queue("other")
        broker.declare_queue("other")
        broker.enqueue(message(), delay=5)
        assert seen == [
            ("after_declare_queue", "default"),
            ("after_declare_queue", "other"),
            ("before_enqueue", 5),
        ]

    def test_says_what_is_missing_when_it_is_imported(self):
        code = "import sys\nsys.modules['dramatiq'] = None\nimport darner.dramatiq"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stderr.endswith(
            "ModuleNotFoundError: darner.dramatiq needs Dramatiq: pip install 'darner[dramatiq]'\n"
        )
