"""Clients in use today, each with the same test cases as far as its interface goes."""

import asyncio
import contextlib
import importlib
import inspect
import random

import pytest
from running import running, until

from darner import __version__
from darner._records import CHUNK_BYTES

LARGE = random.Random(9).randbytes(CHUNK_BYTES * 20 + 5)


class Pymemcache:
    """pymemcache by default: commands that change something have noreply."""

    module = "pymemcache"
    noreply = True
    keeps_types = True
    knows_all_stats = True

    def __init__(self, module, port: int) -> None:
        self.client = module.Client(
            ("127.0.0.1", port), timeout=10, serde=module.serde.pickle_serde, default_noreply=self.noreply
        )
        self.set = self.client.set
        self.get = self.client.get
        self.get_many = self.client.get_many
        self.delete = self.client.delete
        self.flush_all = self.client.flush_all
        self.close = self.client.close

    def version(self) -> str:
        return self.client.version().decode()

    def stats(self) -> dict[str, str]:
        # pymemcache turns some of them into numbers
        return {name.decode(): str(value) for name, value in self.client.stats().items()}


class PymemcacheWithReplies(Pymemcache):
    """pymemcache that waits for each reply."""

    noreply = False


class LikeMemcache:
    """A client with the interface of python-memcached."""

    keeps_types = True

    def __init__(self, client) -> None:
        self.client = client
        self.set = client.set
        self.get = client.get
        self.get_many = client.get_multi
        self.delete = client.delete
        self.flush_all = client.flush_all
        self.close = client.disconnect_all

    def version(self) -> str:
        return self.stats()["version"]

    def stats(self) -> dict[str, str]:
        [(_, stats)] = self.client.get_stats()
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in stats.items()}


class PythonMemcached(LikeMemcache):
    """python-memcached."""

    module = "memcache"
    knows_all_stats = True

    def __init__(self, module, port: int) -> None:
        servers = [f"127.0.0.1:{port}"]
        super().__init__(
            module.Client(servers, socket_timeout=10, server_max_value_length=0, server_max_key_length=250)
        )


class Pylibmc(LikeMemcache):
    """pylibmc, which is libmemcached."""

    module = "pylibmc"
    knows_all_stats = False

    def __init__(self, module, port: int) -> None:
        super().__init__(module.Client([f"127.0.0.1:{port}"]))


class OfLoop:
    """A client of asyncio, with an event loop of its own; keys and values are bytes."""

    keeps_types = False
    knows_all_stats = True

    def __init__(self, module, port: int) -> None:
        self.runner = asyncio.Runner()
        self.client = self.run(self.connect(module, port))

    def run(self, wish):
        async def within():
            async with asyncio.timeout(20):
                return await wish

        return self.runner.run(within())

    def set(self, key: str, value: bytes) -> bool:
        return self.run(self.client.set(key.encode(), value)) is not False

    def delete(self, key: str) -> None:
        self.run(self.client.delete(key.encode()))

    def close(self) -> None:
        async def end():
            ending = self.client.close()
            if inspect.isawaitable(ending):
                await ending

        self.run(end())
        self.runner.close()


class Aiomcache(OfLoop):
    """aiomcache, which takes a reply to another key than it asked for as a miss."""

    module = "aiomcache"

    async def connect(self, module, port: int):
        return module.Client("127.0.0.1", port, pool_size=1)

    def get(self, key: str) -> bytes | None:
        return self.run(self.client.get(key.encode()))

    def get_many(self, keys: list[str]) -> dict[str, bytes]:
        values = self.run(self.client.multi_get(*[key.encode() for key in keys]))
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    def flush_all(self) -> None:
        self.run(self.client.flush_all())

    def version(self) -> str:
        return self.run(self.client.version()).decode()

    def stats(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.run(self.client.stats()).items()}


class Emcache(OfLoop):
    """emcache, which takes a reply to another key than it asked for as a miss, too."""

    module = "emcache"

    async def connect(self, module, port: int):
        self.host = module.MemcachedHostAddress("127.0.0.1", port)
        # one connection, so that an item is closed where it was opened; no time limit of its own
        return await module.create_client([self.host], max_connections=1, timeout=20)

    def get(self, key: str) -> bytes | None:
        item = self.run(self.client.get(key.encode()))
        return None if item is None else item.value

    def get_many(self, keys: list[str]) -> dict[str, bytes]:
        items = self.run(self.client.get_many([key.encode() for key in keys]))
        return {key.decode(): item.value for key, item in items.items()}

    def flush_all(self) -> None:
        self.run(self.client.flush_all(self.host))

    def version(self) -> str:
        return self.run(self.client.version(self.host))

    def stats(self) -> dict[str, str]:
        return self.run(self.client.stats(self.host))


