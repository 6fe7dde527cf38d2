"""Records, keys and log frames: to bytes and back, damaged and forged ones too."""

import itertools

import pytest
from checksum import crc32c
from hypothesis import example, given
from hypothesis import strategies as st

from darner import _records
from darner._proto import Parser
from darner._records import (
    ITEM_BYTES,
    Change,
    Item,
    Segment,
    SegmentFormatError,
    State,
    read_segment,
)
from darner.errors import NewerFormatError

u64 = st.integers(0, 2**64 - 1)
# the largest number in a record: two of these can be added
LARGEST = 2**62 - 1
LARGEST_CHUNK, LARGEST_SIZE = 16 << 20, 2**53
ids, numbers = st.integers(1, LARGEST), st.integers(0, LARGEST)
inline = st.builds(
    Item, ids, st.integers(0, 2**32 - 1), numbers, numbers, st.binary(max_size=200),
    attempts=st.integers(0, 0xFFFF),
)  # fmt: skip
chunked = st.builds(
    Item, ids, st.integers(0, 2**32 - 1), numbers, numbers, st.none(),
    ids, st.integers(0, LARGEST_SIZE), st.integers(1, LARGEST_CHUNK), st.integers(0, 0xFFFF),
)  # fmt: skip
items = inline | chunked

ITEM_FIELDS = ("id", "flags", "expires_ms", "enqueued_ms", "data", "blob", "size", "chunk_bytes", "attempts")
STATE_FIELDS = (
    "life",
    "change",
    "floor",
    "trimmed",
    "next_id",
    "next_blob",
    "items",
    "bytes",
    "created_ms",
    "deleted",
)


def fields(thing, names):
    return {name: getattr(thing, name) for name in names}


def flipped(record):
    for at in range(len(record)):
        yield record[:at] + bytes([record[at] ^ 1 << at % 8]) + record[at + 1 :]


