"""Reservations of the async client."""

import asyncio

import pytest
from loops import Cutter, on_loop, until
from running import configured

from darner.client import (
    AsyncClient,
    BadRequestError,
    ConnectionLostError,
    NoFreeConnectionError,
    ReservationLostError,
)


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A server that gives many items to one connection, and takes those of `hasty*` back soon."""
    text = "[queue_defaults]\nmax_open_reads = 1000\n[queues.hasty]\nopen_timeout = '50ms'\n"
    with configured(tmp_path_factory.mktemp("patient"), text) as server:
        yield server


@pytest.fixture
def name(queue) -> str:
    return queue.decode()


def of(server, **options) -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{server.port}", **options)


class TestReserve:
    @on_loop
    async def test_closes_the_item_at_the_end(self, patient, name):
        async with of(patient) as client:
            await client.put(name, b"1")
            async with client.reserve(name) as item:
                assert (item.value, item.queue, item.attempts) == (b"1", name, 0)
                assert (await client.queues())[name].open_transactions == 1
            figures = (await client.queues())[name]
            assert (figures.items, figures.open_transactions) == (0, 0)

    @on_loop
    async def test_gives_none_if_nothing_comes(self, patient, name):
        async with of(patient) as client, client.reserve([name, name + "2"], timeout=0.05) as item:
            assert item is None

    @on_loop
    async def test_aborts_the_item_after_an_exception(self, patient, name):
        async with of(patient) as client:
            await client.put(name, b"1")
            with pytest.raises(ZeroDivisionError):
                async with client.reserve(name):
                    1 / 0  # noqa: B018
            item = await client.peek(name)
            assert (item.value, item.attempts) == (b"1", 1)

    @on_loop
    async def test_ends_an_item_once(self, patient, name):
        async with of(patient) as client:
            await client.put_many(name, [b"1", b"2", b"3"])
            async with client.reserve(name) as item:
                await item.close()
                with pytest.raises(BadRequestError):
                    await item.abort()
            async with client.reserve(name) as item:
                await item.abort()
            async with client.reserve(name) as item:
                assert (item.value, item.attempts) == (b"2", 1)
                await item.retry()
            assert [await client.get(name) for _ in range(3)] == [b"3", b"2", None]

    @on_loop
    async def test_retries_with_a_pause(self, patient, name):
        async with of(patient) as client:
            await client.put(name, b"1")
            async with client.reserve(name) as item:
                with pytest.raises(BadRequestError):
                    await item.retry(delay=-1)
                await item.retry(delay=0.2)
            assert await client.get(name) is None
            async with client.reserve(name, timeout=10) as item:
                assert (item.value, item.attempts) == (b"1", 1)

    @on_loop
    async def test_says_that_the_item_has_gone_back(self, patient):
        async with of(patient) as client, of(patient) as other:
            await client.put("hasty", b"1")
            with pytest.raises(ReservationLostError):
                async with client.reserve("hasty"):
                    assert await other.get("hasty", timeout=10) == b"1"
            assert await client.get("hasty") is None

    @on_loop
    async def test_keeps_its_connection_for_itself(self, patient, name):
        async with of(patient, pool_size=1, timeout=0.1) as client:
            await client.put(name, b"1")
            async with client.reserve(name):
                with pytest.raises(NoFreeConnectionError):
                    await client.get(name)
            assert await client.get(name) is None

    @on_loop
    async def test_outlives_the_client_s_close(self, patient, name):
        client = of(patient)
        await client.put(name, b"1")
        async with client.reserve(name):
            await client.close()
            with pytest.raises(BadRequestError, match="closed"):
                await client.get(name)
        async with of(patient) as other:
            assert (await other.queues())[name].items == 0

    @on_loop
    async def test_takes_the_item_of_a_lost_connection_for_gone_back(self, patient, name):
        cutter = Cutter(patient.port)
        async with cutter.listening() as port, AsyncClient(f"127.0.0.1:{port}", timeout=5) as client:
            await client.put(name, b"1")
            with pytest.raises(ConnectionLostError):
                async with client.reserve(name):
                    cutter.cuts = 1
            await client.put(name, b"2")
            # a plain abort cannot fail, for the lost connection does it
            reserving = client.reserve(name)
            await reserving.__aenter__()
            cutter.cuts = 1
            await reserving.__aexit__(ValueError, ValueError(), None)
            assert cutter.cuts == 0
            assert await client.get(name, timeout=5) == b"2"


class TestReserveMany:
    @on_loop
    async def test_closes_all_that_have_not_ended(self, patient, name):
        values = [b"%d" % number for number in range(300)]
        async with of(patient) as client:
            await client.put_many(name, values)
            async with client.reserve_many(name, 1000, timeout=5) as items:
                assert [item.value for item in items] == values
                await items[5].abort()
                await asyncio.gather(*[item.close() for item in items[10:20]])
            assert [await client.get(name) for _ in range(2)] == [b"5", None]

    @on_loop
    async def test_puts_all_back_in_order_after_an_exception(self, patient, name):
        values = [b"%d" % number for number in range(10)]
        async with of(patient) as client:
            await client.put_many(name, values)
            with pytest.raises(ZeroDivisionError):
                async with client.reserve_many(name, 10):
                    1 / 0  # noqa: B018
            assert [await client.get(name) for _ in values] == values

    @on_loop
    async def test_gives_nothing_of_an_empty_queue(self, patient, name):
        async with of(patient) as client:
            async with client.reserve_many(name, 10) as items:
                assert items == []
            with pytest.raises(BadRequestError):
                client.reserve_many(name, 0)


class TestCancellation:
    @on_loop
    async def test_of_the_work_puts_the_item_back(self, patient, name):
        async with of(patient) as client:
            await client.put(name, b"1")
            reserved = asyncio.Event()

            async def work():
                async with client.reserve(name):
                    reserved.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(work())
            await reserved.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            item = await client.peek(name)
            assert (item.value, item.attempts) == (b"1", 1)

    @on_loop
    async def test_of_the_end_of_an_item_loses_nothing(self, patient, name):
        async with of(patient) as client:
            await client.put(name, b"1")
            reserving = client.reserve(name)
            await reserving.__aenter__()
            ending = asyncio.create_task(reserving.__aexit__(ValueError, ValueError(), None))
            await asyncio.sleep(0)  # now it waits for the reply
            ending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ending
            assert await client.get(name, timeout=5) == b"1"

    @on_loop
    async def test_at_any_moment_of_a_reserve_leaves_nothing_held(self, patient, name):
        async with of(patient, pool_size=2) as client:
            await client.put(name, b"1")

            async def work():
                async with client.reserve(name):
                    pass

            cancelled = 0
            for turns in range(60):
                task = asyncio.create_task(work())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    cancelled += 1
                    continue
                # the item was closed, or will be given again: the queue is never in between
                await client.put(name, b"1")
            assert cancelled

            async def is_nothing_held():
                return not (await client.queues())[name].open_transactions

            await until(is_nothing_held)
            assert await client.get(name, timeout=5) == b"1"

    @on_loop
    async def test_of_a_reserve_that_waits_leaves_the_item_to_the_next(self, patient, name):
        async with of(patient) as client:

            async def work():
                async with client.reserve(name, timeout=60):
                    pass

            task = asyncio.create_task(work())

            async def somebody_waits():
                queues = await client.queues()
                return name in queues and queues[name].waiters

            await until(somebody_waits)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await client.put(name, b"1")
            assert await client.get(name, timeout=5) == b"1"
