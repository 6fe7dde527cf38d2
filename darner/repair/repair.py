"""Whether the queues of a data directory are whole, and how one is made whole again, while no server has it.

Nothing in a queue's directory is touched. A check looks at a shadow of it elsewhere: LevelDB writes when it
is opened, but never to a file it has finished, so links do for those. There the log is played back as a
server does it, and what comes of that is read from end to end. A repair goes the same way, with a new LevelDB
that gets the sound records of the damaged one, and puts the outcome in the place of the damaged directory.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from darner import _records
from darner._proto import valid_name
from darner._records import Change, Item, State
from darner.config.kinds import NAME_RULE
from darner.errors import (
    DamagedError,
    ForeignError,
    JournalError,
    NewerFormatError,
    OutOfServiceError,
    RepairError,
    StartError,
)
from darner.journal import foreign, leveldb, leveldb_log, snapshot
from darner.journal.blob import CHECKSUM_BYTES, at_once, file_bytes, sync_directory, sync_file, sync_name
from darner.journal.commit import Committer
from darner.journal.database import WRITE_BUFFER_BYTES
from darner.journal.journal import Journal
from darner.journal.layout import (
    ATTEMPTS_PREFIX,
    BLOBS_NAME,
    CURSOR_PREFIX,
    DAMAGED_NAME,
    DELAYED_KEY,
    EXPIRING_KEY,
    KEPT_KEY,
    MARK_NAME,
    STATE_NAME,
    check_whose,
    decode_attempts,
    decode_counts,
    decode_place,
    is_known_key,
    is_new,
    read_mark,
    state_key,
    stored_state,
)
from darner.journal.lock import DirectoryLock
from darner.journal.quarantine import quarantined
from darner.journal.recovery import open_journal
from darner.journal.wal import LOST_PREFIX, NEEDED_PREFIX, Life, Log
from darner.printable import shown
from darner.queues.broker import (
    LOG_NAME,
    check_usable,
    directory_of,
    find_directory,
    name_of,
    queue_directories,
    read_log,
    say_stray,
    unusable,
)
from darner.queues.runs import Runs
from darner.queues.status import Status
from darner.queues.trash import TRASH_NAME

log = structlog.get_logger()

REPAIR_PREFIX = ".repair-"
DAMAGED_PREFIX = ".damaged-"
# Of a name, as much as fits into that of a file behind a prefix and a number.
LABEL_BYTES = 200
# How much of a list is said.
SAID = 10
# How much is copied from one LevelDB to another at once.
COPY_BYTES = 1 << 20

# Of Linux, which has no name for it in the standard library.
AT_FDCWD = -100
RENAME_EXCHANGE = 2

# Of what, and why.
_CANNOT = "cannot repair {}, it is as it was: {}"
# What is to be done with what was kept.
_DELETE = "delete it when it is of no more use"

# Makes the second path be what the first one is.
Link = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Report:
    """What a check has found: of a queue, or of the log."""

    where: str
    problems: list[str]
    items: int = 0
    bytes: int = 0
    # whether it is of a queue in its directory
    is_queue: bool = False
    # what it is, if it is nothing that a repair can mend, or may
    refusal: JournalError | None = None

    @property
    def is_repairable(self) -> bool:
        """Whether a repair can do something about it."""
        return bool(self.problems) and self.is_queue and self.refusal is None


@dataclass(frozen=True)
class Repaired:
    """What a repair has come to: what the queue has now, what is said of the rest, and where the damaged
    directory is; None if nothing was damaged, and so nothing was done."""

    items: int
    bytes: int
    losses: list[str]
    damaged: Path | None


def check(data: Path, name: bytes | None = None) -> Iterator[Report]:
    """Look at each queue, or at the one of this name, at the log, and at what else there is that a server
    would speak of; what it would only warn of is logged. Changes nothing.

    Raises RepairError if there is nothing to look at, or a server has it.
    """
    if name is not None:
        _check_name(name)
    with _locked(data, make=False), tempfile.TemporaryDirectory(prefix="darner-check-") as scratch:
        refused = ""
        try:
            check_usable(data)
        except StartError as error:
            refused = str(error)
            yield Report(str(data), [refused])
        try:
            log_copy, lives, damage = _read_log(data, Path(scratch))
        except StartError as error:
            # the queues are looked at all the same
            log_copy, lives, damage = Log(Path(scratch) / "none", at_once), {}, [str(error)]
        if damage and damage != [refused]:
            yield Report("log", damage)
        if name is None:
            yield from _look_around(data)
        names = _names(data, lives, say_stray if name is None else lambda _: None)
        if name is not None and name not in names:
            raise RepairError(f"{data} has no queue {shown(name)}")
        for each in names if name is None else (name,):
            yield _check(data, each, Path(scratch), log_copy, lives.get(each, []))


def _check(data: Path, name: bytes, scratch: Path, log_copy: Log, lives: list[Life]) -> Report:
    source, shadow = find_directory(data, name), scratch / "shadow"
    problems: list[str] = []
    items = size = 0
    refusal = None
    _look_at_quarantine(name, source)
    try:
        _check_access(source)
        if not is_new(source):
            check_whose(source)
        _shadow(source.resolve(), shadow, lambda file, link: link.symlink_to(file))
        problems, items, size = _examine(name, shadow, log_copy, lives, _resting_state(source), source)
    except JournalError as error:
        problems = [_text(error)]
        refusal = None if isinstance(error, DamagedError) else error
    except OSError as error:
        refusal = leveldb.failure(f"cannot read {source}", error)
        problems = [refusal.reason]
    except Exception as error:  # whatever it is, the others are to be looked at
        log.exception("internal error while a queue was looked at", queue=shown(name))
        problems = [f"internal error: {type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(shadow, ignore_errors=True)
    texts = [text.replace(str(shadow), str(source)) for text in problems]
    return Report(shown(name), texts, items, size, is_queue=True, refusal=refusal)


def _look_at_quarantine(name: bytes, source: Path) -> None:
    """Log what a server has put aside in a queue's directory."""
    items, tables = quarantined(source)
    if items or tables:
        log.warning(
            "kept of damage that a server has met; the queue is whole without it",
            queue=shown(name),
            items=items,
            tables=tables,
            path=str(source / DAMAGED_NAME),
            action=_DELETE,
        )


