"""The connections of the sync client: threads, forks, and how many there may be."""

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import until

from darner.client import BadRequestError, Client, NoFreeConnectionError


def pool_of(client: Client):
    return client._servers.only


class TestThreads:
    def test_share_a_client_and_each_gets_its_own_replies(self, standing, queue):
        with Client(f"127.0.0.1:{standing.port}", pool_size=4) as client, ThreadPoolExecutor(12) as threads:

            def work(number: int) -> None:
                own = f"{queue}{number}"
                for turn in range(50):
                    value = b"%d of %d" % (turn, number)
                    client.put(own, value)
                    if turn % 2:
                        assert client.get(own) == value
                    else:
                        with client.reserve(own) as item:
                            assert item.value == value

            for done in [threads.submit(work, number) for number in range(12)]:
                done.result()
            assert len(pool_of(client)._open) <= 4

    def test_never_share_a_connection_that_holds_a_reservation(self, standing, queue):
        with Client(f"127.0.0.1:{standing.port}", pool_size=8) as client, ThreadPoolExecutor(8) as threads:
            # a second `get/open` on such a connection would give END, as it may hold one
            client.put_many("one_at_a_time", [b"%d" % number for number in range(8)])
            together = threading.Barrier(8)

            def hold() -> bytes:
                with client.reserve("one_at_a_time", timeout=10) as item:
                    together.wait(10)
                    return item.value

            held = [each.result() for each in [threads.submit(hold) for _ in range(8)]]
            assert sorted(held) == [b"%d" % number for number in range(8)]

    def test_wait_for_a_connection_and_get_the_one_that_is_given_back(self, standing, queue):
        with Client(f"127.0.0.1:{standing.port}", pool_size=1) as client, ThreadPoolExecutor(1) as threads:
            client.put(queue, b"x")
            with client.reserve(queue):
                putting = threads.submit(client.put, queue, b"y")
                until(lambda: pool_of(client)._waiting)
            putting.result(10)
            assert client.get(queue) == b"y"
            assert len(pool_of(client)._open) == 1


class TestPool:
    def test_uses_one_connection_for_one_thread(self, client, queue):
        for _ in range(10):
            client.put(queue, b"x")
            client.get(queue)
        assert len(pool_of(client)._open) == 1

    def test_that_is_used_up_is_an_error_in_time(self, standing, queue):
        with Client(f"127.0.0.1:{standing.port}", pool_size=1, timeout=0.2) as client:
            client.put(queue, b"x")
            with client.reserve(queue):
                began = time.monotonic()
                with pytest.raises(NoFreeConnectionError, match="pool_size"):
                    client.put(queue, b"y")
                assert 0.2 <= time.monotonic() - began < 5
            client.put(queue, b"y")

    def test_has_its_place_back_when_a_reservation_is_forgotten(self, standing, queue):
        with Client(f"127.0.0.1:{standing.port}", pool_size=1) as client:
            client.put(queue, b"x")
            item = client.reserve(queue).__enter__()
            assert item.value == b"x"
            del item
            gc.collect()
            assert client.get(queue, timeout=10) == b"x"

    def test_of_a_closed_client_is_refused(self, client, queue):
        client.put(queue, b"x")
        client.close()
        client.close()
        with pytest.raises(BadRequestError, match="closed"):
            client.get(queue)

    def test_that_is_closed_ends_its_connections(self, server):
        client = Client(f"127.0.0.1:{server.port}")
        client.put("work", b"x")
        assert server.stat("curr_connections") == 2
        client.close()
        until(lambda: server.stat("curr_connections") == 1)

    @pytest.mark.parametrize("options", [{"timeout": 0}, {"connect_timeout": -1}, {"pool_size": 0}])
    def test_of_nothing_is_refused(self, options):
        with pytest.raises(BadRequestError):
            Client(**options)


class TestFork:
    def test_gives_the_child_connections_of_its_own_and_leaves_those_of_the_parent(self, standing, queue):
        with Client(f"127.0.0.1:{standing.port}") as client:
            client.put_many(queue, [b"held", b"child's"])
            with client.reserve(queue):
                client.put(queue, b"parent's")
                child = os.fork()
                if not child:
                    is_well = client.get(queue) == b"child's"
                    is_well = is_well and len(pool_of(client)._open) == 1
                    os._exit(0 if is_well else 1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                # the child's end has not put back what the parent holds
                assert client.get(queue) == b"parent's"
                assert client.get(queue) is None
            assert client.get(queue) is None