class TestRecords:
    @given(items)
    def test_of_items_come_back_as_they_were(self, item):
        key, record = _records.item_key(item.id), _records.encode_item(item)
        assert fields(_records.decode_item(key, record), ITEM_FIELDS) == fields(item, ITEM_FIELDS)
        assert _records.blob_of(key, record) == item.blob

    # bytes whose CRC does not change with zeros behind them
    @example(Item(0xFFFFFFFE, 0, 0, 0, b""))
    @given(items)
    def test_of_items_are_refused_once_damaged(self, item):
        key, record = _records.item_key(item.id), _records.encode_item(item)
        damaged = [*flipped(record), record[:-1], record + b"\0", record[:27], record[:4], b""]
        for other in damaged:
            with pytest.raises(ValueError, match=r"checksum|cut short"):
                _records.decode_item(key, other)

    def test_of_items_are_refused_under_the_key_of_another(self):
        record = _records.encode_item(Item(5, 0, 0, 0, b"data"))
        for key in (_records.item_key(6), _records.item_key(4), b"i", _records.item_key(5) + b"x"):
            with pytest.raises(ValueError, match=r"checksum|cut short"):
                _records.decode_item(key, record)

    @given(st.lists(numbers, max_size=20))
    def test_of_ids_come_back_as_they_were_or_not_at_all(self, ids):
        record = _records.encode_ids(ids)
        assert _records.decode_ids(record) == ids
        for damaged in (*flipped(record), record[:3]):
            with pytest.raises(ValueError, match=r"checksum|cut short"):
                _records.decode_ids(damaged)

    @example(b"\xff" * 4)
    @given(st.binary(max_size=100))
    def test_of_chunks_come_back_as_they_were_or_not_at_all(self, data):
        record = _records.encode_chunk(data)
        assert _records.decode_chunk(record) == data
        for damaged in (*flipped(record), record[:3], record + b"\0"):
            with pytest.raises(ValueError, match=r"checksum|cut short"):
                _records.decode_chunk(damaged)

    @given(
        u64, st.lists(ids, min_size=3, max_size=3).map(sorted), ids,
        st.lists(numbers, min_size=4, max_size=4), st.booleans(),
    )  # fmt: skip
    def test_of_the_state_come_back_as_they_were_or_not_at_all(self, life, marks, blob, others, deleted):
        state = State(1, life)
        state.trimmed, state.floor, state.next_id = marks
        state.next_blob, state.deleted = blob, deleted
        state.change, state.items, state.bytes, state.created_ms = others
        assert fields(state.copy(), STATE_FIELDS) == fields(state, STATE_FIELDS)
        record = _records.encode_state(state)
        assert fields(_records.decode_state(record), STATE_FIELDS) == fields(state, STATE_FIELDS)
        for damaged in (*flipped(record), record[:-1], record + b"\0", b""):
            with pytest.raises(ValueError, match=r"checksum|wrong length"):
                _records.decode_state(damaged)

    @pytest.mark.parametrize(
        "item",
        [
            Item(0, 0, 0, 0, b"data"), Item(LARGEST + 1, 0, 0, 0, b"data"), Item(2**64 - 1, 0, 0, 0, b"data"),
            Item(1, 0, LARGEST + 1, 0, b"data"), Item(1, 0, 0, 2**64 - 1, b"data"),
            Item(1, 0, 0, 0, None, 0, 9, 3), Item(1, 0, 0, 0, None, LARGEST + 1, 9, 3),
            Item(1, 0, 0, 0, None, 5, LARGEST_SIZE + 1, 3), Item(1, 0, 0, 0, None, 5, 9, 0),
            Item(1, 0, 0, 0, None, 5, 0, 0), Item(1, 0, 0, 0, None, 5, 9, LARGEST_CHUNK + 1),
        ],
    )  # fmt: skip
    def test_of_items_are_refused_with_numbers_that_none_has(self, item):
        assert item.chunks >= 0
        with pytest.raises(ValueError, match="has numbers that no"):
            _records.decode_item(_records.item_key(item.id), _records.encode_item(item))

    @pytest.mark.parametrize(
        ("name", "number"),
        [
            *((name, LARGEST + 1) for name in STATE_FIELDS if name not in ("life", "deleted")),
            *((name, 0) for name in ("floor", "trimmed", "next_id", "next_blob")),
            ("floor", 2), ("trimmed", 2),
        ],
    )  # fmt: skip
    def test_of_the_state_are_refused_with_numbers_that_none_has(self, name, number):
        state = State(1, 2)
        setattr(state, name, number)
        with pytest.raises(ValueError, match="numbers that no state has"):
            _records.decode_state(_records.encode_state(state))

    def test_of_ids_are_refused_with_what_is_none(self):
        for record in (_records.encode_ids([1, LARGEST + 1]), _records.encode_chunk(bytes(9))):
            with pytest.raises(ValueError, match="list of ids"):
                _records.decode_ids(record)

    @pytest.mark.parametrize(("items", "size"), [(0, 5), (1, 6)])
    def test_of_the_state_refuse_to_count_below_nothing(self, items, size):
        state = State(1, 2)
        state.next_id, state.items, state.bytes = 9, items, size
        with pytest.raises(ValueError, match="one more than are counted"):
            state.drop(3, 7)
        assert (state.items, state.bytes) == (items, size)

    def test_of_a_version_to_come_are_refused_as_such(self):
        state = _records.decode_chunk(_records.encode_state(State(1, 2)))
        for body in (state[1:], state[1:] + b"more", b"less"):
            with pytest.raises(NewerFormatError, match="version 2, this darner knows 1"):
                _records.decode_state(_records.encode_chunk(b"\x02" + body))
        with pytest.raises(ValueError, match="version 0, which there is not") as caught:
            _records.decode_state(_records.encode_chunk(b"\x00" + state[1:]))
        assert not isinstance(caught.value, NewerFormatError)
        record = _records.encode_item(Item(7, 0, 0, 0, b"data"))
        for body, says in (
            (b"\x03" + record[5:], "version 3, this darner knows 2"),
            (b"\x03less", "version 3, this darner knows 2"),
            (b"\x02\x07" + record[6:], "of kind 7, which this darner does not know"),
        ):
            checksum = crc32c(body, 7 ^ (4 + len(body))).to_bytes(4, "big")
            with pytest.raises(NewerFormatError, match=says):
                _records.decode_item(_records.item_key(7), checksum + body)

    def test_a_new_state_is_that_of_an_empty_queue(self):
        assert fields(State(5, 9), STATE_FIELDS) == {
            **dict.fromkeys(("floor", "trimmed", "next_id", "next_blob"), 1),
            **dict.fromkeys(("change", "items", "bytes"), 0),
            "created_ms": 5,
            "life": 9,
            "deleted": False,
        }

    @given(u64, u64)
    def test_are_ordered_as_their_ids_are(self, one, other):
        assert (_records.item_key(one) < _records.item_key(other)) == (one < other)
        assert (_records.marker_key(one) < _records.marker_key(other)) == (one < other)

    def test_an_item_knows_what_it_takes(self):
        small, large = Item(1, 0, 0, 0, b"data"), Item(1, 0, 0, 0, None, 1, 100, 30)
        assert (small.size, small.memory_bytes, small.chunks) == (4, ITEM_BYTES + 4, 0)
        assert (large.size, large.memory_bytes, large.chunks) == (100, ITEM_BYTES, 4)

    @given(st.binary(max_size=100))
    def test_of_items_are_made_where_the_parser_has_left_room(self, data):
        parser = Parser()
        parser.feed(b"set a 5 0 %d\r\n%s\r\n" % (len(data), data))
        (request,) = parser
        item = _records.new_item(request.record, 5, 6, 7)
        item.id = 8
        record = _records.encode_item(item)
        assert record == _records.encode_item(Item(8, 5, 6, 7, data))
        assert _records.decode_item(_records.item_key(8), record).data == item.data == request.data == data

    def test_of_another_item_of_the_same_bytes_are_shared_until_it_forgets_them(self):
        item = Item(1, 2, 3, 4, b"data", attempts=5)
        another = item.another()
        assert fields(another, ITEM_FIELDS) == fields(item, ITEM_FIELDS)
        assert another.record is item.record
        another.attempts = 6
        another.forget_data()
        assert (another.data, another.size) == (None, 4)
        assert another.memory_bytes == item.memory_bytes - 4
        assert (item.data, item.attempts) == (b"data", 5)

    @given(st.binary(max_size=300))
    def test_have_a_checksum_that_others_know(self, data):
        assert _records.checksum(b"123456789") == 0xE3069283
        assert _records.checksum(data) == _records.checksum(data, by_table=True) == crc32c(data)
        assert _records.encode_chunk(data)[:4] == crc32c(data, 4 + len(data)).to_bytes(4, "big")


