"""Items that are held, and what becomes of them when their client goes."""

import asyncio

import pytest
from cluster_stores import answered, opened, stored, taken

from darner.errors import NotReadyError
from darner.jetstream.link import Link


@pytest.fixture
def with_store(accounts, tmp_path):
    """Run `await work(queues)` with the queues of an account of this test's own."""

    async def connected(work) -> None:
        async with opened(Link([accounts.options(tmp_path)[1]])) as queues:
            await work(queues)

    return lambda work: asyncio.run(connected(work))


@pytest.mark.parametrize("is_confirmed", [True, False])
def test_item_whose_client_goes_while_it_is_closed_is_closed_and_forgotten(with_store, is_confirmed):
    async def work(queues):
        for _ in range(2):
            assert await stored(queues, b"q") is None
        clients = [
            queues.source(b"q", takes=True, waits=False, has_disconnected=lambda: False) for _ in range(2)
        ]
        items = [await answered(client.reserve) for client in clients]
        with pytest.raises(NotReadyError) as raised:
            clients[1].close(items[1])
        operation = raised.value.journal
        if is_confirmed:
            await operation._task
        assert clients[1].abort(items[1]) is None
        await operation._task
        # one is held still
        await taken(queues.steps_to_look((b"q",)))
        queue = queues.visible[b"q"]
        assert queue.figures.in_flight == 1
        assert queue.counts.canceled_transactions == 0
        assert [each.item for each in queue.deliveries.values()] == items[:1]
        assert not queue._closing

    with_store(work)
