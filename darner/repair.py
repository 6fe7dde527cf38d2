"""Whether the queues of a data directory are whole, and how one is made whole again, while no server has it.

Nothing in a queue's directory is touched. A check looks at a shadow of it elsewhere: LevelDB writes when it
is opened, but never to a file it has finished, so links do for those. There the log is played back as a
server does it, and what comes of that is read from end to end. A repair goes the same way, with a new LevelDB
that gets the sound records of the damaged one, and puts the outcome in the place of the damaged directory.
"""

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darner import _proto, leveldb
from darner._proto import Change, Item, State
from darner.blob import CHECKSUM_BYTES, at_once, file_bytes, sync_directory, sync_file, sync_name
from darner.broker import LOCK_NAME, LOG_NAME, directory_of, name_of, queue_directories
from darner.commit import Committer
from darner.errors import JournalError, RepairError
from darner.journal import (
    BLOBS_NAME,
    CURSOR_PREFIX,
    DELAYED_KEY,
    EXPIRING_KEY,
    KEPT_KEY,
    STATE_NAME,
    WRITE_BUFFER_BYTES,
    Journal,
    is_state_key,
    state_key,
    stored_state,
)
from darner.wal import NEEDED_PREFIX, Life, Log

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

# Makes the second path be what the first one is.
Link = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Report:
    """What a check has found: of a queue, or of the log."""

    where: str
    problems: list[str]
    items: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Repaired:
    """What a repair has come to: what the queue has now, what is said of the rest, and where the damaged
    directory is; None if nothing was damaged, and so nothing was done."""

    items: int
    bytes: int
    losses: list[str]
    damaged: Path | None


def check(data: Path, name: bytes | None = None) -> Iterator[Report]:
    """Look at each queue, or at the one of this name, and at the log. Changes nothing.

    Raises RepairError if there is nothing to look at, or a server has it.
    """
    with _locked(data, "rb"), tempfile.TemporaryDirectory(prefix="darner-check-") as scratch:
        log, lives, damage = _read_log(data, Path(scratch))
        if damage:
            yield Report(str(data / LOG_NAME), damage)
        found = [name_of(directory) for directory in queue_directories(data)]
        names = dict.fromkeys(found + [name for name, known in lives.items() if not known[-1].retired])
        if name is not None and name not in names:
            raise RepairError(f"{data} has no queue {_said(name)}")
        for each in names if name is None else (name,):
            yield _check(data, each, Path(scratch), log, lives.get(each, []))


def _check(data: Path, name: bytes, scratch: Path, log: Log, lives: list[Life]) -> Report:
    source, shadow = data / directory_of(name), scratch / "shadow"
    _shadow(source.resolve(), shadow, lambda file, link: link.symlink_to(file))
    problems, items, size = _examine(name, shadow, log, lives, _resting_state(source))
    shutil.rmtree(shadow)
    return Report(_said(name), [text.replace(str(shadow), str(source)) for text in problems], items, size)


