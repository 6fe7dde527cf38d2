"""The parser: bytes to requests; and the replies: items to bytes."""

import pytest

from darner import _proto
from darner._proto import MAX_GET_LINE_BYTES, MAX_LINE_BYTES, MAX_NAME_BYTES, Parser, Verb
from darner._records import (
    CHUNK_BYTES,
    Item,
)

BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_DATA = b"CLIENT_ERROR bad data chunk\r\n"
BAD_NAME = b"CLIENT_ERROR bad queue name"
TOO_LONG = b"CLIENT_ERROR line too long\r\n"


def parse(data):
    parser = Parser()
    parser.feed(data)
    return list(parser)


def parse_one(data):
    (request,) = parse(data)
    return request


def verbs(data):
    return [Verb(request.verb).name for request in parse(data)]


class TestLine:
    @pytest.mark.parametrize(
        ("line", "verb"),
        [
            (b"get a", Verb.GET),
            (b"gets a", Verb.GETS),
            (b"delete a", Verb.DELETE),
            (b"flush a", Verb.FLUSH),
            (b"flush_all", Verb.FLUSH_ALL),
            (b"configure a b=1 c=", Verb.CONFIGURE),
            (b"flush_expired a", Verb.FLUSH_EXPIRED),
            (b"flush_all_expired", Verb.FLUSH_ALL_EXPIRED),
            (b"stats", Verb.STATS),
            (b"version", Verb.VERSION),
            (b"verbosity 1", Verb.VERBOSITY),
            (b"quit", Verb.QUIT),
        ],
    )
    def test_is_known_by_its_verb_in_any_case(self, line, verb):
        word, _, rest = line.partition(b" ")
        for case in (bytes.lower, bytes.upper, bytes.title):
            assert parse_one(case(word) + b" " + rest + b"\r\n").verb == verb

    @pytest.mark.parametrize("line", [b"get a\r\n", b"get a\n", b"  get   a  \r\n", b"get a \n"])
    def test_may_end_in_a_bare_newline_and_have_spaces_to_spare(self, line):
        request = parse_one(line)
        assert (request.verb, request.queue, request.key) == (Verb.GET, b"a", b"a")

    @pytest.mark.parametrize(
        "line", [b"", b"   ", b"gat a", b"getss a", b"\x80get a", b"g" * 2000, b"get\ta"]
    )
    def test_with_an_unknown_verb_is_an_error_and_no_more(self, line):
        request, after = parse(b" " + line + b"\r\nversion\r\n")
        assert (request.verb, request.error) == (Verb.REFUSED, b"ERROR\r\n")
        assert after.verb == Verb.VERSION

    @pytest.mark.parametrize("end", [b"\r\n", b"\n"])
    def test_may_be_so_long_and_no_longer(self, end):
        longest = b"delete a".ljust(MAX_LINE_BYTES)
        assert verbs(longest + end) == ["DELETE"]
        request = parse_one(longest + b" " + end)
        assert (request.verb, request.error) == (Verb.FATAL, TOO_LONG)

    def test_too_long_is_found_out_before_it_ends(self):
        parser = Parser()
        parser.feed(b"x" * (MAX_LINE_BYTES + 1))
        assert list(parser) == []
        parser.feed(b"x")
        assert [request.error for request in parser] == [TOO_LONG]
        parser.feed(b"\r\nversion\r\n")
        assert list(parser) == []

    def test_full_of_words_is_read(self):
        request = parse_one(b"dump_stats" + b" x" * ((MAX_LINE_BYTES - 10) // 2) + b"\r\n")
        assert len(request.args) == (MAX_LINE_BYTES - 10) // 2

    def test_not_ended_is_kept(self):
        parser = Parser()
        parser.feed(b"get a\r")
        assert list(parser) == []
        assert parser.unparsed_bytes == 6
        parser.feed(b"\n")
        assert [request.queue for request in parser] == [b"a"]
        assert parser.unparsed_bytes == 0

    def test_reading_may_stop_at_any_request(self):
        parser = Parser()
        parser.feed(b"get a\r\nget b\r\nget c\r\n")
        assert next(parser).queue == b"a"
        parser.feed(b"get d\r\n")
        assert [request.queue for request in parser] == [b"b", b"c", b"d"]


class TestBinary:
    def test_is_known_at_its_first_byte(self):
        assert verbs(b"\x80") == ["BINARY"]

    def test_is_followed_by_nothing(self):
        parser = Parser()
        parser.feed(b"\x80get a\r\n")
        parser.feed(b"get a\r\n")
        assert [request.verb for request in parser] == [Verb.BINARY]

    def test_is_not_seen_in_a_later_byte(self):
        assert verbs(b"get a\r\n\x80\r\n") == ["GET", "REFUSED"]


class TestStranger:
    """Connections of other protocols, which must not be taken for memcache."""

    def test_that_speaks_tls_is_known_at_its_first_byte(self):
        assert verbs(b"\x16") == ["TLS"]
        assert verbs(b"\x16\x03\x01get a\r\n") == ["TLS"]
        assert verbs(b"get a\r\n\x16\r\n") == ["GET", "REFUSED"]

    @pytest.mark.parametrize(
        "line",
        [
            b"POST / HTTP/1.1",
            b"GET / HTTP/1.1",
            b"get /a?b HTTP/1.0",
            b"OPTIONS * HTTP/2",
            b"PRI * HTTP/2.0 ",
            b"set a 0 0 5 HTTP/1.1",
            b"flush_all http/1.1",
            b"Host: localhost:22133",
            b"host:x",
            b"  HOST: a",
            b"GET /" + b"a" * 3000 + b" HTTP/1.1",
            b"GET " + b"a " * 3000 + b"HTTP/1.1",
            b"GET " + b"/ " * 50_000 + b"HTTP/1.1",
        ],
    )
    def test_that_speaks_http_has_nothing_served_behind_it(self, line):
        found = parse(b"version\r\n" + line + b"\r\nflush_all\r\n")
        assert [request.verb for request in found if request.verb != Verb.REFUSED] == [
            Verb.VERSION,
            Verb.HTTP,
        ]

    @pytest.mark.parametrize(
        "line", [b"POST HTTP", b"HTTP/1.1", b"x HTTP/", b"x aHTTP/1", b"x HTTP/1 y", b"x Host:"]
    )
    def test_is_not_seen_in_what_does_not_look_like_it(self, line):
        assert verbs(line + b"\r\nversion\r\n") == ["REFUSED", "VERSION"]

    def test_is_not_seen_in_a_data_block(self):
        assert verbs(b"set a 0 0 25\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n") == ["SET"]

    @pytest.mark.parametrize(
        "line",
        [
            b"put a 0 0 14",
            b"mput a 0 0 14 noreply",
            b"cas2 a 0 0 14 77 noreply",
            b"xs a 14",
            b"xs a 14 T0 F1",
            b"xs a 14 noreply",
            b"PUB a b 14",
            b"set\ta 0 0 14",
            b"\x00set a 0 0 14",
            b"lset a 0 -1 14",
            b"put a 0 0 14 noreply more",
            b"put a b c 14 d",
            b"put a b +14 d",
            b"put a b c d14",
            b"$14",
        ],
    )
    def test_whose_line_may_have_data_behind_it_has_none_of_it_run(self, line):
        request = parse_one(line + b"\r\ndelete victim\r\n")
        assert (request.verb, request.error, request.noreply) == (Verb.FATAL, b"ERROR\r\n", False)

    @pytest.mark.parametrize(
        "line", [b"gat a b", b"nonsense 5", b"nonsense a", b"config get cluster", b"a b -", b"$a"]
    )
    def test_whose_line_has_none_stays(self, line):
        assert verbs(line + b"\r\nversion\r\n") == ["REFUSED", "VERSION"]


class TestName:
    @pytest.mark.parametrize(
        "name", [b"a", b"x" * MAX_NAME_BYTES, b"..", b"\xff\x80", b"a+b", b"'\"%~", b"noreply"]
    )
    def test_may_be_anything(self, name):
        assert _proto.valid_name(name)
        assert parse_one(b"get %s\r\n" % name).queue == name
        assert parse_one(b"set %s 0 0 0\r\n\r\n" % name).queue == name

    @pytest.mark.parametrize(
        "name", [b"x" * (MAX_NAME_BYTES + 1), *(b"a%cb" % c for c in (*range(9), 11, 31, 127))]
    )
    def test_may_not_be_too_long_or_have_control_characters(self, name):
        assert not _proto.valid_name(name)
        for request in parse(b"get %s\r\nset %s/sync 0 0 1\r\nx\r\n" % (name, name)):
            assert request.verb == Verb.REFUSED
            assert request.error.startswith(BAD_NAME)

    @pytest.mark.parametrize("name", [b"", b"a b", b"a/b", b"a\n", b"a\r"])
    def test_may_not_be_empty_or_have_a_separator(self, name):
        assert not _proto.valid_name(name)

    def test_before_an_option_may_not_be_empty(self):
        assert parse_one(b"get /open\r\n").error.startswith(BAD_NAME)


class TestGet:
    @pytest.mark.parametrize(
        ("key", "options", "timeout_ms"),
        [
            (b"a", set(), 0),
            (b"a/open", {"open"}, 0),
            (b"a/close", {"close"}, 0),
            (b"a/abort", {"abort"}, 0),
            (b"a/peek", {"peek"}, 0),
            (b"a/t=0", set(), 0),
            (b"a/t=500", set(), 500),
            (b"a/close/open/t=500", {"close", "open"}, 500),
            (b"a/t=500/open/close", {"close", "open"}, 500),
            (b"a/peek/t=1", {"peek"}, 1),
            (b"a/close/peek", {"close", "peek"}, 0),
            (b"a/open/open", {"open"}, 0),
            (b"a/t=1/t=2", set(), 2),
            (b"a/t=999999999999999999", set(), 2**31 - 1),
        ],
    )
    def test_takes_options_in_any_order(self, key, options, timeout_ms):
        request = parse_one(b"get " + key + b"\r\n")
        assert request.verb == Verb.GET
        assert (request.queue, request.key, request.timeout_ms) == (b"a", key, timeout_ms)
        assert {n for n in ("open", "close", "abort", "peek", "sync") if getattr(request, n)} == options

    @pytest.mark.parametrize(
        ("key", "error"),
        [
            (b"a/", b"unknown option"),
            (b"a/OPEN", b"unknown option"),
            (b"a/sync", b"unknown option"),
            (b"a/open/", b"unknown option"),
            (b"a/t", b"unknown option"),
            (b"a/t=", b"bad timeout"),
            (b"a/t=-1", b"bad timeout"),
            (b"a/t=1s", b"bad timeout"),
            (b"a/t=9999999999999999999", b"bad timeout"),
            (b"a/close=", b"bad token"),
            (b"a/close=0", b"bad token"),
            (b"a/abort=-1", b"bad token"),
            (b"a/close=7x", b"bad token"),
            (b"a/close=18446744073709551616", b"bad token"),
            (b"a/abort=99999999999999999999", b"bad token"),
            (b"a/close=100000000000000000000", b"bad token"),
            (b"a/close=1/close=2", b"bad token"),
            (b"a/delay=5", b"delay with abort alone"),
            (b"a/open/delay=5", b"delay with abort alone"),
            (b"a/cursor=c/abort/delay=5", b"cursor takes no delay"),
            (b"a/abort=7/delay=0/cursor=c", b"cursor takes no delay"),
            (b"a/abort/delay=", b"bad delay"),
            (b"a/abort/delay=1s", b"bad delay"),
            (b"a/from=5", b"bad id"),
            (b"a/peek/from=", b"bad id"),
            (b"a/peek/from=x", b"bad id"),
            (b"a/peek/from=5/t=1", b"bad id"),
            (b"a/peek/from=5/from=6", b"bad id"),
            (b"a/close/peek/from=5", b"bad id"),
            (b"a/abort=5/open", b"abort must be by itself"),
            (b"a/abort/open", b"abort must be by itself"),
            (b"a/abort/close", b"abort must be by itself"),
            (b"a/t=1/abort", b"abort must be by itself"),
            (b"a/open/peek", b"cannot open and peek"),
        ],
    )
    def test_refuses_other_options_and_stays_in_step(self, key, error):
        request, after = parse(b"get " + key + b"\r\nversion\r\n")
        assert (request.verb, request.error[:13]) == (Verb.REFUSED, b"CLIENT_ERROR ")
        assert error in request.error
        assert after.verb == Verb.VERSION

    def test_takes_several_keys(self):
        request = parse_one(b"gets a b/peek c/close/open\r\n")
        assert request.queue == b"a"
        assert [(other.verb, other.key) for other in request.rest] == [
            (Verb.GETS, b"b/peek"),
            (Verb.GETS, b"c/close/open"),
        ]
        assert parse_one(b"get a\r\n").rest is None

    @pytest.mark.parametrize("token", [1, 2**48 + 7, 10**18 - 1, 10**18, 10**19, 2**64 - 1])
    @pytest.mark.parametrize("verb", ["close", "abort"])
    def test_takes_the_token_of_a_reserved_item(self, verb, token):
        request = parse_one(b"get a/%s=%d\r\n" % (verb.encode(), token))
        assert (getattr(request, verb), request.token, request.fetches) == (True, token, False)

    def test_takes_a_token_and_fetches_the_next(self):
        request = parse_one(b"get a/cursor=b/close=5/open/t=9\r\n")
        assert (request.queue, request.close, request.open) == (b"a/cursor=b", True, True)
        assert (request.token, request.timeout_ms) == (5, 9)

    @pytest.mark.parametrize("delay_ms", [0, 1, 86_400_000])
    def test_takes_the_delay_of_an_abort(self, delay_ms):
        request = parse_one(b"get a/abort=3/delay=%d\r\n" % delay_ms)
        assert (request.abort, request.has_delay, request.delay_ms, request.token) == (
            True,
            True,
            delay_ms,
            3,
        )
        assert not parse_one(b"get a/abort\r\n").has_delay

    @pytest.mark.parametrize(("given", "id"), [(0, 1), (1, 1), (10**17, 10**17)])
    def test_takes_the_id_from_which_to_peek(self, given, id):
        request = parse_one(b"gets a/peek/from=%d\r\n" % given)
        assert (request.peek, request.from_id) == (True, id)
        assert parse_one(b"get a/peek\r\n").from_id == 0

    @pytest.mark.parametrize(
        "keys", [b"a/t=1 b", b"a b/t=1", b"a b c/t=0", b"a/t=1 b/t=2", b"a/t=1 " * 600 + b"b"]
    )
    def test_of_several_waits_for_one_time(self, keys):
        assert parse_one(b"get " + keys + b"\r\n").error == (
            b"CLIENT_ERROR to wait on several queues, give each of them the same t\r\n"
        )

    @pytest.mark.parametrize("count", [2, 500, 2900])
    def test_of_several_that_wait_comes_as_one(self, count):
        request = parse_one(b"gets " + b"a/open/t=5 " * count + b"\r\n")
        assert request.waits_on_any
        assert not request.is_run
        assert [(one.queue, one.with_cas, one.timeout_ms) for one in (request, *request.rest)] == [
            (b"a", True, 5)
        ] * count

    def test_of_one_that_waits_is_not_of_several(self):
        assert not parse_one(b"get a/t=5\r\n").waits_on_any
        assert not parse_one(b"get a b\r\n").waits_on_any

    def test_of_more_than_a_line_can_hold_does_not_wait(self):
        refused, after = parse(b"get " + b"a/t=5 " * 6000 + b"\r\nversion\r\n")
        assert refused.error == (
            b"CLIENT_ERROR too many queues to wait on: the line has more than 32768 bytes\r\n"
        )
        assert after.verb == Verb.VERSION

    def test_of_several_is_refused_if_one_is_wrong(self):
        assert parse_one(b"get a b/c d\r\n").verb == Verb.REFUSED

    @pytest.mark.parametrize("line", [b"get\r\n", b"gets \r\n"])
    def test_of_nothing_is_refused(self, line):
        assert parse_one(line).error == BAD_FORMAT


class TestSet:
    def test_has_all_its_fields(self):
        request = parse_one(b"set work/sync 4294967295 -12 5 noreply\r\nab\r\nc\r\n")
        assert (request.verb, request.queue, request.data) == (Verb.SET, b"work", b"ab\r\nc")
        assert (request.flags, request.exptime, request.size) == (4294967295, -12, 5)
        assert request.sync
        assert request.noreply

    def test_of_nothing_is_one(self):
        request = parse_one(b"SET a 0 0 0\r\n\r\n")
        assert (request.data, request.noreply, request.sync) == (b"", False, False)

    @pytest.mark.parametrize(
        "line",
        [
            b"set a x 0 3",
            b"set a 0 x 3",
            b"set a -1 0 3",
            b"set a 4294967296 0 3",
            b"set a 0 1.5 3",
            b"set a 0 0 3 please",
            b"set a 0 0 3 noreply 1",
            b"set a 0 -9999999999999999999 3",
        ],
    )
    def test_with_a_bad_number_is_refused_and_its_block_swallowed(self, line):
        request, after = parse(line + b"\r\nget\r\nversion\r\n")
        assert (request.verb, request.error) == (Verb.REFUSED, BAD_FORMAT)
        assert after.verb == Verb.VERSION

    @pytest.mark.parametrize(
        "key", [b"a/open", b"a/", b"a/syncs", b"a/sync/x", b"a/SYNC", b"a/b", b"a/delay"]
    )
    def test_with_another_option_is_refused_and_its_block_swallowed(self, key):
        request, after = parse(b"set " + key + b" 0 0 5 noreply\r\nget a\r\nversion\r\n")
        assert (request.verb, request.noreply) == (Verb.REFUSED, True)
        assert request.error.startswith(b"CLIENT_ERROR unknown option")
        assert after.verb == Verb.VERSION

    @pytest.mark.parametrize(
        ("key", "sync", "delay_ms"),
        [
            (b"a/delay=5", False, 5),
            (b"a/delay=0/sync", True, 0),
            (b"a/sync/delay=86400000", True, 86_400_000),
        ],
    )
    def test_may_be_delayed_by_milliseconds(self, key, sync, delay_ms):
        request = parse_one(b"set " + key + b" 0 0 0\r\n\r\n")
        assert (request.queue, request.sync, request.delay_ms) == (b"a", sync, delay_ms)

    @pytest.mark.parametrize("id", [b"7", b"n" * 250, b"id=7", b"\xff+"])
    def test_may_have_an_id(self, id):
        request = parse_one(b"set a/sync/id=" + id + b"/delay=5 0 0 0\r\n\r\n")
        assert (request.queue, request.sync, request.dedup_id, request.delay_ms) == (b"a", True, id, 5)
        assert parse_one(b"set a 0 0 0\r\n\r\n").dedup_id is None

    @pytest.mark.parametrize(
        ("key", "error"),
        [
            (b"a/id=", b"CLIENT_ERROR bad id"),
            (b"a/id=" + b"n" * 251, b"CLIENT_ERROR bad id"),
            (b"a/id=\x7f", b"CLIENT_ERROR bad id"),
            (b"a/id=1/id=2", b"CLIENT_ERROR unknown option"),
        ],
    )
    def test_with_a_bad_id_is_refused_and_its_block_swallowed(self, key, error):
        request, after = parse(b"set " + key + b" 0 0 5\r\nget a\r\nversion\r\n")
        assert request.verb == Verb.REFUSED
        assert request.error.startswith(error)
        assert after.verb == Verb.VERSION

    @pytest.mark.parametrize("delay", [b"", b"-1", b"1s", b"1.5", b"9" * 19])
    def test_with_a_bad_delay_is_refused_and_its_block_swallowed(self, delay):
        request, after = parse(b"set a/delay=" + delay + b" 0 0 5\r\nget a\r\nversion\r\n")
        assert request.verb == Verb.REFUSED
        assert request.error.startswith(b"CLIENT_ERROR bad delay")
        assert after.verb == Verb.VERSION

    @pytest.mark.parametrize("size", [b"-1", b"x", b"1x", b"+1", b"", b"0x10", b"9999999999999999999"])
    def test_with_a_bad_length_is_the_end(self, size):
        request = parse_one(b"set a 0 0 " + size + b"\r\nversion\r\n")
        assert (request.verb, request.error, request.noreply) == (Verb.FATAL, BAD_FORMAT, False)

    @pytest.mark.parametrize("line", [b"set", b"set a", b"set a 0", b"set a 0 0", b"add a 0 0"])
    def test_without_a_length_is_the_end(self, line):
        assert parse_one(line + b"\r\nversion\r\n").verb == Verb.FATAL

    @pytest.mark.parametrize("tail", [b"x\r\n", b"\n", b"\rx", b"\n\r"])
    @pytest.mark.parametrize("line", [b"set a 0 0 2", b"add a 0 0 2", b"set a/b 0 0 2"])
    @pytest.mark.parametrize("noreply", [b"", b" noreply"])
    def test_whose_block_does_not_end_in_a_line_end_is_the_end(self, line, tail, noreply):
        request = parse_one(line + noreply + b"\r\nab" + tail + b"version\r\n")
        assert (request.verb, request.error) == (Verb.FATAL, BAD_DATA)
        assert request.noreply == bool(noreply)

    def test_waits_for_its_block(self):
        parser = Parser()
        for byte in b"set a 0 0 4\r\n\r\n\r\n\r":
            parser.feed(bytes([byte]))
            assert list(parser) == []
        parser.feed(b"\nversion\r\n")
        assert [(request.verb, request.data) for request in parser] == [
            (Verb.SET, b"\r\n\r\n"),
            (Verb.VERSION, None),
        ]

    def test_at_the_chunk_size_comes_whole(self):
        data = b"x" * CHUNK_BYTES
        assert parse_one(b"set a 0 0 %d\r\n%s\r\n" % (CHUNK_BYTES, data)).data == data

    @pytest.mark.parametrize("more", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES])
    def test_above_the_chunk_size_comes_in_chunks(self, more):
        data = bytes(range(256)) * (CHUNK_BYTES // 256 * 6)
        data = data[: CHUNK_BYTES + more]
        begin, *chunks, end, after = parse(
            b"set a/sync 1 2 %d noreply\r\n%s\r\nversion\r\n" % (len(data), data)
        )
        assert (begin.verb, begin.queue, begin.flags, begin.exptime) == (Verb.SET_BEGIN, b"a", 1, 2)
        assert begin.sync
        assert begin.size == len(data)
        assert {chunk.verb for chunk in chunks} == {Verb.SET_CHUNK}
        assert all(len(chunk.data) == CHUNK_BYTES for chunk in chunks[:-1])
        assert b"".join(chunk.data for chunk in chunks) == data
        assert (end.verb, end.noreply, after.verb) == (Verb.SET_END, True, Verb.VERSION)

    def test_in_chunks_that_ends_badly_is_the_end(self):
        size = CHUNK_BYTES + 1
        assert verbs(b"set a 0 0 %d\r\n%s\r\n" % (size, b"x" * (size + 1))) == [
            "SET_BEGIN", "SET_CHUNK", "SET_CHUNK", "FATAL",
        ]  # fmt: skip

    def test_refused_is_swallowed_whatever_its_size(self):
        parser = Parser()
        parser.feed(b"set a/b 0 0 %d\r\n" % 10**12)
        for _ in range(20):
            parser.feed(b"version\r\n" * 1000)
            assert list(parser) == []
            assert parser.unparsed_bytes == 0


class TestUnsupported:
    @pytest.mark.parametrize("noreply", [b"", b" noreply"])
    @pytest.mark.parametrize("verb", [b"add", b"replace", b"append", b"prepend", b"cas"])
    def test_storage_is_refused_and_its_block_swallowed(self, verb, noreply):
        more = b" 7" if verb == b"cas" else b""
        request, after = parse(verb.upper() + b" a 0 0 5" + more + noreply + b"\r\nget a\r\nversion\r\n")
        assert (request.verb, request.noreply) == (Verb.REFUSED, bool(noreply))
        assert request.error == b"CLIENT_ERROR " + verb + b" is not supported\r\n"
        assert after.verb == Verb.VERSION

    @pytest.mark.parametrize("noreply", [b"", b" noreply"])
    @pytest.mark.parametrize("verb", [b"touch", b"incr", b"decr"])
    def test_arithmetic_is_refused(self, verb, noreply):
        request, after = parse(verb + b" a 5" + noreply + b"\r\nversion\r\n")
        assert (request.verb, request.noreply) == (Verb.REFUSED, bool(noreply))
        assert request.error == b"CLIENT_ERROR " + verb + b" is not supported\r\n"
        assert after.verb == Verb.VERSION


class TestNoreply:
    @pytest.mark.parametrize(
        ("line", "args", "noreply"),
        [
            (b"delete a", [b"a"], False),
            (b"delete a noreply", [b"a"], True),
            (b"delete a 0 noreply", [b"a", b"0"], True),
            (b"delete noreply", [b"noreply"], False),
            (b"flush a noreply", [b"a"], True),
            (b"flush noreply", [b"noreply"], False),
            (b"configure a b=1 noreply", [b"a", b"b=1"], True),
            (b"configure noreply", [b"noreply"], False),
            (b"flush_all noreply", [], True),
            (b"flush_all 10 noreply", [b"10"], True),
            (b"flush_all 10", [b"10"], False),
            (b"verbosity 1 noreply", [b"1"], True),
            (b"verbosity noreply", [], True),
            (b"stats settings", [b"settings"], False),
        ],
    )
    def test_is_the_last_word_where_it_is_one(self, line, args, noreply):
        request = parse_one(line + b"\r\n")
        assert (request.args, request.noreply) == (args, noreply)


class TestWordsTooMany:
    @pytest.mark.parametrize(
        ("line", "noreply"),
        [
            (b"version foo bar", False),
            (b"version noreply", False),
            (b"quit now", False),
            (b"quit noreply", False),
            (b"stats noreply", False),
            (b"status up now", False),
            (b"reload all", False),
            (b"shutdown now", False),
            (b"verbosity 1 2", False),
            (b"verbosity 1 2 noreply", True),
            (b"flush a b", False),
            (b"flush_all 1 2 noreply", True),
            (b"flush_expired a b", False),
            (b"flush_all_expired a", False),
            (b"delete a 0 0", False),
            (b"delete a 0 0 noreply", True),
            (b"monitor a 1 2 3", False),
            (b"confirm a 1 2", False),
            (b"mn a", False),
        ],
    )
    def test_are_refused(self, line, noreply):
        request, after = parse(line + b"\r\nversion\r\n")
        assert (request.verb, request.error, request.noreply) == (Verb.REFUSED, BAD_FORMAT, noreply)
        assert after.verb == Verb.VERSION


class TestLongGet:
    """A `get` line above 2,048 bytes: its keys come in runs."""

    @staticmethod
    def runs(data, piece=70_000):
        """Return the keys of each run, and the other requests."""
        parser = Parser()
        found = []
        for at in range(0, len(data), piece):
            parser.feed(data[at : at + piece])
            for request in parser:
                if request.is_run:
                    found.append([each.key for each in (request, *request.rest)])
                else:
                    found.append(Verb(request.verb).name)
            assert parser.unparsed_bytes <= 35_000 + piece
        return found

    @pytest.mark.parametrize("count", [1100, 10_000, 170_000, 500_000])
    @pytest.mark.parametrize("end", [b"\r\n", b" \n"])
    def test_gives_its_keys_in_short_runs_and_then_its_end(self, count, end):
        keys = [b"%d" % (n % 10) for n in range(count)]
        found = self.runs(b"get " + b" ".join(keys) + end + b"version\r\n")
        assert found[-2:] == ["GET_END", "VERSION"]
        assert [key for run in found[:-2] for key in run] == keys
        assert max(map(len, found[:-2])) <= 128

    def test_of_long_keys_gives_runs_of_few_bytes(self):
        keys = [b"a" + b"/open" * 390] * 20
        found = self.runs(b"gets " + b" ".join(keys) + b"\r\n")
        assert [key for run in found[:-1] for key in run] == keys
        assert max(sum(map(len, run)) for run in found[:-1]) < 20_000

    @pytest.mark.parametrize("verb", [b"get", b"GETS"])
    @pytest.mark.parametrize("end", [b"\r\n", b"\n"])
    def test_has_at_most_a_mebibyte(self, verb, end):
        line = verb + b" a b".ljust(MAX_GET_LINE_BYTES - len(verb))
        assert self.runs(line + end + b"version\r\n") == [[b"a", b"b"], "GET_END", "VERSION"]
        assert self.runs(line + b" " + end + b"version\r\n") == [[b"a", b"b"], "FATAL"]
        parser = Parser()
        parser.feed(line)
        list(parser)
        parser.feed(b"   ")
        assert [request.error for request in parser] == [TOO_LONG]

    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_is_the_same_in_any_cut(self, size):
        data = b"get " + b"%s " % (b"a" * 30) * 100 + b"\r\nget " + b"b " * 30_000 + b"\nversion\r\n"
        if size == 1:
            data = data[:4000]
        assert self.runs(data, size) == self.runs(data)

    @pytest.mark.parametrize("count", [500, 20_000])
    @pytest.mark.parametrize(
        ("key", "error"),
        [(b"a/x", b"unknown option"), (b"a/t=1", b"give each of them the same t"), (b"a\x01", BAD_NAME)],
    )
    def test_with_a_wrong_key_is_refused_and_its_rest_passed_over(self, count, key, error):
        good = b"work " * count
        parser = Parser()
        parser.feed(b"get " + good + key + b" " + good + b"\r\nversion\r\n")
        found = [request for request in parser if not request.is_run]
        assert [request.verb for request in found] == [Verb.REFUSED, Verb.VERSION]
        assert error in found[0].error

    def test_of_which_the_whole_is_there_gives_no_key_if_one_is_wrong(self):
        assert verbs(b"get " + b"work " * 5000 + b"a/x\r\nversion\r\n") == ["REFUSED", "VERSION"]

    @pytest.mark.parametrize("rest", [b"a/" + b"o" * 2047, b"x " * 20_000 + b"a" * 2049, b"a" * 40_000])
    def test_has_no_key_longer_than_another_line(self, rest):
        found = parse(b"get b " + rest + b" c\r\nversion\r\n")
        assert [(request.verb, request.error) for request in found if not request.is_run] == [
            (Verb.FATAL, TOO_LONG)
        ]

    def test_may_be_given_up(self):
        parser = Parser()
        parser.feed(b"get " + b"work " * 1000 + b"\r\nversion\r\n")
        assert next(parser).is_run
        parser.skip_keys()
        assert [request.verb for request in parser] == [Verb.VERSION]

    def test_may_be_given_up_behind_its_last_key(self):
        parser = Parser()
        parser.feed(b"get " + b"work " * 500 + b"\r\nversion\r\n")
        for _ in range(4):
            assert next(parser).is_run
        parser.skip_keys()
        assert [request.verb for request in parser] == [Verb.VERSION]

    def test_of_one_key_and_many_spaces_is_a_get_of_one(self):
        request = parse_one(b"get " + b" " * 3000 + b"a/t=5\r\n")
        assert (request.is_run, request.rest, request.timeout_ms) == (False, None, 5)

    @pytest.mark.parametrize("count", [3000, 50_000])
    def test_of_no_key_is_refused(self, count):
        assert [request.error for request in parse(b"get" + b" " * count + b"\r\n")] == [BAD_FORMAT]

    def test_is_told_from_other_lines_by_its_verb(self):
        for start in (b"getx a", b"get\ta", b"delete a", b"mg a", b" " * 2050 + b"get a"):
            assert parse_one(start + b" b" * 2000 + b"\r\n").error == TOO_LONG


class TestMeta:
    def test_get_is_a_get_with_flags(self):
        request = parse_one(b"MG work/open/t=500 v c f\r\n")
        assert (request.verb, request.queue, request.open, request.timeout_ms) == (
            Verb.GET,
            b"work",
            True,
            500,
        )
        assert request.meta.wants_value

    def test_set_is_a_set_with_flags(self):
        request, after = parse(b"ms work/delay=5 3 T60 F7 O1\r\nabc\r\nmn\r\n")
        assert (request.verb, request.queue, request.data) == (Verb.SET, b"work", b"abc")
        assert (request.flags, request.exptime, request.delay_ms) == (7, 60, 5)
        assert after.verb == Verb.MN

    def test_large_set_comes_in_chunks(self):
        size = CHUNK_BYTES + 5
        assert verbs(b"ms work %d\r\n%s\r\nmn\r\n" % (size, b"x" * size)) == [
            "SET_BEGIN", "SET_CHUNK", "SET_CHUNK", "SET_END", "MN",
        ]  # fmt: skip

    def test_delete_is_a_delete_or_closes_one_item(self):
        request = parse_one(b"md work q\r\n")
        assert (request.verb, request.args) == (Verb.DELETE, [b"work"])
        request = parse_one(b"md work/cursor=a C17\r\n")
        assert (request.verb, request.queue, request.fetches) == (Verb.GET, b"work/cursor=a", False)
        assert (request.close, request.meta.token) == (True, 17)

    def test_keys_may_be_in_base64(self):
        assert parse_one(b"mg d29yaw== b v\r\n").queue == b"work"
        assert parse_one(b"md d29yaw== b\r\n").args == [b"work"]
        assert parse_one(b"ms d29yaw== 1 b\r\nx\r\n").queue == b"work"
        for line in (b"mg d29yaw= b", b"mg YSBi b", b"ms * 7 b\r\nversion", b"mg YQovYg== b"):
            assert verbs(line + b"\r\nversion\r\n") == ["REFUSED", "VERSION"]

    @pytest.mark.parametrize(
        ("line", "error"),
        [
            (b"mg", BAD_FORMAT),
            (b"mg a T30", b"CLIENT_ERROR invalid flag\r\n"),
            (b"mg a vv", b"CLIENT_ERROR invalid flag\r\n"),
            (b"mg a/x v", b"CLIENT_ERROR unknown option"),
            (b"ms a 7 v\r\nversion", b"CLIENT_ERROR invalid flag\r\n"),
            (b"ms a 7 MA\r\nversion", b"CLIENT_ERROR invalid mode"),
            (b"ms a 7 Fx\r\nversion", BAD_FORMAT),
            (b"ms a 7 F4294967296\r\nversion", BAD_FORMAT),
            (b"ms a 7 T9999999999999999999\r\nversion", BAD_FORMAT),
            (b"ms a/x 7\r\nversion", b"CLIENT_ERROR unknown option"),
            (b"md a I", b"CLIENT_ERROR invalid flag\r\n"),
            (b"md a C", BAD_FORMAT),
            (b"md a/open C1", BAD_NAME),
            (b"ma a", b"CLIENT_ERROR ma is not supported\r\n"),
        ],
    )
    def test_refused_ones_stay_in_step(self, line, error):
        request, after = parse(line + b"\r\nversion\r\n")
        assert request.verb == Verb.REFUSED
        assert request.error.startswith(error)
        assert after.verb == Verb.VERSION

    @pytest.mark.parametrize("line", [b"ms", b"ms a", b"ms a x", b"ms a -1", b"ms a S100"])
    def test_set_without_a_length_is_the_end(self, line):
        assert parse_one(line + b"\r\nversion\r\n").error == BAD_FORMAT
        assert verbs(line + b"\r\nversion\r\n") == ["FATAL"]


class TestValue:
    @pytest.mark.parametrize("cas", [0, 1, 2**64 - 1])
    @pytest.mark.parametrize("data", [b"", b"\r\n\x00", b"x" * 100_000])
    def test_is_what_clients_parse(self, data, cas):
        token = b" %d" % cas if cas else b""
        header = b"VALUE work/open 4294967295 %d%s\r\n" % (len(data), token)
        assert _proto.value_header(b"work/open", 0xFFFFFFFF, len(data), cas) == header
        item = Item(cas, 0xFFFFFFFF, 0, 0, data)
        assert _proto.value(b"work/open", item, cas > 0, False) == header + data + b"\r\n"
        assert _proto.value(b"work/open", item, cas > 0, True) == header + data + b"\r\nEND\r\n"

    def test_has_a_key_no_longer_than_a_line(self):
        key = b"k" * MAX_LINE_BYTES
        assert _proto.value_header(key, 2**32 - 1, 2**64 - 1, 2**64 - 1).split()[1] == key
        for reply in (
            lambda: _proto.value_header(key + b"k", 0, 0, 0),
            lambda: _proto.value(key + b"k", Item(1, 0, 0, 0, b""), False, True),
        ):
            with pytest.raises(ValueError, match="longer than a line"):
                reply()