def _text(error: Exception) -> str:
    """What an error says, and what is to be done about it if that is nothing that repairs do."""
    is_mended = not isinstance(error, OutOfServiceError) or isinstance(error, DamagedError)
    return leveldb.reason(error) if is_mended else str(error)


def _check_access(source: Path) -> None:
    """Raise JournalError if a server may not do with a queue's directory what it needs to."""
    for directory in (source, source / BLOBS_NAME):
        if directory.is_dir() and not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(directory).f_flag & os.ST_RDONLY else errno.EACCES
            if number == errno.EACCES or not os.access(directory, os.R_OK | os.X_OK):
                raise leveldb.failure(f"cannot use {directory}", OSError(number, os.strerror(number)))


def _look_around(data: Path) -> Iterator[Report]:
    """Log what there is besides queues that somebody should know of; returns what is wrong with it."""
    Status(data, 0).load()
    try:
        Runs(data, 0).load()
    except StartError as error:
        yield Report("clock", [str(error)])
    for entry in sorted(data.iterdir()):
        if entry.name.startswith(DAMAGED_PREFIX):
            log.warning("kept by a repair", path=str(entry), action=_DELETE)
        elif entry.name.startswith(REPAIR_PREFIX):
            yield from _look_at_repair(data, entry)
    for lost in sorted((data / LOG_NAME).glob(f"{LOST_PREFIX}*")):
        log.warning("a part of the log was put aside when it was damaged", path=str(lost), action=_DELETE)
    with contextlib.suppress(OSError):
        if any((data / TRASH_NAME).iterdir()):
            log.warning(
                "files of deleted queues are there yet",
                path=str(data / TRASH_NAME),
                action="start the server, which deletes them",
            )


def _look_at_repair(data: Path, scratch: Path) -> Iterator[Report]:
    label = scratch.name.removeprefix(REPAIR_PREFIX)
    damaged = sorted(data.glob(f"{DAMAGED_PREFIX}{label}-[0-9]*"))
    if damaged and (scratch / "queue").exists() and not (data / label).exists():
        back = f"move {damaged[-1]} back to {data / label}, and repair again"
        yield Report(label, [f"a repair was cut off between two steps: {back}"])
    else:
        log.warning(
            "left by a repair that was cut off",
            path=str(scratch),
            action="repair the queue again, or delete it",
        )


