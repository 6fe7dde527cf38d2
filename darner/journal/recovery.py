"""Opens a journal at a start: what LevelDB has of it, and then the changes that only the log has.

A journal that was closed at rest has left a snapshot in a file, so its LevelDB is not even opened. Changes of
the log are made again by the methods of `Journal` that made them first. They must reach as far as LevelDB had
come, and go on where it ends: else something is damaged or missing, which is said and not passed over.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from darner import _records
from darner._records import Change, Item, State
from darner.config.kinds import LARGEST
from darner.errors import DamagedError, InternalError, JournalError, MisplacedError, NewerFormatError
from darner.journal import leveldb, resting
from darner.journal.background_writer import BackgroundWriter
from darner.journal.database import Database
from darner.journal.dedup_ids import Once, decode_once
from darner.journal.delayed_items import find_runs
from darner.journal.journal import BLOB_ID_BYTES, Journal
from darner.journal.layout import (
    CURSOR_PREFIX,
    CURSORS_END,
    DEDUP_KEY,
    DELAYED_KEY,
    EXPIRING_KEY,
    KEPT_KEY,
    MAX_ATTEMPTS,
    SETTINGS_KEY,
    decode_counts,
    decode_generations,
    decode_place,
    decode_settings,
    is_known_key,
)
from darner.journal.leveldb import failure
from darner.journal.recognition import check_empty, check_owner, is_new
from darner.journal.snapshot import Snapshot
from darner.journal.wal import Log
from darner.journal.wal_recovery import Life

# How many numbers the payload of a change begins with, if it has a fixed number of them.
_NUMBERS: dict[int, int] = {
    Change.PUT: 1, Change.DROP: 3, Change.REWRITE: 1, Change.BLOB: 1, Change.REVIVE: 1, Change.DELAY: 2,
    Change.JOIN: 3, Change.LOST: 4, Change.LOST_DELAYED: 4, Change.ATTEMPTS: 2, Change.DEFER: 3,
}  # fmt: skip


def open_journal(
    name: bytes,
    path: Path,
    writer: BackgroundWriter,
    log: Log | None,
    created_ms: int,
    lives: Sequence[Life] = (),
    home: Path | None = None,
) -> Journal:
    """Return the journal in `path`, brought up to what the log says of the lives of its name; or a new one,
    if `path` is absent or empty. Without a log it lives in memory alone.

    `home` is the directory of which `path` is a copy, if it is one. Raises JournalError if it cannot be
    opened, or holds something else than a journal.
    """
    database = Database(path, writer)
    journal = None
    try:
        journal = _open(name, database, writer, log, created_ms)
        Recovery(journal, home or path).run(lives)
    except BaseException as error:
        database.close()
        if journal is not None and log is not None:
            writer.discard(journal)
            log.unpin(journal)
        if isinstance(error, Exception) and not isinstance(error, JournalError):
            raise InternalError(error) from error
        raise
    return journal


def _open(
    name: bytes, database: Database, writer: BackgroundWriter, log: Log | None, created_ms: int
) -> Journal:
    """Return a journal as LevelDB has it."""
    found = None
    is_new_one = log is None or is_new(database.path)
    if not is_new_one:
        found = _load(database, writer.boot)
    elif log is not None:
        database.make_directory()
    if found is not None:
        database.take_as_known(found.state)
        # where nothing is known of delayed items, they are looked for
        found.due_from = found.due_from or [0]
        found.next_due = found.next_due or ([0] if found.delayed_items else [])
    journal = Journal(name, writer, log, database, found or Snapshot(_new_state(created_ms)))
    # if it was there before, they are looked for when that matters
    journal.records.has_attempts = False if is_new_one else None
    return journal


def _new_state(created_ms: int) -> State:
    """Return the state of a new journal. If a queue was deleted and is made anew, its numbers are others than
    before: an upload that ends late must not delete another one's blob."""
    state = State(created_ms, secrets.randbits(63))
    state.next_blob = secrets.randbits(40) << 20
    return state