CLIENTS = [Pymemcache, PymemcacheWithReplies, PythonMemcached, Pylibmc, Aiomcache, Emcache]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with running(tmp_path_factory.mktemp("clients") / "data") as server:
        yield server
        code = server.stop()
    assert code == 0
    assert "level=error" not in server.log


@pytest.fixture
def server(served):
    """One server for all clients, emptied after each test."""
    yield served
    with contextlib.closing(served.connect()) as wire:
        for queue in {name.split("_")[1] for name in wire.stats() if name.endswith("_create_time")}:
            assert wire.ask(f"delete {queue}\r\n".encode()) == b"DELETED\r\n"
        assert wire.ask(b"stats reset\r\n") == b"RESET\r\n"


@pytest.mark.parametrize("kind", CLIENTS, ids=lambda kind: kind.__name__)
class TestClient:
    @pytest.fixture
    def connect(self, server, kind):
        try:
            module = importlib.import_module(kind.module)
        except ImportError as error:
            pytest.skip(f"{kind.module} is not installed: {error}")
        made = []

        def connect():
            made.append(kind(module, server.port))
            return made[-1]

        yield connect
        for client in made:
            client.close()

    @pytest.fixture
    def client(self, connect):
        return connect()

    def test_gets_what_it_set_in_order(self, client):
        for value in (b"a", b"", b"line\r\nend\r\n", b"\x00\xff"):
            client.set("work", value)
        assert [client.get("work") for _ in range(4)] == [b"a", b"", b"line\r\nend\r\n", b"\x00\xff"]

    def test_finds_nothing_where_nothing_is(self, client):
        assert client.get("work") is None
        assert client.get("work/t=10") is None
        assert client.get("work/open") is None
        assert client.get("work/peek") is None
        client.set("work", b"a")
        assert client.get("work") == b"a"

    def test_gets_the_type_it_set(self, client, kind):
        if not kind.keeps_types:
            pytest.skip(f"{kind.module} knows bytes only")
        for value in ("text", 42, 1 << 70, {"a": [1, None]}, b"bytes"):
            client.set("work", value)
            assert client.get("work/peek") == value
            found = client.get("work")
            assert found == value
            assert type(found) is type(value)

    def test_gets_large_values(self, client, kind):
        large = LARGE[:1_000_000] if kind in (Pylibmc, PythonMemcached) else LARGE
        client.set("work", large)
        client.set("work", b"small")
        client.set("work", large)
        assert client.get("work") == large
        assert client.get("work") == b"small"
        assert client.get("work/open") == large
        assert client.get("work/close") is None

    def test_opens_and_closes(self, client, server):
        client.set("work", b"a")
        client.set("work", b"b")
        assert client.get("work/open") == b"a"
        assert server.stat("queue_work_open_transactions") == 1
        assert client.get("work/close/open/t=100") == b"b"
        assert client.get("work/close") is None
        assert server.stat("queue_work_open_transactions") == 0
        assert client.get("work") is None

    def test_aborts_and_fetches_the_same_again(self, client):
        client.set("work", b"a")
        client.set("work", b"b")
        assert client.get("work/open") == b"a"
        assert client.get("work/abort") is None
        assert [client.get("work"), client.get("work")] == [b"a", b"b"]

    def test_gives_back_what_it_opened_when_it_closes(self, connect, server):
        first, second = connect(), connect()
        first.set("work", b"a")
        assert first.get("work/open") == b"a"
        assert second.get("work") is None
        first.close()
        first.close = lambda: None
        assert second.get("work/t=5000") == b"a"

    def test_waits_for_an_item(self, client, server):
        with_wire = server.connect()
        with_wire.send(b"get start/t=10000\r\n")
        until(lambda: server.stat("queue_start_waiters") == 1)
        client.set("start", b"go")
        assert with_wire.line().startswith(b"VALUE start/t=10000 ")
        client.set("work", b"a")
        assert client.get("work/t=5000") == b"a"

    def test_gets_from_several_queues(self, client):
        client.set("one", b"1")
        client.set("two", LARGE[: CHUNK_BYTES + 1])
        client.set("four", b"4")
        found = client.get_many(["one", "two", "three", "four"])
        assert found == {"one": b"1", "two": LARGE[: CHUNK_BYTES + 1], "four": b"4"}
        assert client.get_many(["one", "two", "three", "four"]) == {}

    def test_opens_and_closes_several_queues(self, client):
        client.set("one", b"1")
        client.set("two", b"2")
        assert client.get_many(["one/open", "two/open"]) == {"one/open": b"1", "two/open": b"2"}
        assert client.get_many(["one/close", "two/abort"]) == {}
        assert client.get_many(["one", "two"]) == {"two": b"2"}

    def test_deletes(self, client):
        client.set("work", b"a")
        client.delete("work")
        assert client.get("work") is None
        client.set("work", b"b")
        assert client.get("work") == b"b"

    def test_flushes_all(self, client):
        client.set("one", b"1")
        client.set("two", b"2")
        client.flush_all()
        assert client.get("one") is None
        assert client.get("two") is None
        client.set("one", b"3")
        assert client.get("one") == b"3"

    def test_knows_the_version(self, client):
        assert client.version() == __version__

    def test_reads_stats(self, client, kind):
        client.set("work", b"abc")
        stats = client.stats()
        assert stats["curr_items"] == "1"
        assert stats["cmd_set"] == "1"
        if kind.knows_all_stats:
            assert stats["queue_work_items"] == "1"
            assert stats["queue_work_bytes"] == "3"