def repair(data: Path, name: bytes) -> Repaired:
    """Put in the place of a queue's directory what can be saved of it, and keep the damaged one beside.

    Raises RepairError if nothing can be saved, or a server has the data directory; then nothing has changed.
    """
    _check_name(name)
    with _locked(data, make=True):
        return _repair(data, name)


def repair_all(data: Path) -> Iterator[tuple[bytes, Repaired | RepairError]]:
    """Repair each queue that needs it; returns their names, and what came of each.

    Raises RepairError if a server has the data directory, or the log cannot be read.
    """
    with _locked(data, make=True):
        with tempfile.TemporaryDirectory(prefix="darner-repair-") as scratch:
            try:
                _, lives, _ = _read_log(data, Path(scratch))
            except StartError as error:
                raise RepairError(f"nothing is repaired: {error}") from error
        for name in _names(data, lives):
            try:
                yield name, _repair(data, name)
            except RepairError as error:
                yield name, error
            except Exception as error:  # whatever it is, the others are to be repaired
                log.exception("internal error while a queue was repaired", queue=shown(name))
                yield name, RepairError(f"internal error: {type(error).__name__}: {error}")


def _repair(data: Path, name: bytes) -> Repaired:
    source = find_directory(data, name)
    label = "".join(directory_of(name).parts)[:LABEL_BYTES]
    scratch = data / f"{REPAIR_PREFIX}{label}"
    try:
        with contextlib.suppress(FileNotFoundError):  # of one that was cut off
            shutil.rmtree(scratch)
        scratch.mkdir(mode=0o700)
        log_copy, lives, _ = _read_log(data, scratch)
        if not source.exists() and name not in lives:
            raise RepairError(f"{data} has no queue {shown(name)}")
        report = _check(data, name, scratch, log_copy, lives.get(name, []))
        if not report.problems:
            return Repaired(report.items, report.bytes, [], None)
        if report.refusal is not None and not _may_be_replaced(source, report.refusal, lives.get(name, [])):
            raise RepairError(_CANNOT.format(source, "; ".join(report.problems)))
        items, size, losses = _Repair(name, source, scratch, log_copy, lives.get(name, [])).run()
        damaged = _free_path(data / f"{DAMAGED_PREFIX}{label}")
        _swap(source, scratch / "queue", damaged)
    except (OSError, leveldb.Error, JournalError, StartError) as error:
        raise RepairError(_CANNOT.format(source, _text(error))) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Repaired(items, size, losses, damaged)


def _may_be_replaced(source: Path, refusal: JournalError, lives: list[Life]) -> bool:
    """Whether what came of a later darner or of another program, or cannot be used, may be put aside."""
    if isinstance(refusal, ForeignError):
        is_in_log = bool(lives) and not lives[-1].retired
        return source.is_dir() and (is_in_log or not foreign.whose(source))
    return not isinstance(refusal, NewerFormatError)


def _check_name(name: bytes) -> None:
    if not valid_name(name):
        raise RepairError(f'"{shown(name)}" is no name of a queue: that has {NAME_RULE}')


# The data directory


@contextlib.contextmanager
def _locked(data: Path, *, make: bool) -> Iterator[None]:
    """Keep servers away. Unless `make`, a data directory that no server has ever had stays so."""
    try:
        if not data.is_dir():
            raise RepairError(f"{data} is no directory")
        lock = DirectoryLock(data, make=make)
    except BlockingIOError:
        raise RepairError(f"a server has {data}; stop it first") from None
    except OSError as error:
        raise RepairError(f"cannot use {data}: {error.strerror or error}") from error
    with contextlib.closing(lock):
        yield


def _names(
    data: Path, lives: dict[bytes, list[Life]], stray: Callable[[Path], None] = lambda _: None
) -> list[bytes]:
    """The queues there are, in the data directory and in the log."""
    found = [name_of(directory) for directory in queue_directories(data, stray)]
    return list(dict.fromkeys(found + [name for name, known in lives.items() if not known[-1].retired]))


