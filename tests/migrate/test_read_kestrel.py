"""Journals of Kestrel, as they are played back."""

import random

import pytest
from other_servers import (
    add,
    add_xid,
    addx,
    confirm_remove,
    continue_,
    remove,
    remove_tentative,
    remove_xid,
    save_xid,
    unremove,
)

from darner.errors import MigrationError
from darner.migrate.kestrel import Kestrel


@pytest.fixture
def path(tmp_path):
    return tmp_path


def write(path, *records, name="work"):
    (path / name).write_bytes(b"".join(records))


def read(path, name=b"work"):
    """Return the data of the items of a queue, and its damage."""
    (queue,) = (queue for queue in Kestrel(path).queues() if queue.name == name)
    damage = []
    return [item.data for item in queue.items(damage.append)], damage


def notes(path):
    (queue,) = Kestrel(path).queues()
    list(queue.items(lambda _: None))
    return queue.notes


def test_have_what_was_set_and_not_fetched_with_its_times(path):
    write(path, add(b"old", 1_900_000_000), add(b"older"), addx(b"new", 1_400_000_000_123, 1_999_999_999_456))
    (queue,) = Kestrel(path).queues()
    assert [tuple(item) for item in queue.items(pytest.fail)] == [
        (b"old", 1_900_000_000_000, 0),
        (b"older", 0, 0),
        (b"new", 1_999_999_999_456, 1_400_000_000_123),
    ]


def test_that_is_empty_has_nothing(path):
    write(path)
    write(path, addx(b"one"), remove(), remove(), name="drained")
    assert read(path) == ([], [])
    assert read(path, b"drained") == ([], [])


def test_lose_what_was_fetched_first_first(path):
    write(path, addx(b"1"), addx(b""), addx(b"3"), remove(), addx(b"4"), remove(), addx(b"5"))
    assert read(path)[0] == [b"3", b"4", b"5"]


def test_have_what_was_given_back_at_the_head(path):
    write(
        path, *map(addx, [b"1", b"2", b"3", b"4"]), remove_xid(1), remove_xid(2), remove_xid(3), unremove(3),
        unremove(1), confirm_remove(2),
    )  # fmt: skip
    assert read(path)[0] == [b"1", b"3", b"4"]


def test_have_what_a_client_held_at_the_end_in_the_order_of_its_transactions(path):
    write(path, *map(addx, [b"1", b"2", b"3", b"4", b"5"]), *map(remove_xid, [7, 8, 9]), confirm_remove(8))
    assert read(path)[0] == [b"1", b"3", b"4", b"5"]


def test_have_what_was_put_back_behind_the_others(path):
    write(path, addx(b"1"), addx(b"2"), remove_xid(1), continue_(1, b"again"), remove())
    assert read(path)[0] == [b"again"]


def test_have_what_was_open_when_the_journal_was_written_anew(path):
    write(path, save_xid(9), addx(b"held"), remove_xid(7), addx(b"2"), addx(b"3"))
    assert read(path)[0] == [b"held", b"2", b"3"]
    write(path, save_xid(9), addx(b"held"), remove_xid(7), addx(b"2"), confirm_remove(7), remove())
    assert read(path)[0] == []


def test_of_earlier_versions_number_transactions_themselves(path):
    write(
        path, save_xid(4), add_xid(3, b"held"), remove_tentative(), addx(b"1"), addx(b"2"),
        remove_tentative(), remove_tentative(), confirm_remove(4), unremove(3), confirm_remove(5),
    )  # fmt: skip
    assert read(path)[0] == [b"held"]


def test_are_played_back_from_the_oldest_file_on(path):
    write(path, addx(b"5"), remove())
    write(path, addx(b"1"), addx(b"2"), name="work.1285793415123")
    write(path, remove(), addx(b"3"), addx(b"4"), name="work.1285793415999")
    write(path, addx(b"never"), name="work~~1285793416000")
    assert read(path)[0] == [b"3", b"4", b"5"]