def _load(database: Database, boot: int) -> Snapshot | None:
    """Return what the last close has left, or a kill, or else what LevelDB has; None if it is empty."""
    found = database.read_snapshot(boot)
    if found is not None:
        return found
    check_owner(database.path)
    db = database.open(recognize=False)
    try:
        state = database.read_state(db)
        if state is None:
            check_empty(db)
            return None
        found = Snapshot(state)
        if kept := db.get(KEPT_KEY):
            found.has_kept = True
            found.kept = [
                id
                for id in _records.decode_ids(kept)
                if id < state.floor and db.get(_records.item_key(id)) is not None
            ]
        for key in db.iterator(start=b"u", stop=b"v", include_value=False):
            if is_known_key(key):
                found.blobs.append(int.from_bytes(key[1:], "big"))
        found.expiring = db.get(EXPIRING_KEY) is not None
        for key, place in db.iterator(start=CURSOR_PREFIX, stop=CURSORS_END):
            found.cursors[key[1:]] = decode_place(place)
        found.settings = decode_settings(db.get(SETTINGS_KEY))
        if generations := db.get(DEDUP_KEY):
            found.dedup = decode_generations(generations)
        if delayed := db.get(DELAYED_KEY):
            counts = decode_counts(delayed)
            found.delayed_items, found.delayed_bytes, due_from, found.live_from = counts
            found.due_from, found.next_due = find_runs(db, due_from)
    except (leveldb.Error, OSError, ValueError, JournalError) as error:
        raise failure(f"cannot read {database.path}", error) from error
    return found