def _read_log(data: Path, scratch: Path) -> tuple[Log, dict[bytes, list[Life]], list[str]]:
    """Read a copy of the log: reading it as a server does ends it where it breaks off. Raises StartError if
    it cannot be read, or a later darner wrote it."""
    copy = scratch / LOG_NAME
    copy.mkdir()
    try:
        for file in (data / LOG_NAME).iterdir() if os.path.lexists(data / LOG_NAME) else ():
            if file.name.isdecimal() or file.name.startswith(NEEDED_PREFIX):
                shutil.copyfile(file, copy / file.name)
    except OSError as error:
        raise unusable(data, error) from error
    log_copy = Log(copy, at_once)
    try:
        lives, damage = read_log(log_copy)
    except (JournalError, StartError) as error:
        raise StartError(str(error).replace(str(copy), str(data / LOG_NAME))) from error
    return log_copy, lives, [text.replace(str(copy), str(data / LOG_NAME)) for text in damage]


def _shadow(source: Path, copy: Path, link: Link) -> None:
    """Make `copy` have what LevelDB and blobs there are in `source`."""
    copy.mkdir()
    for file in source.iterdir() if source.exists() else ():
        if file.name == BLOBS_NAME and file.is_dir():
            _shadow(file, copy / BLOBS_NAME, link)
        elif not file.is_file():  # nobody is to wait for the other end of a pipe
            continue
        elif file.suffix in (".ldb", ".sst", ".log") or source.name == BLOBS_NAME:
            link(file, copy / file.name)
        elif file.name in ("CURRENT", MARK_NAME) or file.name.startswith("MANIFEST-"):
            shutil.copyfile(file, copy / file.name)


def _hard_link(file: Path, link: Path) -> None:
    try:
        link.hardlink_to(file)
    except OSError:  # the file system has none
        shutil.copyfile(file, link)
        sync_file(link)


