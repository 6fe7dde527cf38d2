"""The codec: requests as bytes, and replies out of bytes, however these are split."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darner.client import (
    BadRequestError,
    ItemTooLargeError,
    LoginError,
    NotPermittedError,
    ProtocolError,
    QueueFullError,
    ReservationLostError,
    ServerFailedError,
    protocol,
)
from darner.client.protocol import LARGE_BYTES, MAX_REPLY_LINE_BYTES, Replies, Reply, Value

NAMES = st.binary(min_size=1, max_size=250).map(
    lambda name: bytes(byte if byte > 32 and byte not in b"/\x7f" else 0x41 + byte % 26 for byte in name)
)
VALUES = st.builds(
    Value, NAMES, st.integers(0, 2**32 - 1), st.binary(max_size=300), st.integers(0, 2**64 - 1)
)
LINES = st.sampled_from([b"STORED", b"NOT_STORED", b"OK", b"UP", b"17", b"SERVER_ERROR no room", b"ERROR"])
STATS = st.lists(
    st.tuples(st.sampled_from(["pid", "queue_a_items"]), st.sampled_from(["1", "a b"])), min_size=1
)
REPLIES = st.one_of(
    LINES.map(Reply),
    st.lists(VALUES, max_size=3).map(lambda values: Reply(b"END", values)),
    VALUES.map(lambda value: Reply(b"SERVER_ERROR it broke", [value])),
    STATS.map(lambda stats: Reply(b"END", (), stats)),
    VALUES.map(
        lambda value: Reply(
            b"VA %d f%d c%d t-1" % (len(value.data), value.flags, value.token), [value._replace(key=b"")]
        )
    ),
)


def wire(reply: Reply) -> bytes:
    """Return a reply as a server sends it."""
    if reply.line.startswith(b"VA "):
        return b"%b\r\n%b\r\n" % (reply.line, reply.values[0].data)
    values = [
        b"VALUE %b %d %d %d\r\n%b\r\n" % (value.key, value.flags, len(value.data), value.token, value.data)
        for value in reply.values
    ]
    stats = [f"STAT {name} {text}\r\n".encode() for name, text in reply.stats]
    return b"".join([*values, *stats, reply.line, b"\r\n"])


def same(found: list[Reply], expected: list[Reply]) -> bool:
    plain = [
        [(line, [*values], [*stats]) for line, values, stats in replies] for replies in (found, expected)
    ]
    return plain[0] == plain[1]


def drain(replies: Replies) -> list[Reply]:
    return list(iter(replies.next, None))


class TestReplies:
    @given(st.lists(REPLIES, max_size=6), st.data())
    def test_are_the_same_however_the_bytes_are_split(self, expected, data):
        stream = b"".join(map(wire, expected))
        replies, found = Replies(), []
        while stream:
            count = data.draw(st.integers(1, len(stream)))
            replies.feed(stream[:count])
            stream = stream[count:]
            found += drain(replies)
        assert same(found, expected)
        assert replies.is_between

    @given(st.lists(REPLIES, max_size=6))
    def test_are_the_same_if_each_comes_as_a_whole(self, expected):
        replies = Replies()
        assert same([replies.take(wire(reply)) for reply in expected], expected)
        assert replies.is_between

    @given(st.lists(st.one_of(REPLIES, st.just(Reply(b"STORED"))), min_size=1, max_size=4), st.data())
    def test_are_the_same_if_taken_in_pieces(self, expected, data):
        stream = b"".join(map(wire, expected))
        replies, found = Replies(), []
        while stream:
            count = data.draw(st.integers(1, len(stream)))
            first = replies.take(stream[:count])
            stream = stream[count:]
            found += [first, *drain(replies)] if first is not None else []
        assert same(found, expected)

    @given(st.lists(REPLIES, max_size=4))
    def test_are_the_same_if_large_values_are_received_into_their_room(self, expected):
        stream = b"".join(map(wire, expected))
        replies, found = Replies(), []
        while stream:
            room = replies.room()
            if room is not None:
                count = min(len(room), 7, len(stream))
                room[:count] = stream[:count]
                room.release()
                replies.received(count)
            else:
                count = 40
                replies.feed(stream[:count])
            stream = stream[count:]
            found += drain(replies)
        assert same(found, expected)

    @given(st.lists(st.binary(max_size=100), max_size=20))
    def test_of_garbage_end_in_an_error_or_wait_for_more(self, pieces):
        replies = Replies()
        try:
            for piece in pieces:
                replies.feed(piece)
                drain(replies)
        except ProtocolError:
            pass

    @given(
        st.lists(
            st.sampled_from(
                [b"VALUE ", b"a ", b"0 ", b"1", b" ", b"\r\n", b"\n", b"END\r\n", b"STAT a b\r\n", b"x",
                 b"STORED\r\n", b"9999999999999999", b"-1", b"SERVER_ERROR x\r\n"]
            ),
            max_size=30,
        )
    )  # fmt: skip
    def test_of_what_looks_like_replies_end_in_an_error_or_wait_for_more(self, pieces):
        replies = Replies()
        try:
            for piece in pieces:
                replies.feed(piece)
                drain(replies)
        except ProtocolError:
            pass

    @pytest.mark.parametrize(
        "stream",
        [
            b"VALUE a 0 1\r\nxyEND\r\n",
            b"VALUE a 0 1\r\nx\r\nSTORED\r\n",
            b"VALUE a 0 1\r\nx\r\nSTAT a b\r\n",
            b"STAT a b\r\nVALUE a 0 1\r\n",
            b"STAT a\r\n",
            b"VALUE a 0 -1\r\n",
            b"VALUE a b 1\r\n",
            b"VALUE a 0 1 2 3\r\n",
            b"VALUE a 0\r\n",
            b"STORED\n",
            b"\n",
            b"x" * (MAX_REPLY_LINE_BYTES + 1),
        ],
    )
    def test_that_are_none_are_a_protocol_error(self, stream):
        replies = Replies()
        replies.feed(stream)
        with pytest.raises(ProtocolError):
            drain(replies)

    def test_of_a_claimed_size_take_memory_only_for_what_has_come(self):
        replies = Replies()
        replies.feed(b"VALUE a 0 999999999999999999\r\nxyz")
        assert replies.next() is None
        room = replies.room()
        assert len(room) < 2 << 20

    def test_with_a_large_value_and_more_behind_it_are_read_in_order(self):
        large = bytes(range(256)) * (LARGE_BYTES // 64)
        replies = Replies()
        stream = b"VALUE a 7 %d 1\r\n%b\r\nEND\r\nSTORED\r\n" % (len(large), large)
        replies.feed(stream[:1000])
        assert replies.next() is None
        assert not replies.is_between
        replies.feed(stream[1000:])
        assert drain(replies) == [(b"END", [Value(b"a", 7, large, 1)], []), Reply(b"STORED")]


class TestErrors:
    @pytest.mark.parametrize(
        ("line", "error"),
        [
            (b"NOT_STORED", QueueFullError),
            (b"SERVER_ERROR object too large for cache", ItemTooLargeError),
            (b"SERVER_ERROR no space left", ServerFailedError),
            (b"ERROR", BadRequestError),
            (b"CLIENT_ERROR bad delay", BadRequestError),
            (b"CLIENT_ERROR not permitted to read this queue", NotPermittedError),
            (b"CLIENT_ERROR authentication failure", LoginError),
            (b"CLIENT_ERROR no such reserved item", ReservationLostError),
            (b"HELLO", ProtocolError),
        ],
    )
    def test_are_told_apart_by_what_the_caller_can_do(self, line, error):
        with pytest.raises(error) as raised:
            protocol.check(Reply(line), b"STORED")
        assert type(raised.value) is error

    def test_an_expected_reply_is_none(self):
        assert protocol.check(Reply(b"STORED"), b"STORED").line == b"STORED"


class TestRequests:
    def test_put(self):
        assert protocol.put_line(b"work", 5) == b"set work 0 0 5\r\n"
        assert protocol.put_line(b"work", 5, 3, delay=1.5, expire=0.2, id="a", sync=True) == (
            b"set work/sync/delay=1500/id=a 3 1 5\r\n"
        )

    def test_expire_beyond_thirty_days_is_a_time_of_the_clock(self):
        word = protocol.put_line(b"work", 5, expire=3_000_000).split()[3]
        assert abs(int(word) - (time.time() + 3_000_000)) < 5

    def test_get(self):
        assert protocol.get_line([b"work"]) == b"gets work\r\n"
        assert protocol.get_line([b"work"], b"/open", 500) == b"gets work/open/t=500\r\n"

    def test_get_of_several_queues_is_always_of_one_item_in_all(self):
        assert protocol.get_line([b"a", b"b"], b"/open") == b"gets a/open/t=0 b/open/t=0\r\n"

    def test_the_end_of_a_reservation(self):
        assert protocol.close_line(b"work", 7) == b"get work/close=7\r\n"
        assert protocol.abort_line(b"work", 7) == b"get work/abort=7\r\n"
        assert protocol.abort_line(b"work", 7, 0.25) == b"get work/abort=7/delay=250\r\n"

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "a\r\n", "x" * 251, b"\x7f", "\0", None, 7])
    def test_a_bad_name_is_refused_before_it_is_sent(self, name):
        with pytest.raises(BadRequestError, match="250 bytes"):
            protocol.queue_key(name)
        with pytest.raises(BadRequestError, match="250 bytes"):
            protocol.source_key(name)
        with pytest.raises(BadRequestError, match="250 bytes"):
            protocol.put_line(b"work", 1, id=name if name is not None else 7)

    def test_a_cursor_can_be_read_and_not_be_written_to(self):
        assert protocol.source_key("work/cursor=audit") == b"work/cursor=audit"
        with pytest.raises(BadRequestError):
            protocol.queue_key("work/cursor=audit")
        with pytest.raises(BadRequestError):
            protocol.source_key("work/cursor=a/open")

    @pytest.mark.parametrize("queues", [[], ["a", "a"], ["a", b"a"], ["a", "b c"]])
    def test_several_queues_are_each_named_once(self, queues):
        with pytest.raises(BadRequestError):
            protocol.source_keys(queues)

    @pytest.mark.parametrize(
        ("seconds", "found"),
        [(0, 0), (0.0001, 1), (1.5, 1500), (1e12, 0x7FFFFFFF), (float("inf"), 0x7FFFFFFF)],
    )
    def test_times_are_in_milliseconds_on_the_wire(self, seconds, found):
        assert protocol.milliseconds(seconds) == found

    @pytest.mark.parametrize("seconds", [-1, float("nan")])
    def test_what_is_no_time_is_refused(self, seconds):
        with pytest.raises(BadRequestError, match="not a time"):
            protocol.milliseconds(seconds)
        with pytest.raises(BadRequestError, match="not a time"):
            protocol.put_line(b"work", 1, expire=seconds)

    def test_a_token_is_the_attempts_and_the_id(self):
        token = 3 * 2**48 + 17
        assert protocol.attempts(token) == 3
        assert protocol.item_number(token) == 17


class TestQueueOf:
    @pytest.mark.parametrize("key", [b"normal/open/t=5", b"normal"])
    def test_an_item_of_several_queues_is_told_by_the_key_in_both_dialects(self, key):
        assert protocol.queue_of(Value(key, 0, b"", 1), [b"urgent", b"norm", b"normal"]) == b"normal"

    def test_a_key_that_was_not_asked_is_a_protocol_error(self):
        with pytest.raises(ProtocolError):
            protocol.queue_of(Value(b"other", 0, b"", 1), [b"a", b"b"])


def test_the_figures_of_an_mg_are_told_by_their_flags():
    assert protocol.figures(b"HD c281474976710657 t-1 s5 h0") == {
        "c": 281474976710657,
        "t": -1,
        "s": 5,
        "h": 0,
    }
    assert protocol.figures(b"VA 5 f0 kwork Ot1 t20") == {"f": 0, "t": 20}
    assert protocol.figures(b"EN") == {}


@pytest.mark.parametrize("line", [b"VA -1 f0", b"VA 5x c1", b"VA 1 f0  c1", b"VA 99999999999999999999"])
def test_the_head_of_no_meta_item_is_an_error(line):
    replies = Replies()
    replies.feed(line + b"\r\nhello\r\n")
    with pytest.raises(ProtocolError):
        replies.next()
