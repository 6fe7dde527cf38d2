"""Queues of a family are made, whatever another darner deletes meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from darner.config.settings import QueueSettings
from darner.errors import DarnerError
from darner.jetstream.family import Family
from darner.jetstream.link import Link

Work = Callable[[Family, Family], Awaitable[None]]


class DeletingLink(Link):
    """A link at whose first request of a kind the stream `darner_q` has just been deleted."""

    kind = ""

    async def ask(self, subject, payload, timeout_s):
        if self.kind and subject.startswith(f"$JS.API.{self.kind}."):
            self.kind = ""
            await super().ask("$JS.API.STREAM.DELETE.darner_q", b"", timeout_s)
        return await super().ask(subject, payload, timeout_s)


@pytest.fixture
def with_two(accounts, tmp_path):
    """Run `await work(one, other)` with the family `q` as two darners know it; `other` is on a
    DeletingLink."""

    async def connected(work: Work) -> None:
        url = accounts.options(tmp_path)[1]
        links = Link([url]), DeletingLink([url])
        for link in links:
            await link.open()
        # other settings, which an update is sent for
        ages_ms = 100_000, 200_000
        one, other = (
            Family(b"q", link, lambda _, age_ms=age_ms: QueueSettings(max_age_ms=age_ms), 1, 30.0)
            for link, age_ms in zip(links, ages_ms, strict=True)
        )
        await work(one, other)
        for link in links:
            await link.close()

    return lambda work: asyncio.run(connected(work))


async def made(family: Family) -> bool:
    """Make the queue `q`, and return whether it is new; raises the error that its client would be told."""
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def ready(error: DarnerError | None, is_new: bool) -> None:
        if error is None:
            answer.set_result(is_new)
        else:
            answer.set_exception(error)

    family.when_made(b"q", ready)
    return await answer


def test_queue_that_is_known_to_be_deleted_is_made_with_its_stream(with_two):
    async def work(one, other):
        assert await made(one)
        assert not await made(other)
        assert await one.delete(b"q")
        await other.load()
        assert await made(other)
        await one.load()
        assert one.members == {b"q"}

    with_two(work)


@pytest.mark.parametrize("kind", ["STREAM.UPDATE", "CONSUMER.NAMES", "CONSUMER.CREATE"])
def test_queue_whose_stream_is_deleted_while_it_is_made_is_made_all_the_same(with_two, kind):
    async def work(one, other):
        assert await made(one)
        if kind == "CONSUMER.CREATE":
            assert await one.delete(b"q")
        other._link.kind = kind
        assert await made(other)
        assert other._link.kind == ""
        await one.load()
        assert one.members == {b"q"}

    with_two(work)