def _free_path(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return free


def _swap(source: Path, repaired: Path, damaged: Path) -> None:
    for directory in (repaired, repaired / BLOBS_NAME):
        if directory.exists():
            sync_directory(directory)
    source.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if source.exists():
        repaired.rename(damaged)  # cut off here, the queue is as it was
        if not _exchange(source, damaged):
            damaged.rename(repaired)
            source.rename(damaged)
    if not source.exists():
        repaired.rename(source)
    sync_name(source)
    sync_directory(damaged.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Have two names change places in one step; returns whether the system and the file system can."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and not renameat2(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


# One queue


def _open(path: Path, **options: bool) -> Any:
    return leveldb.DB(os.fsencode(path), compression=None, write_buffer_size=WRITE_BUFFER_BYTES, **options)


def _play_back(name: bytes, path: Path, log: Log, lives: list[Life], home: Path) -> Journal:
    """Write what the log says to a copy of the queue's directory `home`, as a server does it at its start;
    returns the journal, closed. JournalError if that cannot be."""
    failures: list[JournalError] = []
    committer = Committer(log, at_once)
    committer.on_failure = lambda _, error: failures.append(error)
    journal = open_journal(name, path, committer, log, 0, lives, home)
    try:
        committer.close()
    finally:
        journal.close()
    if failures:
        raise failures[0]
    if journal.state.deleted and lives and not lives[-1].retired:
        # of an earlier queue of this name: a server deletes it, and makes the later one anew
        shutil.rmtree(path)
        path.mkdir()
        return _play_back(name, path, log, lives, home)
    return journal


def _examine(
    name: bytes, path: Path, log: Log, lives: list[Life], resting: State | None, home: Path
) -> tuple[list[str], int, int]:
    """Look for all that can be wrong with a queue, in a copy of its directory `home`; returns what is, and
    how many items it has of how many bytes. `resting` is the state that was left besides, if one was."""
    problems = []
    if (path / "CURRENT").exists():
        try:
            harm = leveldb_log.damage(path)
            if harm is not None:
                problems.append(harm)
            else:  # what was cut off at its end is left out, as a server does
                _open(path).close()
            with contextlib.closing(_open(path, paranoid_checks=True)) as db:
                problems += _disagreement(db, resting)
        except (leveldb.Error, OSError) as error:
            problems.append(f"LevelDB is damaged: {leveldb.reason(error)}")
    try:
        journal = _play_back(name, path, log, lives, home)
        if journal.lost_items:
            lost = _counted(journal.lost_items, "large item")
            problems.append(f"{lost} {_are(journal.lost_items)} in the log without a whole file")
        if not (path / "CURRENT").exists():
            return problems, 0, 0
        with contextlib.closing(_open(path)) as db:
            scan = Scan(db, path / BLOBS_NAME)
            try:
                return problems + scan.judge(verify_checksums=True), scan.items, scan.size
            except leveldb.Error as error:
                problems.append(f"LevelDB is damaged: {leveldb.reason(error)}")
            # as far as a server would not notice: which items are damaged
            scan = Scan(db, path / BLOBS_NAME)
            return problems + scan.judge(verify_checksums=False), scan.items, scan.size
    except (DamagedError, leveldb.Error) as error:
        return list(dict.fromkeys([*problems, leveldb.reason(error)])), 0, 0


def _disagreement(db: Any, resting: State | None) -> list[str]:
    with contextlib.suppress(ValueError):  # said where all are read
        stored = stored_state(db)
        change = 0 if stored is None else _records.decode_state(stored[1]).change
        if resting is not None and resting.change != change:
            return [f"LevelDB ends at change {change}, the file {STATE_NAME} at {resting.change}"]
    return []


def _resting_state(source: Path) -> State | None:
    """The state that a journal has left besides LevelDB's, if it is whole. NewerFormatError if a later darner
    wrote it."""
    path = source / STATE_NAME
    try:
        found = snapshot.read(path)
    except NewerFormatError as error:
        raise leveldb.failure(f"cannot read {path}", error) from error
    except (OSError, ValueError):
        return None
    return None if found is None else found.state


class Scan:
    """What there is in the LevelDB of a journal, all of it read."""

    def __init__(self, db: Any, blobs: Path | None = None, resting: State | None = None) -> None:
        """`blobs` is where the files of large items are, if those are to be read, too; `resting` is the state
        that was left besides, which counts if LevelDB has none or an older one."""
        self._db = db
        self._blobs = blobs
        self._problems: list[str] = []
        _, record = stored_state(db) or (b"", None)
        self.state: State | None = self._decoded(record, _records.decode_state, "the state")
        if resting is not None and (
            self.state is None or (resting.life == self.state.life and resting.change > self.state.change)
        ):
            self.state = resting
        record = db.get(KEPT_KEY)
        kept = self._decoded(record, _records.decode_ids, "the list of kept items")
        floor = 0 if self.state is None else self.state.floor
        self._floor = floor
        # None if it is damaged
        self._kept = None if kept is None and record is not None else set(kept or ())
        record = db.get(DELAYED_KEY)
        self.delayed_counted: list[int] | None = self._decoded(
            record, decode_counts, "the count of delayed items"
        )
        # how many items are alive and sound, and their bytes
        self.items = 0
        self.size = 0
        # of these, the ids below the floor
        self.kept: list[int] = []
        # the first id, if there is no floor, and the one behind the last
        self.first_id = 0
        self.next_id = floor
        # from the first to the last id of those between that are not there
        self.gaps: list[tuple[int, int]] = []
        # keys of what is alive, but damaged
        self.failed: list[bytes] = []
        # the delayed, as a journal counts them: items, bytes, when the first is due, the first id alive
        self.delayed = [0, 0, *(self.delayed_counted or [0, 0, 0, 0])[2:]]
        self.has_expiring = False
        # blobs that belong to items, those marked as belonging to none, and the id behind all
        self.claimed: set[int] = set()
        self.marked: set[int] = set()
        self.next_blob = 0
        # how many records are none of darner's
        self.foreign = 0

    def _decoded(self, record: bytes | None, decode: Callable[[bytes], Any], what: str) -> Any:
        try:
            return None if record is None else decode(record)
        except NewerFormatError:
            raise
        except ValueError as error:
            self._problems.append(f"{what} is damaged: {error}")
            return None

    @property
    def problems(self) -> list[str]:
        """What is damaged."""
        more = len(self._problems) - SAID
        return [*self._problems[:SAID], f"and {more} more"] if more > 0 else self._problems

    def records(self, *, verify_checksums: bool) -> Iterator[tuple[bytes, bytes]]:
        """Read all; gives the records of items, delayed items and cursors that are alive and sound.

        `verify_checksums` is about LevelDB's own, of blocks: a record has another. Raises leveldb.Error where
        LevelDB's own structure is damaged.
        """
        with self._db.iterator(verify_checksums=verify_checksums, fill_cache=False) as records:
            for key, record in records:
                try:
                    if self._takes(key, record):
                        yield key, record
                except NewerFormatError:
                    raise
                except ValueError as error:
                    self._problems.append(str(error))
                    self.failed.append(key)
        if self.state is not None and self.next_id < self.state.next_id:
            self.gaps.append((self.next_id, self.state.next_id - 1))

    def _takes(self, key: bytes, record: bytes) -> bool:
        kind = key[:1]
        if kind == b"i" and len(key) == 9:
            return self._takes_item(int.from_bytes(key[1:], "big"), key, record)
        if kind == b"d" and len(key) == 17:
            return self._takes_delayed(key, record)
        if kind == ATTEMPTS_PREFIX and len(key) == 9:
            return self._takes_attempts(int.from_bytes(key[1:], "big"), record)
        if kind == CURSOR_PREFIX:
            try:
                decode_place(record)
            except ValueError as error:
                raise ValueError(f"cursor {shown(key[1:])}: {error}") from None
            return True
        if kind == b"u" and len(key) == 9:
            self.marked.add(int.from_bytes(key[1:], "big"))
        elif not is_known_key(key):
            self.foreign += 1
        return False

    def _takes_item(self, id: int, key: bytes, record: bytes) -> bool:
        if id < self._floor and not self._is_kept(id):
            return False
        item = _records.decode_item(key, record)
        self._take(item)
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

    def _takes_attempts(self, id: int, record: bytes) -> bool:
        if id < self._floor and not self._is_kept(id):
            return False
        try:
            decode_attempts(record)
        except ValueError as error:
            raise ValueError(f"how often item {id} has come back: {error}") from None
        return True

    def _is_kept(self, id: int) -> bool:
        if self._kept is not None:
            return id in self._kept
        # trimming has left no other
        return self.state is not None and id < self.state.trimmed

    def _takes_delayed(self, key: bytes, record: bytes) -> bool:
        due_ms, id = int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:], "big")
        if due_ms < self.delayed[2] or id < self.delayed[3]:
            return False
        item = _records.decode_item(b"i" + key[9:], record)
        self._take(item)
        self.next_blob = max(self.next_blob, id + 1)
        self.delayed[0] += 1
        self.delayed[1] += item.size
        return True

    def _take(self, item: Item) -> None:
        if item.blob:
            if self._blobs is not None:
                _read_blob(self._blobs / str(item.blob), item)
            self.claimed.add(item.blob)
            self.next_blob = max(self.next_blob, item.blob + 1)
        self.has_expiring |= item.expires_ms > 0

    def judge(self, *, verify_checksums: bool) -> list[str]:
        """Read all, and say what is wrong; as `records`."""
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
                f"{_counted(len(both), 'file')} of large items {_are(len(both))} marked as belonging to none"
            )
        if self.foreign:
            texts.append(f"{_counted(self.foreign, 'record')} {_are(self.foreign)} none of darner's")
        return texts

    def differences(self, state: State) -> list[str]:
        """Say where the counts differ from what was found."""
        texts = []
        lost = state.items - self.items
        if lost > 0:
            missing = sum(last - first + 1 for first, last in self.gaps)
            which = ("id" if missing == 1 else "ids") if missing == lost else "among the ids"
            # what they had is not known if the counts of the others are wrong, too
            size = state.bytes - self.size
            of_bytes = f" of {_counted(size, 'byte')}" if size >= 0 else ""
            texts.append(
                f"{_counted(lost, 'item')}{of_bytes} {_are(lost)} lost, {which} {_listed(self.gaps)}"
            )
        elif lost or state.bytes != self.size:
            texts.append(
                f"{_counted(self.items, 'item')} of {_counted(self.size, 'byte')} {_are(self.items)} there, "
                f"and {state.items} of {state.bytes} counted: some that were fetched may have come back"
            )
        items, size = (self.delayed_counted or [0, 0])[:2]
        if [items, size] != self.delayed[:2]:
            texts.append(
                f"{_counted(self.delayed[0], 'delayed item')} of {_counted(self.delayed[1], 'byte')} "
                f"{_are(self.delayed[0])} there, and {items} of {size} counted"
            )
        return texts


