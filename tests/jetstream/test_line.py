"""Clients that wait for a queue, and what the cluster is asked for them."""

import asyncio

import pytest
from cluster_stores import opened, stored

from darner.jetstream.line import MISSING_S
from darner.jetstream.link import Link
from darner.jetstream.names import EVENTS
from darner.queues.waiters import Waiter


class DeafLink(Link):
    """A link that hears nothing of other darners. It notes what is sent on it."""

    def __init__(self, url: str) -> None:
        super().__init__([url])
        self.sent: list[str] = []

    async def subscribe(self, subject, handler):
        if not subject.startswith(EVENTS):
            await super().subscribe(subject, handler)

    def send(self, subject, payload, reply="", headers=None):
        self.sent.append(subject)
        super().send(subject, payload, reply, headers)

    def count(self, api: str) -> int:
        """Return how often an API was asked."""
        return sum(subject.startswith(f"$JS.API.{api}") for subject in self.sent)


@pytest.fixture
def with_two(accounts, tmp_path):
    """Run `await work(queues, link, others)` with the queues of an account as two darners know them, of which
    the first hears nothing of the other."""

    async def connected(work) -> None:
        url = accounts.options(tmp_path)[1]
        link = DeafLink(url)
        async with opened(link) as queues, opened(Link([url])) as others:
            await work(queues, link, others)

    return lambda work: asyncio.run(connected(work))


def waiting(queues, name: bytes) -> "tuple[Waiter, asyncio.Future[bytes]]":
    """Begin to wait for an item of a queue; returns what waits, and the data to come."""
    data: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    waiter = Waiter(lambda source: source.take(), lambda _, item: data.set_result(item.data))
    queues.source(name, takes=True, waits=True, has_disconnected=lambda: False).wait(waiter)
    return waiter, data


async def ticking(queues, data: "asyncio.Future[bytes]", seconds: float) -> None:
    """Let time pass until there are the data, or for so long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not data.done() and loop.time() < end:
        queues.tick()
        await asyncio.wait({data}, timeout=0.1)


def test_queue_that_is_waited_for_is_found_though_the_word_that_it_is_made_is_lost(with_two):
    async def work(queues, link, others):
        _, first = waiting(queues, b"q+child")
        _, second = waiting(queues, b"q+child")
        assert await stored(others, b"q+child", b"1") is None
        assert await stored(others, b"q+child", b"2") is None
        await ticking(queues, second, MISSING_S * 3)
        assert (first.result(), second.result()) == (b"1", b"2")

    with_two(work)


def test_queues_that_do_not_exist_cost_one_question_each_and_then_one_for_all(with_two):
    async def work(queues, link, others):
        waits = [waiting(queues, b"q%d" % (n % 100)) for n in range(200)]
        await ticking(queues, waits[0][1], MISSING_S * 1.2)
        assert link.count("CONSUMER.INFO") == 100
        assert link.count("CONSUMER.MSG.NEXT") == 0
        assert 1 <= link.count("STREAM.NAMES") <= 4
        for waiter, _ in waits:
            waiter.cancel()
        before = len(link.sent)
        await ticking(queues, waits[0][1], MISSING_S * 1.2)
        assert len(link.sent) == before

    with_two(work)
