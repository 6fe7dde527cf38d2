"""The sync client when connections are lost, and servers are silent or say what makes no sense."""

import socket
import threading
import time

import pytest
from running import until
from unsound_servers import proxy, says, silence

from darner.client import (
    BadRequestError,
    Client,
    ConnectionFailedError,
    ConnectionLostError,
    LoginError,
    NotPermittedError,
    ProtocolError,
    PutManyError,
    RequestTimeoutError,
    ServerFailedError,
)


@pytest.fixture
def lossy(standing):
    with proxy(standing.port) as lossy:
        yield lossy


@pytest.fixture
def shaky(lossy):
    """A client behind the proxy."""
    with Client(f"127.0.0.1:{lossy.port}") as shaky:
        yield shaky


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class TestLostReply:
    def test_to_a_put_is_an_error_and_it_is_not_put_again(self, client, shaky, lossy, queue):
        lossy.to_lose = 1
        with pytest.raises(ConnectionLostError):
            shaky.put(queue, b"x")
        assert client.queues()[queue].total_items == 1
        assert lossy.connections == 1

    def test_to_a_put_with_an_id_is_asked_for_again_and_it_is_stored_once(self, client, shaky, lossy, queue):
        lossy.to_lose = 3
        shaky.put(queue, b"x", id="17")
        assert client.queues()[queue].items == 1
        assert client.queues()[queue].duplicates == 3
        assert lossy.connections == 4

    def test_to_put_many_leaves_it_unknown_and_none_is_put_again(self, client, shaky, lossy, queue):
        lossy.to_lose = 1
        with pytest.raises(PutManyError) as raised:
            shaky.put_many(queue, [b"a", b"b"])
        assert raised.value.stored == 0
        assert all(isinstance(outcome, ConnectionLostError) for outcome in raised.value.outcomes)
        assert client.queues()[queue].total_items == 2

    def test_to_put_many_with_ids_stores_each_once_in_order(self, client, shaky, lossy, queue):
        values = [b"%d" % number for number in range(500)]
        lossy.to_lose = 2
        shaky.put_many(queue, values, ids=values)
        assert lossy.connections == 3
        assert [item.value for item in client.browse(queue)] == values

    def test_to_a_get_is_an_error(self, client, shaky, lossy, queue):
        client.put_many(queue, [b"a", b"b"])
        lossy.to_lose = 1
        with pytest.raises(ConnectionLostError):
            shaky.get(queue)
        assert lossy.connections == 1
        # what it was is lost, or is not: as the server saw the end of the connection
        assert shaky.get(queue) in (b"a", b"b")

    @pytest.mark.parametrize(
        "read",
        [
            lambda client, queue: client.peek(queue).value,
            lambda client, queue: next(client.browse(queue)).value,
            lambda client, queue: client.queues()[queue].items and b"x",
            lambda client, _: client.stats().pid and b"x",
        ],
        ids=["peek", "browse", "queues", "stats"],
    )
    def test_to_what_takes_nothing_is_asked_for_again(self, client, shaky, lossy, queue, read):
        client.put(queue, b"x")
        lossy.to_lose = 2
        assert read(shaky, queue) == b"x"
        assert lossy.connections == 3

    def test_to_flush_and_delete_is_an_error(self, shaky, lossy, queue):
        for ask in (shaky.flush, shaky.delete):
            lossy.to_lose = 1
            with pytest.raises(ConnectionLostError):
                ask(queue)

    def test_to_a_close_is_an_error_and_the_place_in_the_pool_is_free(self, standing, lossy, queue):
        with Client(f"127.0.0.1:{lossy.port}", pool_size=1, timeout=5) as client:
            client.put(queue, b"x")
            with pytest.raises(ConnectionLostError), client.reserve(queue):
                lossy.to_lose = 1
            assert client.get(queue) is None  # the server had closed it

    def test_to_an_abort_after_an_exception_hides_no_exception(self, client, shaky, lossy, queue):
        client.put(queue, b"x")

        def fail() -> None:
            with shaky.reserve(queue):
                lossy.to_lose = 1
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert client.get(queue, timeout=10) == b"x"


