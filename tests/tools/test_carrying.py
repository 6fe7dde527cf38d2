"""Items that are moved, exported and imported, at a real server."""

import itertools
import socket
import threading
import time

import pytest
from running import configured, until

from darner.client import BadRequestError, Client, QueueFullError
from darner.errors import ToolError
from darner.tools import emptying, holding
from darner.tools.exporting import Export
from darner.tools.importing import Import, Source
from darner.tools.looking import last_id, looks
from darner.tools.moving import Move, move_id
from darner.tools.putting import Putting

CONFIG = """
[queues."forgetful"]
dedup_window = 0
[queues."small.*"]
max_items = 3
[queues."wide*"]
max_open_reads = 50
[queues."drops"]
max_attempts = 2
[queues."impatient"]
open_timeout = "1ms"
"""
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with configured(tmp_path_factory.mktemp("carrying"), CONFIG) as server:
        yield server


@pytest.fixture
def client(served):
    with Client(f"127.0.0.1:{served.port}") as client:
        yield client


@pytest.fixture
def queue():
    return f"queue-{next(numbers)}"


def never():
    return False


def nothing(*_):
    pass


def put(client, queue, count):
    items = [b"%d" % number for number in range(count)]
    client.put_many(queue, items)
    return items


def waiting(client, queue):
    return [item.data for item in client.browse(queue)]


def move(client, source, target, most=None):
    job = Move(client, source, target, most)
    job.emptying.run(nothing, never)
    return job


def export(client, queue, path, *, removes=False):
    job = Export(client, queue, str(path), removes=removes)
    assert job.run(nothing, never)
    return job


def import_(client, path, queue=None, *, again=False, may_double=False, skips_damaged=False):
    with Source(str(path), skips_damaged=skips_damaged) as source:
        source.check(nothing)
        job = Import(client, source, queue, str(path), again=again, may_double=may_double)
        job.run(nothing, never)
        return job.done


# Looks


