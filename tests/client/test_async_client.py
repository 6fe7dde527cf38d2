"""The async client's methods, at a real server."""

import subprocess
import sys

import pytest
from loops import on_loop
from running import configured

import darner.client
from darner.client import (
    AsyncClient,
    BadRequestError,
    CodecError,
    ItemTooLargeError,
    NotPermittedError,
    PutManyError,
    QueueFullError,
)


def of(server, **options) -> AsyncClient:
    """A client of a server that is alone."""
    return AsyncClient(f"127.0.0.1:{server.port}", **options)


@pytest.fixture
def name(queue) -> str:
    return queue.decode()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server whose queue `small` has room for two items of 100 bytes, and which denies `flush`."""
    text = 'deny = ["flush"]\n[queues.small]\nmax_items = 2\nmax_item_size = 100\n'
    with configured(tmp_path_factory.mktemp("small"), text) as server:
        yield server


class TestPut:
    @on_loop
    async def test_stores_what_get_takes_in_order(self, standing, name):
        async with of(standing) as client:
            await client.put(name, b"1")
            await client.put(name, b"2")
            assert [await client.get(name) for _ in range(3)] == [b"1", b"2", None]

    @on_loop
    async def test_of_large_values_is_whole(self, standing, name):
        value = bytes(range(256)) * (1 << 15)
        async with of(standing) as client:
            await client.put(name, value)
            await client.put_many(name, [value, b"", value])
            assert [await client.get(name) for _ in range(4)] == [value, value, b"", value]

    @on_loop
    async def test_with_an_id_is_stored_once(self, standing, name):
        async with of(standing) as client:
            await client.put(name, b"1", id="order-17")
            await client.put(name, b"1", id="order-17")
            figures = (await client.queues())[name]
            assert (figures.items, figures.duplicates) == (1, 1)

    @on_loop
    async def test_with_a_delay_is_out_of_sight_until_then(self, standing, name):
        async with of(standing) as client:
            await client.put(name, b"late", delay=0.2, expire=60, sync=True)
            await client.put(name, b"soon")
            assert await client.get(name, timeout=5) == b"soon"
            assert await client.get(name) is None
            assert await client.get(name, timeout=5) == b"late"

    @on_loop
    async def test_that_is_refused_raises_what_to_do_about_it(self, small):
        async with of(small) as client:
            with pytest.raises(ItemTooLargeError):
                await client.put("small", bytes(101))
            with pytest.raises(PutManyError) as caught:
                await client.put_many("small", [b"1", b"2", b"3", b"4"])
            assert caught.value.stored == 2
            assert isinstance(caught.value.outcomes[2], QueueFullError)
            with pytest.raises(QueueFullError):
                await client.put("small", b"x")
            with pytest.raises(NotPermittedError):
                await client.flush("small")
            assert [await client.get("small") for _ in range(3)] == [b"1", b"2", None]

    @on_loop
    async def test_of_nonsense_is_refused_before_it_is_sent(self):
        client = AsyncClient("127.0.0.1:1")
        for value, options in (("text", {}), (b"x", {"delay": -1}), (b"x", {"id": "a b"})):
            with pytest.raises(BadRequestError):
                await client.put("work", value, **options)


class TestPutMany:
    @on_loop
    async def test_stores_in_order(self, standing, name):
        values = [b"%d" % number for number in range(1000)]
        async with of(standing) as client:
            await client.put_many(name, values)
            assert [await client.get(name) for _ in values] == values

    @on_loop
    async def test_with_ids_stores_each_once(self, standing, name):
        async with of(standing) as client:
            await client.put_many(name, [b"1", b"2"], ids=["a", "b"])
            await client.put_many(name, [b"1", b"2", b"3"], ids=["a", "b", "c"])
            assert (await client.queues())[name].items == 3


class TestGet:
    @on_loop
    async def test_waits_for_an_item(self, standing, name, other):
        async with of(standing) as client:
            await client.put(name, b"late", delay=0.1)
            assert await client.get(name, timeout=10) == b"late"
            assert await client.get(name, timeout=0.05) is None

    @on_loop
    async def test_takes_of_several_queues_the_most_urgent(self, standing, name):
        async with of(standing) as client:
            await client.put(name, b"normal")
            await client.put(name + "urgent", b"urgent")
            queues = [name + "urgent", name]
            assert await client.get(queues, timeout=5) == b"urgent"
            assert await client.get(queues) == b"normal"
            assert await client.get(queues) is None


class TestCodec:
    @on_loop
    async def test_makes_values_of_bytes(self, standing, name):
        async with of(standing, codec="json") as client:
            await client.put(name, {"n": 1})
            assert (await client.peek(name)).value == {"n": 1}
            assert await client.get(name) == {"n": 1}
            async with of(standing) as plain:
                await plain.put(name, b"{")
            with pytest.raises(CodecError) as caught:
                await client.get(name)
            assert caught.value.data == b"{"


class TestLooking:
    @on_loop
    async def test_takes_nothing(self, standing, name):
        async with of(standing) as client:
            assert await client.peek(name) is None
            assert [item async for item in client.browse(name)] == []
            await client.put_many(name, [b"%d" % number for number in range(250)])
            head = await client.peek([name + "urgent", name])
            assert (head.value, head.queue, head.attempts) == (b"0", name, 0)
            values = [item.value async for item in client.browse(name, head.id + 10, page=50)]
            assert values == [b"%d" % number for number in range(10, 250)]
            assert (await client.queues())[name].items == 250


class TestManaging:
    @on_loop
    async def test_is_as_of_the_sync_client(self, server):
        async with of(server) as client:
            await client.put("work", b"x")
            figures = await client.stats()
            assert (figures.pid, figures.curr_items) == (server.process.pid, 1)
            await client.flush("work")
            assert (await client.queues())["work"].items == 0
            await client.delete("work")
            assert await client.queues() == {}
            await client.configure("work", max_items=1)
            await client.put("work", b"x")
            with pytest.raises(QueueFullError):
                await client.put("work", b"y")
            with pytest.raises(BadRequestError, match="durable cannot"):
                await client.configure("work", durable=False)
            assert await client.status() == "up"
            assert await client.status("readonly") == "readonly"
            assert await client.status() == "readonly"


class TestPackage:
    def test_does_without_asyncio_until_the_async_client_is_asked_for(self):
        code = (
            "import sys, darner.client\n"
            "assert 'asyncio' not in sys.modules\n"
            "from darner.client import AsyncClient, AsyncReservation\n"
            "assert 'asyncio' in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_has_no_other_names(self):
        with pytest.raises(AttributeError, match="AsyncClint"):
            darner.client.AsyncClint  # noqa: B018
        for name in darner.client.__all__:
            assert hasattr(darner.client, name)
