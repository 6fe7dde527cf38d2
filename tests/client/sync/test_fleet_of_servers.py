"""The sync client and a fleet of real servers."""

import contextlib
import socket
import threading
from collections import Counter

import pytest
from running import Server, running, until
from unsound_servers import proxy, silence

from darner.client import (
    Client,
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    PutManyError,
    RefusedError,
    fleet,
)


def port_of_none() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        directories = [tmp_path_factory.mktemp("fleet") for _ in range(3)]
        yield [stack.enter_context(running(directory / "data")) for directory in directories]


@pytest.fixture
def alone(three):
    """A client of each server."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Client(f"127.0.0.1:{server.port}")) for server in three]


@pytest.fixture
def client(three) -> Client:
    with Client([f"127.0.0.1:{server.port}" for server in three], timeout=10) as client:
        yield client


@pytest.fixture
def lame(three):
    """A client of two servers, and of a third that is down; another one is asked first each time."""
    ports = [three[0].port, port_of_none(), three[1].port]
    with Client([f"127.0.0.1:{port}" for port in ports]) as client:
        yield client


def counts(alone: list[Client], queue: str) -> list[int]:
    return [queues[queue].items if queue in (queues := one.queues()) else 0 for one in alone]


class TestPut:
    def test_is_spread_over_all(self, client, alone, queue):
        for _ in range(30):
            client.put(queue, b"x")
        assert counts(alone, queue) == [10, 10, 10]

    def test_with_an_id_goes_to_the_same_server_each_time(self, client, alone, queue):
        for _ in range(5):
            for number in range(20):
                client.put(queue, b"x", id=f"order-{number}")
        found = counts(alone, queue)
        assert sum(found) == 20
        assert all(found)

    def test_many_keep_their_order_on_one_server(self, client, alone, queue):
        values = [b"%d" % number for number in range(300)]
        client.put_many(queue, values)
        assert sorted(counts(alone, queue)) == [0, 0, 300]
        assert [item.value for item in client.browse(queue)] == values

    def test_many_with_ids_go_where_each_goes_alone(self, client, alone, queue):
        ids = [f"order-{number}" for number in range(50)]
        client.put_many(queue, [id.encode() for id in ids], ids=ids)
        for id in ids:
            client.put(queue, b"again", id=id)
        assert sum(counts(alone, queue)) == 50

    def test_passes_over_a_server_that_is_down(self, lame, alone, queue):
        for _ in range(10):
            lame.put(queue, b"x")
        assert sum(counts(alone, queue)) == 10

    def test_with_an_id_of_a_server_that_is_down_is_an_error(self, lame, queue):
        outcomes = Counter()
        for number in range(30):
            try:
                lame.put(queue, b"x", id=f"order-{number}")
                outcomes["stored"] += 1
            except ConnectionFailedError:
                outcomes["failed"] += 1
        assert outcomes["stored"]
        assert outcomes["failed"]

    def test_many_with_ids_says_which_were_stored_where_one_server_is_down(self, lame, alone, queue):
        ids = [f"order-{number}" for number in range(30)]
        with pytest.raises(PutManyError) as raised:
            lame.put_many(queue, [b"x"] * 30, ids=ids)
        assert raised.value.stored == sum(counts(alone, queue))
        failed = [outcome for outcome in raised.value.outcomes if outcome is not None]
        assert all(isinstance(outcome, ConnectionFailedError) for outcome in failed)

    def test_goes_to_the_next_server_if_one_refuses_all(self, client, alone, queue):
        alone[1].status("readonly")
        try:
            for _ in range(3):
                client.put(queue, b"x")
                client.put_many(queue, [b"x"] * 200)
        finally:
            alone[1].status("up")
        assert counts(alone, queue)[1] == 0
        assert sum(counts(alone, queue)) == 603

    def test_that_all_refuse_is_an_error(self, client, queue):
        client.status("readonly")
        try:
            with pytest.raises(RefusedError, match="readonly"):
                client.put(queue, b"x")
            with pytest.raises(PutManyError, match="readonly") as raised:
                client.put_many(queue, [b"x"] * 200)
            assert raised.value.stored == 0
        finally:
            client.status("up")

    def test_of_which_the_reply_is_lost_is_made_on_no_other_server(self, three, alone, queue):
        with proxy(three[0].port) as lossy, proxy(three[1].port) as other:
            lossy.to_lose = other.to_lose = 1
            client = Client([f"127.0.0.1:{each.port}" for each in (lossy, other)])
            with pytest.raises(ConnectionLostError):
                client.put(queue, b"x")
        assert sum(counts(alone, queue)) == 1


class TestGet:
    def test_takes_from_whichever_has_an_item(self, client, alone, queue):
        for one in alone:
            one.put(queue, b"x")
        assert [client.get(queue) for _ in range(4)] == [b"x", b"x", b"x", None]

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_waits_at_all(self, client, alone, queue, number):
        def put() -> None:
            until(lambda: queue in (queues := alone[number].queues()) and queues[queue].waiters)
            alone[number].put(queue, b"x")

        putting = threading.Thread(target=put)
        putting.start()
        assert client.get([queue + "urgent", queue], timeout=30) == b"x"
        putting.join()

    def test_waits_no_longer_than_asked(self, client, queue):
        assert client.get(queue, timeout=0.1) is None

    def test_waits_at_the_others_when_one_is_down(self, lame, alone, queue):
        assert lame.get(queue, timeout=0.05) is None
        alone[1].put(queue, b"x")
        assert lame.get(queue, timeout=10) == b"x"

    def test_with_all_down_is_an_error(self, queue):
        with Client([f"127.0.0.1:{port_of_none()}" for _ in range(2)]) as client:
            for ask in (client.get, client.peek, lambda _: client.stats()):
                with pytest.raises(ConnectionFailedError):
                    ask(queue)

    def test_passes_over_a_server_that_is_silent_where_nothing_is_taken(self, three, alone, queue):
        alone[0].put(queue, b"x")
        with silence() as port:
            servers = [f"127.0.0.1:{port}", f"127.0.0.1:{three[0].port}"]
            with Client(servers, timeout=0.3) as client:
                with pytest.raises(ClientError):
                    client.get(queue)
                # it is out of sight for a pause, so the other one is asked at once
                assert client.get(queue) == b"x"


class TestReservation:
    def test_stays_with_its_server(self, client, alone, queue):
        for one in alone:
            one.put_many(queue, [b"a", b"b"])
        with client.reserve(queue) as item:
            number = [f"{each._servers.only.address}" for each in alone].index(item.server)
            assert alone[number].queues()[queue].open_transactions == 1
            for _ in range(6):
                client.peek(queue)
        assert alone[number].queues()[queue].items == 1

    def test_of_many_are_of_one_server(self, client, alone, queue):
        alone[2].put_many(queue, [b"a", b"b"])
        with client.reserve_many(queue, 10) as items:
            assert [item.value for item in items] == [b"a"]  # max_open_reads is 1

    def test_of_which_the_reply_is_lost_goes_to_the_next_server(self, three, alone, queue):
        alone[0].put(queue, b"x")
        alone[1].put(queue, b"x")
        with proxy(three[0].port) as lossy:
            lossy.to_lose = 1
            client = Client([f"127.0.0.1:{lossy.port}", f"127.0.0.1:{three[1].port}"])
            with client.reserve(queue) as item:
                assert item.server == f"127.0.0.1:{three[1].port}"
        # nothing was lost by it
        assert alone[0].get(queue, timeout=10) == b"x"


class TestFigures:
    def test_are_added_up(self, client, alone, queue):
        for one in alone:
            one.put(queue, b"xyz")
        stats = client.queues()[queue]
        assert (stats.items, stats.bytes) == (3, 9)
        assert client.stats().curr_items == sum(one.stats().curr_items for one in alone)

    def test_flush_and_delete_are_for_all(self, client, alone, queue):
        for ask in (client.flush, client.delete):
            for one in alone:
                one.put(queue, b"x")
            ask(queue)
            assert counts(alone, queue) == [0, 0, 0]

    def test_the_status_is_that_of_the_server_which_does_least(self, client, alone):
        alone[1].status("readonly")
        try:
            assert client.status() == "readonly"
        finally:
            assert client.status("up") == "up"


def test_a_server_that_died_is_passed_over_and_comes_back(tmp_path, monkeypatch, queue):
    monkeypatch.setattr(fleet, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(fleet, "MAX_PAUSE_S", 0.05)
    with contextlib.ExitStack() as stack:
        servers: list[Server] = [
            stack.enter_context(running(tmp_path / f"data{number}")) for number in range(2)
        ]
        fronts = [stack.enter_context(proxy(server.port)) for server in servers]
        client = stack.enter_context(Client([f"127.0.0.1:{front.port}" for front in fronts]))
        client.put_many(queue, [b"x"])
        client.put_many(queue, [b"x"])
        servers[0].kill()
        stored = 0
        for _ in range(20):
            # what was under way when the server died is an error; all else goes to the other one
            with contextlib.suppress(ConnectionLostError):
                client.put(queue, b"x")
                stored += 1
        assert stored >= 18
        servers[0].start()
        fronts[0]._server = ("127.0.0.1", servers[0].port)

        def is_back() -> bool:
            with contextlib.suppress(ConnectionLostError):
                client.put(queue, b"back")
            return servers[0].stat("cmd_set") > 0

        until(is_back)
        taken = 0
        while client.get(queue) is not None:
            taken += 1
        assert taken >= stored + 2
