"""The format of an exported queue: records with checksums, one behind the other. docs/export-format.md is the
description.

Bytes alone: files are handed in, and nothing is asked of a server.
"""

import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, NamedTuple

from darner.errors import ToolError

FORMAT = 1
HEADER, ITEM, END = b"H", b"I", b"E"
_IDENTITY = re.compile(r"[0-9a-f]{32}")
# A record begins with bytes that no text has.
_MAGIC = b"\x89DQ\n"
# magic, kind, id, flags, attempts, expiry, size of the data, their checksum
_FIELDS = struct.Struct(">4scQIHQQI")
_CHECKSUM = struct.Struct(">I")
_HEAD_BYTES = _FIELDS.size + _CHECKSUM.size
# Data are read so many bytes at a time, for their size is only what a file claims.
_READ_BYTES = 1 << 20
# What the JSON of a header or an end may have.
_JSON_BYTES = 1 << 16


class Record(NamedTuple):
    """An item in a file. `expires_s`: a time in seconds of the Unix epoch; 0 is never."""

    id: int
    attempts: int
    flags: int
    expires_s: int
    data: bytes


@dataclass(frozen=True)
class Header:
    """What the first record says. `queue` is percent-encoded as everywhere; `created_ms` tells a queue from
    another one of that name before or after it; `last` is the id of the last item that waited at the start;
    `identity` tells this export from every other one."""

    identity: str
    queue: str
    server: str
    created_ms: int
    last: int
    began_s: int
    format: int = FORMAT


@dataclass(frozen=True)
class End:
    """What the last record says: how many items there are, and the bytes of their data."""

    items: int
    bytes: int


class FormatError(ToolError):
    """A file is no export, or damaged, or cut off.

    `offset` is where what is wrong begins, and `is_cut` whether the file just ends there.
    """

    def __init__(self, text: str, offset: int, *, is_cut: bool = False) -> None:
        super().__init__(text)
        self.offset = offset
        self.is_cut = is_cut


def encode_header(header: Header) -> bytes:
    """Return the first record of a file."""
    return b"".join(_encode(HEADER, "", Record(0, 0, 0, 0, _json(asdict(header)))))


def encode_item(identity: str, record: Record) -> tuple[bytes, bytes]:
    """Return the record of an item, in two parts to write."""
    return _encode(ITEM, identity, record)


def encode_end(identity: str, end: End) -> bytes:
    """Return the last record of a file."""
    return b"".join(_encode(END, identity, Record(0, 0, 0, 0, _json(asdict(end)))))


def _json(what: dict[str, Any]) -> bytes:
    return json.dumps(what, separators=(",", ":")).encode()


def _encode(kind: bytes, identity: str, record: Record) -> tuple[bytes, bytes]:
    id, attempts, flags, expires_s, data = record
    fields = _FIELDS.pack(_MAGIC, kind, id, flags, attempts, expires_s, len(data), zlib.crc32(data))
    # With the identity in it, a record that is data of an item is never taken for one of this file.
    return fields + _CHECKSUM.pack(zlib.crc32(fields, zlib.crc32(identity.encode()))), data