class Recovery:
    """Brings a journal that was just loaded up to the end of the log."""

    def __init__(self, journal: Journal, home: Path) -> None:
        self._journal = journal
        # the directory from which the origins of blobs are found, and the file that each was linked from
        self._home = home
        self._origins: dict[int, Path] = {}
        # by the blobs of large items that were set with an id, what is remembered of that
        self._onces: dict[int, Once] = {}

    def run(self, lives: Sequence[Life]) -> None:
        """Do all of it; `lives` is what the log knows of the journal's name. Raises JournalError."""
        journal = self._journal
        database = journal.database
        if database.is_open:
            journal.compaction.measure(database.handle)
        if lives:
            self._catch_up(lives)
        self._check_mark()
        known = None
        if not database.exists:
            known = {blob for blob, _ in journal.blobs.obsolete}
            known.update(item.blob for item in journal.records.batch.items)
        is_recovered = bool(lives) or known is not None
        journal.blobs.delete_unknown(journal.state.next_blob, known, is_recovered=is_recovered)
        journal.next_unread = journal.state.floor
        if database.is_open:
            resting.note_first(journal)
            journal.writer.note_open(journal)
        if database.is_open or journal.trimming.has_dead or journal.blobs.obsolete:
            journal.writer.add(journal)

    def _catch_up(self, lives: Sequence[Life]) -> None:
        """Make the changes that the log has and LevelDB lacks."""
        journal = self._journal
        log, last, state = journal.log, lives[-1], journal.state
        assert log is not None
        exists = journal.database.exists
        is_over = state.life in {life.number for life in lives[:-1]} if exists else last.retired
        if is_over:
            # what is logged from now on is of another life: this one's changes were not made again
            state.deleted = True
            log.pin_found(journal)
            return
        if not exists:
            state.life = journal.database.life = last.number
        elif state.life != last.number and last.retired:
            return  # this one began after that
        # no batch is to be sealed, and nothing to be pinned, before all is done
        journal.dirty = journal.writing = True
        change = state.change
        try:
            self._replay(last)
        except (leveldb.Error, ValueError, JournalError) as error:
            raise failure(f"cannot bring {journal.path} up to date", error) from error
        self._drop_items_without_files()
        journal.dirty = journal.writing = journal.is_backlogged = False
        if state.change != change:
            log.pin_found(journal)
            journal.mark_dirty()

    def _replay(self, life: Life) -> None:
        state = self._journal.state
        for change, kind, payload in life.changes:
            if state.life != life.number:
                raise MisplacedError("it is not the directory that the log was written for")
            if change > state.change + 1:
                raise DamagedError(
                    f"the log goes on at change {change}, the directory ends at change {state.change}"
                )
            if change > state.change:
                state.change = change
                self._redo(kind, payload)

    def _drop_items_without_files(self) -> None:
        """Remove the large items that the log has, but whose files are not whole: neither was promised to
        outlast the machine, and the log alone did. Files of the others are not deleted."""
        journal = self._journal
        batch = journal.records.batch
        for item in list(batch.puts.values()):
            if item.blob and not self._has_file(item):
                journal.apply_remove(item.id, item.size, item.blob)
                self._note_lost(item)
        for key, item in list(batch.delayed.items()):
            if item.blob and not self._has_file(item):
                journal.delayed.count_out(item)
                journal.remove_delayed(key, item)
                journal.release_blob(item.blob)
                self._note_lost(item)
        owned = {item.blob for item in batch.items}
        blobs = journal.blobs
        blobs.obsolete = [entry for entry in blobs.obsolete if entry[0] not in owned]
        blobs.begun.clear()

    def _note_lost(self, item: Item) -> None:
        """Count a lost item; it may be sent again, so its set is not remembered."""
        self._journal.lost_items += 1
        once = self._onces.get(item.blob)
        if once is not None:
            self._journal.dedup_ids.remove(self._journal.records.batch, once)

    def _has_file(self, item: Item) -> bool:
        """Whether a large item's file is whole. If it was linked to another queue's file, and the link was
        lost with the machine, it is linked anew."""
        journal = self._journal
        if journal.blobs.is_whole(item):
            return True
        origin = self._origins.get(item.blob)
        if origin is None or not journal.blobs.link_anew(item, origin):
            return False
        journal.writer.note_link(journal.blobs.path_of(item.blob))
        return True

    def _check_mark(self) -> None:
        """Raise JournalError if LevelDB and the log end before what LevelDB has had on the disk."""
        journal = self._journal
        database, state = journal.database, journal.state
        if journal.log is None or database.has_state_file:
            return
        life, change = database.read_mark()
        if change and not state.deleted and (life != state.life or change > state.change):
            end = state.change if life == state.life else 0
            raise DamagedError(
                f"{journal.path} is damaged: LevelDB and the log end at change {end}, and LevelDB had all up "
                f"to {change}"
            )

    # Changes of the log. ValueError if one cannot be, so the log is damaged.

    def _redo(self, kind: int, payload: bytes) -> None:
        journal = self._journal
        numbers = _numbers(kind, payload)
        if kind in (Change.PUT, Change.REWRITE):
            self._redo_item(kind, _records.decode_item(b"i" + payload[:8], payload[8:]))
        elif kind == Change.DROP:
            self._redo_drop(*numbers)
        elif kind == Change.DISCARD:
            sizes = dict(zip(numbers[::2], numbers[1::2], strict=True))
            for id in sizes:
                self._check_given_out(id)
            journal.apply_flush(sizes)
        elif kind == Change.BLOB:
            blob = numbers[0]
            if len(payload) > BLOB_ID_BYTES:
                self._origins[blob] = self._home / os.fsdecode(payload[BLOB_ID_BYTES:])
            journal.apply_begin_blob(blob)
            journal.blobs.obsolete.append((blob, journal.state.change))
        elif kind == Change.RETIRE:
            journal.apply_retire()
        elif kind == Change.REVIVE:
            (created_ms,) = numbers
            journal.apply_revive(created_ms)
        elif kind in (Change.DELAY, Change.DEFER, Change.JOIN, Change.LOST_DELAYED):
            self._redo_delayed(kind, payload, numbers)
        else:
            self._redo_other(kind, payload, numbers)

    def _redo_item(self, kind: int, item: Item) -> None:
        journal = self._journal
        if kind == Change.REWRITE:
            self._check_given_out(item.id)
            journal.apply_attempts(item.id, item.attempts)
        elif item.id == journal.state.next_id:
            if item.expires_ms:
                journal.note_expiring(expiring=True)
            journal.apply_put(item)
        else:
            raise ValueError(f"item {item.id} follows {journal.state.next_id - 1} in the log")

    def _redo_drop(self, id: int, size: int, blob: int) -> None:
        self._check_given_out(id)
        if blob:  # another queue may have it, and lack its link: this file stays until it has one
            self._journal.require_synced_log()
        self._journal.apply_remove(id, size, blob)

    def _redo_delayed(self, kind: int, payload: bytes, numbers: list[int]) -> None:
        journal = self._journal
        key = b"d" + payload[:16]
        if kind in (Change.DELAY, Change.DEFER):
            item = _records.decode_item(b"i" + payload[8:16], payload[8 * len(numbers) :])
            if item.expires_ms:
                journal.note_expiring(expiring=True)
            if kind == Change.DELAY:
                journal.apply_delay(key, item)
            else:
                self._check_given_out(numbers[2])
                journal.apply_defer(key, item, numbers[2])
        elif kind == Change.JOIN:
            open_database = journal.database.open if journal.database.exists else None
            delayed = journal.delayed.find(journal.records.batch, key, open_database)
            if delayed is None:
                raise ValueError(f"delayed item {numbers[1]} is in the log, and nowhere else")
            journal.apply_join(key, delayed, numbers[2])
        else:
            _, _, items, size = numbers
            journal.apply_lose_delayed(key, items, size)

    def _redo_other(self, kind: int, payload: bytes, numbers: list[int]) -> None:
        journal = self._journal
        if kind == Change.LOST:
            first, stop, items, size = numbers
            next_id = journal.state.next_id
            if not first <= stop <= next_id:
                raise ValueError(f"the log has items up to {stop}, and the next one is {next_id}")
            journal.apply_lose(first, stop, items, size)
        elif kind == Change.ATTEMPTS:
            id, attempts = numbers
            self._check_given_out(id)
            journal.apply_attempts(id, min(attempts, MAX_ATTEMPTS))
        elif kind == Change.ONCE:
            once, kind, payload = decode_once(payload)
            journal.apply_once(once)
            self._redo(kind, payload)
            staged = journal.records.batch
            key = b"d" + payload[:16]
            item = staged.delayed[key] if kind == Change.DELAY else staged.puts[journal.state.next_id - 1]
            if item.blob:
                self._onces[item.blob] = once
        elif kind == Change.CURSOR:
            journal.apply_cursor(payload[1 : 1 + payload[0]], numbers)
        elif kind == Change.CONFIGURE:
            journal.apply_settings(payload)
        else:
            raise NewerFormatError(f"the log has a change of kind {kind}, which this darner does not know")

    def _check_given_out(self, id: int) -> None:
        next_id = self._journal.state.next_id
        if not 0 < id < next_id:
            raise ValueError(f"the log has item {id}, and the next one is {next_id}")


def _numbers(kind: int, payload: bytes) -> list[int]:
    """Return the numbers of a change's payload, but for those of an item's record. ValueError if it is not of
    the size that such a change has, or has numbers that no change has."""
    start, stop, each = 0, 8 * _NUMBERS.get(kind, 0), 8
    if kind == Change.DISCARD:
        stop, each = len(payload), 16
    elif kind == Change.CURSOR:
        start, stop = 1 + payload[0] if payload else 1, len(payload)
    numbers = [int.from_bytes(payload[at : at + 8], "big") for at in range(start, stop, 8)]
    is_whole = start <= stop <= len(payload) and (stop - start) % each == 0
    if not is_whole or any(number >= LARGEST for number in numbers):
        raise ValueError(f"the log has a change of kind {kind} that is damaged")
    return numbers