ITEM = Item(1, 2, 3, 4, b"the data of an item")
LARGE = Item(2, 2, 3, 4, None, 77, 100_000, 1 << 16)


def write(segment):
    """Write one frame of each kind; return what must be read, and the end of each frame."""
    frames, ends = [], [segment.used_bytes]

    def wrote(*frame):
        frames.append(frame)
        ends.append(segment.used_bytes)

    for item in (ITEM, LARGE):
        assert segment.put(Change.PUT, 7, 2**40, item)
        payload = item.id.to_bytes(8, "big") + _records.encode_item(item)
        wrote(Change.PUT, 7, 2**40, payload)
    assert segment.drop(2**32 - 1, 5, 1, 2, 3)
    wrote(Change.DROP, 2**32 - 1, 5, b"".join(n.to_bytes(8, "big") for n in (1, 2, 3)))
    for payload in (b"", b"any bytes"):
        assert segment.append(Change.DISCARD, 7, 6, payload)
        wrote(Change.DISCARD, 7, 6, payload)
    return frames, ends


MARKER = 0x1122334455667788


def begun(size=1000, number=3):
    memory, segment = bytearray(size), Segment()
    segment.begin(memory, number, MARKER, 2, 70)
    return memory, segment


def scan(memory):
    """Return the number, the frames and the end of a segment, and whether that is its END."""
    found = read_segment(bytes(memory))
    return found.number, found.frames, found.used_bytes, found.ended