class TestServerThatEnds:
    def test_is_noticed_on_connections_that_rest(self, server, tmp_path, queue):
        with proxy(server.port) as before, Client(f"127.0.0.1:{before.port}") as client:
            client.put(queue, b"x")
            connection = client._servers.only._idle[0]
            server.kill()
            until(lambda: not connection.is_usable())
            server.start()
            before._server = ("127.0.0.1", server.port)
            client.put(queue, b"y")
            assert before.connections == 2
            assert [client.get(queue), client.get(queue)] == [b"x", b"y"]

    def test_while_a_get_waits_is_an_error(self, server, queue):
        with Client(f"127.0.0.1:{server.port}") as client:

            def kill() -> None:
                until(lambda: server.waiters(queue.encode()))
                server.kill()

            killing = threading.Thread(target=kill)
            killing.start()
            with pytest.raises(ConnectionLostError):
                client.get(queue, timeout=30)
            killing.join()

    def test_while_a_put_with_an_id_is_under_way_gets_it_when_it_is_back(self, server, queue):
        with proxy(server.port) as before, Client(f"127.0.0.1:{before.port}", timeout=30) as client:
            before.to_lose = 1
            server.kill()

            def start() -> None:
                until(lambda: before.connections >= 3)
                server.start()
                before._server = ("127.0.0.1", server.port)

            starting = threading.Thread(target=start)
            starting.start()
            client.put(queue, b"x", id="17")
            starting.join()
            assert client.get(queue) == b"x"

    def test_and_cannot_be_reached_means_that_nothing_was_sent(self, queue):
        with Client(f"127.0.0.1:{closed_port()}") as client:
            for ask in (client.get, client.peek, client.flush, lambda _: client.stats()):
                with pytest.raises(ConnectionFailedError):
                    ask(queue)
            with pytest.raises(ConnectionFailedError):
                client.put(queue, b"x", id="17")
            with pytest.raises(PutManyError) as raised:
                client.put_many(queue, [b"x", b"y"])
            assert all(isinstance(outcome, ConnectionFailedError) for outcome in raised.value.outcomes)


class TestSilentServer:
    @pytest.mark.parametrize(
        "ask",
        [
            lambda client: client.put("work", b"x"),
            lambda client: client.put("work", bytes(30_000_000)),
            lambda client: client.put("work", b"x", id="17"),
            lambda client: client.get("work", timeout=0.1),
            lambda client: client.peek("work"),
            lambda client: client.reserve("work").__enter__(),
            lambda client: client.stats(),
            lambda client: client.status(),
            lambda client: client.delete("work"),
        ],
    )
    def test_is_an_error_when_the_time_is_over(self, ask):
        with silence() as port, Client(f"127.0.0.1:{port}", timeout=0.2) as client:
            began = time.monotonic()
            with pytest.raises(RequestTimeoutError):
                ask(client)
            assert 0.2 <= time.monotonic() - began < 5

    def test_leaves_it_unknown_what_became_of_put_many(self):
        with silence() as port, Client(f"127.0.0.1:{port}", timeout=0.2) as client:
            with pytest.raises(PutManyError) as raised:
                client.put_many("work", [b"x"] * 1000)
            assert isinstance(raised.value.outcomes[0], RequestTimeoutError)

    def test_does_not_take_the_login(self):
        login = "darner://alice:secret@127.0.0.1"
        with silence() as port, Client(f"{login}:{port}", connect_timeout=0.2) as client:
            with pytest.raises(ConnectionFailedError) as raised:
                client.put("work", b"x")
            assert "secret" not in str(raised.value)


class TestReply:
    @pytest.mark.parametrize(
        ("line", "error"),
        [
            (b"CLIENT_ERROR not permitted\r\n", NotPermittedError),
            (b"CLIENT_ERROR authentication failure\r\n", LoginError),
            (b"CLIENT_ERROR bad command line format\r\n", BadRequestError),
            (b"ERROR\r\n", BadRequestError),
            (b"SERVER_ERROR out of disk\r\n", ServerFailedError),
            (b"HTTP/1.1 400 Bad Request\r\n", ProtocolError),
            (b"END\r\n", ProtocolError),
            (b"x" * 10_000, ProtocolError),
            (b"STOR", ConnectionLostError),
            (b"", ConnectionLostError),
        ],
    )
    def test_to_a_put_is_told_by_what_the_caller_can_do(self, line, error):
        with says(line) as port, Client(f"127.0.0.1:{port}") as client:
            with pytest.raises(error) as raised:
                client.put("work", b"x")
            assert type(raised.value) is error

    @pytest.mark.parametrize(
        "reply",
        [b"STORED\r\n", b"VALUE work 0 1\r\nxyz", b"VALUE work 0 x\r\n", b"STAT a b\r\nVALUE work 0 1\r\n"],
    )
    def test_that_is_none_to_a_get_is_a_protocol_error(self, reply):
        with says(reply) as port, Client(f"127.0.0.1:{port}") as client, pytest.raises(ProtocolError):
            client.get("work")
