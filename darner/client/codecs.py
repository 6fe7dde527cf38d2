"""Codecs: what turns the values of a program into the bytes of items, and back."""

import json
import pickle
from typing import Any, Protocol

from darner.client.errors import BadRequestError, CodecError

# The flags by which python-memcached and pymemcache mark a pickle.
_PICKLE_FLAGS = 1


class Codec(Protocol):
    """What `codec=` takes. Both methods raise CodecError for what they cannot handle."""

    def encode(self, value: Any) -> tuple[bytes, int]:
        """Return the item's bytes, and its flags: 32 bits that the server keeps with them."""

    def decode(self, data: bytes, flags: int) -> Any:
        """Return the value of an item."""


class _JSON:
    """JSON in UTF-8. The flags are 0, so that any memcache client reads it; what an item has is ignored."""

    def encode(self, value: Any) -> tuple[bytes, int]:
        try:
            text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
            return text.encode(), 0
        except (TypeError, ValueError, RecursionError) as error:
            raise CodecError(f"JSON cannot say this: {error}") from error

    def decode(self, data: bytes, flags: int) -> Any:  # noqa: ARG002
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CodecError(f"the item is no JSON: {error}", data) from error


class _Pickle:
    """Pickles. A pickle can run any code: only for queues on which nobody writes whom you do not trust."""

    def encode(self, value: Any) -> tuple[bytes, int]:
        try:
            return pickle.dumps(value, pickle.HIGHEST_PROTOCOL), _PICKLE_FLAGS
        except Exception as error:  # an object's own methods are called
            raise CodecError(f"it cannot be pickled: {error}") from error

    def decode(self, data: bytes, flags: int) -> Any:
        if flags != _PICKLE_FLAGS:
            raise CodecError(f"the item is no pickle: its flags are {flags}", data)
        try:
            return pickle.loads(data)  # noqa: S301  # asked for by its name
        except Exception as error:
            raise CodecError(f"the item cannot be unpickled: {error}", data) from error


JSON: Codec = _JSON()
_BY_NAME: dict[str, Codec] = {"json": JSON, "pickle": _Pickle()}


def find(codec: Codec | str | None) -> Codec | None:
    """Return the codec that `codec=` means; BadRequestError if there is none of this name."""
    if not isinstance(codec, str):
        return codec
    if codec not in _BY_NAME:
        raise BadRequestError(f"{codec!r} is no codec: json, pickle, or an object with encode and decode")
    return _BY_NAME[codec]


def encode(codec: Codec | None, value: Any) -> tuple[bytes, int]:
    """Return bytes and flags of a value; without a codec it must be bytes, and its flags are 0."""
    if codec is not None:
        return codec.encode(value)
    if isinstance(value, bytes):
        return value, 0
    if isinstance(value, bytearray | memoryview):
        return bytes(value), 0
    raise BadRequestError(f"a value is bytes, not {type(value).__name__}: encode it, or use a codec")


def decode(codec: Codec | None, data: bytes, flags: int) -> Any:
    """Return the value of an item; without a codec its bytes. CodecError if the codec cannot."""
    return data if codec is None else codec.decode(data, flags)
