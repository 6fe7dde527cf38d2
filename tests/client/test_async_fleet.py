"""The async client of several servers."""

import asyncio

import pytest
from loops import on_loop, until
from running import running

from darner.client import AsyncClient, ConnectionFailedError, fleet


@pytest.fixture
def servers(tmp_path):
    with running(tmp_path / "1") as first, running(tmp_path / "2") as second:
        yield [first, second]


def of(servers, **options) -> AsyncClient:
    return AsyncClient([f"127.0.0.1:{server.port}" for server in servers], **options)


def come_back(server) -> None:
    """Start a server again on its old port."""
    server.options = ("--port", str(server.port))
    server.start()


class TestFleet:
    @on_loop
    async def test_has_its_items_on_all_servers(self, servers):
        async with of(servers) as client:
            for number in range(4):
                await client.put("work", b"%d" % number)
            await client.put_many("work", [b"4", b"5"])
            assert {item.server for item in [item async for item in client.browse("work")]} == {
                f"127.0.0.1:{server.port}" for server in servers
            }
            assert (await client.queues())["work"].items == 6
            assert (await client.peek("work")).value in (b"0", b"1", b"4")
            assert sorted([await client.get("work") for _ in range(6)]) == [b"%d" % n for n in range(6)]
            assert await client.get("work") is None

    @on_loop
    async def test_waits_at_all_servers(self, servers):
        async with of(servers) as client:
            for server in servers:
                waiting = asyncio.create_task(client.get(["urgent", "work"], timeout=20))
                async with of([server]) as one:

                    async def somebody_waits(one=one):
                        queues = await one.queues()
                        return "work" in queues and queues["work"].waiters

                    await until(somebody_waits)
                    await one.put("work", bytes(1 << 20))
                assert await waiting == bytes(1 << 20)
            assert await client.get("work", timeout=0.1) is None

    @on_loop
    async def test_cancelled_while_it_waits_waits_nowhere(self, servers):
        async with of(servers) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), client.reserve("work", timeout=20):
                    pass
            for server in servers:
                async with of([server]) as one:

                    async def nobody_waits(one=one):
                        queues = await one.queues()
                        return "work" not in queues or not queues["work"].waiters

                    await until(nobody_waits)
            await client.put("work", b"x")
            assert await client.get("work") == b"x"

    @on_loop
    async def test_keeps_ids_at_one_server(self, servers):
        async with of(servers) as client, of(servers[::-1]) as other:
            ids = [f"id{number}" for number in range(20)]
            await client.put_many("work", map(str.encode, ids), ids=ids)
            for id in ids:
                await other.put("work", id.encode(), id=id)
            figures = (await client.queues())["work"]
            assert (figures.items, figures.duplicates) == (20, 20)
            for server in servers:
                async with of([server]) as one:
                    assert 0 < (await one.queues())["work"].items < 20

    @on_loop
    async def test_passes_over_a_dead_server_until_it_is_back(self, servers, monkeypatch):
        monkeypatch.setattr(fleet, "FIRST_PAUSE_S", 0.05)
        monkeypatch.setattr(fleet, "MAX_PAUSE_S", 0.1)
        async with of(servers) as client:
            servers[0].kill()
            for number in range(10):
                await client.put("work", b"%d" % number)
            assert [await client.get("work") for _ in range(10)] == [b"%d" % n for n in range(10)]
            assert await client.get("work", timeout=0.2) is None
            with pytest.raises(ConnectionFailedError):
                await client.stats()
            come_back(servers[0])
            async with of([servers[0]]) as one:

                async def is_used_again():
                    await client.put("work", b"x")
                    return "work" in await one.queues()

                await until(is_used_again)

    @on_loop
    async def test_without_any_server_fails(self, servers):
        async with of(servers, timeout=2) as client:
            for server in servers:
                server.kill()
            with pytest.raises(ConnectionFailedError):
                await client.put("work", b"x")
            with pytest.raises(ConnectionFailedError):
                await client.get("work")
            with pytest.raises(ConnectionFailedError):
                async with client.reserve("work"):
                    pass
