"""The compiled parser against a slow one written from docs/protocol.md, and against itself, cut anywhere."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_parser import COLD, STORAGE, check

from darner._records import CHUNK_BYTES

# The bytes that both parsers get

CORPUS = [
    b"get work\r\nGETS a b  c \r\nget work/t=5/open\nget x/peek/close\r\nset a 1 2 3\r\nabc\r\nversion\r\n",
    b"set a/sync 4294967295 -1 0 noreply\r\n\r\nSet b 0 0 2\r\n\r\n\r\nset a/b 0 0 4\r\nget \r\nstats x\r\n",
    b"add a 0 0 1\r\nx\r\ncas a 0 0 2 77 noreply\r\nxx\r\ntouch a 1\r\nincr a 1 noreply\r\n\r\nnonsense\r\n",
    b"delete noreply\r\ndelete a noreply\r\nflush_all noreply\r\nflush a\r\nverbosity 1 noreply\r\nquit\r\n",
    b"set a 0 0 3\r\nabcd\r\nget a\r\n",
    b"set a 0 0 3\r\nabc\nget a\r\n",
    b"set a 0 0 -3\r\nget a\r\n",
    b"set a 0 0\r\nget a\r\n",
    b"\x80\x00get a\r\n",
    b"get a\r\n\x80\r\nget a\r\n",
    b"get a" + b" " * 2043 + b"\r\nget " + b"b" * 250 + b"\nget " + b"b" * 251 + b"\r\nget " + b"c" * 3000,
]


@pytest.mark.parametrize("data", CORPUS)
def test_requests_cut_at_any_one_byte_are_the_same(data):
    for at in range(len(data) + 1):
        check(data, data[:at], data[at:])


@pytest.mark.parametrize("data", CORPUS)
def test_requests_that_come_byte_by_byte_are_the_same(data):
    check(data, *(data[at : at + 1] for at in range(len(data))))


@pytest.mark.parametrize("size", [CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
@pytest.mark.parametrize("end", [b"\r\n", b"\n\r", b"\rx", b"x"])
@pytest.mark.parametrize("key", [b"a", b"a/refused"])
def test_large_items_cut_near_the_ends_of_their_chunks_are_the_same(size, end, key):
    head = b"set %s 1 0 %d\r\n" % (key, size)
    data = head + b"x" * size + end + b"get a\r\n"
    for chunk in range(0, size + 1, CHUNK_BYTES):
        for at in range(len(head) + chunk - 2, len(head) + chunk + 12):
            check(data, data[:at], data[at:])


words = st.one_of(
    st.sampled_from(
        [b"a", b"work", b"noreply", b"0", b"1", b"-1", b"3", b"+1", b"4294967295", b"4294967296"]
    ),
    st.sampled_from([b"a/open", b"a/close/open/t=1", b"a/abort", b"a/abort/peek", b"a/peek/open", b"a/t=x"]),
    st.sampled_from(
        [
            b"a/t=",
            b"a/t=99999999999",
            b"a/",
            b"/",
            b"//",
            b"a/sync",
            b"a/sync/sync",
            b"a/syncs",
            b"a/delay=",
            b"a/delay=5/sync/delay=60",
            b"a/id=7",
            b"a/id=7/sync/delay=1",
            b"a/id=",
            b"a/id=x/id=y",
            b"a/id=" + b"n" * 251,
        ]
    ),
    st.lists(
        st.sampled_from(
            [
                b"open",
                b"close",
                b"abort",
                b"peek",
                b"t=0",
                b"t=5",
                b"close=1",
                b"abort=18446744073709551615",
                b"close=18446744073709551616",
                b"abort=0",
                b"close=",
                b"delay=0",
                b"delay=9",
                b"delay=x",
                b"from=0",
                b"from=77",
                b"from=",
            ]
        ),
        min_size=1,
        max_size=3,
    ).map(lambda options: b"/".join([b"a", *options])),
    st.sampled_from([b"a/OPEN", b"\r", b"a\x00b", b"a\x7f", b"\xff", b"\x80", b"tab\tbed", b"n" * 250]),
    st.sampled_from([b"n" * 251, b"9" * 18, b"9" * 19, b"0x1", b"1.5"]),
    st.sampled_from(
        [b"HTTP/1.1", b"http/2", b"HTTP/x", b"v", b"q", b"b", b"C7", b"Cx", b"F7", b"T-1", b"MA", b"YQ=="]
    ),
    st.binary(max_size=6),
)
verbs = st.one_of(
    st.sampled_from(
        [
            *STORAGE,
            b"get",
            b"gets",
            *COLD,
            b"touch",
            b"incr",
            b"decr",
            b"gat",
            b"mg",
            b"md",
            b"ms",
            b"ma",
            b"ma ",
            b"sixteenletterverb",
            b"Host:",
            b"$",
        ]
    ),
    st.binary(max_size=16),
)
cases = st.sampled_from([bytes, bytes.upper, bytes.title])
gaps = st.sampled_from([b" ", b" ", b"  "])
ends = st.sampled_from([b"\r\n", b"\r\n", b"\n", b" \r\n", b"\r\r\n", b""])


@st.composite
def line(draw):
    given = draw(st.lists(words, max_size=6))
    verb = draw(cases)(draw(verbs))
    return draw(gaps).join([verb, *given]) + draw(ends)


@st.composite
def storage(draw):
    verb = draw(cases)(draw(st.sampled_from([b"set", b"set", *STORAGE])))
    block = draw(st.binary(max_size=40))
    size = draw(st.sampled_from([len(block)] * 8 + [len(block) + 1, max(0, len(block) - 1)]))
    given = [
        draw(words),
        draw(st.sampled_from([b"0", b"7", b"x"])),
        draw(st.sampled_from([b"0", b"-1", b"y"])),
    ]
    more = draw(st.sampled_from([[], [], [b"noreply"], [b"77"], [b"77", b"noreply"]]))
    head = draw(gaps).join([verb, *given, b"%d" % size, *more])
    return head + draw(ends) + block + draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"", b"\r", b"x\r\n"]))


@st.composite
def good(draw):
    name = draw(st.sampled_from([b"a", b"work", b"a+b"]))
    block = draw(st.binary(max_size=30))
    return draw(
        st.sampled_from(
            [
                b"set %s 0 0 %d\r\n%s\r\n" % (name, len(block), block),
                b"set %s/sync 9 60 %d noreply\r\n%s\r\n" % (name, len(block), block),
                b"get %s/close/open/t=50\r\n" % name,
                b"gets %s other\r\n" % name,
                b"gets %s/open/t=50 other/open/t=50\r\n" % name,
                b"get %s/close=281474976710657/open/t=50\r\n" % name,
                b"get %s/abort=5/delay=500\r\n" % name,
                b"get %s/peek/from=12\r\n" % name,
                b"set %s/id=order-17 0 0 1\r\nx\r\n" % name,
                b"get" + b" " + b"%s/open/t=1 " % name * 300 + b"\r\n",
                b"delete %s\r\n" % name,
                b"mg %s/open v q k\r\n" % name,
                b"ms %s %d T0 F5\r\n%s\r\n" % (name, len(block), block),
                b"md %s q\r\n" % name,
                b"get" + b" " + b"%s/open " % name * 300 + b"\r\n",
            ]
        )
    )


streams = st.lists(st.one_of(good(), good(), line(), storage()), max_size=8).map(b"".join)


@settings(deadline=None, max_examples=1000)
@given(streams, st.lists(st.integers(0, 400), max_size=12))
def test_any_stream_in_any_cut_is_parsed_as_the_contract_says(data, cuts):
    marks = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    check(data, *(data[start:stop] for start, stop in itertools.pairwise(marks)))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_parsed_as_the_contract_says(data):
    check(data)
    check(data, *(data[at : at + 1] for at in range(len(data))))