class TestSegment:
    def test_gives_back_what_was_written(self):
        memory, segment = begun()
        frames, ends = write(segment)
        assert scan(memory) == (3, frames, ends[-1], False)
        segment.end()
        assert scan(memory) == (3, frames, ends[-1], True)
        found = read_segment(bytes(memory))
        assert (found.marker, found.previous, found.previous_bytes) == (MARKER, 2, 70)
        assert (found.damage, found.behind) == ("", [])

    def test_that_is_none_has_no_number(self):
        for memory in (b"", bytes(15), bytes(1000), b"darner 2" + bytes(1000)):
            assert scan(memory)[:2] == (0, [])
            assert read_segment(memory).damage

    def test_of_a_later_version_is_refused(self):
        memory, segment = begun()
        write(segment)
        for version in b"3456789":
            memory[7] = version
            with pytest.raises(SegmentFormatError):
                read_segment(bytes(memory))

    def test_of_version_1_is_read(self):
        memory, segment = begun()
        frames, ends = write(segment)
        segment.end()
        old = bytearray(b"darner 1" + (3).to_bytes(8, "big"))
        at = 64
        for end in (*ends[1:], ends[-1] + 29):
            old += memory[at + 8 : end]
            at = end
        assert (scan(old + bytes(100))[1], scan(old + bytes(100))[3]) == (frames, True)
        assert (scan(old[:-1])[1], scan(old[:-1])[3]) == (frames, False)

    def test_cut_at_any_byte_has_what_was_before(self):
        memory, segment = begun()
        frames, ends = write(segment)
        for at, lost in itertools.product(range(ends[-1]), (0, 0xFF)):
            cut = memory[:at] + bytes([lost]) * (len(memory) - 64 - at) + memory[-64:]
            whole = sum(cut[:end] == memory[:end] for end in ends[1:])
            number, found, used_bytes, ended = scan(cut)
            assert (number, found, ended) == (3, frames[:whole], False)
            if at >= 64:
                assert used_bytes == ends[whole]
            assert scan(memory[:at])[1] == ([] if at < 64 else frames[: sum(end <= at for end in ends[1:])])

    def test_with_any_byte_damaged_has_what_was_before_and_knows_what_is_behind(self):
        memory, segment = begun()
        frames, ends = write(segment)
        segment.end()
        for at, damaged in enumerate(itertools.islice(flipped(bytes(memory)), ends[-1])):
            found = read_segment(damaged)
            if at < 64:  # the segment has a copy of this
                assert (found.frames, found.ended) == (frames, True)
                continue
            whole = sum(end <= at for end in ends[1:])
            assert (found.frames, found.ended, found.damage) == (frames[:whole], False, "")
            assert found.behind[:-1] == frames[whole + 1 :]
            assert found.behind[-1][0] == Change.END

    def test_cut_short_says_so(self):
        memory, segment = begun()
        frames, ends = write(segment)
        found = read_segment(bytes(memory[: ends[2]]))
        assert (found.frames, found.damage) == (frames[:2], "is cut short")

    def test_used_again_has_nothing_of_what_it_had(self):
        memory, segment = begun()
        write(segment)
        for marker in (1, MARKER + 1, 2**64 - 1):
            segment.begin(memory, 3, marker)
            assert scan(memory)[:2] == (3, [])
            # so that it ends where one of the old frames begins
            for frame in ITEM, LARGE:
                segment.put(Change.PUT, 7, 2**40, frame)
                assert len(scan(memory)[1]) == frame.id
                assert read_segment(bytes(memory)).behind == []
            segment.end()
            assert scan(memory)[3]

    def test_that_is_full_says_so_and_has_room_for_its_end(self):
        memory, segment = begun(300)
        count = 0
        while segment.append(Change.BLOB, 1, count, bytes(8)):
            count += 1
        used_bytes = segment.used_bytes
        assert not segment.put(Change.PUT, 1, count, ITEM)
        assert not segment.drop(1, count, 1, 2, 3)
        assert segment.used_bytes == used_bytes
        segment.end()
        _, frames, _, ended = scan(memory)
        assert (len(frames), ended) == (count, True)

    @pytest.mark.parametrize("size", range(280, 330))
    def test_that_is_full_has_room_for_the_end_of_a_group(self, size):
        memory, segment = begun(size)
        segment.begin_group()
        count = 0
        while segment.append(Change.BLOB, 1, count, b""):
            count += 1
        assert segment.room_bytes < 29
        assert segment.end_group()
        segment.end()
        _, frames, _, ended = scan(memory)
        assert (len(frames), ended) == (count, True)
        assert read_segment(bytes(memory)).open_frames == 0

    def test_knows_which_frames_are_of_a_group_that_has_no_end(self):
        memory, segment = begun()
        segment.append(Change.BLOB, 1, 1, b"before")
        before = segment.used_bytes
        segment.begin_group()
        _, ends = write(segment)
        found = read_segment(bytes(memory))
        assert (found.open_frames, found.whole_bytes, found.used_bytes) == (len(ends) - 1, before, ends[-1])
        assert found.commits
        segment.end_group()
        found = read_segment(bytes(memory))
        assert (found.open_frames, found.whole_bytes) == (0, segment.used_bytes)
        assert len(found.frames) == len(ends)

    def test_says_whether_it_ends_a_group_of_the_segment_before_it(self):
        memory, segment = begun()
        segment.begin_group()
        segment.append(Change.BLOB, 1, 1, b"of the group")
        assert not read_segment(bytes(memory)).commits
        segment.end_group()
        assert read_segment(bytes(memory)).commits

    def test_without_memory_takes_nothing(self):
        segment = Segment()
        assert not segment.append(Change.BLOB, 1, 1, b"")
        assert not segment.put(Change.PUT, 1, 1, ITEM)
        segment.end()
        assert segment.used_bytes == 0

    def test_lets_go_of_memory_that_it_is_done_with(self):
        memory, segment = begun()
        with pytest.raises(BufferError):
            memory.clear()
        segment.begin(bytearray(200), 4, MARKER)
        memory.clear()
