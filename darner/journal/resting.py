"""What a journal leaves to the next start when it is closed, so that its LevelDB need not be opened."""

import contextlib

from darner.errors import JournalError
from darner.journal import leveldb
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.journal import Journal
from darner.journal.snapshot import Snapshot


def note_first(journal: Journal) -> None:
    """Note the first item, if LevelDB is open: it is about to be closed, and statistics are not to open it
    for that. What is damaged is left to readers."""
    live, floor = journal.live, journal.state.floor
    if not journal.state.items or not journal.database.is_open or journal.first.is_first(floor, live):
        return
    with contextlib.suppress(leveldb.Error, ValueError, JournalError, DamagedRecordError):
        for item in journal.items_from(floor):
            if item.id not in live.removed:
                journal.first.note(floor, item.id, item.enqueued_ms)
                break


def snapshot(journal: Journal) -> Snapshot:
    """Return all that a start must know of it, as LevelDB has it once all is written."""
    note_first(journal)
    first = journal.first
    is_known = first.is_first(journal.state.floor, journal.live)
    return Snapshot(
        journal.state,
        sorted(journal.live.kept),
        journal.live.has_kept_record,
        journal.blobs.unowned,
        journal.expiring,
        dict(journal.cursors),
        journal.delayed.items,
        journal.delayed.bytes,
        journal.delayed.flushed_below,
        list(journal.delayed.records_from.values()),
        list(journal.delayed.next_due.values()),
        first.id if is_known else 0,
        first.enqueued_ms if is_known else 0,
        journal.dedup_ids.numbers,
        journal.settings,
    )


def resting_state(journal: Journal) -> bytes:
    """Return the encoded snapshot for `close`; b"" if there is to be none: LevelDB lacks a part of it,
    something is to be compacted, for which it has to be open, or the queue is deleted."""
    is_stored = (
        journal.database.exists
        and journal.database.stored_change == journal.state.change
        and not journal.dirty
        and journal.failing is None
    )
    is_tidy = not (journal.compaction.is_wanted or journal.state.deleted)
    return snapshot(journal).encode() if is_stored and is_tidy else b""