@pytest.mark.parametrize("gaps", [False, True])
def test_the_last_id_and_what_waits_are_found_with_and_without_gaps(client, queue, gaps):
    put(client, queue, 300)
    if gaps:
        held = [client.servers.only.take(time.monotonic() + 5) for _ in range(10)]
        for number in range(290):
            connection = held[0] if number % 30 else held[number // 30]
            connection.ask(b"gets %b/open\r\n" % queue.encode(), 5)
            if connection is held[0]:
                connection.ask(b"get %b/close\r\n" % queue.encode(), 5)
        for connection in held:
            client.servers.only.discard(connection)
        until(lambda: not client.queues()[queue].open_transactions)
    pool, key = client.servers.only, queue.encode()
    ids = [item.id for item in client.browse(queue)]
    last = last_id(client.servers, pool, key)
    assert last == max(ids)
    assert [look.id for look in looks(client.servers, pool, key, 1, last, 1000)] == ids
    assert len(looks(client.servers, pool, key, 1, last, 7)) == 7
    assert last_id(client.servers, pool, b"nothing-is-there") == 0


# Moves


@pytest.mark.parametrize("source", ["narrow", "wide"])
def test_a_move_keeps_order_flags_and_what_is_left_of_the_expiry(served, client, source):
    items = put(client, source, 300)
    wire = served.connect()
    wire.set(source.encode(), b"flagged", flags=77, exptime=1000)
    job = move(client, source, f"{source}-target")
    assert job.emptying.done.items == 301
    assert job.emptying.done.expected == 301
    assert waiting(client, f"{source}-target") == [*items, b"flagged"]
    assert not waiting(client, source)
    wire.send(b"mg %b-target/peek/from=301 f t\r\n" % source.encode())
    word, flags, left = wire.line().split()
    assert (word, flags) == (b"HD", b"f77")
    assert 900 <= int(left[1:]) <= 1000
    wire.close()


def test_a_move_stops_at_what_waited_when_it_began_though_items_come_back(client, queue):
    put(client, queue, 20)
    job = Move(client, queue, f"{queue}-target")

    def come_back():
        client.put(queue, client.get(f"{queue}-target"))

    job.emptying.run(come_back, never)
    assert job.emptying.done.items == 20
    assert client.queues()[queue].items > 0


def test_a_move_of_so_many_items_takes_the_oldest(client, queue):
    items = put(client, queue, 30)
    assert move(client, queue, f"{queue}-target", 20).emptying.done.items == 20
    assert waiting(client, f"{queue}-target") == items[:20]
    assert waiting(client, queue) == items[20:]


def test_a_move_to_a_queue_that_becomes_full_stops_and_the_rest_stays_in_order(client, queue):
    items = put(client, queue, 40)
    job = Move(client, queue, "small.target")
    with pytest.raises(QueueFullError):
        job.emptying.run(nothing, never)
    assert job.emptying.done.items == 3
    assert job.emptying.done.unsettled == 0
    assert waiting(client, "small.target") == items[:3]
    assert waiting(client, queue) == items[3:]


def test_an_item_that_was_set_and_not_closed_is_known_when_it_is_moved_again(client, queue):
    put(client, queue, 3)
    job = Move(client, queue, f"{queue}-target")
    with holding.Holder(client.servers.only, queue.encode(), 5) as holder:
        assert job.keep([each.item for each in holder.reserve(2)]) == [None, None]
    move(client, queue, f"{queue}-target")
    assert waiting(client, f"{queue}-target") == [b"0", b"1", b"2"]


def test_the_same_item_of_a_queue_that_was_deleted_is_another_one(client, queue):
    for _ in range(2):
        put(client, queue, 2)
        move(client, queue, f"{queue}-target")
        client.delete(queue)
    assert waiting(client, f"{queue}-target") == [b"0", b"1"] * 2


def test_the_id_of_a_move_tells_queues_items_and_data_apart():
    items = [emptying.Waiting(1, 0, 0, -1, b"a"), emptying.Waiting(2, 0, 0, -1, b"a")]
    items += [emptying.Waiting(1, 0, 5, -1, b"a"), emptying.Waiting(1, 0, 0, -1, b"b")]
    ids = {move_id(b"q", 1, item) for item in items}
    ids |= {move_id(b"p", 1, items[0]), move_id(b"q", 2, items[0])}
    assert len(ids) == 6
    assert move_id(b"q", 1, items[0]) == move_id(b"q", 1, emptying.Waiting(1, 3, 0, 9, b"a"))
    assert all(len(id) < 100 for id in ids)


def test_items_that_the_source_takes_back_meanwhile_are_not_moved_twice(client):
    put(client, "impatient", 30)
    job = move(client, "impatient", "patient")
    assert sorted(map(int, waiting(client, "patient"))) == list(range(30))
    assert not waiting(client, "impatient")
    assert not job.emptying.done.doubled


def test_a_target_that_remembers_nothing_gets_items_one_by_one_and_a_warning(client, queue):
    items = put(client, queue, 5)
    job = move(client, queue, "forgetful")
    assert job.window == 1
    assert "dedup_window = 0" in job.warnings[0]
    assert waiting(client, "forgetful") == items


def test_a_move_stops_at_an_item_that_would_be_dropped_if_it_came_back(client):
    put(client, "drops", 2)
    with client.reserve("drops") as item:
        item.abort()
    with pytest.raises(ToolError, match="item 1 of drops has come back 1 times"):
        move(client, "drops", "elsewhere")
    assert waiting(client, "drops") == [b"0", b"1"]


@pytest.mark.parametrize(
    ("source", "target"), [("a", "a"), ("a/cursor=b", "c"), ("a+b", "a"), ("a", "b/c"), ("a b", "c")]
)
def test_moves_that_make_no_sense_are_refused(client, source, target):
    with pytest.raises(BadRequestError):
        Move(client, source, target)


def test_a_server_that_stores_nothing_is_left_alone(client, queue):
    put(client, queue, 1)
    client.status("readonly")
    try:
        with pytest.raises(ToolError, match="readonly"):
            Move(client, queue, "elsewhere")
    finally:
        client.status("up")
    assert [item.attempts for item in client.browse(queue)] == [0]


def test_there_is_nothing_to_move_in_a_queue_that_is_not_there(client):
    with pytest.raises(ToolError, match="has no queue nobody"):
        Move(client, "nobody", "elsewhere")
    assert "nobody" not in client.queues()


def test_an_export_leaves_the_queue_and_an_import_brings_all_back(served, client, queue, tmp_path):
    items = put(client, queue, 300)
    wire = served.connect()
    wire.set(queue.encode(), b"\x00\xff", flags=9, exptime=1000)
    wire.set(queue.encode(), b"large" * 100_000)
    done = export(client, queue, tmp_path / "it").file
    assert done.items == 302
    assert len(waiting(client, queue)) == 302
    assert import_(client, tmp_path / "it", f"{queue}-again").items == 302
    assert waiting(client, f"{queue}-again") == [*items, b"\x00\xff", b"large" * 100_000]
    wire.send(b"mg %b-again/peek/from=301 f t\r\n" % queue.encode())
    _, flags, left = wire.line().split()
    assert flags == b"f9"
    assert 900 <= int(left[1:]) <= 1002
    wire.close()


def test_an_export_with_remove_empties_the_queue_and_keeps_the_order(client, tmp_path):
    items = put(client, "wide-export", 300)
    done = export(client, "wide-export", tmp_path / "it", removes=True)
    assert done.done.items == done.file.items == 300
    assert not waiting(client, "wide-export")
    import_(client, tmp_path / "it")
    assert waiting(client, "wide-export") == items


@pytest.mark.parametrize("removes", [False, True])
@pytest.mark.parametrize("left", [1, 30, 400])
def test_an_export_that_was_cut_off_goes_on_behind_its_last_whole_record(
    client, queue, tmp_path, removes, left
):
    items = put(client, queue, 100)
    export(client, queue, tmp_path / "it")
    whole = (tmp_path / "it").read_bytes()
    (tmp_path / "it").write_bytes(whole[:-left])
    job = export(client, queue, tmp_path / "it", removes=removes)
    assert 0 < job.file.found <= 100
    assert job.file.items == 100
    if not removes:
        assert (tmp_path / "it").read_bytes() == whole
    client.flush(queue)
    import_(client, tmp_path / "it")
    assert waiting(client, queue) == items


def test_a_file_that_is_whole_or_of_another_queue_or_damaged_is_left_alone(client, queue, tmp_path):
    put(client, queue, 3)
    put(client, f"{queue}-b", 3)
    export(client, queue, tmp_path / "it")
    whole = (tmp_path / "it").read_bytes()
    with pytest.raises(ToolError, match="whole, with 3 items"):
        Export(client, queue, str(tmp_path / "it"), removes=False)
    with pytest.raises(ToolError, match="another queue"):
        Export(client, f"{queue}-b", str(tmp_path / "it"), removes=False)
    damaged = bytearray(whole[:-20])
    damaged[whole.index(b'"last"') + 100] ^= 1
    for text in (bytes(damaged), b"precious\n"):
        (tmp_path / "it").write_bytes(text)
        with pytest.raises(ToolError, match="damaged"):
            Export(client, queue, str(tmp_path / "it"), removes=False)
        assert (tmp_path / "it").read_bytes() == text


def test_one_file_is_written_by_one_export_at_a_time(client, queue, tmp_path):
    put(client, queue, 1)
    job = Export(client, queue, str(tmp_path / "it"), removes=False)
    with pytest.raises(ToolError, match="another export"):
        Export(client, queue, str(tmp_path / "it"), removes=False)
    job.file.close()


def test_an_item_that_has_expired_meanwhile_is_not_imported(served, client, queue, tmp_path, monkeypatch):
    wire = served.connect()
    wire.set(queue.encode(), b"short", exptime=60)
    wire.set(queue.encode(), b"long", exptime=0)
    wire.close()
    export(client, queue, tmp_path / "it")
    later = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: later)
    done = import_(client, tmp_path / "it", f"{queue}-again")
    assert (done.items, done.expired) == (1, 1)
    assert waiting(client, f"{queue}-again") == [b"long"]


