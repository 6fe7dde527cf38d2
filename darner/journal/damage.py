"""What is damaged in one journal: the operator is told, each thing once, and what is left of it is put aside.

Who reads reports here what cannot be read, and is told what to do about it (losses.py). The files put aside
are in the directory `damaged`: see quarantine.py.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from darner.errors import JournalError
from darner.journal import leveldb
from darner.journal.damaged_record import DamagedRecordError
from darner.journal.database import Database
from darner.journal.layout import DAMAGED_NAME
from darner.journal.leveldb import failure
from darner.journal.quarantine import Quarantine

# How many damaged places of a journal the operator is told of: a client may come back to each of them again
# and again.
MAX_TOLD = 100
# And how many damaged items that were put aside.
MAX_QUARANTINED_TOLD = 100
# What an error says that is none of the journal's: neither the process nor the system can open one more file.
OUT_OF_DESCRIPTORS = (os.strerror(errno.EMFILE), os.strerror(errno.ENFILE))


class Reporter(Protocol):
    """Tells the operator about damage."""

    # called when a journal cannot read something, for the first time
    on_damage: Callable[[Any, JournalError], None]
    # called when a journal goes on without damaged items: their ids, the reason, and where what is left is
    on_quarantine: Callable[[Any, str, str, Path | None], None]


class Damage:
    """The damage of one journal."""

    __slots__ = ("_path", "_quarantined", "_reporter", "_told", "is_beyond_mending", "quarantine")

    def __init__(self, path: Path, reporter: Reporter) -> None:
        self._path = path
        self._reporter = reporter
        self.quarantine = Quarantine(path)
        # the errors that were told, and of how many damaged items
        self._told: set[str] = set()
        self._quarantined = 0
        # whether LevelDB was found damaged although all its tables are sound
        self.is_beyond_mending = False

    def tell(self, journal: Any, error: JournalError) -> None:
        """Tell the operator of an error, once; the client is told each time. That the process or the system
        has no descriptor left is no damage, and passes."""
        text = str(error)
        if any(reason in text for reason in OUT_OF_DESCRIPTORS):
            return
        if text not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(text)
            self._reporter.on_damage(journal, error)

    def tell_quarantined(self, journal: Any, ids: str, reason: str, where: Path | None) -> None:
        """Tell the operator of damaged items, of so many that it can be read."""
        self._quarantined += 1
        if self._quarantined == MAX_QUARANTINED_TOLD:
            reason = f"{reason}; further ones are not logged, but counted as damaged_items"
        if where is not None and not where.exists():
            where = None
        if self._quarantined <= MAX_QUARANTINED_TOLD:
            self._reporter.on_quarantine(journal, ids, reason, where)

    def tell_missing(self, journal: Any, start: int, stop: int, missing: int) -> None:
        """Tell the operator that of the records of ids from `start` up to `stop` some are missing."""
        where = self._path / DAMAGED_NAME
        if stop - start > 1:
            ids = f"{start} to {stop - 1}"
            self.tell_quarantined(journal, ids, f"{missing} records of these are damaged or missing", where)
        else:
            record = where / f"{start}.record"
            where = record if record.exists() else where
            self.tell_quarantined(journal, str(start), "its record is damaged or missing", where)

    def put_record_aside(self, journal: Any, name: str, record: bytes) -> Path:
        """Write a record to a file among what is damaged, and return that. Raises JournalError."""
        with self.putting_aside(journal, name):
            return self.quarantine.put(f"{name}.record", record)

    def put_aside(self, journal: Any, name: str, damaged: DamagedRecordError, blob: Path) -> Path:
        """Put a damaged record aside, and its blob, if there is one; return where the record is. Raises
        JournalError."""
        kept = self.put_record_aside(journal, name, damaged.record)
        if damaged.blob:  # if the number is right: it may be another item's
            self.quarantine.link(blob, name)
        return kept

    @contextlib.contextmanager
    def putting_aside(self, journal: Any, name: str) -> Iterator[None]:
        """Raise JournalError, and tell the operator, if the block cannot put `name` aside."""
        try:
            yield
        except OSError as error:
            refusal = failure(f"cannot put {name} aside, which is damaged, in {self._path}", error)
            self.tell(journal, refusal)
            raise refusal from error

    def mend(self, database: Database, key: bytes, floor: int, next_id: int) -> bool:
        """Make LevelDB's tables that may have the first record from `key` on as sound as they can be, all of
        them if it is b"": a damaged one is put aside, and one with its sound records takes its place. Return
        whether one was damaged. In a thread. Raises JournalError."""
        try:
            sound = self.quarantine.look_over(database.list_tables(), key, floor, next_id)
            if sound:
                database.replace_tables(lambda: self.quarantine.replace(sound))
        except (leveldb.Error, OSError) as error:
            raise failure(f"cannot mend {self._path}", error) from error
        self.is_beyond_mending = not (key or sound)
        return bool(sound)
