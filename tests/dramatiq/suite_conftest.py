"""The fixtures of Dramatiq's tests, with a broker of ours in place of the stub's.

Its tests look into the stub, to see what is queued and why a message failed. `SuiteBroker` answers that, and
does all else as ours does.
"""

import os
import sys
import types

import dramatiq
import pytest
from dramatiq.common import xq_name
from dramatiq.rate_limits.backends import StubBackend as StubRates
from dramatiq.results.backends import StubBackend as StubResults

from darner.client import Client
from darner.dramatiq import DarnerBroker

from .common import worker

# a module of theirs imports it for one test, and it needs pika
sys.modules["dramatiq.brokers.rabbitmq"] = types.ModuleType("dramatiq.brokers.rabbitmq")
sys.modules["dramatiq.brokers.rabbitmq"].RabbitmqBroker = type("RabbitmqBroker", (), {})


class Queue:
    """One queue, as the stub shows it."""

    def __init__(self, client, name):
        self._client = client
        self._name = name

    def _stats(self):
        return self._client.queues()[self._name]

    def qsize(self):
        return self._stats().items

    @property
    def unfinished_tasks(self):
        return self._stats().items + self._stats().open_transactions

    def get(self, timeout):
        return self._client.get(self._name, timeout)

    def put(self, data):
        self._client.put(self._name, data)


class Queues(set):
    """The queues that were declared, as the stub shows them."""

    def __init__(self, client):
        super().__init__()
        self._client = client

    def __getitem__(self, name):
        return Queue(self._client, name)


class DeadLetters(Queues):
    """The dead letters of each queue, as the stub shows them."""

    def __getitem__(self, name):
        letters = types.SimpleNamespace()
        letters.append = lambda text: self._client.put(xq_name(name), text.encode())
        return letters


class SuiteBroker(DarnerBroker):
    """Our broker, with what the tests ask the stub."""

    def __init__(self):
        server = os.environ["DARNER_URL"]
        super().__init__(server)
        self.spy = Client(server)
        self.queues = Queues(self.spy)
        # why messages of this process failed, by queue
        self.failures = {}
        self.dead_letters_by_queue = DeadLetters(self.spy)

    def consume(self, queue_name, prefetch=1, timeout=100):
        consumer = super().consume(queue_name, prefetch, timeout)
        nack = consumer.nack

        def noted(message):
            if (error := message._exception) is not None:
                # without its traceback, which would keep it alive
                copy = type(error).__new__(type(error), *error.args)
                copy.__dict__.update(error.__dict__)
                error = copy
            self.failures.setdefault(queue_name, []).append(error)
            nack(message)

        consumer.nack = noted
        return consumer

    def join(self, queue_name, *, timeout=None, fail_fast=True):
        super().join(queue_name, interval=5, timeout=timeout)
        if fail_fast and (failures := self.failures.get(queue_name)):
            raise failures[0] or Exception("a message failed")

    def flush_all(self):
        super().flush_all()
        self.failures.clear()

    @property
    def dead_letters(self):
        found = [item.data for name in self.queues for item in self.spy.browse(xq_name(name))]
        return [dramatiq.Message.decode(data) if data.startswith(b"{") else data for data in found]


@pytest.fixture
def stub_broker():
    broker = SuiteBroker()
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    yield broker
    broker.flush_all()
    broker.close()
    broker.spy.close()


@pytest.fixture
def stub_worker(stub_broker):
    with worker(stub_broker, worker_timeout=100, worker_threads=32) as running:
        yield running


@pytest.fixture
def result_backend():
    return StubResults()


@pytest.fixture
def rate_limiter_backend():
    return StubRates()
