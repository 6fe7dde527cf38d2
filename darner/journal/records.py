# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The records of one journal wherever they lie, read as one: staged, being written, in LevelDB.

This is the part of LevelDB's memtables: the batch that takes changes, the sealed one that is being written,
and the tables below them. It knows nothing of the log, and does nothing about damage but raise it.
"""

from collections.abc import Iterator
from typing import Any

from darner import _records
from darner._records import Item
from darner.errors import NewerFormatError
from darner.journal import attempts
from darner.journal.batch import Batch
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.layout import STATE_KEY_BYTES

# in C, for each record that is read is compared with it
_STATE_KEY_BYTES = STATE_KEY_BYTES


class Records:
    """The staged batch of a journal, the sealed one, and how to read LevelDB's records with them."""

    __slots__ = ("batch", "dead_bytes", "has_attempts", "sealed", "stored_id")

    def __init__(self) -> None:
        self.batch = Batch()
        # the batch that is being written, and is not known to be in LevelDB
        self.sealed: Batch | None = None
        # the first id that LevelDB has nothing of
        self.stored_id = 1
        # whether LevelDB has, or will have, records of how often items have come back; None if not known
        self.has_attempts: bool | None = False
        # the bytes of removed items whose records are not trimmed yet, as far as they are known
        self.dead_bytes = 0

    def staged(self, id: int) -> Item | None:
        """Return the item with this id if a batch has it."""
        found = self.batch.puts.get(id)
        if found is None and self.sealed is not None:
            found = self.sealed.puts.get(id)
        return None if found is None else self._with_attempts(found)

    @property
    def has_removed_unread(self) -> bool:
        """Whether there are removed items whose records may still be found."""
        sealed = self.sealed
        return bool(self.batch.removed_unread or (sealed is not None and sealed.removed_unread))

    def is_removed_unread(self, id: int) -> bool:
        """Return whether this is one of these items."""
        sealed = self.sealed
        return id in self.batch.removed_unread or (sealed is not None and id in sealed.removed_unread)

    def items_from(self, db: Any, start: int, stop: int, removed: set[int]) -> Iterator[Item]:
        """Yield the items from id `start` on and before `stop` that have a record, some of which may be in
        `removed`.

        `db` is the open LevelDB, None if all these items are staged. Raises DamagedRecordError at a damaged
        record, unless that is of a removed item; and leveldb.Error.
        """
        gone = self.batch.removed_unread
        sealed_gone = gone if self.sealed is None else self.sealed.removed_unread
        if start < self.stored_id:
            stored_stop = min(stop, self.stored_id)
            span = (start, stored_stop) if self._may_have_attempts(db) else (0, 0)
            stored_attempts = attempts.stored(db, *span)
            counted = next(stored_attempts, None)
            first, end = _records.item_key(start), _records.item_key(stored_stop)
            with db.iterator(start=first, stop=end, fill_cache=False) as records:
                for key, record in records:
                    if len(key) == _STATE_KEY_BYTES:
                        continue
                    item = self._decoded(key, record, gone, sealed_gone, removed)
                    if item is None:
                        continue
                    while counted is not None and counted[0] < item.id:
                        counted = next(stored_attempts, None)
                    if counted is not None and counted[0] == item.id:
                        item.attempts = counted[1]
                    yield self._with_attempts(item)
            start = self.stored_id
        for id in range(start, stop):
            staged = self.staged(id)
            if staged is not None and id not in sealed_gone and id not in gone:
                yield staged

    def find_stored(self, db: Any, id: int) -> Item | None:
        """Return the item with this id in the open LevelDB, or None. Raises DamagedRecordError if its record
        is damaged; and leveldb.Error."""
        key = _records.item_key(id)
        record = db.get(key, fill_cache=False)
        if record is None:
            return None
        counted = attempts.find(db, id) if self._may_have_attempts(db) else None
        try:
            item = _records.decode_item(key, record)
        except NewerFormatError:
            raise
        except ValueError as error:
            raise DamagedRecordError(key, record, str(error)) from error
        if counted is not None:
            item.attempts = counted
        return self._with_attempts(item)

    def _decoded(
        self, key: bytes, record: bytes, gone: set[int], sealed_gone: set[int], removed: set[int]
    ) -> Item | None:
        """Return the item in a record; None if its id is in one of the sets of removed ones that were not
        read, or in `removed` and the record is damaged."""
        if gone or sealed_gone:
            id = int.from_bytes(key[1:], "big")
            if id in gone or id in sealed_gone:
                return None
        try:
            return _records.decode_item(key, record)
        except ValueError as error:
            damaged = DamagedRecordError(key, record, str(error))
            if isinstance(error, NewerFormatError):
                raise
            if damaged.id in removed:
                return None
            raise damaged from error

    def _may_have_attempts(self, db: Any) -> bool:
        if self.has_attempts is None:
            self.has_attempts = attempts.are_stored(db)
        return self.has_attempts

    def _with_attempts(self, item: Item) -> Item:
        """Return the item, or a copy that has the staged count of how often it has come back."""
        staged = self.batch.attempts.get(item.id) if self.batch.attempts else None
        if staged is None and self.sealed is not None and self.sealed.attempts:
            staged = self.sealed.attempts.get(item.id)
        if staged is not None and staged != item.attempts:
            item = item.another()
            item.attempts = staged
        return item
