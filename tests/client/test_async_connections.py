"""The connections of the async client: how they are made, shared, lost and closed."""

import asyncio
import os
import ssl

import pytest
import trustme
import uvloop
from logins import HASH
from loops import Cutter, listening, on_loop, until
from running import configured, running

from darner.client import (
    AsyncClient,
    BadRequestError,
    ConnectionFailedError,
    ConnectionLostError,
    LoginError,
    NoFreeConnectionError,
    ProtocolError,
    PutManyError,
    RequestTimeoutError,
)


@pytest.fixture
def name(queue) -> str:
    return queue.decode()


def of(server, **options) -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{server.port}", **options)


def at(port: int, **options) -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{port}", **options)


async def works(client: AsyncClient) -> bool:
    """Whether a value of some size comes through."""
    value = bytes(range(256)) * 4096
    await client.put("work", value)
    return await client.get("work", timeout=5) == value


class TestTransport:
    @on_loop
    async def test_over_tls_verifies_the_server(self, tmp_path):
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
        text = f'tls_cert = "{tmp_path}/cert.pem"\ntls_key = "{tmp_path}/cert.pem"\n'
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        with configured(tmp_path, text) as server:
            url = f"darners://localhost:{server.port}"
            async with AsyncClient(url, tls=trusting) as client:
                assert await works(client)
            async with AsyncClient(url) as client:
                with pytest.raises(ConnectionFailedError, match="certificate"):
                    await client.stats()

    @on_loop
    async def test_over_a_unix_socket(self, tmp_path):
        path = tmp_path / "socket"
        with running(tmp_path / "data", "--socket", str(path)):
            async with AsyncClient(f"darner+unix://{path}") as client:
                assert await works(client)

    @on_loop
    async def test_logs_in(self, tmp_path):
        users = tmp_path / "users.toml"
        users.write_text(f'[alice]\npassword = "{HASH}"\nread = ["*"]\nwrite = ["*"]\n')
        users.chmod(0o600)
        with configured(tmp_path, f'auth_file = "{users}"\n') as server:
            async with AsyncClient(f"darner://alice:pass%20word@127.0.0.1:{server.port}") as client:
                assert await works(client)
            for login in ("alice:wrong@", ""):
                async with AsyncClient(f"darner://{login}127.0.0.1:{server.port}") as client:
                    with pytest.raises(LoginError):
                        await client.put("work", b"x")

    def test_on_uvloop(self, standing, name):
        async def scenario():
            async with of(standing) as client:
                assert await works(client)
                await client.put(name, b"x")
                async with client.reserve(name) as item:
                    assert item.value == b"x"

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scenario())


class TestTimeouts:
    @on_loop
    async def test_of_a_reply_closes_the_connection(self):
        asked = asyncio.Event()

        async def say_nothing(reader, writer):
            await reader.readline()
            asked.set()
            assert await reader.read() == b""
            closed.set()

        closed = asyncio.Event()
        async with listening(say_nothing) as port, at(port, timeout=0.2) as client:
            with pytest.raises(RequestTimeoutError):
                await client.get("work")
            assert asked.is_set()
            await closed.wait()

    @on_loop
    async def test_of_a_wait_comes_on_top(self, standing, name):
        async with of(standing, timeout=0.2) as client:
            await client.put(name, b"late", delay=0.5)
            assert await client.get(name, timeout=10) == b"late"

    @on_loop
    async def test_of_a_peer_that_takes_nothing(self):
        async def read_nothing(reader, writer):
            writer.transport.pause_reading()
            await asyncio.Event().wait()

        async with listening(read_nothing) as port, at(port, timeout=0.3) as client:
            with pytest.raises(RequestTimeoutError):
                await client.put("work", bytes(1 << 25))

    @on_loop
    async def test_no_server_is_said_at_once(self):
        async with AsyncClient("127.0.0.1:1") as client:
            with pytest.raises(ConnectionFailedError):
                await client.put("work", b"x")
            with pytest.raises(PutManyError) as caught:
                await client.put_many("work", [b"1", b"2"])
            assert caught.value.stored == 0
        async with AsyncClient("darner+unix:///nowhere") as client:
            with pytest.raises(ConnectionFailedError):
                await client.get("work")