def test_that_were_packed_are_not_played_back(path):
    write(path, addx(b"1"), name="work.100")
    write(path, addx(b"2"), name="work.200")
    write(path, addx(b"packed"), name="work.200.pack")
    write(path, addx(b"3"), name="work.1000")
    write(path, addx(b"4"))
    assert read(path)[0] == [b"packed", b"3", b"4"]


def test_of_a_queue_may_have_no_present_file(path):
    write(path, addx(b"1"), name="work.100")
    assert read(path)[0] == [b"1"]


def test_of_fanout_queues_are_queues_of_their_own(path):
    for name in ("work", "work+audit", "work+billing"):
        write(path, addx(name.encode()), name=name)
    assert [queue.name for queue in Kestrel(path).queues()] == [b"work", b"work+audit", b"work+billing"]


def test_come_to_the_same_as_a_list_does(path):
    chance = random.Random(5)
    for _ in range(30):
        records, queue, held, xid = [], [], {}, 0
        for number in range(chance.randrange(300)):
            what = chance.random()
            if what < 0.5:
                queue.append(b"%d" % number * chance.randrange(9))
                records.append(addx(queue[-1]))
            elif what < 0.65:
                records.append(remove())
                del queue[:1]
            elif what < 0.85 and queue:
                xid += 1
                held[xid] = queue.pop(0)
                records.append(remove_xid(xid))
            elif held:
                ended = chance.choice(list(held))
                data = held.pop(ended)
                end = chance.choice([unremove, confirm_remove, lambda xid, data=data: continue_(xid, data)])
                records.append(end(ended))
                if end is unremove:
                    queue.insert(0, data)
                elif end is not confirm_remove:
                    queue.append(data)
        cuts = sorted(chance.randrange(len(records) + 1) for _ in range(2))
        write(path, *records[: cuts[0]], name="work.1")
        write(path, *records[cuts[0] : cuts[1]], name="work.2")
        write(path, *records[cuts[1] :])
        assert read(path) == ([*(held[xid] for xid in sorted(held)), *queue], [])


@pytest.mark.parametrize("size", range(1, len(addx(b"second"))))
def test_that_end_in_a_part_of_a_record_have_what_is_before(path, size):
    write(path, addx(b"first"), addx(b"second")[:size])
    assert read(path) == ([b"first"], [])
    (text,) = notes(path)
    assert f"{size} bytes that are no whole record" in text


def test_that_end_in_zeros_have_what_is_before(path):
    write(path, addx(b"first"), bytes(4096))
    assert read(path) == ([b"first"], [])


@pytest.mark.parametrize("damage", [b"\x63", b"\2\xff\xff\xff\x7f" + bytes(16), b"\2\3\0\0\0", bytes(30)])
def test_with_damage_in_the_middle_tell_and_keep_what_may_have_been_fetched(path, damage):
    write(path, addx(b"1"), remove(), addx(b"2"), damage, addx(b"3"), remove(), addx(b"4"))
    items, (text,) = read(path)
    assert items == [b"2", b"3", b"4"]
    at = len(addx(b"1") + remove() + addx(b"2"))
    assert f"work is damaged at byte {at}: {len(damage)} bytes are left out" in text


def test_whose_older_file_is_cut_off_are_damaged(path):
    write(path, addx(b"1"), addx(b"2")[:-1], name="work.100")
    write(path, remove(), addx(b"3"))
    items, (text,) = read(path)
    assert items == [b"1", b"3"]
    assert "work.100 is damaged" in text


@pytest.mark.parametrize("head", [b"\x27\x64\x26\x03", b"\x26\x3c\x26\x03"])
def test_of_kestrel_3_are_refused(path, head):
    write(path, head + bytes(100))
    with pytest.raises(MigrationError, match="Kestrel 3"):
        read(path)


def test_are_told_from_what_is_none(path):
    write(path, addx(b"1"))
    write(path, name="work~~123")
    (path / "photos").mkdir()
    write(path, b"buy milk", name="my.notes.txt")
    assert [text.split("/")[-1] for text in Kestrel(path).strays()] == [
        "my.notes.txt is no journal",
        "photos is no journal",
    ]
