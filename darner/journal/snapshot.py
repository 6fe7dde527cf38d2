"""What a start must know of a journal besides its items, as one record; and the mark, which says how far
LevelDB has come.

LevelDB has each part of a snapshot under a key of its own. A journal at rest leaves all of it in the file
`state` as well, and one that has nothing to be written in the file `settled`, so that a start need not open
each LevelDB. resting.py takes a snapshot, and a journal begins
with one: a part that is missing here is missing in both.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from darner import _records
from darner._records import State
from darner.config.kinds import LARGEST
from darner.errors import NewerFormatError
from darner.journal.files import read_small
from darner.journal.layout import MARK_NAME, SETTLED_NAME, check_generations

# What the record begins with; and what a state by itself begins with, which is all that darner 1.0.0 left.
VERSION = 4
# Those of snapshots without settings, and without ids of sets either, which earlier versions read.
DEDUP_VERSION = 3
PLAIN_VERSION = 2
STATE_VERSION = 1
_MARK = struct.Struct(">QQ")
_BOOT = struct.Struct(">Q")
# How many numbers stood by themselves in earlier records; in later ones those of the first item follow.
_NUMBERS = 5


@dataclass
class Snapshot:
    """What there is of a journal besides its items.

    `kept`: the ids below the floor that are live. `has_kept`: whether LevelDB has a record of kept ids.
    `blobs`: those that belong to no item. `expiring`: whether an item may have an expiry of its own.
    `cursors`: their places. `first_id`, `first_ms`: the first item from the floor on, and when it was set; 0
    if that is not known. Of delayed items: how many there are and their bytes, the id below which they were
    flushed, from which stamps on there may be records, and when the first ones are due. `dedup`: the
    generations of the ids of sets, empty if there were none. `settings`: those that were made at run time."""

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
    first_id: int = 0
    first_ms: int = 0
    dedup: list[int] = field(default_factory=list)
    settings: bytes = b""

    def encode(self) -> bytes:
        """Return the record."""
        numbers = [
            self.has_kept,
            self.expiring,
            self.delayed_items,
            self.delayed_bytes,
            self.live_from,
            self.first_id,
            self.first_ms,
        ]
        version = DEDUP_VERSION if self.dedup else PLAIN_VERSION
        if self.settings:
            version = VERSION
        parts = [bytes([version]), _records.encode_state(self.state)]
        parts += [_packed(ids) for ids in (numbers, self.kept, self.blobs, self.due_from, self.next_due)]
        if version != PLAIN_VERSION:
            parts.append(_packed(self.dedup))
        if version == VERSION:
            parts += [struct.pack(">I", len(self.settings)), self.settings]
        for label, place in self.cursors.items():
            parts += [bytes([len(label)]), label, _packed(place)]
        return _records.encode_chunk(b"".join(parts))


def _packed(ids: Iterable[int]) -> bytes:
    numbers = list(ids)
    return struct.pack(f">I{len(numbers)}Q", len(numbers), *numbers)


class _Reader:
    """Takes the parts of a record, one after the other. Methods raise ValueError if it ends too soon."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise ValueError("snapshot cut short")
        self._at += size
        return data

    def take_size(self) -> int:
        (size,) = struct.unpack(">I", self.take(4))
        return int(size)

    def take_ids(self) -> list[int]:
        count = self.take_size()
        ids = list(struct.unpack(f">{count}Q", self.take(8 * count)))
        if any(id >= LARGEST for id in ids):
            raise ValueError("snapshot has a number that none has")
        return ids


def decode(record: bytes) -> Snapshot:
    """Return the snapshot in a record. Raises ValueError if it is damaged, NewerFormatError if a later darner
    wrote it."""
    reader = _Reader(_records.decode_chunk(record))
    (version,) = reader.take(1)
    if version == STATE_VERSION:
        # darner 1.0.0 left a state only if there was nothing else to know, but for delayed items that were
        # flushed: there may still be records of them.
        state = _records.decode_state(record)
        return Snapshot(state, live_from=state.next_blob)
    if version not in (PLAIN_VERSION, DEDUP_VERSION, VERSION):
        raise NewerFormatError(f"snapshot has version {version}, this darner knows {VERSION}")
    state = _records.decode_state(reader.take(len(_records.encode_state(State(0, 0)))))
    numbers = reader.take_ids()
    has_kept, expiring, delayed_items, delayed_bytes, live_from = numbers[:_NUMBERS]
    found = Snapshot(
        state,
        has_kept=bool(has_kept),
        expiring=bool(expiring),
        delayed_items=delayed_items,
        delayed_bytes=delayed_bytes,
        live_from=live_from,
    )
    if len(numbers) > _NUMBERS:
        found.first_id, found.first_ms = numbers[_NUMBERS:]
    found.kept, found.blobs, found.due_from, found.next_due = (reader.take_ids() for _ in range(4))
    if version != PLAIN_VERSION:
        numbers = reader.take_ids()
        found.dedup = numbers and check_generations(numbers)
    if version == VERSION:
        found.settings = reader.take(reader.take_size())
    while not reader.is_at_end:
        label = reader.take(reader.take(1)[0])
        found.cursors[label] = reader.take_ids()
    return found


def read(path: Path) -> Snapshot | None:
    """Return the snapshot in a file, or None if there is none. Raises OSError, or as `decode`."""
    record = read_small(path)
    return None if record is None else decode(record)


def encode_mark(state: State) -> bytes:
    """Return the mark of a journal: the life and the last change that LevelDB has."""
    return _records.encode_chunk(_MARK.pack(state.life, state.change))


def decode_mark(record: bytes) -> tuple[int, int]:
    """Return the life and the change in a mark. Raises ValueError if it is damaged."""
    body = _records.decode_chunk(record)
    if len(body) != _MARK.size:
        raise ValueError("mark of a wrong size")
    life, change = _MARK.unpack(body)
    return life, change


def read_mark(directory: Path) -> tuple[int, int]:
    """Return the life and the change in the mark of a queue's directory; (0, 0) if there is no sound one, for
    it is not synced."""
    try:
        record = read_small(directory / MARK_NAME)
        return (0, 0) if record is None else decode_mark(record)
    except (OSError, ValueError):
        return 0, 0


def encode_settled(record: bytes, boot: int) -> bytes:
    """Return what the file SETTLED_NAME has: an encoded snapshot, and the start of the machine for which it
    counts."""
    return _records.encode_chunk(_BOOT.pack(boot) + record)


def read_settled(directory: Path, boot: int) -> Snapshot | None:
    """Return the snapshot in the file SETTLED_NAME of a queue's directory. None if there is no sound one of
    this start of the machine; or if the mark has another change, for then an earlier darner, which does not
    know that file, has written to LevelDB."""
    try:
        body = _records.decode_chunk(read_small(directory / SETTLED_NAME) or b"")
        found = decode(body[_BOOT.size :]) if body.startswith(_BOOT.pack(boot)) else None
    except (OSError, ValueError):
        return None
    if found is None or read_mark(directory) != (found.state.life, found.state.change):
        return None
    return found
