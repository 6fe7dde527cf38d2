"""Clients in use today, each with the same test cases as far as its interface goes, in both dialects."""

import asyncio
import base64
import contextlib
import importlib
import inspect
import json
import random
import subprocess
from pathlib import Path

import pytest
from node import NODE, NODE_MODULES, why_node_cannot_run
from running import configured, until

from darner import __version__
from darner._records import CHUNK_BYTES

LARGE = random.Random(9).randbytes(CHUNK_BYTES * 20 + 5)


class Kind:
    """What differs between clients, besides their interface."""

    module: str
    keeps_types = True
    knows_all_stats = True
    longest_value = len(LARGE)
    # it takes the reply to its one key for the answer, whatever key the reply names
    reads_other_keys = False
    # what it makes of `Flushed all queues.`, if it wants `OK`
    fails_to_flush_in_kestrel = ""

    @classmethod
    def why_missing(cls) -> str:
        """Return why this client cannot run here; "" if it can."""
        try:
            importlib.import_module(cls.module)
        except ImportError as error:
            return f"{cls.module} is not installed: {error}"
        return ""


class Pymemcache(Kind):
    """pymemcache by default: commands that change something have noreply."""

    module = "pymemcache"
    noreply = True

    def __init__(self, port: int) -> None:
        module = importlib.import_module(self.module)
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


class LikeMemcache(Kind):
    """A client with the interface of python-memcached."""

    reads_other_keys = True
    longest_value = 1_000_000

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

    def __init__(self, port: int) -> None:
        module = importlib.import_module(self.module)
        servers = [f"127.0.0.1:{port}"]
        super().__init__(
            module.Client(servers, socket_timeout=10, server_max_value_length=0, server_max_key_length=250)
        )


class Pylibmc(LikeMemcache):
    """pylibmc, which is libmemcached."""

    module = "pylibmc"
    knows_all_stats = False
    fails_to_flush_in_kestrel = "UNKNOWN READ FAILURE"

    def __init__(self, port: int) -> None:
        super().__init__(importlib.import_module(self.module).Client([f"127.0.0.1:{port}"]))


class OfLoop(Kind):
    """A client of asyncio, with an event loop of its own; keys and values are bytes."""

    keeps_types = False
    fails_to_flush_in_kestrel = "Flushed all queues"

    def __init__(self, port: int) -> None:
        self.runner = asyncio.Runner()
        self.client = self.run(self.connect(importlib.import_module(self.module), port))

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
        # It takes what it has read for the whole reply if that ends in a line end, and the rest for the next.
        for _ in range(20):
            with contextlib.suppress(importlib.import_module("emcache").CommandError):
                stats = self.run(self.client.stats(self.host))
                if "pid" in stats:
                    return stats
        raise AssertionError("stats came in pieces 20 times")


