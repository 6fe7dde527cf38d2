"""The format of exported queues: what was written comes back, and what is damaged or cut off is told."""

import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darner.tools.export_format import (
    End,
    FormatError,
    Header,
    Reader,
    Record,
    encode_end,
    encode_header,
    encode_item,
)

HEADER = Header("0123456789abcdef" * 2, "work", "127.0.0.1:22133", 1, 9, 1_700_000_000)
RECORDS = st.builds(
    Record,
    st.integers(1, 2**48 - 1),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**40),
    st.binary(max_size=50),
)
THREE = [Record(number, 0, 0, 0, b"item %d" % number) for number in (1, 2, 3)]


def exported(records, header=HEADER):
    items = b"".join(b"".join(encode_item(header.identity, record)) for record in records)
    size = sum(len(record.data) for record in records)
    return encode_header(header) + items + encode_end(header.identity, End(len(records), size))


def read(data):
    reader = Reader(io.BytesIO(data), "it")
    return list(iter(reader.next, None))


def sound(data):
    """Return the sound records of a damaged file."""
    reader = Reader(io.BytesIO(data), "it")
    found = []
    while True:
        try:
            record = reader.next()
        except FormatError as error:
            if not reader.skip(error):
                return found
        else:
            if record is None:
                return found
            found.append(record)


@given(st.lists(RECORDS, max_size=5))
def test_what_was_written_comes_back(records):
    assert read(exported(records)) == records


def test_an_item_may_have_a_megabyte_and_more():
    records = [Record(1, 0, 0, 0, b"x" * 3_000_000)]
    assert read(exported(records)) == records


@given(st.data())
@settings(max_examples=200)
def test_a_file_that_is_cut_off_anywhere_is_told_as_such(data):
    whole = exported(THREE)
    size = data.draw(st.integers(len(encode_header(HEADER)), len(whole) - 1))
    with pytest.raises(FormatError) as caught:
        read(whole[:size])
    assert caught.value.is_cut
    assert caught.value.offset <= size
    assert sound(whole[:size]) == THREE[: len(sound(whole[:size]))]


@given(st.data())
@settings(max_examples=300)
def test_a_changed_byte_anywhere_is_found_and_the_other_items_are_read(data):
    whole = bytearray(exported(THREE))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatError):
        read(bytes(whole))
    if at >= len(encode_header(HEADER)):
        assert len([record for record in sound(bytes(whole)) if record in THREE]) >= 2
        assert all(record in THREE for record in sound(bytes(whole)))


def test_a_damaged_record_is_named_by_its_number_and_place():
    whole = exported(THREE).replace(b"item 2", b"item X")
    with pytest.raises(FormatError, match=r"it: record 2, at byte \d+: its data are damaged"):
        read(whole)
    assert sound(whole) == [THREE[0], THREE[2]]


def test_a_missing_record_is_missed():
    whole = exported(THREE).replace(b"".join(encode_item(HEADER.identity, THREE[1])), b"")
    with pytest.raises(FormatError, match="the file has 2 of 3 items"):
        read(whole)


def test_an_export_that_is_data_of_a_damaged_item_is_not_read_as_records():
    inner = exported(THREE, Header("f" * 32, "other", "x", 1, 9, 1))
    outer = exported([Record(7, 0, 0, 0, inner + b"tail"), THREE[2]])
    assert sound(outer.replace(b"tail", b"taiX")) == [THREE[2]]


def test_what_follows_the_closing_record_is_an_error():
    with pytest.raises(FormatError, match="something follows"):
        read(exported(THREE) + b"\n")


@pytest.mark.parametrize("data", [b"", b"hello\n", b"\x89DQ\n", exported(THREE)[1:]])
def test_what_is_no_export_is_told_as_such(data):
    with pytest.raises(FormatError, match="it is no export of darner"):
        read(data)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 2}, "it has format 2: this darner reads 1"),
        ({"identity": "../x"}, "makes no sense"),
        ({"last": "9"}, "makes no sense"),
    ],
)
def test_a_header_of_another_kind_is_told_as_such(change, text):
    with pytest.raises(FormatError, match=text):
        read(exported(THREE, replace(HEADER, **change)))