def test_an_import_that_is_done_is_done_again_only_if_that_is_asked(client, queue, tmp_path):
    items = put(client, queue, 3)
    export(client, queue, tmp_path / "it")
    import_(client, tmp_path / "it", f"{queue}-again")
    with pytest.raises(ToolError, match="already, with 3 items"):
        import_(client, tmp_path / "it", f"{queue}-again")
    import_(client, tmp_path / "it", f"{queue}-again", again=True)
    import_(client, tmp_path / "it", f"{queue}-third")
    assert waiting(client, f"{queue}-again") == items * 2


def test_an_import_into_a_queue_that_becomes_full_goes_on_when_there_is_room(client, queue, tmp_path):
    items = put(client, queue, 8)
    export(client, queue, tmp_path / "it")
    got = []
    with pytest.raises(QueueFullError):
        import_(client, tmp_path / "it", "small.import")
    for _ in range(3):
        got += iter(lambda: client.get("small.import"), None)
        try:
            done = import_(client, tmp_path / "it", "small.import")
        except QueueFullError:
            continue
        break
    assert done.earlier == 6
    assert got + waiting(client, "small.import") == items


def test_an_import_that_was_killed_long_ago_goes_on_only_if_it_may_double(
    client, queue, tmp_path, monkeypatch
):
    put(client, queue, 3)
    export(client, queue, tmp_path / "it")
    with Source(str(tmp_path / "it")) as source:
        job = Import(client, source, f"{queue}-again", str(tmp_path / "it"), again=False, may_double=False)
        job._position.is_clean = False  # as a kill leaves it
        job._save()
    later = time.time() + 301
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(ToolError, match="--may-double"):
        import_(client, tmp_path / "it", f"{queue}-again")
    assert import_(client, tmp_path / "it", f"{queue}-again", may_double=True).items == 3