def _read_blob(path: Path, item: Item) -> None:
    """Read all of the file of an item; ValueError if it is not whole."""
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


def _listed(ranges: list[tuple[int, int]]) -> str:
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:SAID]]
    return " ".join([*texts, "..."] if len(ranges) > SAID else texts) or "not known"


def _changes(first: int, last: int) -> str:
    return f"change {first} is" if first == last else f"changes {first} to {last} are"


class _Repair:
    """The repair of one queue, in `scratch`: `source` is looked at, `queue` comes out."""

    def __init__(self, name: bytes, source: Path, scratch: Path, log: Log, lives: list[Life]) -> None:
        self._name = name
        self._source = source
        self._old = scratch / "source"
        self._new = scratch / "queue"
        self._log = log
        self._lives = lives
        self._losses: list[str] = []
        # whether the counts say what there should be
        self._counts_hold = True
        # ids of items that stand for delayed ones which are lost
        self._stand_ins: list[int] = []

    def run(self) -> tuple[int, int, list[str]]:
        """Do it; returns how many items there are then, of how many bytes, and what is said of the rest."""
        if not foreign.whose(self._source):
            _shadow(self._source, self._old, _hard_link)
        others = self._copy_anew().foreign
        journal = _play_back(self._name, self._new, self._log, self._lives, self._source)
        if journal.state.deleted:
            raise RepairError(f"the queue {shown(self._name)} was deleted: there is nothing to repair")
        if journal.lost_items:
            lost = _counted(journal.lost_items, "large item")
            self._losses.append(
                f"{lost} {_are(journal.lost_items)} lost: what was in the file was not on the disk"
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
                f"{_counted(others, 'record')} {which} none of darner's {_are(others)} left out"
            )
        problems, items, size = _examine(self._name, self._new, self._log, self._lives, None, self._source)
        if problems:
            raise RepairError("what came out of it is not whole: " + "; ".join(problems))
        for scratch in (self._new, self._old):
            self._losses = [text.replace(str(scratch), str(self._source)) for text in self._losses]
        return items, size, self._losses

    def _copy_anew(self) -> Scan:
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
        """Copy what is alive and sound to a new LevelDB."""
        is_gone = not self._old.exists()
        with contextlib.closing(_open(self._old, create_if_missing=is_gone)) as db:
            scan = Scan(db, resting=_resting_state(self._source))
            with contextlib.closing(_open(self._new, create_if_missing=True)) as new:
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
            _shadow(self._source / BLOBS_NAME, self._new / BLOBS_NAME, _hard_link)
        return scan

    # What the log says is to be done once, and to what it was written for

    def _begin(self, scan: Scan, new: Any) -> State:
        """Return the state that the log goes on from."""
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
                    f"{_changes(state.change + 1, first - 1)} lost: what was set is gone, and what was "
                    "fetched may have come back"
                )
            state.change = first - 1
            state.next_id = _first_id(last) or state.next_id
            state.floor = min(state.floor, state.next_id)
        self._lives = [*self._lives[:-1], self._stand_in(last, state, scan, new)]

    def _stand_in(self, last: Life, state: State, scan: Scan, new: Any) -> Life:
        """Have an empty item stand for each delayed one that the log has join, and that is lost."""
        changes = []
        next_id = state.next_id
        delayed = set()
        for number, kind, payload in last.changes:
            change = (number, kind, payload)
            if kind == Change.DELAY:
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
        """Be rid of what is not whole, and count what is."""
        (self._new / STATE_NAME).unlink(missing_ok=True)  # it would be outdated
        with contextlib.closing(_open(self._new)) as db:
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
                self._losses.append(f"there is no item of: {_listed(scan.gaps)}")
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
    """The id that the first item in there has got; 0 if that cannot be told."""
    joined = 0
    for _, kind, payload in life.changes:
        if kind == Change.PUT:
            return int.from_bytes(payload[:8], "big") - joined
        joined += kind == Change.JOIN
    return 0


def _write_numbers(db: Any, scan: Scan, state: State, delayed: list[int]) -> None:
    """Write what a journal is opened by."""
    with db.write_batch(sync=True) as write:
        write.put(KEPT_KEY, _records.encode_ids(scan.kept))
        write.put(DELAYED_KEY, _records.encode_ids(delayed))
        if scan.has_expiring:
            write.put(EXPIRING_KEY, b"")
        write.put(state_key(state.next_id), _records.encode_state(state))
