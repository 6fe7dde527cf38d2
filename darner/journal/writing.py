"""Writes to LevelDB what is staged in a journal, and tidies it, as the committer asks for it.

Functions over a journal. `write`, `mend` and `compact` are called in a thread, the others in the loop.
"""

from darner import _records
from darner.errors import JournalError
from darner.journal import leveldb
from darner.journal.batch import ATTEMPTS_BYTES, Batch
from darner.journal.dedup_ids import STORED_BYTES
from darner.journal.disk_reserve import is_full
from darner.journal.journal import Journal
from darner.journal.layout import CURSOR_PREFIX, DELAYED_KEY, EXPIRING_KEY, KEPT_KEY, SETTINGS_KEY
from darner.journal.leveldb import failure
from darner.journal.wal import ClosedLog


def seal(journal: Journal, *, tidy: bool = False) -> None:
    """Begin a new batch; `write` will write what was staged. Dead records are deleted with it if they are
    many, or nothing else is to be written, or `tidy`."""
    assert journal.log is not None
    records = journal.records
    if records.sealed is not None:
        _take_back(journal, records.sealed)
    for id in records.batch.removed:
        if id >= journal.state.floor:
            journal.stage_deletion(id)
    batch, records.batch = records.batch, Batch()
    batch.state = journal.state.copy()
    batch.kept = frozenset(journal.live.kept)
    batch.segment = journal.log.segment.number
    journal.trimming.plan(batch, at_once=tidy or not journal.dirty, dead_bytes=records.dead_bytes)
    batch.confirms_compaction = journal.compaction.is_over
    for label in batch.cursors:
        place = journal.cursors.get(label)
        batch.ops.append((CURSOR_PREFIX + label, None if place is None else _records.encode_ids(place)))
    if batch.settings_changed:
        settings = journal.settings
        batch.ops.append((SETTINGS_KEY, _records.encode_chunk(settings) if settings else None))
    if batch.delayed_changed:
        batch.ops.append((DELAYED_KEY, _records.encode_ids(journal.delayed.counts)))
    if journal.live.is_kept_unstaged:
        journal.live.is_kept_unstaged = False
        journal.live.has_kept_record = bool(batch.kept)
        ids = _records.encode_ids(sorted(batch.kept)) if batch.kept else None
        batch.ops.append((KEPT_KEY, ids))
    if batch.dedup_changed or journal.dedup_ids.has_dead:
        batch.dedup_numbers = journal.dedup_ids.numbers
    records.sealed = batch
    journal.writing = True
    journal.dirty = False


def _take_back(journal: Journal, sealed: Batch) -> None:
    """Stage once more, before what is staged, the changes of `sealed`, which could not be written; but for
    its items that have been removed since."""
    batch, live = journal.records.batch, journal.live
    floor, puts, removed = live.state.floor, {}, []
    for id, item in sealed.puts.items():
        if id >= floor or id in live.kept:
            puts[id] = item
            batch.room_bytes -= item.memory_bytes
        else:
            removed.append(item)
    puts.update(batch.puts)
    batch.puts = puts
    for id, attempts in sealed.attempts.items():
        if id not in batch.attempts and live.is_live(id):
            batch.attempts[id] = attempts
            batch.room_bytes -= ATTEMPTS_BYTES
    batch.ops = sealed.ops + batch.ops
    # if it was written after all, their records are deleted already
    batch.obsolete_blobs += sealed.obsolete_blobs
    batch.removed_unread |= sealed.removed_unread
    batch.needs_synced_log |= sealed.needs_synced_log
    for key, item in sealed.delayed.items():
        if key not in batch.removed_delayed:
            batch.delayed[key] = item
            batch.room_bytes -= item.memory_bytes
    batch.delayed_keys = sorted(batch.delayed)
    batch.removed_delayed |= sealed.removed_delayed
    journal.dedup_ids.take_back(batch, sealed)
    # an item that is delayed since has its file, too
    owned = {item.blob for item in batch.items}
    for item in removed:
        if item.blob and item.blob not in owned:
            journal.release_blob(item.blob)


def write(journal: Journal) -> None:
    """Write the sealed batch, and have it on the disk. Raises JournalError if that failed: then all of it
    is to be written again, which does no harm if it was written after all."""
    batch = journal.records.sealed
    assert batch is not None
    trimmed = batch.state.trimmed
    try:
        try:
            _write(journal, batch)
        except (leveldb.Error, JournalError) as error:
            # A compaction has met damage, which LevelDB says to whoever writes next. Or it was opened.
            if isinstance(error, JournalError):
                may_be_mended = journal.may_be_mended(error)
            else:
                may_be_mended = leveldb.is_damage(error)
            if not (may_be_mended and mend(journal, b"")):
                raise
            batch.state.trimmed = trimmed
            batch.trimmed_records = batch.trimmed_bytes = 0
            batch.obsolete_blobs.clear()
            _write(journal, batch)
    except JournalError:
        journal.database.has_failed = True
        raise
    except (leveldb.Error, OSError, RuntimeError, ValueError) as error:
        journal.database.has_failed = True
        if is_full(error):
            journal.writer.make_room()
        raise failure(f"cannot write {journal.path}", error) from error