class TestMetaMemcache:
    """meta-memcache, which sends meta commands alone."""

    @pytest.fixture
    def client(self, server):
        module = pytest.importorskip("meta_memcache")
        return module.CacheClient.cache_client_from_servers(
            servers=[module.ServerAddress("127.0.0.1", server.port)],
            connection_pool_factory_fn=module.connection_pool_factory_builder(),
        )

    def test_gets_what_it_set_in_order_and_of_its_type(self, client):
        values = ["delete victim", b"a", b"", b"line\r\nEN\r\n", 42, {"a": [1, None]}, LARGE]
        for value in values:
            assert client.set("work", value, ttl=60)
        assert [client.get("work") for _ in values] == values
        assert client.get("work") is None

    def test_waits_opens_and_closes(self, client, server):
        client.set("work", b"a", ttl=None)
        client.set("work", b"b", ttl=None)
        assert client.get("work/open") == b"a"
        assert server.stat("queue_work_open_transactions") == 1
        assert client.get("work/abort") is None
        assert client.get("work/open") == b"a"
        assert client.get("work/close/open/t=100") == b"b"
        assert client.get("work/close") is None
        assert client.get("work/t=10") is None

    def test_gets_from_several_queues(self, client):
        client.set("one", b"1", ttl=None)
        client.set("größe", b"2", ttl=None)
        found = client.multi_get(["one", "two", "größe"])
        assert {key.key: value for key, value in found.items()} == {"one": b"1", "two": None, "größe": b"2"}
        client.delete("größe")

    def test_gets_ids_as_cas_tokens_and_deletes(self, client):
        client.set("work", b"a", ttl=None)
        assert client.get_cas("work/peek") == (b"a", 1)
        assert client.delete("work")
        assert client.get_cas("work") == (None, None)

    def test_stays_in_step_when_something_is_refused(self, client):
        refusal = importlib.import_module("meta_memcache.errors").MemcacheServerError
        for refused in (lambda: client.delta("work", 1), lambda: client.touch("work", ttl=1)):
            with pytest.raises(refusal):
                refused()
        client.set("work", b"a", ttl=None)
        assert client.get("work") == b"a"


class TestPymemcache:
    """Cases of pymemcache alone."""

    @pytest.fixture
    def client(self, server):
        pymemcache = pytest.importorskip("pymemcache")
        client = pymemcache.Client(("127.0.0.1", server.port), timeout=10)
        yield client
        client.close()

    def test_gets_ids_as_cas_tokens(self, client):
        client.set("work", b"a")
        data, token = client.gets("work")
        assert (data, int(token) > 0) == (b"a", True)
        assert client.gets("work") == (None, None)

    def test_is_told_what_is_not_supported(self, client):
        refusal = importlib.import_module("pymemcache.exceptions").MemcacheClientError
        for refused in (client.add, client.replace, client.append, client.prepend):
            with pytest.raises(refusal, match="is not supported"):
                refused("work", b"a", noreply=False)
        with pytest.raises(refusal, match="is not supported"):
            client.incr("work", 1)
        client.set("work", b"a")
        assert client.get("work") == b"a"

    def test_stays_in_step_when_what_it_does_not_wait_for_is_refused(self, client):
        client.add("work", b"quit\r\n")
        client.touch("work")
        client.set("work/nonsense", b"quit\r\n")
        client.set("work", b"a")
        assert client.get("work") == b"a"
        assert client.stats()[b"noreply_errors"] in (3, b"3")
