# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""Changes to one journal that are written to its LevelDB as one.

A batch lives in memory. Changes are staged in it as they are made; once it is sealed, the next batch takes
them, and this one is written. What was put and removed in between never reaches LevelDB.
"""

import sys
from typing import Any

from darner import _records
from darner._records import Item, State
from darner.journal.layout import attempts_key

# How many bytes may be staged before they are written to LevelDB.
STAGED_BYTES = 1 << 20
# What it takes in memory to stage how often an item has come back.
ATTEMPTS_BYTES = 100
# The room of a journal in memory: never used up, and large enough that adding to it does not overflow.
UNLIMITED_BYTES = sys.maxsize // 2


class Batch:
    """Changes to one journal that will be written to LevelDB as one."""

    __slots__ = (
        "attempts",
        "confirms_compaction",
        "cursors",
        "dead_bytes",
        "dedup_changed",
        "dedup_ids",
        "dedup_numbers",
        "dedup_trim_from",
        "dedup_trimmed",
        "delayed",
        "delayed_changed",
        "delayed_keys",
        "kept",
        "needs_synced_log",
        "obsolete_blobs",
        "ops",
        "puts",
        "removed",
        "removed_delayed",
        "removed_unread",
        "room_bytes",
        "segment",
        "settings_changed",
        "state",
        "trimmed_bytes",
        "trimmed_ids",
        "trimmed_records",
        "trims",
    )  # fmt: skip

    def __init__(self) -> None:
        self.puts: dict[int, Item] = {}
        # how often items have come back, by id
        self.attempts: dict[int, int] = {}
        # other records: key and value, or key and None to delete
        self.ops: list[tuple[bytes, bytes | None]] = []
        # Ids of items that an earlier batch has put, and that were read and then removed out of turn. When
        # this one is sealed the floor has passed most of them; the others are deleted by it.
        self.removed: list[int] = []
        # ids of items that an earlier batch has put, and that were removed before a reader has come to them
        self.removed_unread: set[int] = set()
        # the delayed items by key, their keys in order, and the keys of removed ones of earlier batches
        self.delayed: dict[bytes, Item] = {}
        self.delayed_keys: list[bytes] = []
        self.removed_delayed: set[bytes] = set()
        # whether the counts of delayed items are to be written
        self.delayed_changed = False
        # the ids of sets: by generation, when each came, by its hash; and whether the generations are to be
        # written
        self.dedup_ids: dict[int, dict[bytes, int]] = {}
        self.dedup_changed = False
        # labels of the cursors that moved
        self.cursors: set[bytes] = set()
        # whether the settings that were made at run time are to be written
        self.settings_changed = False
        # whether other journals have a part of these changes: then the log is synced before this is written
        self.needs_synced_log = False
        # how many bytes the staged items may still take in memory
        self.room_bytes = STAGED_BYTES
        # Set when it is sealed: the state of the journal, and the segment of the log that was written to.
        self.state: State
        self.kept: frozenset[int]
        self.segment: int
        self.dedup_numbers: list[int] = []
        # whether dead records are deleted with it, and how many bytes all dead records have by then
        self.trims = False
        self.dead_bytes = 0
        # whether a compaction is known to have succeeded once this is written
        self.confirms_compaction = False
        # Set when it is written: what was trimmed with it, up to where outdated ids were, and the blobs that
        # trimmed records named.
        self.trimmed_ids = 0
        self.dedup_trimmed = 0
        self.dedup_trim_from = b""
        self.trimmed_records = 0
        self.trimmed_bytes = 0
        self.obsolete_blobs: list[int] = []

    @property
    def staged_bytes(self) -> int:
        """The bytes that the staged items take in memory, which is about what writing them takes."""
        return STAGED_BYTES - self.room_bytes

    @property
    def items(self) -> list[Item]:
        """All items that are put by it, delayed ones included."""
        return [*self.puts.values(), *self.delayed.values()]

    def copy_to(self, write: Any) -> None:
        """Add all records to a write batch of LevelDB."""
        for id, item in self.puts.items():
            write.put(_records.item_key(id), item.record or _records.encode_item(item))
        for id, attempts in self.attempts.items():
            write.put(attempts_key(id), _records.encode_ids([attempts]))
        for key, item in self.delayed.items():
            write.put(key, item.record or _records.encode_item(item))
        for key, value in self.ops:
            if value is None:
                write.delete(key)
            else:
                write.put(key, value)