def _write(journal: Journal, batch: Batch) -> None:
    db, was_opened = journal.database.open_to_write(batch.staged_bytes)
    journal.blobs.sync(batch.items)
    journal.damage.quarantine.sync()
    write = journal.database.empty_write_batch()
    batch.copy_to(write)
    journal.dedup_ids.write(db, write, batch)
    if batch.trims:
        journal.trimming.trim(db, write, batch, has_attempts=journal.records.has_attempts is not False)
    journal.database.commit(write, batch.state, was_opened=was_opened)
    journal.damage.is_beyond_mending = False


def end_write(journal: Journal, error: JournalError | None) -> None:
    """Note that the sealed batch was written; or was not, because of `error`."""
    journal.failing = error
    if error is not None:
        journal.compaction.fail()
    else:
        records = journal.records
        written, records.sealed = records.sealed, None
        assert written is not None
        journal.state.trimmed = written.state.trimmed
        records.stored_id = written.state.next_id
        journal.database.stored_change = written.state.change
        if written.confirms_compaction:
            journal.compaction.confirm()
        journal.blobs.take_back_obsolete(written.obsolete_blobs)
        journal.compaction.note_deleted(written.trimmed_records, written.trimmed_bytes)
        journal.dedup_ids.end_write(written)
        journal.compaction.note_deleted(written.trimmed_ids, written.trimmed_ids * STORED_BYTES)
        has_dead = journal.trimming.has_dead
        records.dead_bytes = max(0, records.dead_bytes - written.trimmed_bytes) if has_dead else 0
        assert journal.log is not None
        journal.log.unpin(journal, written.segment if journal.dirty else written.segment + 1)
    end_work(journal)


def end_work(journal: Journal) -> None:
    """Note that the thread that had the directory is done with it."""
    journal.writing = False
    journal.is_backlogged = False
    mended = journal.damage.quarantine.take_mended()
    for path in mended:
        journal.damage.tell_quarantined(journal, "not known", "a table of LevelDB is damaged", path)
    if mended:
        _stage_all_but_items(journal)
    journal.resume()


def mend(journal: Journal, key: bytes) -> bool:
    """Make LevelDB's tables at `key` as sound as they can be: see `Damage.mend`."""
    return journal.damage.mend(journal.database, key, int(journal.state.floor), int(journal.state.next_id))


def end_mend(journal: Journal, error: JournalError | None) -> None:
    """Note that `mend` has returned, or failed."""
    if error is not None:
        journal.damage.tell(journal, error)
    end_work(journal)


def _stage_all_but_items(journal: Journal) -> None:
    """Have all records but those of items written again, for they may have been damaged, too."""
    batch, live = journal.records.batch, journal.live
    batch.cursors.update(journal.cursors)
    batch.settings_changed |= bool(journal.settings)
    batch.delayed_changed |= journal.delayed.items > 0
    batch.dedup_changed |= bool(journal.dedup_ids.numbers)
    live.is_kept_unstaged |= bool(live.kept) or live.has_kept_record
    if journal.expiring:
        batch.ops.append((EXPIRING_KEY, b""))
    if not journal.dirty:
        journal.mark_dirty()


def compact(journal: Journal, span: tuple[int, int]) -> None:
    """Have LevelDB compact what `compaction.begin` gave. JournalError if it is not open any more."""
    with journal.database.compacting:
        db = journal.database.handle
        if db is None:
            raise JournalError("LevelDB was closed meanwhile")
        journal.compaction.run(db, span, has_attempts=journal.records.has_attempts is not False)


def end_compaction(journal: Journal) -> None:
    """Note that `compact` has returned, and have something written: LevelDB says of a failed compaction
    only then."""
    if journal.compaction.end(journal.records.batch) and not journal.dirty:
        journal.mark_dirty()


def set_aside(journal: Journal, fault: JournalError) -> None:
    """Take a journal out of service until the next start, which finds what the log and LevelDB have. Whoever
    asks for a change gets `fault`."""
    journal.fault = journal.failing = fault
    journal.change_log(ClosedLog(fault))
    end_work(journal)
