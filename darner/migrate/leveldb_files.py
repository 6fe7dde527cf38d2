"""A LevelDB of another program, read from its files alone: LevelDB itself would write to their directory.

The formats are those of LevelDB's doc/impl.md, log_format.md and table_format.md; Go's LevelDB has the same.
A manifest, which is a log, says which tables there are. What was changed last is in the logs. Of the changes
to a key the one with the highest number counts.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from darner.errors import MigrationError
from darner.journal import sstable
from darner.journal.leveldb_log import writes
from darner.journal.sstable import PUT, SEQUENCE_BYTES, read_varint
from darner.migrate.source import OnDamage

# What the records of a manifest say.
_COMPARATOR, _LOG, _NEXT_FILE, _LAST_SEQUENCE, _COMPACTED, _DELETED, _ADDED, _, _PREVIOUS_LOG = range(1, 10)
# Before the changes of a write: the number of the first one, and how many they are.
_WRITE_HEAD_BYTES = 12
# How many tables, of 2 to 4 MB, are kept in memory for whoever reads here and there. Each such read begins in
# one table of each level, and in all of level 0, which has 12 at most.
_CACHED = 24

# What keys are sorted by. Raises ValueError for what is no key.
Order = Callable[[bytes], Any]
# What a key is sorted by, the number of a change with its sign turned, its kind, the key and the value.
Change = tuple[Any, int, int, bytes, bytes]


class _Table(NamedTuple):
    """A table as the manifest has it; the keys have no sequence number."""

    level: int
    number: int
    smallest: bytes
    largest: bytes


@dataclass
class _Version:
    """What the manifest says of the present."""

    comparator: bytes = b""
    log: int = 0
    previous_log: int = 0
    tables: dict[int, _Table] = field(default_factory=dict)

    def apply(self, edit: bytes) -> None:
        """Take over one record of the manifest. Raises IndexError or ValueError if it cannot be parsed."""
        at = 0
        while at < len(edit):
            tag, at = read_varint(edit, at)
            if tag == _COMPARATOR:
                self.comparator, at = _read_bytes(edit, at)
            elif tag == _LOG:
                self.log, at = read_varint(edit, at)
            elif tag == _PREVIOUS_LOG:
                self.previous_log, at = read_varint(edit, at)
            elif tag in (_NEXT_FILE, _LAST_SEQUENCE):
                _, at = read_varint(edit, at)
            elif tag == _COMPACTED:
                _, at = read_varint(edit, at)
                _, at = _read_bytes(edit, at)
            elif tag == _DELETED:
                _, at = read_varint(edit, at)
                number, at = read_varint(edit, at)
                self.tables.pop(number, None)
            elif tag == _ADDED:
                level, at = read_varint(edit, at)
                number, at = read_varint(edit, at)
                _, at = read_varint(edit, at)
                smallest, at = _read_bytes(edit, at)
                largest, at = _read_bytes(edit, at)
                self.tables[number] = _Table(
                    level, number, smallest[:-SEQUENCE_BYTES], largest[:-SEQUENCE_BYTES]
                )
            else:
                raise ValueError(f"it has a record of an unknown kind, {tag}")


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = read_varint(data, at)
    if at + size > len(data):
        raise IndexError
    return data[at : at + size], at + size


class LevelDb:
    """The records of a LevelDB in a directory, as they are now. Damage is told, and passed over."""

    def __init__(self, directory: Path, order: Order, on_damage: OnDamage) -> None:
        """Read the manifest and the logs. Raises MigrationError if there is no manifest, OSError."""
        self._directory = directory
        self._order = order
        self._on_damage = on_damage
        version = self._read_manifest()
        self.comparator = version.comparator
        self._staged = sorted(self._read_logs(version.log, version.previous_log))
        self._levels = self._sorted(version.tables.values())
        self._cache: dict[int, tuple[bytes, list[sstable.Place]]] = {}

    def _read_manifest(self) -> _Version:
        try:
            name = (self._directory / "CURRENT").read_text().rstrip("\n")
            data = (self._directory / name).read_bytes()
        except (FileNotFoundError, ValueError) as error:
            raise MigrationError(
                f"{self._directory} is no LevelDB, or one that lacks files: {error}"
            ) from None
        version = _Version()
        for edit in self._whole(data, self._directory / name):
            try:
                version.apply(edit)
            except (IndexError, ValueError) as error:
                raise MigrationError(
                    f"{self._directory / name} is damaged: {error or 'it ends too soon'}"
                ) from None
        return version

    def _whole(self, data: bytes, path: Path) -> Iterator[bytes]:
        """Yield the whole writes of a log. One that is not whole at its end is not damage: a kill leaves
        that."""
        broken = None
        for at, content in writes(data):
            if content is None:
                broken = at if broken is None else broken
                continue
            if broken is not None:
                self._on_damage(f"{path} is damaged at byte {broken}, and goes on behind that")
                broken = None
            yield content

    def _read_logs(self, first: int, previous: int) -> Iterator[Change]:
        for path in sorted(self._directory.glob("*.log")):
            if not path.stem.isdecimal() or not (int(path.stem) >= first or int(path.stem) == previous):
                continue
            for write in self._whole(path.read_bytes(), path):
                try:
                    yield from self._changes(write)
                except (IndexError, ValueError):
                    self._on_damage(f"{path} has changes that cannot be read")

    def _changes(self, write: bytes) -> Iterator[Change]:
        sequence = int.from_bytes(write[:8], "little")
        at = _WRITE_HEAD_BYTES
        while at < len(write):
            kind = write[at]
            key, at = _read_bytes(write, at + 1)
            value = b""
            if kind == PUT:
                value, at = _read_bytes(write, at)
            yield self._order(key), -sequence, kind, key, value
            sequence += 1

    def _sorted(self, tables: Iterable[_Table]) -> list[list[_Table]]:
        """Return lists of tables that do not overlap, each in the order of its keys."""
        levels: dict[int, list[_Table]] = {}
        for table in tables:
            try:
                self._order(table.smallest), self._order(table.largest)
            except ValueError:
                self._on_damage(f"{self._path_of(table)} has keys that are none of a queue")
                continue
            # those of level 0 may overlap each other
            levels.setdefault(table.level or -table.number, []).append(table)
        return [sorted(level, key=lambda table: self._order(table.smallest)) for level in levels.values()]

    def _path_of(self, table: _Table) -> Path:
        older = self._directory / f"{table.number:06d}.sst"
        return older if older.exists() else older.with_suffix(".ldb")

    def records(self, start: Any = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and values in order, from what sorts like `start` on. Raises OSError."""
        streams = [self._staged_from(start), *(self._level_from(level, start) for level in self._levels)]
        last = None
        for order, _, kind, key, value in heapq.merge(*streams):
            if order != last:
                last = order
                if kind == PUT:
                    yield key, value

    def _staged_from(self, start: Any) -> Iterator[Change]:
        return (change for change in self._staged if start is None or change[0] >= start)

    def _level_from(self, tables: list[_Table], start: Any) -> Iterator[Change]:
        for table in tables:
            if start is None or self._order(table.largest) >= start:
                yield from self._table_from(table, start)

    def _table_from(self, table: _Table, start: Any) -> Iterator[Change]:
        content, index = self._load(table)
        for last, place in index:
            if start is not None and self._is_before(last, start):
                continue
            records = sstable.read_records(content, place)
            if records is None:
                self._on_damage(f"{self._path_of(table)} is damaged at byte {place[0]}")
                continue
            for key, value in records:
                number = int.from_bytes(key[-SEQUENCE_BYTES:], "little")
                user_key = key[:-SEQUENCE_BYTES]
                try:
                    order = self._order(user_key)
                except ValueError:
                    self._on_damage(f"{self._path_of(table)} has keys that are none of a queue")
                    continue
                if start is None or order >= start:
                    yield order, -(number >> 8), number & 255, user_key, value

    def _is_before(self, last: bytes, start: Any) -> bool:
        """Return whether a block with this last key is before `start`. That key need not be one of a
        record."""
        try:
            return bool(self._order(last[:-SEQUENCE_BYTES]) < start)
        except ValueError:
            return False

    def _load(self, table: _Table) -> tuple[bytes, list[sstable.Place]]:
        if table.number not in self._cache:
            path = self._path_of(table)
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                self._on_damage(f"{path} is missing")
                return b"", []
            index = sstable.read_index(content)
            if index is None:
                self._on_damage(f"{path} is damaged: its index cannot be read")
                index = []
            while len(self._cache) >= _CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[table.number] = content, index
        else:
            # the one that was used last goes last
            self._cache[table.number] = self._cache.pop(table.number)
        return self._cache[table.number]