class NodeMemcached(Kind):
    """memcached of Node.js, in a process of its own that is told what to call by lines of JSON."""

    keeps_types = False
    reads_other_keys = True
    # a byte above 127 is two on the wire, and 1 MiB is its limit
    longest_value = 600_000
    fails_to_flush_in_kestrel = "no answer"

    @classmethod
    def why_missing(cls) -> str:
        return why_node_cannot_run()

    def __init__(self, port: int) -> None:
        script = Path(__file__).with_name("memcached.js")
        self.process = subprocess.Popen(
            [NODE, script, str(port)], env={"NODE_PATH": str(NODE_MODULES)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, method: str, *arguments: object):
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer.get("result")

    def set(self, key: str, value: bytes) -> None:
        assert self.ask("set", key, {"base64": base64.b64encode(value).decode()}, 0) is True

    def get(self, key: str) -> bytes | None:
        found = self.ask("get", key)
        return None if found is None else base64.b64decode(found["base64"])

    def get_many(self, keys: list[str]) -> dict[str, bytes]:
        return {key: base64.b64decode(value["base64"]) for key, value in self.ask("getMulti", keys).items()}

    def delete(self, key: str) -> None:
        self.ask("del", key)

    def flush_all(self) -> None:
        self.ask("flush")

    def version(self) -> str:
        [server] = self.ask("version")
        return server["version"]

    def stats(self) -> dict[str, str]:
        # It forgets what it has read of a reply that comes in pieces.
        for _ in range(20):
            [stats] = self.ask("stats")
            if "pid" in stats:
                return {name: str(value) for name, value in stats.items()}
        raise AssertionError("stats came in pieces 20 times")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


CLIENTS = [Pymemcache, PymemcacheWithReplies, PythonMemcached, Pylibmc, Aiomcache, Emcache, NodeMemcached]


@pytest.fixture(scope="module", params=["memcached", "kestrel"])
def dialect(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def served(tmp_path_factory, dialect):
    with configured(tmp_path_factory.mktemp("clients"), f'dialect = "{dialect}"\n') as server:
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
        if why := kind.why_missing():
            pytest.skip(why)
        made = []

        def connect():
            made.append(kind(server.port))
            return made[-1]

        yield connect
        for client in made:
            client.close()

    @pytest.fixture
    def client(self, connect):
        return connect()

    @pytest.fixture
    def options(self, kind, dialect):
        """Keys with options may be fetched by this client: see test_finds_a_value_under_the_key_it_sent."""
        if dialect == "kestrel" and not kind.reads_other_keys:
            pytest.skip(
                f"{kind.__name__} knows its answer by the key it sent, and kestrel's has a bare queue"
            )

    @pytest.fixture
    def many_options(self, dialect):
        """Several keys with options may be fetched at once."""
        if dialect == "kestrel":
            pytest.skip("values of several keys are known by their keys, and kestrel's have bare queues")

    def test_gets_what_it_set_in_order(self, client):
        for value in (b"a", b"", b"line\r\nend\r\n", b"\x00\xff"):
            client.set("work", value)
        assert [client.get("work") for _ in range(4)] == [b"a", b"", b"line\r\nend\r\n", b"\x00\xff"]

    def test_finds_a_value_under_the_key_it_sent(self, client, kind, dialect):
        client.set("work", b"a")
        if dialect == "memcached" or kind.reads_other_keys:
            assert client.get("work/peek") == b"a"
        elif issubclass(kind, Pymemcache):
            with pytest.raises(KeyError, match="work"):
                client.get("work/peek")
        else:
            assert client.get("work/peek") is None
        assert client.get("work") == b"a"

    def test_finds_nothing_where_nothing_is(self, client):
        assert client.get("work") is None
        assert client.get("work/t=10") is None
        assert client.get("work/open") is None
        assert client.get("work/peek") is None
        client.set("work", b"a")
        assert client.get("work") == b"a"

    def test_gets_the_type_it_set(self, client, kind, options):
        if not kind.keeps_types:
            pytest.skip(f"{kind.__name__} has bytes here")
        for value in ("text", 42, 1 << 70, {"a": [1, None]}, b"bytes"):
            client.set("work", value)
            assert client.get("work/peek") == value
            found = client.get("work")
            assert found == value
            assert type(found) is type(value)

    def test_gets_large_values(self, client, kind, options, store):
        # a cluster's item has to be smaller than its max_payload of 1 MiB
        large = LARGE[: kind.longest_value if store == "leveldb" else min(kind.longest_value, 1_000_000)]
        client.set("work", large)
        client.set("work", b"small")
        client.set("work", large)
        assert client.get("work") == large
        assert client.get("work") == b"small"
        assert client.get("work/open") == large
        assert client.get("work/close") is None

    def test_opens_and_closes(self, client, server, options):
        client.set("work", b"a")
        client.set("work", b"b")
        assert client.get("work/open") == b"a"
        assert server.stat("queue_work_open_transactions") == 1
        assert client.get("work/close/open/t=100") == b"b"
        assert client.get("work/close") is None
        assert server.stat("queue_work_open_transactions") == 0
        assert client.get("work") is None

    def test_aborts_and_fetches_the_same_again(self, client, options):
        client.set("work", b"a")
        client.set("work", b"b")
        assert client.get("work/open") == b"a"
        assert client.get("work/abort") is None
        assert [client.get("work"), client.get("work")] == [b"a", b"b"]

    def test_gives_back_what_it_opened_when_it_closes(self, connect, server, options):
        first, second = connect(), connect()
        first.set("work", b"a")
        assert first.get("work/open") == b"a"
        assert second.get("work") is None
        first.close()
        first.close = lambda: None
        assert second.get("work/t=5000") == b"a"

    def test_waits_for_an_item(self, client, server, options):
        with_wire = server.connect()
        with_wire.send(b"get start/t=10000\r\n")
        until(lambda: server.stat("queue_start_waiters") == 1)
        client.set("start", b"go")
        assert with_wire.line().startswith(b"VALUE start")
        with_wire.close()
        client.set("work", b"a")
        assert client.get("work/t=5000") == b"a"

    def test_gets_from_several_queues(self, client):
        client.set("one", b"1")
        client.set("two", LARGE[: CHUNK_BYTES + 1])
        client.set("four", b"4")
        found = client.get_many(["one", "two", "three", "four"])
        assert found == {"one": b"1", "two": LARGE[: CHUNK_BYTES + 1], "four": b"4"}
        assert client.get_many(["one", "two", "three", "four"]) == {}

    def test_opens_and_closes_several_queues(self, client, many_options):
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

    def test_flushes_all(self, client, server, kind, dialect):
        client.set("one", b"1")
        client.set("two", b"2")
        if dialect == "kestrel" and kind.fails_to_flush_in_kestrel:
            with pytest.raises(Exception, match=kind.fails_to_flush_in_kestrel):
                client.flush_all()
            assert server.stat("curr_items") == 0
            return
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

    @pytest.mark.leveldb("bytes are those that the stream takes")
    def test_reads_how_many_bytes_there_are(self, client, kind):
        client.set("work", b"abc")
        assert client.stats()["bytes"] == "3"


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
        # a large item that is no larger: for four times as much the client takes half a minute
        large = LARGE[: CHUNK_BYTES * 5]
        values = ["delete victim", b"a", b"", b"line\r\nEN\r\n", 42, {"a": [1, None]}, large]
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
