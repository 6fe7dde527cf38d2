"""Values to bytes and back."""

import pytest

from darner.client import JSON, BadRequestError, CodecError, codecs


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("no")


def test_without_a_codec_a_value_is_bytes():
    assert codecs.encode(None, b"x") == (b"x", 0)
    assert codecs.encode(None, bytearray(b"x")) == (b"x", 0)
    assert codecs.encode(None, memoryview(b"x")) == (b"x", 0)


@pytest.mark.parametrize("value", ["text", 1, None, {"a": 1}])
def test_without_a_codec_anything_else_is_refused_with_advice(value):
    with pytest.raises(BadRequestError, match="codec"):
        codecs.encode(None, value)


@pytest.mark.parametrize("name", ["json", "pickle"])
def test_a_codec_gives_back_what_it_got(name):
    codec = codecs.find(name)
    value = {"a": [1, 2.5, None, "ü"]}
    assert codec.decode(*codec.encode(value)) == value


def test_json_is_plain_text_to_any_other_client():
    assert JSON.encode({"a": "ü"}) == ('{"a":"ü"}'.encode(), 0)


@pytest.mark.parametrize(
    ("codec", "value"), [("json", b"bytes"), ("json", {1, 2}), ("json", "\ud800"), ("pickle", Unpicklable())]
)
def test_what_a_codec_cannot_say_is_an_error(codec, value):
    with pytest.raises(CodecError):
        codecs.find(codec).encode(value)


@pytest.mark.parametrize(
    ("codec", "data", "flags"),
    [("json", b"{", 0), ("json", b"\xff", 0), ("pickle", b"x", 1), ("pickle", b"", 0)],
)
def test_what_a_codec_cannot_read_is_an_error_that_has_the_bytes(codec, data, flags):
    with pytest.raises(CodecError) as raised:
        codecs.find(codec).decode(data, flags)
    assert raised.value.data == data


def test_only_what_is_marked_as_a_pickle_is_unpickled():
    data, flags = codecs.find("pickle").encode([1])
    assert flags
    with pytest.raises(CodecError, match="flags"):
        codecs.find("pickle").decode(data, 0)


def test_an_unknown_codec_is_refused():
    with pytest.raises(BadRequestError, match="json, pickle"):
        codecs.find("xml")
