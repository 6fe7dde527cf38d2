"""Items in a stream of bytes."""

from hypothesis import given
from hypothesis import strategies as st

from darner.tools.item_stream import Splitter


def split(pieces, separator):
    splitter = Splitter(separator)
    found = [item for piece in pieces for item in splitter.feed(piece)]
    return found + splitter.end()


@given(st.lists(st.binary(max_size=20).map(lambda item: item.replace(b"\n", b""))), st.data())
def test_lines_are_items_however_they_are_split(items, data):
    text = b"".join(item + b"\n" for item in items)
    pieces = []
    while text:
        size = data.draw(st.integers(1, len(text)))
        pieces.append(text[:size])
        text = text[size:]
    assert split(pieces, b"\n") == items


def test_the_last_item_needs_no_end_and_one_that_is_empty_is_one():
    assert split([b"a\n\nb"], b"\n") == [b"a", b"", b"b"]
    assert split([b"a\0b\n\0"], b"\0") == [b"a", b"b\n"]
    assert split([], b"\n") == []


def test_without_a_separator_all_is_one_item():
    assert split([b"a\n", b"b\0"], None) == [b"a\nb\0"]
    assert split([], None) == [b""]