def repair(data: Path, name: bytes) -> Repaired:
    """Put in the place of a queue's directory what can be saved of it, and keep the damaged one beside.

    Raises RepairError if nothing can be saved, or a server has the data directory; then nothing has changed.
    """
    source = data / directory_of(name)
    label = "".join(directory_of(name).parts)[:LABEL_BYTES]
    with _locked(data, "ab"):
        with contextlib.suppress(FileNotFoundError):  # of one that was cut off
            shutil.rmtree(data / f"{REPAIR_PREFIX}{label}")
        scratch = data / f"{REPAIR_PREFIX}{label}"
        scratch.mkdir(mode=0o700)
        try:
            log, lives, _ = _read_log(data, scratch)
            if not source.exists() and name not in lives:
                raise RepairError(f"{data} has no queue {_said(name)}")
            report = _check(data, name, scratch, log, lives.get(name, []))
            if not report.problems:
                return Repaired(report.items, report.bytes, [], None)
            items, size, losses = _Repair(name, source, scratch, log, lives.get(name, [])).run()
            damaged = _free_path(data / f"{DAMAGED_PREFIX}{label}")
            _swap(source, scratch / "queue", damaged)
        except (OSError, leveldb.Error, JournalError) as error:
            raise RepairError(f"cannot repair {source}, it is as it was: {leveldb.reason(error)}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Repaired(items, size, losses, damaged)


# The data directory


@contextlib.contextmanager
def _locked(data: Path, mode: str) -> Iterator[None]:
    """Keep servers away. With mode "rb" a data directory that no server has ever had stays so."""
    with contextlib.ExitStack() as stack:
        try:
            if not data.is_dir():
                raise RepairError(f"{data} is no directory")
            with contextlib.suppress(FileNotFoundError):
                lock = stack.enter_context((data / LOCK_NAME).open(mode))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepairError(f"a server has {data}; stop it first") from None
        except OSError as error:
            raise RepairError(f"cannot use {data}: {error.strerror or error}") from error
        yield


def _read_log(data: Path, scratch: Path) -> tuple[Log, dict[bytes, list[Life]], list[str]]:
    """Read a copy of the log: reading it as a server does ends it where it breaks off."""
    copy = scratch / LOG_NAME
    copy.mkdir()
    for pattern in ("[0-9]*", f"{NEEDED_PREFIX}*"):
        for file in (data / LOG_NAME).glob(pattern):
            shutil.copyfile(file, copy / file.name)
    log = Log(copy, at_once)
    lives, damage = log.recover()
    return log, lives, [text.replace(str(copy), str(data / LOG_NAME)) for text in damage]


def _shadow(source: Path, copy: Path, link: Link) -> None:
    """Make `copy` have what LevelDB and blobs there are in `source`."""
    copy.mkdir()
    for file in source.iterdir() if source.exists() else ():
        if file.name == BLOBS_NAME:
            _shadow(file, copy / BLOBS_NAME, link)
        elif file.suffix in (".ldb", ".sst", ".log") or source.name == BLOBS_NAME:
            link(file, copy / file.name)
        elif file.name == "CURRENT" or file.name.startswith("MANIFEST-"):
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


def _said(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


# One queue


def _open(path: Path, **options: bool) -> Any:
    return leveldb.DB(str(path), compression=None, write_buffer_size=WRITE_BUFFER_BYTES, **options)


def _play_back(name: bytes, path: Path, log: Log, lives: list[Life]) -> Journal:
    """Write what the log says to a copy of the queue's directory, as a server does it at its start; returns
    the journal, closed. JournalError if that cannot be."""
    failures: list[JournalError] = []
    committer = Committer(log, at_once)
    committer.on_failure = lambda _, error: failures.append(error)
    journal = Journal(name, path, committer, log, 0, lives)
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
        return _play_back(name, path, log, lives)
    return journal


def _examine(
    name: bytes, path: Path, log: Log, lives: list[Life], resting: State | None
) -> tuple[list[str], int, int]:
    """Look for all that can be wrong with a queue, in a copy of its directory; returns what is, and how many
    items it has of how many bytes. `resting` is the state that was left besides, if one was."""
    problems = []
    if (path / "CURRENT").exists():
        try:
            with contextlib.closing(_open(path, paranoid_checks=True)) as db:
                problems += _disagreement(db, resting)
        except leveldb.Error as error:
            problems.append(f"LevelDB is damaged: {leveldb.reason(error)}")
    try:
        journal = _play_back(name, path, log, lives)
        if journal.lost:
            problems.append(f"{journal.lost} large items are in the log, but their files are not whole")
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
    except (JournalError, leveldb.Error) as error:
        return list(dict.fromkeys([*problems, leveldb.reason(error)])), 0, 0


def _disagreement(db: Any, resting: State | None) -> list[str]:
    with contextlib.suppress(ValueError):  # said where all are read
        stored = stored_state(db)
        change = 0 if stored is None else _proto.decode_state(stored[1]).change
        if resting is not None and resting.change != change:
            return [f"LevelDB ends at change {change}, the file {STATE_NAME} at {resting.change}"]
    return []


def _resting_state(source: Path) -> State | None:
    """The state that a journal has left besides LevelDB's, if it is whole."""
    try:
        return _proto.decode_state((source / STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return None


class Scan:
    """What there is in the LevelDB of a journal, all of it read."""

    def __init__(self, db: Any, blobs: Path | None = None, resting: State | None = None) -> None:
        """`blobs` is where the files of large items are, if those are to be read, too; `resting` is the state
        that was left besides, which counts if LevelDB has none or an older one."""
        self._db = db
        self._blobs = blobs
        self._problems: list[str] = []
        _, record = stored_state(db) or (b"", None)
        self.state: State | None = self._decoded(record, _proto.decode_state, "the state")
        if resting is not None and (
            self.state is None or (resting.life == self.state.life and resting.change > self.state.change)
        ):
            self.state = resting
        record = db.get(KEPT_KEY)
        kept = self._decoded(record, _proto.decode_ids, "the list of kept items")
        floor = 0 if self.state is None else self.state.floor
        self._floor = floor
        # None if it is damaged
        self._kept = None if kept is None and record is not None else set(kept or ())
        record = db.get(DELAYED_KEY)
        self.delayed_counted: list[int] | None = self._decoded(
            record, _proto.decode_ids, "the count of delayed items"
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
        if kind == CURSOR_PREFIX:
            try:
                _proto.decode_ids(record)
            except ValueError as error:
                raise ValueError(f"cursor {_said(key[1:])}: {error}") from None
            return True
        if kind == b"u" and len(key) == 9:
            self.marked.add(int.from_bytes(key[1:], "big"))
        elif not (kind == b"i" and is_state_key(key)) and key not in (KEPT_KEY, EXPIRING_KEY, DELAYED_KEY):
            self.foreign += 1
        return False

    def _takes_item(self, id: int, key: bytes, record: bytes) -> bool:
        if id < self._floor and not self._is_kept(id):
            return False
        item = _proto.decode_item(key, record)
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

    def _is_kept(self, id: int) -> bool:
        if self._kept is not None:
            return id in self._kept
        # trimming has left no other
        return self.state is not None and id < self.state.trimmed

    def _takes_delayed(self, key: bytes, record: bytes) -> bool:
        due_ms, id = int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:], "big")
        if due_ms < self.delayed[2] or id < self.delayed[3]:
            return False
        item = _proto.decode_item(b"i" + key[9:], record)
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
            texts.append(f"{len(both)} files of large items are marked as belonging to none")
        if self.foreign:
            texts.append(f"{self.foreign} records are none of darner's")
        return texts

    def differences(self, state: State) -> list[str]:
        """Say where the counts differ from what was found."""
        texts = []
        lost = state.items - self.items
        if lost > 0:
            missing = sum(last - first + 1 for first, last in self.gaps)
            which = "ids" if missing == lost else "among the ids"
            texts.append(
                f"{lost} items of {state.bytes - self.size} bytes are lost, {which} {_listed(self.gaps)}"
            )
        elif lost or state.bytes != self.size:
            texts.append(
                f"{self.items} items of {self.size} bytes are there, and {state.items} of {state.bytes} "
                "counted: some that were fetched may have come back"
            )
        items, size = (self.delayed_counted or [0, 0])[:2]
        if [items, size] != self.delayed[:2]:
            texts.append(
                f"{self.delayed[0]} delayed items of {self.delayed[1]} bytes are there, and {items} of "
                f"{size} counted"
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
                _proto.decode_chunk(file.read(min(left, item.chunk_bytes) + CHECKSUM_BYTES))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"the file of item {item.id}, {path}, is damaged: {reason}") from None


def _listed(ranges: list[tuple[int, int]]) -> str:
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:SAID]]
    return " ".join([*texts, "..."] if len(ranges) > SAID else texts) or "not known"


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
        _shadow(self._source, self._old, _hard_link)
        foreign = self._copy_anew().foreign
        journal = _play_back(self._name, self._new, self._log, self._lives)
        if journal.state.deleted:
            raise RepairError(f"the queue {_said(self._name)} was deleted: there is nothing to repair")
        if journal.lost:
            self._losses.append(f"{journal.lost} large items are lost: their bytes were not on the disk")
        self._count_anew()
        if foreign:
            self._losses.append(f"{foreign} records that are none of darner's are left out")
        problems, items, size = _examine(self._name, self._new, self._log, self._lives, None)
        if problems:
            raise RepairError("what came out of it is not whole: " + "; ".join(problems))
        for scratch in (self._new, self._old):
            self._losses = [text.replace(str(scratch), str(self._source)) for text in self._losses]
        return items, size, self._losses

    def _copy_anew(self) -> Scan:
        try:
            return self._copy()
        except leveldb.Error as error:
            self._losses.append(f"LevelDB was damaged: {leveldb.reason(error)}")
        shutil.rmtree(self._new, ignore_errors=True)
        if any(self._old.glob("*.ldb")) or any(self._old.glob("*.log")):
            leveldb.repair_db(str(self._old), compression=None)
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
                    f"changes {state.change + 1} to {first - 1} are lost: what was set by them is gone, and "
                    "what was fetched may have come back"
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
                    record = _proto.encode_item(Item(next_id, 0, 0, 0, b""))
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
                db.delete(_proto.item_key(id))
            scan = Scan(db, self._new / BLOBS_NAME)
            for _ in scan.records(verify_checksums=False):
                pass
            self._losses += scan.problems
            state = scan.state
            assert state is not None
            if self._counts_hold:
                self._losses += scan.differences(state)
            elif scan.gaps:
                self._losses.append(f"there are no items of these ids: {_listed(scan.gaps)}")
            for key in [*scan.failed, *map(_proto.marker_key, scan.marked)]:
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
        write.put(KEPT_KEY, _proto.encode_ids(scan.kept))
        write.put(DELAYED_KEY, _proto.encode_ids(delayed))
        if scan.has_expiring:
            write.put(EXPIRING_KEY, b"")
        write.put(state_key(state.next_id), _proto.encode_state(state))