class TestLoss:
    @pytest.fixture
    def cutter(self, standing) -> Cutter:
        return Cutter(standing.port)

    @on_loop
    async def test_of_the_reply_to_a_put_is_told(self, cutter, name):
        async with cutter.listening() as port, at(port) as client:
            cutter.cuts = 1
            with pytest.raises(ConnectionLostError):
                await client.put(name, b"x")
            assert (await client.queues())[name].items == 1

    @on_loop
    async def test_of_the_reply_to_a_put_with_an_id_is_made_good(self, cutter, name):
        async with cutter.listening() as port, at(port) as client:
            cutter.cuts = 3
            await client.put(name, b"x", id="a")
            figures = (await client.queues())[name]
            assert (figures.items, figures.duplicates) == (1, 3)

    @on_loop
    async def test_within_put_many_tells_what_is_unknown(self, cutter, name):
        values = [b"%d" % number for number in range(1000)]
        async with cutter.listening() as port, at(port) as client:
            cutter.cuts = 1
            with pytest.raises(PutManyError) as caught:
                await client.put_many(name, values)
            kinds = [type(outcome) for outcome in caught.value.outcomes]
            unknown = kinds.count(ConnectionLostError)
            assert unknown
            assert kinds == [ConnectionLostError] * unknown + [ConnectionFailedError] * (1000 - unknown)
            assert (await client.queues())[name].items <= unknown

    @on_loop
    async def test_within_put_many_with_ids_is_made_good(self, cutter, name):
        values = [b"%d" % number for number in range(1000)]
        async with cutter.listening() as port, at(port) as client:
            cutter.cuts = 2
            await client.put_many(name, values, ids=map(str, range(1000)))
            assert [item.value async for item in client.browse(name)] == values

    @on_loop
    async def test_of_a_look_is_made_good_and_of_a_get_is_told(self, cutter, name):
        async with cutter.listening() as port, at(port) as client:
            await client.put_many(name, [b"1", b"2"])
            cutter.cuts = 1
            assert (await client.peek(name)).value == b"1"
            cutter.cuts = 2
            assert [item.value async for item in client.browse(name)] == [b"1", b"2"]
            cutter.cuts = 1
            assert (await client.stats()).pid
            cutter.cuts = 1
            with pytest.raises(ConnectionLostError):
                await client.get(name)
            assert cutter.cuts == 0

    @on_loop
    async def test_while_idle_is_not_noticed(self, server):
        async with of(server) as client:
            await client.put("work", b"1")
            port = server.port
            server.kill()
            server.options = ("--port", str(port))
            server.start()
            assert await client.get("work") == b"1"

    @on_loop
    async def test_of_sense_closes_the_connection(self):
        async def greet(reader, writer):
            await reader.readline()
            writer.write(b"HTTP/1.1 400 Bad Request\r\nVALUE \r\n")
            await reader.read()

        async with listening(greet) as port, at(port) as client:
            with pytest.raises(ProtocolError):
                await client.get("work")

    @on_loop
    async def test_at_once_is_no_connection(self):
        async def refuse(reader, writer):
            pass

        async with listening(refuse) as port, at(port, timeout=1) as client:
            with pytest.raises((ConnectionFailedError, ConnectionLostError)):
                await client.get("work")


class TestPool:
    @on_loop
    async def test_serves_many_tasks_in_the_order_in_which_they_came(self, standing, name):
        async with of(standing, pool_size=2) as client:
            async with client.reserve(name):
                pass
            async with asyncio.TaskGroup() as tasks:
                for number in range(500):
                    tasks.create_task(client.put(name, b"%d" % number))
            got = [int(await client.get(name)) for _ in range(500)]
            # two are under way at a time, and may pass each other
            assert sorted(got) == list(range(500))
            assert all(abs(number - place) <= 1 for place, number in enumerate(got))

    @on_loop
    async def test_of_one_connection_keeps_the_order(self, standing, name):
        async with of(standing, pool_size=1) as client:
            before = (await client.stats()).total_connections
            await asyncio.gather(*[client.put(name, b"%d" % number) for number in range(200)])
            assert [int(await client.get(name)) for _ in range(200)] == list(range(200))
            assert (await client.stats()).total_connections == before

    @on_loop
    async def test_lets_a_cancelled_task_leave_the_line(self, standing, name):
        async with of(standing, pool_size=1) as client:
            first = asyncio.create_task(client.get(name, timeout=60))
            line = [asyncio.create_task(client.put(name, b"%d" % number)) for number in range(3)]
            await asyncio.sleep(0)
            line[0].cancel()
            first.cancel()
            done = await asyncio.gather(first, *line, return_exceptions=True)
            assert [type(result) for result in done[:2]] == [asyncio.CancelledError] * 2
            assert [await client.get(name) for _ in range(3)] == [b"1", b"2", None]

    @on_loop
    async def test_sends_away_whom_it_cannot_serve_in_time_or_after_its_end(self, standing, name):
        async with of(standing, pool_size=1, timeout=0.2) as client:
            waiting = asyncio.create_task(client.get(name, timeout=60))
            await asyncio.sleep(0)
            with pytest.raises(NoFreeConnectionError):
                await client.put(name, b"x")
            in_line = [asyncio.create_task(client.put(name, b"x")) for _ in range(3)]
            await asyncio.sleep(0)
            await client.close()
            for task in in_line:
                with pytest.raises(BadRequestError, match="closed"):
                    await task
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    @on_loop
    async def test_is_free_of_what_was_cancelled_at_any_moment(self, server):
        async with of(server, pool_size=2, timeout=5) as client:
            for turns in range(40):
                tasks = [asyncio.create_task(client.put("work", b"x", id="same")) for _ in range(5)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks[::2]:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert results[1::2] == [None, None]
            assert (await client.queues())["work"].items == 1
        async with of(server) as other:

            async def no_other_connection_is_open():
                return (await other.stats()).curr_connections == 1

            await until(no_other_connection_is_open)

    def test_belongs_to_one_event_loop(self, standing, name):
        client = of(standing)
        asyncio.run(client.put(name, b"x"))
        with pytest.raises(BadRequestError, match="event loop"):
            asyncio.run(client.get(name))

    @on_loop
    async def test_of_a_forked_child_is_its_own(self, standing, name):
        async with of(standing) as client:
            await client.put(name, b"1")
            async with client.reserve(name) as item:
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        asyncio.run(client.put(name, b"child"))
                        code = 0
                    finally:
                        os._exit(code)
                assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0
                # the parent's connection is as it was, and so is what it holds
                await item.abort()
            assert [await client.get(name) for _ in range(3)] == [b"1", b"child", None]
