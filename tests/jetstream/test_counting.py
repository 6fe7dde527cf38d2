"""What the cluster is asked for the figures of its queues."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from cluster_stores import opened, stored, taken

from darner.jetstream.counting import AT_ONCE
from darner.jetstream.link import Link


class WatchedLink(Link):
    """A link that notes what is asked on it. A consumer can be without a leader."""

    def __init__(self, url: str) -> None:
        super().__init__([url])
        self.asked: list[str] = []
        self.most_at_once = self._at_once = 0
        self.leaderless = ""
        # what is done before an answer of an API is told, by the name of the API
        self.meanwhile: dict[str, Callable[[], Awaitable[None]]] = {}

    async def ask(self, subject, payload, timeout_s):
        self.asked.append(subject)
        if self.leaderless and subject.startswith("$JS.API.CONSUMER.INFO.") and self.leaderless in subject:
            await asyncio.sleep(0)
            return None
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        answer = await super().ask(subject, payload, timeout_s)
        self._at_once -= 1
        meanwhile = self.meanwhile.pop(subject.removeprefix("$JS.API.").rpartition(".")[0], None)
        if meanwhile is not None:
            await meanwhile()
        if self.leaderless and ".CONSUMER.LIST." in subject:
            listed = json.loads(answer.data)
            listed["consumers"] = [each for each in listed["consumers"] if each["name"] != self.leaderless]
            answer.data = json.dumps(listed).encode()
        return answer

    def count(self, api: str) -> int:
        """Return how often an API was asked."""
        return sum(subject.startswith(f"$JS.API.{api}.") for subject in self.asked)


@pytest.fixture
def with_store(accounts, tmp_path):
    """Run `await work(queues, link)` with the queues of an account of this test's own."""

    async def connected(work) -> None:
        link = WatchedLink(accounts.options(tmp_path)[1])
        async with opened(link) as queues:
            await work(queues, link)

    return lambda work: asyncio.run(connected(work))


def test_heads_are_asked_for_at_once_within_a_bound_and_only_where_items_wait(with_store):
    children = AT_ONCE + 10

    async def work(queues, link):
        for number in range(children):
            assert await stored(queues, b"parent+%d" % number) is None
        assert await stored(queues, b"empty") is None
        await taken(queues.steps_to_flush(b"empty"))
        link.asked.clear()
        link.most_at_once = 0
        await taken(queues.steps_to_look(()))
        figures = {name: queue.figures for name, queue in queues.visible.items()}
        assert [name for name in figures if not figures[name].head_ms] == [b"empty"]
        assert link.count("STREAM.MSG.GET") == children == len(figures) - 1
        assert link.most_at_once == AT_ONCE

    with_store(work)


def test_consumer_without_a_leader_keeps_its_figures_while_others_go_on(with_store, monkeypatch):
    monkeypatch.setattr("darner.jetstream.counting.TRY_S", 0.1)

    async def work(queues, link):
        for name in (b"led", b"lost", b"parent+lost"):
            assert await stored(queues, name) is None
        await taken(queues.steps_to_look(()))
        link.leaderless = "lost"
        for name in (b"led", b"lost", b"parent+lost"):
            assert await stored(queues, name) is None
        await taken(queues.steps_to_look(()))
        items = {name: queue.figures.items for name, queue in queues.visible.items()}
        assert items == {b"led": 2, b"lost": 1, b"parent+lost": 1}

    with_store(work)


def test_queues_with_names_that_are_too_long_for_the_cluster_are_found_again(with_store):
    names = {b"n" * 250, b"n" * 249 + b"+", b"p" * 220 + b"+child", b"p" * 220 + b"+" + b"c" * 20}

    async def work(queues, link):
        for name in names:
            assert await stored(queues, name) is None
        async with opened(WatchedLink(link._servers[0])) as others:
            assert set(others.queue_names) == names
            await taken(others.steps_to_look(()))
            assert set(others.queue_names) == names

    with_store(work)


@pytest.mark.parametrize(
    ("api", "names"), [("STREAM", ()), ("CONSUMER.NAMES", (b"orders",))], ids=["all", "by name"]
)
def test_queue_that_is_made_while_others_are_listed_is_not_forgotten(with_store, api, names):
    async def work(queues, link):
        assert await stored(queues, b"orders") is None

        async def make() -> None:
            assert await stored(queues, b"orders+child") is None
            assert await stored(queues, b"other") is None

        link.meanwhile[api] = make
        await taken(queues.steps_to_look(names))
        assert not link.meanwhile
        assert set(queues.queue_names) == {b"orders", b"orders+child", b"other"}

    with_store(work)
