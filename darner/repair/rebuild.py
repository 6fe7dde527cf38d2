"""One damaged queue is made whole again, in a directory of its own.

A new LevelDB gets the records of the damaged one that are alive and pass their own checksums. The log is
played back on it as a server does at its start. Then what is there is counted, and examined."""

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from darner import _records
from darner._records import Change, Item, State
from darner.errors import RepairError
from darner.journal import foreign_files, leveldb
from darner.journal.dedup_ids import without_id
from darner.journal.layout import (
    BLOBS_NAME,
    DEDUP_KEY,
    DELAYED_KEY,
    EXPIRING_KEY,
    KEPT_KEY,
    STATE_NAME,
    state_key,
)
from darner.journal.snapshot import read_mark
from darner.journal.wal import Log
from darner.journal.wal_recovery import Life
from darner.printable import shown
from darner.repair.examination import examine, open_leveldb, play_back, read_resting_state
from darner.repair.scan import Scan
from darner.repair.shadow_copy import hard_link, make_shadow
from darner.repair.wording import are, changes_are, counted, listed

# How much is copied from one LevelDB to another at once.
COPY_BYTES = 1 << 20


class Rebuild:
    """The rebuilding of one queue in the directory `scratch`: from `source`, a copy of the damaged directory,
    to `queue`, a whole one."""

    def __init__(self, name: bytes, source: Path, scratch: Path, log: Log, lives: list[Life]) -> None:
        self._name = name
        self._source = source
        self._old = scratch / "source"
        self._new = scratch / "queue"
        self._log = log
        self._lives = lives
        self._losses: list[str] = []
        # whether the counts of the damaged queue tell what there should be
        self._counts_hold = True
        # ids of empty items in the place of delayed ones that are lost
        self._stand_ins: list[int] = []

    def run(self) -> tuple[int, int, list[str]]:
        """Rebuild the queue; return how many items it has, their bytes, and what is lost, a sentence each.

        Raises RepairError, JournalError, OSError or leveldb.Error if it cannot be rebuilt.
        """
        if not foreign_files.owner(self._source):
            make_shadow(self._source, self._old, hard_link)
        others = self._copy_sound().foreign
        journal = play_back(self._name, self._new, self._log, self._lives, self._source)
        if journal.state.deleted:
            raise RepairError(f"the queue {shown(self._name)} was deleted: there is nothing to repair")
        if journal.lost_items:
            lost = counted(journal.lost_items, "large item")
            self._losses.append(
                f"{lost} {are(journal.lost_items)} lost: what was in the file was not on the disk"
            )
        life, change = read_mark(self._source)
        if life == journal.state.life and change > journal.state.change:
            self._losses.append(
                f"changes {journal.state.change + 1} to {change} are lost: what was set by them is gone, and "
                "what was fetched may have come back"
            )
        self._count_anew()
        if others:
            which = "that is" if others == 1 else "that are"
            self._losses.append(
                f"{counted(others, 'record')} {which} none of darner's {are(others)} left out"
            )
        problems, items, size = examine(self._name, self._new, self._log, self._lives, None, self._source)
        if problems:
            raise RepairError("what came out of it is not whole: " + "; ".join(problems))
        for scratch in (self._new, self._old):
            self._losses = [text.replace(str(scratch), str(self._source)) for text in self._losses]
        return items, size, self._losses

    def _copy_sound(self) -> Scan:
        """Copy what is sound to a new LevelDB; if the damaged one cannot be read, have LevelDB repair the
        copy of it first."""
        try:
            return self._copy()
        except leveldb.Error as error:
            has_current = (self._old / "CURRENT").exists()
            what = (
                f"LevelDB was damaged: {leveldb.reason(error)}" if has_current else "LevelDB had no CURRENT"
            )
            self._losses.append(what)
        shutil.rmtree(self._new, ignore_errors=True)
        if any(self._old.glob("*.ldb")) or any(self._old.glob("*.log")):
            leveldb.repair_db(os.fsencode(self._old), compression=None)
        else:
            shutil.rmtree(self._old)
        return self._copy()

    def _copy(self) -> Scan:
        """Copy the records that are alive and sound to a new LevelDB. Raises leveldb.Error if the damaged one
        cannot be read."""
        is_gone = not self._old.exists()
        with contextlib.closing(open_leveldb(self._old, create_if_missing=is_gone)) as db:
            scan = Scan(db, resting=read_resting_state(self._source))
            with contextlib.closing(open_leveldb(self._new, create_if_missing=True)) as new:
                write, size = new.write_batch(), 0
                for key, record in scan.records(verify_checksums=False):
                    write.put(key, record)
                    size += len(record)
                    if size >= COPY_BYTES:
                        write.write()
                        write, size = new.write_batch(), 0
                write.write()
                if scan.state is None and not (scan.items or scan.delayed[0] or self._lives):
                    raise RepairError(
                        f"nothing of darner can be read in {self._source}; move it away, and begin anew"
                    )
                self._losses += scan.problems
                state = self._begin(scan, new)
                _write_numbers(new, scan, state, scan.delayed_counted or scan.delayed)
        if (self._source / BLOBS_NAME).exists():
            make_shadow(self._source / BLOBS_NAME, self._new / BLOBS_NAME, hard_link)
        return scan

    def _begin(self, scan: Scan, new: Any) -> State:
        """Return the state that the log is played back on."""
        last = self._lives[-1] if self._lives else None
        state = scan.state
        if state is None:
            self._counts_hold = False
            self._losses.append("the state was lost: some that were fetched may have come back")
            life = secrets.randbits(63) if last is None or last.retired else last.number
            state = State(int(self._old.stat().st_mtime * 1000), life)
            state.next_id = max(scan.next_id, 1)
            state.floor = scan.first_id or state.next_id
            state.items, state.bytes = scan.items, scan.size
            state.next_blob = secrets.randbits(40) << 20
        state.next_blob = max(state.next_blob, scan.next_blob)
        if last is not None and last.changes and not last.retired:
            self._join_to(last, state, scan, new)
        state.trimmed = state.floor
        return state

    def _join_to(self, last: Life, state: State, scan: Scan, new: Any) -> None:
        """Have `state` end where the log begins, if it ends earlier. Raises RepairError if the log is of
        another queue."""
        if state.life != last.number:
            raise RepairError(
                f"{self._source} is not the directory that the log was written for; put that back, or move "
                "this one away and delete the queue"
            )
        first = last.changes[0][0]
        if scan.state is None or state.change < first - 1:
            if scan.state is not None:
                self._counts_hold = False
                self._losses.append(
                    f"{changes_are(state.change + 1, first - 1)} lost: what was set is gone, and what was "
                    "fetched may have come back"
                )
            state.change = first - 1
            state.next_id = _first_id(last) or state.next_id
            state.floor = min(state.floor, state.next_id)
        self._lives = [*self._lives[:-1], self._stand_in(last, state, scan, new)]

    def _stand_in(self, last: Life, state: State, scan: Scan, new: Any) -> Life:
        """Return the log's changes with an empty item put wherever a delayed one joins the queue that is
        lost."""
        changes = []
        next_id = state.next_id
        delayed = set()
        for logged in last.changes:
            change = logged
            number, kind, payload = without_id(logged)
            if kind in (Change.DELAY, Change.DEFER):
                delayed.add(payload[:16])
            if number > state.change and kind in (Change.PUT, Change.JOIN):
                key = payload[:16]
                if kind == Change.JOIN and key not in delayed and new.get(b"d" + key) is None:
                    self._stand_ins.append(next_id)
                    record = _records.encode_item(Item(next_id, 0, 0, 0, b""))
                    change = (number, int(Change.PUT), next_id.to_bytes(8, "big") + record)
                    if scan.delayed_counted is not None:
                        scan.delayed_counted[0] -= 1
                next_id += 1
            changes.append(change)
        return Life(last.number, changes)

    def _count_anew(self) -> None:
        """Delete what is not whole, and write the counts of what is."""
        (self._new / STATE_NAME).unlink(missing_ok=True)  # it would be outdated
        with contextlib.closing(open_leveldb(self._new)) as db:
            for id in self._stand_ins:
                db.delete(_records.item_key(id))
            scan = Scan(db, self._new / BLOBS_NAME)
            for _ in scan.records(verify_checksums=False):
                pass
            self._losses += scan.problems
            state = scan.state
            assert state is not None
            if self._counts_hold:
                self._losses += scan.differences(state)
            elif scan.gaps:
                self._losses.append(f"there is no item of: {listed(scan.gaps)}")
            for key in [*scan.failed, *map(_records.marker_key, scan.marked)]:
                db.delete(key)
            state.items, state.bytes = scan.items, scan.size
            state.next_id = max(state.next_id, scan.next_id)
            state.next_blob = max(state.next_blob, scan.next_blob)
            _write_numbers(db, scan, state, scan.delayed)
        for file in (self._new / BLOBS_NAME).glob("*"):
            if not (file.name.isdecimal() and int(file.name) in scan.claimed):
                file.unlink()


def _first_id(life: Life) -> int:
    """Return the id of the first item that a life has put, 0 if that cannot be told."""
    joined = 0
    for _, kind, payload in map(without_id, life.changes):
        if kind == Change.PUT:
            return int.from_bytes(payload[:8], "big") - joined
        joined += kind == Change.JOIN
    return 0


def _write_numbers(db: Any, scan: Scan, state: State, delayed: list[int]) -> None:
    """Write what a journal needs to be opened: the state, the kept ids and the counts of delayed items."""
    with db.write_batch(sync=True) as write:
        write.put(KEPT_KEY, _records.encode_ids(scan.kept))
        write.put(DELAYED_KEY, _records.encode_ids(delayed))
        if scan.generations:
            write.put(DEDUP_KEY, _records.encode_ids(scan.generations))
        if scan.has_expiring:
            write.put(EXPIRING_KEY, b"")
        write.put(state_key(state.next_id), _records.encode_state(state))