def test_what_is_sound_of_a_damaged_file_is_imported_if_that_is_asked(client, queue, tmp_path):
    put(client, queue, 50)
    export(client, queue, tmp_path / "it")
    whole = (tmp_path / "it").read_bytes()
    at = whole.rindex(b"\x89DQ\nI") + 43
    (tmp_path / "it").write_bytes(whole[:at] + b"X" + whole[at + 1 :])
    with pytest.raises(ToolError, match="record 50, at byte"):
        import_(client, tmp_path / "it", f"{queue}-again")
    assert f"{queue}-again" not in client.queues()
    done = import_(client, tmp_path / "it", f"{queue}-again", skips_damaged=True)
    assert (done.items, done.damaged) == (49, 1)


def test_a_queue_is_exported_while_it_is_used_and_what_waits_all_the_time_is_in_it(client, queue, tmp_path):
    items = put(client, queue, 500)
    is_over = threading.Event()

    def use():
        with Client(str(client.servers.only.address)) as other:
            while not is_over.is_set():
                other.put(queue, b"late")
                for _ in range(2):
                    other.get(queue)

    user = threading.Thread(target=use)
    user.start()
    try:
        export(client, queue, tmp_path / "it")
    finally:
        is_over.set()
        user.join()
    left = [item for item in waiting(client, queue) if item != b"late"]
    with Source(str(tmp_path / "it")) as source:
        found = [record.data for _, record in iter(source.next, None)]
    in_order = [item for item in items if item in set(found)]
    assert [item for item in found if item != b"late"] == in_order
    assert set(left) <= set(found)


# Puts


def test_a_put_that_fails_half_way_says_how_many_are_stored(client):
    putting = Putting(client, "small.put")
    putting.put([b"1"])
    with pytest.raises(ToolError, match="the queue is full: 3 items are stored, and item 4 is the first"):
        putting.put([b"2", b"3", b"4", b"5"])
    assert waiting(client, "small.put") == [b"1", b"2", b"3"]


def test_items_that_are_put_once_more_with_the_same_id_are_stored_once(client, queue):
    for _ in range(2):
        putting = Putting(client, queue, id="batch")
        putting.put([b"1", b"2"])
        putting.put([b"3"])
    assert waiting(client, queue) == [b"1", b"2", b"3"]


def test_a_put_whose_reply_is_lost_says_how_many_are_in_doubt():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def lose():
            connection = listener.accept()[0]
            connection.recv(65536)
            connection.sendall(b"STORED\r\n")
            connection.close()

        loser = threading.Thread(target=lose)
        loser.start()
        putting = Putting(Client(f"127.0.0.1:{listener.getsockname()[1]}"), "work")
        with pytest.raises(ToolError, match="1 items are stored, and 2 more perhaps"):
            putting.put([b"1", b"2", b"3"])
        loser.join()
