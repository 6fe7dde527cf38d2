"""One queue, looked at in a copy of its directory: the log is played back there, and all of it is read."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from darner import _records
from darner._records import State
from darner.environment.environment import Environment
from darner.environment.offload import at_once
from darner.errors import DamagedError, JournalError, NewerFormatError
from darner.journal import leveldb, leveldb_log, snapshot
from darner.journal.commit import Committer
from darner.journal.database import WRITE_BUFFER_BYTES
from darner.journal.journal import Journal
from darner.journal.layout import BLOBS_NAME, STATE_NAME, stored_state
from darner.journal.recovery import open_journal
from darner.journal.wal import Log
from darner.journal.wal_recovery import Life
from darner.repair.scan import Scan
from darner.repair.wording import are, counted


def open_leveldb(path: Path, **options: bool) -> Any:
    """Open the LevelDB in a directory. Raises leveldb.Error."""
    return leveldb.DB(os.fsencode(path), compression=None, write_buffer_size=WRITE_BUFFER_BYTES, **options)


def play_back(name: bytes, path: Path, log: Log, lives: list[Life], home: Path) -> Journal:
    """Write what the log has to a copy of the queue's directory `home`, as a server does at its start.

    Returns the journal, closed. Raises JournalError if a server could not do that.
    """
    failures: list[JournalError] = []
    committer = Committer(log, Environment(lambda: 0, at_once))
    committer.on_failure = lambda _, error: failures.append(error)
    journal = open_journal(name, path, committer, log, 0, lives, home)
    try:
        committer.close()
    finally:
        journal.close()
    if failures:
        raise failures[0]
    if journal.state.deleted and lives and not lives[-1].retired:
        # of an earlier queue of this name: a server deletes it, and creates the later one
        shutil.rmtree(path)
        path.mkdir()
        return play_back(name, path, log, lives, home)
    return journal


def examine(
    name: bytes, path: Path, log: Log, lives: list[Life], resting: State | None, home: Path
) -> tuple[list[str], int, int]:
    """Look for all that can be wrong with a queue, in a copy of its directory `home`.

    `resting` is the state that was left beside LevelDB, if one was. Returns what is wrong, how many items the
    queue has, and their bytes.
    """
    problems = []
    if (path / "CURRENT").exists():
        try:
            harm = leveldb_log.damage(path)
            if harm is not None:
                problems.append(harm)
            else:  # a write that was cut off at the end is left out, as a server does
                open_leveldb(path).close()
            with contextlib.closing(open_leveldb(path, paranoid_checks=True)) as db:
                problems += _disagreement(db, resting)
        except (leveldb.Error, OSError) as error:
            problems.append(f"LevelDB is damaged: {leveldb.reason(error)}")
    try:
        journal = play_back(name, path, log, lives, home)
        if journal.lost_items:
            lost = counted(journal.lost_items, "large item")
            problems.append(f"{lost} {are(journal.lost_items)} in the log without a whole file")
        # of a queue that was deleted before its LevelDB had anything, a start deletes that
        if not (path / "CURRENT").exists() or (journal.state.deleted and not journal.database.exists):
            return problems, 0, 0
        with contextlib.closing(open_leveldb(path)) as db:
            scan = Scan(db, path / BLOBS_NAME)
            try:
                return problems + scan.judge(verify_checksums=True), scan.items, scan.size
            except leveldb.Error as error:
                problems.append(f"LevelDB is damaged: {leveldb.reason(error)}")
            # without LevelDB's checksums, as a server reads: which items are damaged
            scan = Scan(db, path / BLOBS_NAME)
            return problems + scan.judge(verify_checksums=False), scan.items, scan.size
    except (DamagedError, leveldb.Error) as error:
        return list(dict.fromkeys([*problems, leveldb.reason(error)])), 0, 0


def _disagreement(db: Any, resting: State | None) -> list[str]:
    with contextlib.suppress(ValueError):  # `Scan` reports it
        stored = stored_state(db)
        change = 0 if stored is None else _records.decode_state(stored[1]).change
        if resting is not None and resting.change != change:
            return [f"LevelDB ends at change {change}, the file {STATE_NAME} at {resting.change}"]
    return []


def read_resting_state(source: Path) -> State | None:
    """Return the state that a journal has left beside its LevelDB, None if there is no sound one.

    Raises NewerFormatError if a later darner wrote it.
    """
    path = source / STATE_NAME
    try:
        found = snapshot.read(path)
    except NewerFormatError as error:
        raise leveldb.failure(f"cannot read {path}", error) from error
    except (OSError, ValueError):
        return None
    return None if found is None else found.state
