"""What is done about damaged and missing items that a reader of a journal meets.

A record may be damaged, or missing without having been removed. Then LevelDB's tables are mended in a thread,
and the reader is told to try again (NotReadyError). What cannot be mended is put aside and counted out by a
change in the log, and reading goes on behind it.
"""

import contextlib

from darner import _records
from darner._records import Item
from darner.errors import JournalError, NotReadyError
from darner.journal import leveldb, live_ids
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.journal import Journal
from darner.journal.leveldb import failure
from darner.journal.live_ids import LiveIds


def quarantine(journal: Journal, item: Item, damage: JournalError) -> None:
    """Remove a live item whose file is damaged, and put that aside. Raises JournalError if that cannot be
    done: then nothing is removed."""
    name = str(item.id)
    aside = journal.damage
    # first: if it is met again after a kill, it is removed then
    kept = aside.put_record_aside(journal, name, _records.encode_item(item))
    with aside.putting_aside(journal, name), contextlib.suppress(FileNotFoundError):  # that was the damage
        kept = aside.quarantine.move(journal.blobs.path_of(item.blob), name)
    journal.remove(item)
    journal.damaged_items += 1
    aside.tell_quarantined(journal, name, str(damage), kept)


def recount(journal: Journal, items: int, size: int) -> None:
    """Count so many items, of so many bytes: these were found, and others were lost unseen. Raises
    JournalError."""
    lost = int(journal.state.items) - items
    if lost:
        look_over(journal, _records.item_key(journal.state.floor))
        journal.damage.tell_quarantined(journal, "not known", f"{lost} items are missing", None)
    journal.lose(0, 0, lost, int(journal.state.bytes) - size)


def unreadable(journal: Journal, what: str, error: Exception, key: bytes) -> JournalError:
    """Return the error that says why `what`, which begins at `key`, cannot be read. If LevelDB is damaged
    there, that is being mended."""
    if leveldb.is_damage(error) and journal.writer.mend(journal, key):
        return journal.hold_readers()
    told = failure(f"cannot read {what} in {journal.path}", error)
    journal.damage.tell(journal, told)
    return told


def look_over(journal: Journal, key: bytes) -> None:
    """Raise NotReadyError if LevelDB's tables at `key`, where something is damaged or missing, may be mended;
    return if they are as sound as they can be."""
    first, last = journal.damage.quarantine.span
    if not first <= key <= last and journal.writer.mend(journal, key):
        raise journal.hold_readers()


def get_past(journal: Journal, start: int, damaged: DamagedRecordError) -> int:
    """Deal with a damaged record that `read` from `start` on has met first; return where to read on."""
    look_over(journal, _records.item_key(start))
    if damaged.id > start:
        pass_over(journal, start, damaged.id)
        return damaged.id
    count_out(journal, damaged)
    _skip(journal, start, start + 1)
    return start + 1


def pass_over(journal: Journal, start: int, stop: int) -> None:
    """Take note that ids have no records, from `start`, where the last read ended, up to `stop`. Raises
    NotReadyError if some are missing that a mended table may bring back."""
    missing = _missing_between(journal, start, stop)
    if missing > 0:
        look_over(journal, _records.item_key(start))
        journal.lose(start, stop, missing, _missing_bytes(journal, start, stop, missing))
        journal.damage.tell_missing(journal, start, stop, missing)
    _skip(journal, start, stop)


def _missing_between(journal: Journal, start: int, stop: int) -> int:
    """Return how many records that should be there are missing, given that no id from `start`, where the last
    read ended, up to `stop` has one; 0 or less if they were removed unread."""
    state, live = journal.state, journal.live
    unread = state.next_id - start
    removed_before = sum(id < start for id in live.removed)
    live_before = len(live.kept) + start - state.floor - removed_before
    removed_unread = unread + live_before - state.items
    return stop - start - removed_unread


def _skip(journal: Journal, start: int, stop: int) -> None:
    """Note that ids were read and have no records: none from `start` up to `stop` is live."""
    _remove_ids(journal.live, max(start, journal.state.floor), stop)
    if journal.live.is_kept_unstaged and not journal.dirty:
        journal.mark_dirty()


def _remove_ids(live: LiveIds, start: int, stop: int) -> None:
    """Note that no id from `start`, at or above the floor, up to `stop` is live."""
    if start >= stop:
        return
    # not one by one: a sweep may have left a wide gap
    if start == live.state.floor:
        live.state.floor = stop
        live.forget_below_floor()
    elif not live.can_list(start, stop):
        live.keep_below(start)
        live.set_floor(stop)
    else:
        live.removed.update(range(start, stop))
    live.advance()
    if len(live.removed) > live_ids.MAX_REMOVED:
        live.raise_floor()


def _missing_bytes(journal: Journal, start: int, stop: int, missing: int) -> int:
    """Return how many bytes missing items had: of rejected records it is known, of the others guessed, which
    is put right when the end of the queue is reached."""
    rejected, state = journal.damage.quarantine.rejected, journal.state
    ids = range(start, stop) if stop - start < len(rejected) else rejected
    known = [rejected[id].size for id in ids if id in rejected and start <= id < stop]
    return sum(known) + int(state.bytes) * max(0, missing - len(known)) // int(state.items)


def count_out(journal: Journal, damaged: DamagedRecordError) -> None:
    """Count an item out whose record is damaged, and put that aside. Raises JournalError."""
    look_over(journal, damaged.key)
    id, name = damaged.id, str(damaged.id)
    kept = journal.damage.put_aside(journal, name, damaged, journal.blobs.path_of(damaged.blob))
    journal.lose(id, id + 1, 1, damaged.size)
    journal.damage.tell_quarantined(journal, name, str(damaged), kept)


def count_out_delayed(journal: Journal, damaged: DamagedRecordError) -> None:
    """Count a delayed item out whose record is damaged, and put that aside; if it was flushed, only delete
    its record. Raises JournalError."""
    look_over(journal, damaged.key)
    if damaged.id < journal.delayed.flushed_below:
        journal.records.batch.removed_delayed.add(damaged.key)
        journal.records.batch.ops.append((damaged.key, None))
        return
    name = f"delayed-{damaged.id}"
    kept = journal.damage.put_aside(journal, name, damaged, journal.blobs.path_of(damaged.blob))
    journal.lose_delayed(damaged.key, 1, max(0, journal.delayed.bytes - damaged.size))
    journal.damage.tell_quarantined(journal, name, str(damaged), kept)


def pause(journal: Journal) -> NotReadyError:
    """Return the error for whoever has met much that is damaged, or has expired: others have their turn
    before more of it is met."""
    journal.offload(lambda: None, lambda _: journal.resume())
    return journal.hold_readers()
