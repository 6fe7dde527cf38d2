"""What a journal leaves to the next start when it is closed, so that its LevelDB need not be opened."""

from darner.journal.journal import Journal
from darner.journal.snapshot import Snapshot


def snapshot(journal: Journal) -> Snapshot:
    """Return all that a start must know of it, as LevelDB has it once all is written."""
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
        journal.dedup_ids.numbers,
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