class Reader:
    """Reads a file record by record; memory is bounded by the largest item.

    `header` is there at once. Then `next` gives items until the end record has come, which is `end` then.
    `offset` is where the next record begins, `number` how many records of items there were before it, and
    `skipped` how many of these were damaged; several damaged ones in a row count as one.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        """`name` is what errors call the file. FormatError if it does not begin as an export."""
        self._file = file
        self._name = name
        self._identity = ""
        self.offset = 0
        self.number = 0
        self.skipped = 0
        self.end: End | None = None
        try:
            found = self._record()
        except FormatError:
            found = None
        if found is None or found[0] != HEADER:
            raise FormatError(f"{name} is no export of darner, or its first record is damaged", 0)
        self.header = _header(found[1].data, name)
        self._identity = self.header.identity

    def next(self) -> Record | None:
        """Return the next item; None behind the last one. FormatError if there is none, or a damaged one:
        then call `skip`, or no more."""
        if self.end is not None:
            return None
        found = self._record()
        if found is None:
            raise self._error("the file is cut off: the closing record is missing", is_cut=True)
        kind, record = found
        if kind == ITEM:
            self.number += 1
            return record
        try:
            self.end = End(**json.loads(record.data))
        except (ValueError, TypeError):
            raise self._error("the closing record makes no sense") from None
        if self.end.items != self.number and not self.skipped:
            raise self._error(f"the file has {self.number} of {self.end.items} items")
        if self._file.read(1):
            raise self._error("something follows the closing record")
        return None

    def skip(self, error: FormatError) -> bool:
        """Go on at the first sound record behind one that was damaged; return whether there is one. The file
        must be one in which one can seek."""
        self.number += 1
        self.skipped += 1
        for start in self._magics(error.offset + 1):
            self._file.seek(start)
            head = self._file.read(_HEAD_BYTES)
            if self._fields(head) is not None:
                self._file.seek(start)
                self.offset = start
                return True
        return False

    def _magics(self, at: int) -> Iterator[int]:
        """Give the places from `at` on where a record may begin."""
        kept = len(_MAGIC) - 1
        tail = b""
        self._file.seek(at)
        while chunk := self._file.read(_READ_BYTES):
            text, begin = tail + chunk, at - len(tail)
            at += len(chunk)
            found = text.find(_MAGIC)
            while found >= 0:
                yield begin + found
                found = text.find(_MAGIC, found + 1)
            tail = text[-kept:]
            self._file.seek(at)

    def _fields(self, head: bytes) -> tuple[Any, ...] | None:
        """Return the fields of the head of a record; None if it is damaged or cut off."""
        if len(head) < _HEAD_BYTES:
            return None
        (checksum,) = _CHECKSUM.unpack_from(head, _FIELDS.size)
        seed = zlib.crc32(self._identity.encode())
        fields = _FIELDS.unpack_from(head)
        if zlib.crc32(head[: _FIELDS.size], seed) != checksum or fields[0] != _MAGIC:
            return None
        return fields

    def _record(self) -> tuple[bytes, Record] | None:
        """Return the kind and the fields of the next record; None if the file ends before it."""
        head = self._file.read(_HEAD_BYTES)
        if not head:
            return None
        fields = self._fields(head)
        if fields is None:
            raise self._error("it is cut off" if len(head) < _HEAD_BYTES else "it is damaged", head=head)
        _, kind, id, flags, attempts, expires_s, size, checksum = fields
        data = self._data(size if kind == ITEM else min(size, _JSON_BYTES))
        if len(data) < size:
            raise self._error("it is cut off", is_cut=True)
        if zlib.crc32(data) != checksum:
            raise self._error("its data are damaged")
        self.offset += _HEAD_BYTES + size
        return kind, Record(id, attempts, flags, expires_s, data)

    def _data(self, size: int) -> bytes:
        if size <= _READ_BYTES:
            return self._file.read(size)
        data = io.BytesIO()
        while (left := size - data.tell()) and (chunk := self._file.read(min(left, _READ_BYTES))):
            data.write(chunk)
        return data.getvalue()

    def _error(self, what: str, *, head: bytes | None = None, is_cut: bool = False) -> FormatError:
        is_cut = is_cut or (head is not None and len(head) < _HEAD_BYTES)
        return FormatError(
            f"{self._name}: record {self.number + 1}, at byte {self.offset}: {what}",
            self.offset,
            is_cut=is_cut,
        )


def _header(data: bytes, name: str) -> Header:
    try:
        found = json.loads(data)
        if found["format"] != FORMAT:
            raise FormatError(f"{name} has format {found['format']!r}: this darner reads {FORMAT}", 0)
        header = Header(**found)
        numbers = (header.created_ms, header.last, header.began_s)
        if not (_IDENTITY.fullmatch(header.identity) and all(isinstance(each, int) for each in numbers)):
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise FormatError(f"{name}: the header makes no sense", 0) from None
    return header
