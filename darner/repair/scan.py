"""All records of a journal's LevelDB, read one by one: what is alive, what is damaged, what is missing."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from darner import _records
from darner._records import Item, State
from darner.errors import NewerFormatError
from darner.journal.blob import CHECKSUM_BYTES, file_bytes
from darner.journal.layout import (
    ATTEMPTS_PREFIX,
    CURSOR_PREFIX,
    DEDUP_KEY,
    DELAYED_KEY,
    KEPT_KEY,
    SETTINGS_KEY,
    decode_attempts,
    decode_counts,
    decode_generations,
    decode_place,
    decode_settings,
    decode_stamp,
    is_known_key,
    stored_state,
)
from darner.printable import shown
from darner.repair.wording import MAX_TOLD, are, counted, listed


class Scan:
    """One reading of a LevelDB, and what it has found.

    Of what is alive and sound: `items` how many, `size` their bytes; `kept`, the ids below the floor; `gaps`,
    the first and the last of the ids between them that are missing; `first_id`, if there is no floor, and
    `next_id`, the id behind the last; `delayed`, the four numbers that a journal keeps of delayed items;
    `has_expiring`. `failed`: the keys of what is alive but damaged. Of blobs: `claimed` by items, `marked` as
    belonging to none, `next_blob` behind all. `foreign`: how many records are not darner's.
    `delayed_counted`: the four numbers that the record of them has, None if that is damaged or missing.
    `generations`: the numbers that a journal keeps of the ids of sets, None if there are none or they are
    damaged.
    """

    def __init__(self, db: Any, blobs: Path | None = None, resting: State | None = None) -> None:
        """`blobs`: where the files of large items are, if these are to be read, too. `resting`: the state
        that was left beside LevelDB, which counts if LevelDB has none or an older one."""
        self._db = db
        self._blobs = blobs
        self._problems: list[str] = []
        _, record = stored_state(db) or (b"", None)
        self.state: State | None = self._decode(record, _records.decode_state, "the state")
        if resting is not None and (
            self.state is None or (resting.life == self.state.life and resting.change > self.state.change)
        ):
            self.state = resting
        record = db.get(KEPT_KEY)
        kept = self._decode(record, _records.decode_ids, "the list of kept items")
        floor = 0 if self.state is None else self.state.floor
        self._floor = floor
        # None if the list is damaged
        self._kept = None if kept is None and record is not None else set(kept or ())
        record = db.get(DELAYED_KEY)
        self.delayed_counted: list[int] | None = self._decode(
            record, decode_counts, "the count of delayed items"
        )
        self.generations: list[int] | None = self._decode(
            db.get(DEDUP_KEY), decode_generations, "the record of the ids of sets"
        )
        self.items = 0
        self.size = 0
        self.kept: list[int] = []
        self.first_id = 0
        self.next_id = floor
        self.gaps: list[tuple[int, int]] = []
        self.failed: list[bytes] = []
        self.delayed = [0, 0, *(self.delayed_counted or [0, 0, 0, 0])[2:]]
        self.has_expiring = False
        self.claimed: set[int] = set()
        self.marked: set[int] = set()
        self.next_blob = 0
        self.foreign = 0

    def _decode(self, record: bytes | None, decode: Callable[[bytes], Any], what: str) -> Any:
        try:
            return None if record is None else decode(record)
        except NewerFormatError:
            raise
        except ValueError as error:
            self._problems.append(f"{what} is damaged: {error}")
            return None

    @property
    def problems(self) -> list[str]:
        """What is damaged, a sentence each."""
        more = len(self._problems) - MAX_TOLD
        return [*self._problems[:MAX_TOLD], f"and {more} more"] if more > 0 else self._problems

    def records(self, *, verify_checksums: bool) -> Iterator[tuple[bytes, bytes]]:
        """Read all, and yield the records of items, delayed items and cursors that are alive and sound.

        `verify_checksums` is about LevelDB's own checksums, of blocks; records have others. Raises
        leveldb.Error where LevelDB's own structure is damaged.
        """
        with self._db.iterator(verify_checksums=verify_checksums, fill_cache=False) as records:
            for key, record in records:
                try:
                    if self._take(key, record):
                        yield key, record
                except NewerFormatError:
                    raise
                except ValueError as error:
                    self._problems.append(str(error))
                    self.failed.append(key)
        if self.state is not None and self.next_id < self.state.next_id:
            self.gaps.append((self.next_id, self.state.next_id - 1))

    def judge(self, *, verify_checksums: bool) -> list[str]:
        """Read all, and return what is wrong; as `records`."""
        for _ in self.records(verify_checksums=verify_checksums):
            pass
        state = self.state
        if state is None:
            return self.problems or ["there is no state"]
        texts = self.problems + self.differences(state)
        if self.next_id > state.next_id or self.next_blob > state.next_blob:
            texts.append("the ids to be given out next are taken")
        if both := self.marked & self.claimed:
            texts.append(
                f"{counted(len(both), 'file')} of large items {are(len(both))} marked as belonging to none"
            )
        if self.foreign:
            texts.append(f"{counted(self.foreign, 'record')} {are(self.foreign)} none of darner's")
        return texts

    def differences(self, state: State) -> list[str]:
        """Return where the counts in `state` differ from what was found."""
        texts = []
        lost = state.items - self.items
        if lost > 0:
            missing = sum(last - first + 1 for first, last in self.gaps)
            which = ("id" if missing == 1 else "ids") if missing == lost else "among the ids"
            # what they had is not known if the counts of the others are wrong, too
            size = state.bytes - self.size
            of_bytes = f" of {counted(size, 'byte')}" if size >= 0 else ""
            texts.append(f"{counted(lost, 'item')}{of_bytes} {are(lost)} lost, {which} {listed(self.gaps)}")
        elif lost or state.bytes != self.size:
            texts.append(
                f"{counted(self.items, 'item')} of {counted(self.size, 'byte')} {are(self.items)} there, "
                f"and {state.items} of {state.bytes} counted: some that were fetched may have come back"
            )
        items, size = (self.delayed_counted or [0, 0])[:2]
        if [items, size] != self.delayed[:2]:
            texts.append(
                f"{counted(self.delayed[0], 'delayed item')} of {counted(self.delayed[1], 'byte')} "
                f"{are(self.delayed[0])} there, and {items} of {size} counted"
            )
        return texts

    # One record. Each method returns whether it is alive, and is to be copied by a repair; ValueError if it
    # is damaged.

    def _take(self, key: bytes, record: bytes) -> bool:
        kind = key[:1]
        if kind == b"i" and len(key) == 9:
            return self._take_item(int.from_bytes(key[1:], "big"), key, record)
        if kind == b"d" and len(key) == 17:
            return self._take_delayed(key, record)
        if kind == ATTEMPTS_PREFIX and len(key) == 9:
            return self._take_attempts(int.from_bytes(key[1:], "big"), record)
        if kind == CURSOR_PREFIX or key == SETTINGS_KEY:
            _check_small(key, record)
            return True
        if kind == DEDUP_KEY and len(key) == 25:
            if self.generations is None or int.from_bytes(key[1:9], "big") < self.generations[1]:
                return False
            decode_stamp(record)
            return True
        if kind == b"u" and len(key) == 9:
            self.marked.add(int.from_bytes(key[1:], "big"))
        elif not is_known_key(key):
            self.foreign += 1
        return False

    def _take_item(self, id: int, key: bytes, record: bytes) -> bool:
        if id < self._floor and not self._is_kept(id):
            return False
        item = _records.decode_item(key, record)
        self._note(item)
        self.items += 1
        self.size += item.size
        if id < self._floor:
            self.kept.append(id)
            return True
        if self.state is None and not self.first_id:
            self.first_id = id
        elif id > self.next_id:
            self.gaps.append((self.next_id, id - 1))
        self.next_id = id + 1
        return True

    def _take_attempts(self, id: int, record: bytes) -> bool:
        if id < self._floor and not self._is_kept(id):
            return False
        try:
            decode_attempts(record)
        except ValueError as error:
            raise ValueError(f"how often item {id} has come back: {error}") from None
        return True

    def _take_delayed(self, key: bytes, record: bytes) -> bool:
        due_ms, id = int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:], "big")
        if due_ms < self.delayed[2] or id < self.delayed[3]:
            return False
        item = _records.decode_item(b"i" + key[9:], record)
        self._note(item)
        self.next_blob = max(self.next_blob, id + 1)
        self.delayed[0] += 1
        self.delayed[1] += item.size
        return True

    def _is_kept(self, id: int) -> bool:
        if self._kept is not None:
            return id in self._kept
        # the list is damaged; but trimming has left no others
        return self.state is not None and id < self.state.trimmed

    def _note(self, item: Item) -> None:
        """Take note of an item's blob, which is read if that is asked for, and of its expiry."""
        if item.blob:
            if self._blobs is not None:
                _read_blob(self._blobs / str(item.blob), item)
            self.claimed.add(item.blob)
            self.next_blob = max(self.next_blob, item.blob + 1)
        self.has_expiring |= item.expires_ms > 0


def _check_small(key: bytes, record: bytes) -> None:
    """Raise ValueError if the place of a cursor is damaged, or what was set for the queue at run time."""
    try:
        if key == SETTINGS_KEY:
            decode_settings(record)
        else:
            decode_place(record)
    except ValueError as error:
        what = "what was set at run time" if key == SETTINGS_KEY else f"cursor {shown(key[1:])}"
        raise ValueError(f"{what}: {error}") from None


def _read_blob(path: Path, item: Item) -> None:
    """Read all of the file of an item. Raises ValueError if it is not whole."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != file_bytes(item):
                raise ValueError(f"it has {size} bytes, not {file_bytes(item)}")
            for left in range(item.size, 0, -item.chunk_bytes):
                _records.decode_chunk(file.read(min(left, item.chunk_bytes) + CHECKSUM_BYTES))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"the file of item {item.id}, {path}, is damaged: {reason}") from None
