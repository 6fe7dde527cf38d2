"""Items that are moved, exported with --remove and imported while the tool or the server is killed: none is
lost, and none is there twice.

The tool is killed at its steps: before and after each time that it sends something or has the disk sync
something. The long profile goes through all of them, the short one through some.
"""

import itertools
import os
import random
import subprocess
import time

import pytest
from kills import killed_at
from running import DARNER, running, until

from darner.client import Client
from darner.client.connection import Connection
from darner.tools.exporting import Export
from darner.tools.importing import Import, Source
from darner.tools.moving import Move
from load.servers import free_port

ITEMS = 9
each_step = pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.long)])


def never():
    return False


def nothing(*_):
    pass


def _count_steps(counted):
    Connection.ask = counted(Connection.ask)
    Connection.send = counted(Connection.send)
    os.fsync = counted(os.fsync)


def put_items(client, queue, count=ITEMS):
    items = [b"%d of %s" % (number, queue.encode()) for number in range(count)]
    client.put_many(queue, items)
    return items


def take_all(client, queue):
    return list(iter(lambda: client.get(queue), None))


def until_returned(client, queue):
    """Wait until the server has noticed that the connections of a dead process are gone."""
    until(lambda: not client.queues()[queue].open_transactions)


@pytest.fixture
def client(standing):
    with Client(f"127.0.0.1:{standing.port}") as client:
        yield client


@pytest.fixture
def url(standing):
    return f"127.0.0.1:{standing.port}"


@each_step
def test_a_move_that_is_killed_at_any_step_is_gone_on_with_and_each_item_is_moved_once(client, url, stride):
    for step in itertools.count(1, stride):
        source, target = f"killed-{stride}-{step}", f"killed-to-{stride}-{step}"
        items = put_items(client, source)

        def work(source=source, target=target):
            with Client(url) as client:
                Move(client, source, target).emptying.run(nothing, never)

        was_killed = killed_at(step, work, _count_steps)
        until_returned(client, source)
        if was_killed:
            work()
        assert sorted(take_all(client, target)) == sorted(items), step
        assert client.get(source) is None
        if not was_killed:
            break
    assert step > 20


@each_step
def test_an_export_that_is_killed_at_any_step_is_gone_on_with_and_each_item_is_in_it_once(
    client, url, tmp_path, stride
):
    for step in itertools.count(1, stride):
        queue, path = f"exported-{stride}-{step}", str(tmp_path / f"{step}.export")
        items = put_items(client, queue)

        def work(queue=queue, path=path):
            with Client(url) as client:
                Export(client, queue, path, removes=True).run(nothing, never)

        was_killed = killed_at(step, work, _count_steps)
        until_returned(client, queue)
        if was_killed:
            done = killed_at(-1, work, _count_steps)  # it may have been killed when all was done
            assert not done
        with Source(path) as source:
            assert source.check(nothing).items == ITEMS
            found = [source.next()[1].data for _ in items]
        assert sorted(found) == sorted(items), step
        assert client.get(queue) is None
        if not was_killed:
            break
    assert step > 20


@each_step
def test_an_import_that_is_killed_at_any_step_is_gone_on_with_and_each_item_is_put_once(
    client, url, tmp_path, stride
):
    items = put_items(client, f"to-import-{stride}")
    path = str(tmp_path / "items.export")
    Export(client, f"to-import-{stride}", path, removes=True).run(nothing, never)
    for step in itertools.count(1, stride):
        queue = f"imported-{stride}-{step}"

        def work(queue=queue):
            with Client(url) as client, Source(path) as source:
                source.check(nothing)
                Import(client, source, queue, path, again=False, may_double=False).run(nothing, never)

        was_killed = killed_at(step, work, _count_steps)
        if was_killed:
            killed_at(-1, work, _count_steps)
        assert take_all(client, queue) == items, step
        if not was_killed:
            break
    assert step > 5


def kills(tmp_path, rounds, count, seed):
    """Move items, export and import them by the commands, and kill the server or the tool at random moments;
    whatever fails is done again. In the end each item must be there once."""
    chance = random.Random(seed)
    port = free_port()
    environment = os.environ | {"DARNER_URL": f"127.0.0.1:{port}"}
    with running(tmp_path / "data", "--port", str(port)) as server:
        with Client(f"127.0.0.1:{port}") as client:
            items = put_items(client, "there", count)
        export = str(tmp_path / "all.export")
        for number in range(rounds):
            path = f"{export}-{number}"
            for words in (
                ("move", "there", "back"),
                ("export", "back", path, "--remove"),
                ("import", path, "there"),
            ):
                is_first = True
                while True:
                    tool = subprocess.Popen([DARNER, *words], env=environment, stderr=subprocess.PIPE)
                    if is_first:
                        time.sleep(chance.uniform(0.2, 0.8))
                        if chance.random() < 0.5:
                            tool.kill()
                        else:
                            server.restart()
                    is_first = False
                    errors = tool.communicate(timeout=60)[1].decode()
                    assert "Traceback" not in errors
                    if tool.returncode == 0 or "is there, and whole" in errors or "already" in errors:
                        break
                with Client(f"127.0.0.1:{port}") as client:
                    until(lambda: not any(each.open_transactions for each in client.queues().values()))
        with Client(f"127.0.0.1:{port}") as client:
            assert sorted(take_all(client, "there")) == sorted(items)
            assert client.get("back") is None


def test_commands_that_are_killed_with_their_server_lose_and_double_nothing(tmp_path):
    kills(tmp_path, rounds=1, count=1_000, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_commands_that_are_killed_with_their_server_again_and_again_lose_and_double_nothing(tmp_path):
    kills(tmp_path, rounds=10, count=5_000, seed=2)
