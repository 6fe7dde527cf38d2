"""What a start must know of a journal without looking at its items, as one record.

LevelDB has each part of it under a key of its own. A journal that rests leaves all of it in the file `state`
as well, so that a start need not open each LevelDB. `Journal.snapshot` and `Journal.restore` are the only
ones that know where a journal has these parts: one that is not in here is in neither.
"""

import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from darner import _records
from darner._records import State
from darner.config.kinds import LARGEST
from darner.errors import NewerFormatError

# What a state by itself, as darner 1.0.0 left it, begins with; and what this record begins with.
STATE_VERSION = 1
VERSION = 2
_MARK = struct.Struct(">QQ")
# More is no snapshot: a start is not to run out of memory over it.
MOST_BYTES = 64 << 20


@dataclass
class Snapshot:
    """What there is of a journal besides its items.

    `kept`: the ids below the floor that are live. `has_kept`: whether LevelDB has a record of kept ids.
    `blobs`: those that belong to no item. `expiring`: whether an item may have an expiry of its own.
    `cursors`: their places. Of what is delayed: how many items and bytes, the id below which they were
    flushed, from which times on there may be records, and when the first are due.
    """

    state: State
    kept: list[int] = field(default_factory=list)
    has_kept: bool = False
    blobs: list[int] = field(default_factory=list)
    expiring: bool = False
    cursors: dict[bytes, list[int]] = field(default_factory=dict)
    delayed_items: int = 0
    delayed_bytes: int = 0
    live_from: int = 0
    due_from: list[int] = field(default_factory=list)
    next_due: list[int] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the record."""
        numbers = [
            self.has_kept,
            self.expiring,
            self.delayed_items,
            self.delayed_bytes,
            self.live_from,
        ]
        parts = [bytes([VERSION]), _records.encode_state(self.state)]
        parts += [_packed(ids) for ids in (numbers, self.kept, self.blobs, self.due_from, self.next_due)]
        for label, place in self.cursors.items():
            parts += [bytes([len(label)]), label, _packed(place)]
        return _records.encode_chunk(b"".join(parts))


def _packed(ids: Iterable[int]) -> bytes:
    numbers = list(ids)
    return struct.pack(f">I{len(numbers)}Q", len(numbers), *numbers)


class _Reader:
    """Takes a record apart. ValueError if it ends too soon."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise ValueError("snapshot cut short")
        self._at += size
        return data

    def ids(self) -> list[int]:
        (count,) = struct.unpack(">I", self.take(4))
        ids = list(struct.unpack(f">{count}Q", self.take(8 * count)))
        if any(id >= LARGEST for id in ids):
            raise ValueError("snapshot has a number that none has")
        return ids


def decode(record: bytes) -> Snapshot:
    """Return the snapshot in a record. ValueError if it is damaged, NewerFormatError if a later darner's."""
    reader = _Reader(_records.decode_chunk(record))
    (version,) = reader.take(1)
    if version == STATE_VERSION:
        # A journal was left so only if there was nothing else to know, but for delayed items that were
        # flushed: they may have records yet.
        state = _records.decode_state(record)
        return Snapshot(state, live_from=state.next_blob)
    if version != VERSION:
        raise NewerFormatError(f"snapshot has version {version}, this darner knows {VERSION}")
    state = _records.decode_state(reader.take(len(_records.encode_state(State(0, 0)))))
    has_kept, expiring, delayed_items, delayed_bytes, live_from = reader.ids()
    found = Snapshot(
        state,
        has_kept=bool(has_kept),
        expiring=bool(expiring),
        delayed_items=delayed_items,
        delayed_bytes=delayed_bytes,
        live_from=live_from,
    )
    found.kept, found.blobs, found.due_from, found.next_due = (reader.ids() for _ in range(4))
    while not reader.is_over:
        label = reader.take(reader.take(1)[0])
        found.cursors[label] = reader.ids()
    return found


def encode_mark(state: State) -> bytes:
    """Return the record of how far a journal had come."""
    return _records.encode_chunk(_MARK.pack(state.life, state.change))


def decode_mark(record: bytes) -> tuple[int, int]:
    """Return the life and the change in such a record. ValueError if it is damaged."""
    body = _records.decode_chunk(record)
    if len(body) != _MARK.size:
        raise ValueError("mark of a wrong size")
    life, change = _MARK.unpack(body)
    return life, change


def read(path: Path) -> Snapshot | None:
    """Return the snapshot in a file, or None if there is none. Raises OSError or as `decode`."""
    record = read_small(path)
    return None if record is None else decode(record)


def read_small(path: Path) -> bytes | None:
    """Return what is in a file of ours, or None if there is none. OSError if it cannot be read, ValueError if
    it is no file or too large: whatever lies in its place, nobody waits for it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise ValueError(f"{path} is no file of darner")
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)
