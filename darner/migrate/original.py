"""The data directory of the original darner: a LevelDB for each queue, named as that.

Its keys are an id of eight bytes, little-endian, and a byte that says what it is of: an item, or a chunk of a
large one. Items are sorted before chunks. An item of several chunks has a header in its place, which names
them and ends in the bytes 1 and 0; one that ends in a 0 by itself has another 0 behind it. The source of that
darner (wavii/darner, include/darner/queue/queue.h and src/queue) is the description.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from darner.errors import MigrationError
from darner.migrate.leveldb_files import LevelDb
from darner.migrate.source import OnDamage, Place, SourceItem

COMPARATOR = b"queue::comparator"
_ITEM, _CHUNK = 1, 2
_KEY_BYTES = 9
# The first chunk of an item, the one behind its last, and how many bytes they have.
_HEADER = struct.Struct("<QQQ")
_IS_HEADER, _IS_ESCAPED = b"\1\0", b"\0\0"


def _order(key: bytes) -> tuple[int, int]:
    if len(key) != _KEY_BYTES:
        raise ValueError(key)
    return key[8], int.from_bytes(key[:8], "little")


class OriginalQueue:
    """A queue of the original darner."""

    def __init__(self, directory: Path) -> None:
        self.name = os.fsencode(directory.name)
        self.notes: Sequence[str] = ()
        self._directory = directory
        base, _, number = directory.name.rpartition(".")
        if number.isdecimal() and (directory.parent / base).is_dir():
            self.notes = [f"it may be what is left of a queue {base} that was deleted: --skip leaves it"]

    def items(self, on_damage: OnDamage) -> Iterator[SourceItem]:
        """Yield its items. Raises MigrationError if it cannot be read at all, OSError."""
        if not any(self._directory.iterdir()):
            return
        db = LevelDb(self._directory, _order, on_damage)
        if db.comparator != COMPARATOR:
            raise MigrationError(f"{self._directory} is a LevelDB, but none of the original darner")
        chunks = _Chunks(db)
        for key, value in db.records((_ITEM, 0)):
            kind, id = _order(key)
            if kind != _ITEM:
                break
            data = _decode(value, chunks)
            if data is None:
                on_damage(f"{self._directory}: item {id} is damaged")
            else:
                yield SourceItem(data)

    def places(self) -> Sequence[Place]:
        """Return none: the original darner has no cursors."""
        return ()


class _Chunks:
    """The chunks of large items. They are read in a row as long as items lie in a row."""

    def __init__(self, db: LevelDb) -> None:
        self._db = db
        # the chunk that comes next, -1 if none does
        self._next = -1
        self._records: Iterator[tuple[bytes, bytes]] = iter(())

    def join(self, first: int, end: int) -> bytes | None:
        """Return the bytes of the chunks from `first` to the one before `end`; None if one is missing."""
        if first != self._next:
            self._records = self._db.records((_CHUNK, first))
        parts = []
        for id in range(first, end):
            record = next(self._records, None)
            if record is None or _order(record[0]) != (_CHUNK, id):
                self._next = -1
                return None
            parts.append(record[1])
        self._next = end
        return b"".join(parts)


def _decode(value: bytes, chunks: _Chunks) -> bytes | None:
    """Return the bytes of an item, None if it is damaged."""
    if value.endswith(_IS_ESCAPED):
        return value[:-1]
    if not value.endswith(b"\0"):
        return value
    if not value.endswith(_IS_HEADER) or len(value) != _HEADER.size + len(_IS_HEADER):
        return None
    first, end, size = _HEADER.unpack_from(value)
    data = chunks.join(first, end) if first < end else None
    return data if data is not None and len(data) == size else None


class Original:
    """The data directory of the original darner."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def queues(self) -> Sequence[OriginalQueue]:
        """Return its queues: to the original darner each directory is one."""
        return [OriginalQueue(entry) for entry in sorted(self.path.iterdir()) if entry.is_dir()]

    def strays(self) -> Sequence[str]:
        """Return what is no directory."""
        return [
            f"{entry} is no directory of a queue"
            for entry in sorted(self.path.iterdir())
            if not entry.is_dir()
        ]
