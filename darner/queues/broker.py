"""The set of queues: find or make one by name, delete it, and what concerns all of them.

Knows the data directory's layout: a directory a queue, its name percent-encoded. No socket and no event
loop; the clocks, and how to run something in another thread, are handed in.
"""

import contextlib
import errno
import functools
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import quote, unquote_to_bytes
from weakref import WeakValueDictionary

import structlog

from darner._proto import valid_name
from darner._records import Item
from darner.config.settings import QueueSettings
from darner.environment.budget import Budget
from darner.environment.offload import Offload
from darner.environment.timeline import Clock, Timeline
from darner.errors import (
    DamagedItemError,
    FaultError,
    JournalError,
    MendingError,
    StartError,
    StatusError,
)
from darner.journal import foreign
from darner.journal.commit import Committer
from darner.journal.files import sync_blobs, sync_directory, sync_name
from darner.journal.journal import Journal
from darner.journal.layout import BLOBS_NAME, LOST_FOUND, STATE_NAME
from darner.journal.leveldb import failure, reason
from darner.journal.lock import LOCK_NAME, DirectoryLock
from darner.journal.open_databases import MAX_OPEN
from darner.journal.reserve import RESERVE_NAME, Reserve, is_full
from darner.journal.wal import Log
from darner.journal.wal_recovery import Life
from darner.journal.wal_sync import Client
from darner.printable import shown
from darner.queues import trash
from darner.queues.cursor import MARK, Cursor
from darner.queues.fanout import Fanout, parent_of
from darner.queues.moving import move
from darner.queues.queue import DEFAULTS, Queue
from darner.queues.runs import Runs
from darner.queues.status import QUIESCENT, STATUSES, Status
from darner.queues.upload import Upload
from darner.queues.waiters import Reader, Source

log = structlog.get_logger()

# What every file system in use takes.
MAX_FILE_NAME_BYTES = 255
# How long one slice of what is done for all queues may take: others wait for it; and how long it rests then.
SLICE_MS = 4
REST_MS = 10
# While less is free than so many times the reserve, room may be short before it is looked for again.
SCARCE = 4
# If the reserve had to be let go of soon after sets were taken again, that is done later the next time, and
# at last only when there has been room for so many ticks.
STEADY_TICKS = 60
LOG_NAME = ".log"
# One, unless it stands in what is percent-encoded already.
CAPITAL = re.compile("(%..)|[A-Z]")
# What can be done if the data directory cannot be used, by the system's number for why.
REMEDIES = {
    errno.EACCES: "let the user that darner runs as write there, or give another with --data",
    errno.EPERM: "let the user that darner runs as write there, or give another with --data",
    errno.EROFS: "mount it to be written to, or give another with --data",
    errno.ENOSPC: "make room there, or give another with --data",
    errno.EDQUOT: "raise the quota, or give another with --data",
}


def directory_of(name: bytes, *, folds_case: bool = False) -> Path:
    """The directory of a queue, below the data directory.

    Bytes outside `[A-Za-z0-9_+-.]`, and a leading `.`, are percent-encoded, and so are capitals on a file
    system that `folds_case`. What is then too long for one file name has every `.` encoded and goes on in a
    directory inside, the piece before it marked by a trailing `%`. All of it is ASCII: no file system takes
    two of these for one.
    """
    encoded = quote(name, safe="+").replace("~", "%7E")
    if folds_case:
        encoded = CAPITAL.sub(lambda found: found[1] or f"%{ord(found[0]):02X}", encoded)
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    size = MAX_FILE_NAME_BYTES - 1
    if len(encoded) <= size:
        return Path(encoded)
    # no piece may begin with a dot, let alone be `..`
    encoded = encoded.replace(".", "%2E")
    pieces = [encoded[at : at + size] for at in range(0, len(encoded), size)]
    return Path(*(piece + "%" for piece in pieces[:-1]), pieces[-1])


def name_of(directory: Path) -> bytes:
    """The queue whose directory, below the data directory, this is."""
    *pieces, last = directory.parts
    return unquote_to_bytes(os.fsencode("".join(piece.removesuffix("%") for piece in pieces) + last))


def queue_directories(
    data: Path,
    stray: Callable[[Path], None] = lambda _: None,
    deleted: Callable[[Path], None] = lambda _: None,
    inside: Path = Path(),
) -> Iterator[Path]:
    """The directories of queues, relative to the data directory; `deleted` is told those of queues that are
    no more, and `stray` what else there is."""
    folds = folds_case(data)
    for entry in sorted((data / inside).iterdir()):
        relative = entry.relative_to(data)
        if entry.name.startswith("."):
            continue
        # not Path.exists: that raises where we may not look
        if entry.name == LOST_FOUND and not os.path.exists(entry / "CURRENT"):  # noqa: PTH110
            continue
        if not _is_directory(entry):
            stray(entry)
        elif entry.name.endswith("%"):
            try:
                yield from queue_directories(data, stray, deleted, relative)
            except OSError:  # it may not be read
                stray(entry)
        elif not _is_of_queue(data, relative, folds=folds):
            stray(entry)
        elif trash.is_deleted(entry):
            deleted(relative)
        else:
            yield relative


def _is_of_queue(data: Path, directory: Path, *, folds: bool) -> bool:
    """Whether a directory is called as one of a queue is, on this file system or, if it has what such a one
    has, on another."""
    name = name_of(directory)
    if not valid_name(name) or directory == directory_of(name, folds_case=folds):
        return valid_name(name)
    return directory == directory_of(name, folds_case=not folds) and any(
        os.path.exists(data / directory / file)  # noqa: PTH110  # raises nothing
        for file in ("CURRENT", STATE_NAME, BLOBS_NAME)
    )


def folds_case(data: Path) -> bool:
    """Whether the file system of a data directory takes names for one that differ by case alone. One in
    which no server has been cannot tell."""
    return any((data / name.upper()).exists() for name in (LOCK_NAME, LOG_NAME))


def find_directory(data: Path, name: bytes) -> Path:
    """The directory of a queue, in a data directory that may have come from another file system: the one
    that is there, else the one that would be."""
    folds = folds_case(data)
    proper, other = directory_of(name, folds_case=folds), directory_of(name, folds_case=not folds)
    # not by its path: that may lead to another queue's
    is_other = not (data / proper).exists() and other in queue_directories(data)
    return data / (other if is_other else proper)


def _is_directory(entry: Path) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # whoever opens it is told why
        return True


def _failure(error: Exception) -> JournalError:
    """Why a queue could not be opened."""
    if isinstance(error, JournalError):
        return error
    return failure("cannot open it", error) if isinstance(error, OSError) else FaultError(error)


def _traceback(error: JournalError) -> dict[str, BaseException]:
    """What a log line about `error` has besides: where it comes from, if nobody has provided for it."""
    cause = error.__cause__
    return {"exc_info": cause} if isinstance(error, FaultError) and cause is not None else {}


def say_stray(entry: Path) -> None:
    """Log what lies in the data directory, and is no queue."""
    whose = foreign.owner(entry)
    # of the pieces of a long name the last one alone is at the top
    is_in_the_way = directory_of(name_of(Path(entry.name))) == Path(entry.name)
    log.warning(
        "stray file or directory in the data directory, left alone",
        path=str(entry),
        **({"what": f"{whose}, which this darner does not read"} if whose else {}),
        action="move it away" + (": until then no queue can have its name" if is_in_the_way else ""),
    )


def say_in_memory(name: bytes) -> None:
    """Log that a queue that is on disk is to be in memory."""
    log.warning(
        "queue is to be in memory, but lies on disk: it stays there",
        queue=shown(name),
        action="delete it, and it is in memory from then on",
    )


def say_full(**figures: int) -> None:
    """Log that there is less room on the disk than is to be left free, or is needed."""
    log.error(
        "disk too full, sets are refused",
        **figures,
        action="make room, or let clients get",
    )


def unusable(data: Path, error: OSError) -> StartError:
    """Return why a server cannot use the data directory, and what can be done about it."""
    path = data if error.filename is None else Path(os.fsdecode(error.filename))
    what = f"{path} in the data directory {data}" if data in path.parents else f"the data directory {data}"
    action = REMEDIES.get(error.errno or 0, "give another with --data")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StartError(f"cannot use {what}: it is no directory; move it away, or give another with --data")
    return StartError(f"cannot use {what}: {reason(error)}; {action}")


def nearest(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


def check_usable(data: Path) -> None:
    """Raise StartError if a server could not use the data directory, as far as that can be told while nothing
    is made or changed."""
    for path in [nearest(data), *(data / name for name in (LOCK_NAME, LOG_NAME, trash.TRASH_NAME))]:
        with contextlib.suppress(FileNotFoundError):
            is_directory = path.is_dir()
            number = 0
            if path.name == LOCK_NAME:
                number = errno.EISDIR if is_directory else 0
            elif not is_directory and os.path.lexists(path):
                number = errno.ENOTDIR
            rights = os.R_OK | os.W_OK | (os.X_OK if is_directory else 0)
            if not number and os.path.lexists(path) and not os.access(path, rights):
                read_only = os.statvfs(path).f_flag & os.ST_RDONLY
                number = errno.EROFS if read_only else errno.EACCES
            if number:
                raise unusable(data, OSError(number, os.strerror(number), path))


def is_served(data: Path) -> bool:
    """Whether a server has the data directory."""
    try:
        DirectoryLock(data, make=False).close()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_log(log: Log) -> tuple[dict[bytes, list[Life]], list[str]]:
    """Return what the log of an earlier process has of each queue, oldest first, and what is to be said about
    damage. Raises OSError if it cannot be read, JournalError if a later darner wrote it."""
    lives, damage = log.recover()
    for name in [name for name in lives if not valid_name(name)]:
        del lives[name]
        damage.append(f'it has changes of "{shown(name)}", which is no name of a queue: they are left out')
    return lives, damage


class Reaper:
    """Waits for the log to be on the disk, so that what was deleted can go."""

    def __init__(self, bury: Callable[[], object]) -> None:
        self._bury = bury
        self.waits = False

    def hold(self) -> None:
        """Not to ask twice."""
        self.waits = True

    def fail(self, slot: int, error: JournalError) -> None:
        """Then at a later tick."""

    def release(self) -> None:
        """It is there."""
        self.waits = False
        self._bury()


class Quiet:
    """Waits for a sync that nobody else waits for."""

    def hold(self) -> None:
        """Nothing is held back."""

    def release(self) -> None:
        """Nothing was held back."""

    def fail(self, slot: int, error: JournalError) -> None:  # noqa: ARG002
        """The sync failed."""
        log.error("what was set is not synced", reason=error.reason)


class Broker:
    """All queues of a data directory.

    A set looks in `sinks` for the queue it goes to, and a fetch in `sources` for the one it comes from; what
    is not there, since it is new, or more than a queue by itself, or refused now, is for the methods `sink`
    and `source`. So nobody pays for fanout, aliases and status but who uses them.
    """

    def __init__(
        self,
        data: Path,
        clock: Clock,
        offload: Offload,
        settings_for: Callable[[bytes], QueueSettings] = lambda _: DEFAULTS,
        aliases: Mapping[bytes, tuple[bytes, ...]] | None = None,
        grace_ms: int = 0,
        min_free_bytes: int = 0,
        free_bytes: Callable[[], int] = lambda: 0,
        max_open: int = MAX_OPEN,
        defer: Offload | None = None,
        reserve_bytes: Callable[[], int] = lambda: 0,
        monotonic: Clock | None = None,
        boot: int = 0,
        budget: Budget | None = None,
    ) -> None:
        """`clock` is the wall clock. `settings_for` says what is set for the queue of a name, `aliases` the
        queues behind each name that is one; `grace_ms` is the grace period of a stricter status. Sets are
        refused while `free_bytes`, what is free on the disk (OSError if that cannot be told), is below
        `min_free_bytes`. Of the queues' LevelDBs, `max_open` are open at once. `offload` is for what a client
        waits for, `defer` for the rest, if that is another. `reserve_bytes` says how much room is held back,
        for when the disk is full; it is asked once the data directory is there. `monotonic` is the ms since
        the machine's start `boot`: see `Runs`; without it all goes by the wall clock, which then must not be
        set. `budget` is for what is done in slices; without it they go by `clock`."""
        self._data = data
        self.settings_for = settings_for
        self.status = Status(data, grace_ms)
        self._wall = clock
        # gives the stamp of the moment, and so how much time has passed; before `open` there is no other
        self._clock = clock
        self._monotonic = monotonic
        self._runs = Runs(data, boot)
        self._times = Timeline(clock)
        self.budget = budget or Budget(lambda: self._clock())  # noqa: PLW0108  # `open` changes it
        self._offload = offload
        self._defer = defer or offload
        self.log: Log
        self._committer: Committer
        self.queues: dict[bytes, Queue] = {}
        self.sinks: dict[bytes, Queue] = {}
        self.sources: dict[bytes, Queue] = self.queues
        # Names of no queue that somebody waits for: each has an empty queue, in memory and in none of the
        # above, that is there as long as a waiter or a cursor knows of it. What is given up leaves nothing.
        self._awaited: WeakValueDictionary[bytes, Queue] = WeakValueDictionary()
        # the cursors somebody knows of: two readers of one that has no place yet read through the same
        self._cursors: WeakValueDictionary[tuple[Queue, bytes], Reader] = WeakValueDictionary()
        # the names set to that go to several queues, or to another one
        self._fanouts: dict[bytes, Fanout] = {}
        # the names of the children, by their parent's
        self._children: dict[bytes, set[bytes]] = {}
        self.aliases: dict[bytes, tuple[bytes, ...]] = {}
        self.set_aliases(aliases or {})
        # queues out of service, and why: their directories cannot be opened, or they were set aside
        self.broken: dict[bytes, JournalError] = {}
        # those that were set aside, until the next start, and whether they are on disk
        self._aside: dict[bytes, tuple[Journal, bool]] = {}
        # queues of which was said why what time brings cannot be done, and steps of `tick` that failed
        self._said: dict[bytes, str] = {}
        self._failed: set[str] = set()
        self._min_free_bytes = min_free_bytes
        self._free_bytes = free_bytes
        self._max_open = max_open
        self._reserve_bytes = reserve_bytes
        self._reserve: Reserve
        # whether the log takes nothing in, which was said
        self._is_refusing = False
        # why sets are refused, if the disk is too full, and whether items may be moved even so
        self._crammed: JournalError | None = None
        self._may_move = True
        # Since when, in ticks, there has been room, and how long there must have been before sets are taken;
        # and since when they are taken. What has room for a moment only is not to be said again and again.
        self._ticks = 0
        self._room_since = self._patience = 0
        self._taken_since = -STEADY_TICKS
        # has a function called in so many ms
        self.call_later: Callable[[int, Callable[[], None]], None] = lambda *_: None
        # told when fetching is refused from now on
        self.on_quiescent: Callable[[StatusError], None] = lambda _: None
        # when what was set is to be synced, if it is
        self._sync_ms: int | None = None
        # journals of deleted queues whose files are still there, and where in the log it says so
        self._retired: dict[bytes, tuple[Journal, tuple[int, int]]] = {}
        self._reaper = Reaper(self._bury_synced)
        # those of which that could not be deleted, which was said
        self._undying: set[Journal] = set()
        # those of which that was not tried yet in this round, and whether the rest of it is arranged for
        self._unburied: deque[bytes] = deque()
        self._burying = False
        # what is left to do for directories in the trash that could not be removed, and whose they were
        self._unremoved: deque[tuple[trash.Work, Journal]] = deque()
        # deleted queues whose directories are being emptied where they are, and what is said until that is
        # done
        self._emptied: dict[bytes, JournalError] = {}
        # whether the rest of the committer's round is arranged for
        self._writing_on = False
        # the queues for which time may bring something to do
        self._in_upkeep: dict[Queue, None] = {}
        # of these, the ones whose turn is to come, and whether that is arranged for
        self._to_sweep: deque[Queue] = deque()
        self._resting = False
        # queues whose items cannot be moved now, for the log
        self._stuck: set[bytes] = set()
        self.queue_creates = 0
        self.queue_deletes = 0
        self.queue_expires = 0
        # of queues that are no more
        self._past_items = self._past_expired = self._past_discarded = 0

    # Life

    def open(self) -> None:
        """Take the data directory, made if missing, and open every queue in it.

        Raises StartError if the directory cannot be used or another server has it.
        """
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = DirectoryLock(self._data)
        except BlockingIOError as error:
            raise StartError(
                f"the data directory {self._data} is in use by another darner; stop that one, "
                "or give another with --data"
            ) from error
        except OSError as error:
            raise unusable(self._data, error) from error
        if self._lock.weakness is not None:
            log.warning(
                "this file system cannot lock the data directory, but only the file .lock in it",
                reason=self._lock.weakness.strerror,
                action="leave that file where it is, or a second server can have the directory",
            )
        self._folds_case = folds_case(self._data)
        try:
            self._reserve = Reserve(self._data / RESERVE_NAME, self._reserve_bytes())
            self.log = Log(self._data / LOG_NAME, self._offload)
            self.log.on_full = lambda error: is_full(error) and self._let_go()
            self._committer = Committer(
                self.log, self._offload, self._defer, self._max_open, self._reserve, self.budget
            )
            self._committer.on_staged = self._look_for_space
            self._committer.on_failure = self._say_failure
            self._committer.on_recovery = self._say_recovery
            self._committer.on_fault = self._take_out
            self._committer.on_damage = self._say_damage
            self._committer.on_quarantine = self._say_quarantine
            self._committer.on_resume = self._resume
            if self._monotonic is not None:
                self._times = self._runs.begin(self._wall, self._monotonic)
            self._clock = self._times.now
            self.status.load()
            self._empty_trash()
            self._recover()
            self._follow_clock()
        except OSError as error:
            self._lock.close()
            raise unusable(self._data, error) from error
        except JournalError as error:
            self._lock.close()
            raise StartError(f"cannot use {self._data / LOG_NAME}: {error}") from error
        self._route_anew()
        self._look_for_space()

    def _recover(self) -> None:
        """Open every queue there is, in the data directory and in the log of an earlier process."""
        self._lives, damage = read_log(self.log)
        # not before it is known that this darner may use the directory: a start that is refused leaves
        # nothing
        self._reserve.hold()
        for text in damage:
            log.error("log damaged", reason=text)
        found = queue_directories(self._data, say_stray, self._empty_on)
        for name in dict.fromkeys([*map(self._settle, list(found)), *self._lives]):
            self._open_found(name)
        self.log.begin()
        self.reap()

    def _path_of(self, name: bytes) -> Path:
        return self._data / directory_of(name, folds_case=self._folds_case)

    def _settle(self, directory: Path) -> bytes:
        """Have a directory of a queue, which may come from another file system, be called what it is called
        on this one; returns the queue's name."""
        name = name_of(directory)
        found, proper = self._data / directory, self._path_of(name)
        if found != proper:
            try:
                if proper.exists():
                    raise FileExistsError(errno.EEXIST, f"{proper} is there, too")
                proper.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                found.rename(proper)
                self._sync_and_tidy(found)
                sync_name(proper)
            except OSError as error:
                log.error(
                    "the directory of a queue cannot be given the name it has on this file system",
                    directory=str(found),
                    name=str(proper),
                    reason=error.strerror,
                )
        return name

    def _empty_on(self, directory: Path) -> None:
        """Go on with emptying the directory of a deleted queue."""
        path = self._data / directory
        self._empty_in_place(name_of(directory), functools.partial(trash.empty, path), lambda: None)

    def _open_found(self, name: bytes) -> None:
        try:
            self._adopt(name)
        except Exception as error:  # whatever it is, the others are to be served
            why = _failure(error)
            self.broken[name] = why
            self._note_child(name)
            self.log.pin_found(name)
            log.error(
                "queue out of service",
                queue=shown(name),
                reason=why.reason,
                action=why.action,
                **_traceback(why),
            )

    def _adopt(self, name: bytes) -> None:
        lives = self._lives.get(name, [])
        path = self._path_of(name)
        if name in self._emptied and not (lives and lives[-1].retired):
            raise self._emptied[name]
        while not (lives and lives[-1].retired and (name in self._emptied or not path.exists())):
            journal = Journal(name, path, self._committer, self.log, self._wall(), lives)
            if not journal.state.deleted:
                self._serve(journal)
                break
            self._unregister(name)
            if not lives or journal.state.life == lives[-1].number:
                # Not before a sync, even if nothing was logged yet: the disk may have an older log, which
                # tells of this queue, and not of its end.
                self._retired[name] = (journal, self.log.position)
                break
            # the directory is of an earlier life, and must have come back with the loss of the machine
            if not self._destroy(journal):
                self.log.unpin(journal)
                raise JournalError(f"{path} is of a queue that was deleted, and cannot be moved away")
            if name in self._emptied and not lives[-1].retired:
                raise self._emptied[name]
        self._lives.pop(name, None)

    def _serve(self, journal: Journal) -> None:
        settings = self.settings_for(journal.name)
        if not settings.durable:
            say_in_memory(journal.name)
        try:
            queue = Queue(journal.name, journal, self._clock, settings, self._times)
        except Exception:
            self._committer.discard(journal)
            self.log.unpin(journal)
            journal.close()
            raise
        self._register(queue)
        if journal.lost:
            log.error(
                "large items lost with the machine: the log had them, but their bytes were not on the disk",
                queue=shown(journal.name),
                items=journal.lost,
            )

    def _journals(self) -> list[Journal]:
        return [
            *(queue.journal for queue in self.queues.values()),
            *(journal for journal, _ in (*self._retired.values(), *self._aside.values())),
        ]

    def close(self) -> None:
        """Write what is staged and close every queue; nothing may be being written."""
        self._follow_clock()
        self._committer.close()
        for journal in self._journals():
            try:
                journal.close(journal.resting_state())
            except Exception as error:  # the others are to be closed
                self._committer.set_aside(journal, error)
        self.log.close()
        self._lock.close()

    # Queues

    def queue(self, name: bytes) -> Queue:
        """Return the queue of this name, made if it is not there. JournalError if that is impossible."""
        queue = self.queues.get(name)
        return queue if queue is not None else self._create(name)

    def find(self, name: bytes) -> Queue | None:
        """Return the queue of this name if it is there, and no alias. JournalError if its directory is
        damaged."""
        if name in self.aliases:
            return None
        if name in self.broken:
            raise self.broken[name].with_traceback(None)
        return self.queues.get(name)

    def settings(self, name: bytes) -> QueueSettings:
        """Return the settings of the queue of this name, whether it is there or not."""
        queue = self.queues.get(name)
        return queue.settings if queue is not None else self.settings_for(name.partition(MARK)[0])

    def _create(self, name: bytes) -> Queue:
        if name in self.broken:
            raise self.broken[name].with_traceback(None)
        if name in self._emptied:
            raise self._emptied[name].with_traceback(None)
        settings = self.settings_for(name)
        journal = self._journal(name, durable=settings.durable)
        queue = Queue(name, journal, self._clock, settings, self._times)
        self._register(queue)
        awaited = self._awaited.pop(name, None)
        if awaited is not None and awaited.waiting_clients:
            queue.counts.transactions = awaited.counts.transactions
            self._hand_over(awaited, queue)
        self.queue_creates += 1
        log.debug("queue created", queue=shown(name))
        return queue

    def _await(self, name: bytes) -> Queue:
        """Return where to wait for a queue that is not there."""
        awaited = self._awaited.get(name)
        if awaited is None or not awaited.waiting_clients:  # the last one who waited may just have gone
            journal = Journal(name, self._path_of(name), self._committer, None, self._wall())
            awaited = Queue(name, journal, self._clock, self.settings_for(name), self._times)
            self._awaited[name] = awaited
        return awaited

    def _hand_over(self, queue: Queue, heir: Queue) -> None:
        """Have those who wait at `queue` and its cursors wait at `heir`, in the same order."""
        for waiter in list(queue.waiters):
            queue.leave(waiter)
            heir.wait(waiter)
        for cursor in list(queue.waiting_cursors):
            for waiter in list(cursor.waiters):
                cursor.leave(waiter)
                self._cursor(heir, cursor.label).wait(waiter)

    def _journal(self, name: bytes, *, durable: bool) -> Journal:
        path = self._path_of(name)
        if not durable:
            return Journal(name, path, self._committer, None, self._wall())
        if name not in self._retired:
            journal = Journal(name, path, self._committer, self.log, self._wall())
            with contextlib.suppress(
                JournalError
            ):  # then a kill may take it along before anything is set on it
                journal.announce()
            return journal
        journal, _ = self._retired[name]
        journal.revive(self._wall())
        del self._retired[name]
        return journal

    def delete(self, name: bytes) -> bool:
        """Drop a queue with all its items and files, or a cursor; returns whether there was a queue.

        Who holds its items is not hurt, and who waits goes on waiting, for a new queue. Its children live on,
        and get what is set on a queue of its name later.
        """
        if MARK in name:
            return self._delete_cursor(name)
        if name in self._aside:
            return self._delete_aside(name)
        if name in self.broken and not self._path_of(name).exists():
            self._give_up(name)
            return True
        queue = self.find(name)
        if queue is None:
            return False
        queue.retire()
        self._unregister(name)
        self._stuck.discard(name)
        self._said.pop(name, None)
        if queue.is_durable:
            self._retired[name] = (queue.journal, self.log.position)
        self.queue_deletes += 1
        self._past_items += queue.counts.total_items
        self._past_expired += queue.counts.expired_items
        self._past_discarded += queue.counts.discarded
        if queue.waiters or queue.waiting_cursors:
            heir = self._await(name)
            self._hand_over(queue, heir)
            if parent_of(name):  # they have subscribed
                with contextlib.suppress(JournalError):  # not as long as there is no room for a queue
                    self._create(name)
        return True

    def _expire(self, queue: Queue) -> None:
        if self.delete(queue.name):
            self.queue_expires += 1
            log.info("queue expired", queue=shown(queue.name))

    def _give_up(self, name: bytes) -> None:
        """Forget what the log has of a queue whose directory somebody has moved away."""
        del self.broken[name]
        self._lives.pop(name, None)
        self._unregister(name)
        self.log.unpin(name)
        log.warning("queue without a directory deleted from the log", queue=shown(name))

    def _delete_aside(self, name: bytes) -> bool:
        """Drop a queue that was set aside, if it is in memory alone: of one on disk only the next start knows
        how it stands."""
        _, is_durable = self._aside[name]
        if is_durable:
            raise self.broken[name].with_traceback(None)
        del self._aside[name], self.broken[name]
        self._unregister(name)
        self.queue_deletes += 1
        return True

    def flush_all(self, errors: list[JournalError]) -> Iterator[None]:
        """Flush every queue that there is now, one a step; why some could not be is added to `errors`."""
        errors += self.broken.values()
        for queue in list(self.queues.values()):
            if self.queues.get(queue.name) is queue:
                try:
                    queue.flush()
                except JournalError as error:
                    errors.append(error)
                except Exception as error:  # the others are to be flushed
                    self.set_aside(queue, error)
                    errors.append(self.broken[queue.name])
            yield

    # Where sets go, and fetches come from

    def sink(self, name: bytes) -> Queue | Fanout:
        """Return what a set to this name is pushed to: the queue, made if it is not there, or several.

        Raises JournalError if one of them cannot be had, or the disk is too full; StatusError if sets are
        refused.
        """
        self._check_room()
        fanout = self._fanouts.get(name)
        if fanout is not None:
            return fanout
        targets = self._targets(name)
        if len(targets) == 1:
            queue = self.sinks[name] = targets[0]
            return queue
        fanout = self._fanouts[name] = Fanout(targets)
        return fanout

    def upload(self, name: bytes, size: int) -> Upload:
        """Begin an item of this name, of `size` bytes, that comes in chunks. Raises as `sink` does, and as
        `Queue.check` of any of its queues."""
        self._check_room()
        targets = self._targets(name)
        # in a file if it is for one queue on disk at least
        stores = sorted(targets, key=lambda queue: not queue.is_durable) or [self.queue(name)]
        for target in targets:
            target.check(size)
        return Upload(stores[0], lambda: self._targets(name), self._check_room)

    def source(self, name: bytes, *, takes: bool, waits: bool) -> Source | None:
        """Return what is fetched from by this name: a queue, or a cursor over one; None if it is an alias. If
        the queue is not there, whoever `takes` from a child subscribes to it, which makes it; and for anybody
        else it is None, or, if that `waits`, where to wait until the queue comes.

        Raises JournalError if it cannot be had, StatusError if fetching is refused.
        """
        self.status.check_gets()
        parent, is_cursor, label = name.partition(MARK)
        queue = self.find(parent)
        if queue is None and parent not in self.aliases:
            if takes and not is_cursor and parent_of(name):
                queue = self._create(name)
            elif waits:
                queue = self._await(parent)
        return queue if queue is None or not is_cursor else self._cursor(queue, label)

    def _cursor(self, queue: Queue, label: bytes) -> Reader:
        cursor = self._cursors.get((queue, label))
        if cursor is None:
            cursor = self._cursors[queue, label] = Cursor(queue, label)
        return cursor

    @property
    def visible(self) -> dict[bytes, Queue]:
        """The queues that figures are given of, by name: those that are there, and those waited for."""
        awaited = {name: queue for name, queue in self._awaited.items() if queue.waiting_clients}
        return {**self.queues, **awaited} if awaited else self.queues

    def find_visible(self, name: bytes) -> Queue | None:
        """Return one of the `visible` queues."""
        queue = self.queues.get(name) or self._awaited.get(name)
        return queue if queue is not None and (name in self.queues or queue.waiting_clients) else None

    def _delete_cursor(self, name: bytes) -> bool:
        parent, _, label = name.partition(MARK)
        queue = self.find(parent)
        if queue is None:
            return False
        self._cursor(queue, label).reset()
        return True

    def _targets(self, name: bytes) -> list[Queue]:
        """All queues that a set to this name goes to."""
        found = {}
        for target in self.aliases.get(name, (name,)):
            queue = self.queue(target)
            if not queue.settings.fanout_only or parent_of(target):
                found[target] = queue
            for child in self.children(target):
                found[child] = self.queue(child)
        return list(found.values())

    def children(self, name: bytes) -> Sequence[bytes]:
        """Return the names that a set to this one goes to besides."""
        return self.aliases.get(name) or sorted(self._children.get(name, ()))

    def set_aliases(self, aliases: Mapping[bytes, tuple[bytes, ...]]) -> None:
        """Have other aliases from now on; what they name are queues."""
        self.aliases = dict(aliases)
        self._route_anew()

    def reconfigure(
        self,
        settings_for: Callable[[bytes], QueueSettings],
        aliases: Mapping[bytes, tuple[bytes, ...]],
        changed: list[bytes],
    ) -> Iterator[None]:
        """Have other settings and aliases from now on, for one queue a step; those for which something
        changed are added to `changed`, the aliases too. A queue is in memory or on disk as it was made:
        `durable` counts when it is made anew."""
        changed += [
            name for name in {**self.aliases, **aliases} if self.aliases.get(name) != aliases.get(name)
        ]
        self.settings_for = settings_for
        self.set_aliases(aliases)
        for name, queue in list(self.queues.items()):
            # not those of this time, if there are others meanwhile
            settings = self.settings_for(name)
            if settings != queue.settings and self.queues.get(name) is queue:
                queue.configure(settings)
                self._reroute(name)
                changed.append(name)
            yield

    def set_status(self, level: int) -> None:
        """Have another status: see `Status.change`."""
        self.status.change(level, self._clock())
        log.warning("status changed", status=self.status.name, grace_ms=self.status.grace_ms)
        self._enforce_status()
        self._route_anew()

    def _enforce_status(self) -> None:
        if self.status.enforce(self._clock()):
            log.warning("status in force", status=STATUSES[self.status.in_force])
            self._route_anew()
            try:
                self.status.check_gets()
            except StatusError as error:
                self.on_quiescent(error)

    def _route_anew(self) -> None:
        self.sinks.clear()
        self._fanouts.clear()
        refuses = self.status.in_force >= QUIESCENT
        self.sources = {} if refuses or not self.aliases.keys().isdisjoint(self.queues) else self.queues

    def _register(self, queue: Queue) -> None:
        """A queue is there."""
        self.queues[queue.name] = queue
        queue.on_move = self._move
        queue.on_upkeep_due = self._stir
        queue.on_fault = self.set_aside
        if queue.needs_upkeep:
            self._stir(queue)
        self._note_child(queue.name)
        self._reroute(queue.name)

    def _note_child(self, name: bytes) -> None:
        if parent := parent_of(name):
            self._children.setdefault(parent, set()).add(name)

    def _unregister(self, name: bytes) -> None:
        """The queue of this name is no more."""
        queue = self.queues.pop(name, None)
        if queue is not None:
            self._in_upkeep.pop(queue, None)
        parent = parent_of(name)
        if children := self._children.get(parent):
            children.discard(name)
            if not children:
                del self._children[parent]
        self._reroute(name)

    def _reroute(self, name: bytes) -> None:
        for changed in (name, parent_of(name), *self.aliases):
            self.sinks.pop(changed, None)
            self._fanouts.pop(changed, None)
        if name in self.aliases:
            self._route_anew()

    def _destroy(self, journal: Journal) -> bool:
        """Close a journal and delete its files: out of the way at once, then in a thread. Returns whether
        they are out of the way."""
        journal.close()
        # not Path.exists: a link that leads nowhere is in the way, too; and that raises
        if os.path.lexists(journal.path):
            try:
                work = trash.throw(self._data, journal.path)
            except OSError as error:
                if is_full(error):
                    self._let_go()
                self._say_undying(journal, error)
                return False
            self._undying.discard(journal)
            if os.path.lexists(journal.path):
                self._empty_in_place(journal.name, work, lambda: self.log.unpin(journal))
            else:
                self._remove(work, journal)
        else:
            self.log.unpin(journal)
            self._undying.discard(journal)
        self._committer.discard(journal)
        return True

    def _say_undying(self, journal: Journal, error: Exception) -> None:
        if journal not in self._undying:
            self._undying.add(journal)
            log.error(
                "cannot delete the files of a deleted queue; tried again by itself",
                directory=str(journal.path),
                reason=reason(error),
            )

    def _empty_in_place(self, name: bytes, work: trash.Work, gone: Callable[[], None]) -> None:
        """Have a directory emptied that cannot be moved; until that is done its queue cannot be made anew."""
        self._emptied[name] = JournalError(
            "the queue was deleted, and its files are being deleted; try again"
        )

        def done(error: Exception | None) -> None:
            if error is None:
                del self._emptied[name]
                gone()
            else:
                log.error(
                    "cannot delete the files of a deleted queue; tried again at the next start",
                    directory=str(self._path_of(name)),
                    reason=reason(error),
                )

        self._defer(work, done)

    def _shut(self, journal: Journal) -> None:
        """Close the LevelDB of a deleted queue, in a thread: it ends a compaction first. And have what other
        queues have from there on the disk under their names."""
        journal.writing = True
        links = list(self._committer.links)

        def work() -> None:
            sync_blobs(links)
            journal.close()

        def done(error: Exception | None) -> None:
            journal.go_on()
            if error is None:
                self._committer.forget_links(links)
            elif not isinstance(error, OSError):
                self._committer.set_aside(journal, error)
            else:
                self._say_undying(journal, error)
                return  # at the next tick again
            self._unburied.appendleft(journal.name)
            self._bury()

        self._defer(work, done)

    def _empty_trash(self) -> None:
        try:
            left = list(trash.left_over(self._data))
        except OSError as error:
            log.warning(
                "files of deleted queues stay",
                directory=str(self._data / trash.TRASH_NAME),
                reason=reason(error),
            )
            return
        for work in left:
            self._defer(work, lambda _: None)

    def _remove(self, work: trash.Work, journal: Journal) -> None:
        """Do what is left to be rid of the directory of a journal. The log is needed until that cannot come
        back."""

        def remove() -> None:
            self._sync_and_tidy(journal.path)
            work()

        def done(error: Exception | None) -> None:
            if error is None:
                self.log.unpin(journal)
                self._undying.discard(journal)
            else:
                self._unremoved.append((work, journal))
                self._say_undying(journal, error)

        self._offload(remove, done)

    def _sync_and_tidy(self, path: Path) -> None:
        """Have it on the disk that `path` is not there, and delete the directories of a long name around
        it, unless another one lives there, or is being made there: then `Journal` makes them again."""
        for parent in path.parents:
            if not parent.name.endswith("%"):
                sync_directory(parent)
                break
            with contextlib.suppress(FileNotFoundError):  # another one that was deleted has taken it along
                sync_directory(parent)
            with contextlib.suppress(OSError):
                parent.rmdir()

    # Upkeep

    def reap(self) -> None:
        """Delete the files of deleted queues that nothing needs any more, in slices."""
        if self._unremoved:
            self._remove(*self._unremoved.popleft())
        if not self._unburied:
            self._unburied.extend(self._retired)
            self._bury()
        self.sync_deletions()

    def sync_deletions(self) -> None:
        """Have it on the disk that queues are deleted, and then their files go."""
        if self._retired and not self._reaper.waits:
            _, position = next(reversed(self._retired.values()))
            if position > self.log.synced:
                self.log.sync(self._reaper, 0)

    def _bury_synced(self) -> None:
        if not self._unburied:
            self._unburied.extend(self._retired)
        self._bury()

    def _bury(self) -> None:
        """As `reap`, for so long as others can wait, of those that the log has on the disk as deleted. If
        files went before that, and then the machine, the log would tell of changes to nothing."""
        self.budget.begin(SLICE_MS)
        while self._unburied:
            name = self._unburied.popleft()
            if name not in self._retired:
                continue
            journal, position = self._retired[name]
            if position > self.log.synced:  # so it is with all that were deleted later
                self._unburied.clear()
            elif journal.busy:
                continue
            elif journal.is_open or self._committer.links:
                self._shut(journal)
            else:
                self._bury_one(name, journal)
            if self.budget.is_spent():
                break
        if self._unburied and not self._burying:
            self._burying = True
            self.call_later(REST_MS, self._bury_on)

    def _bury_on(self) -> None:
        self._burying = False
        self._bury()

    def _bury_one(self, name: bytes, journal: Journal) -> None:
        try:
            if self._destroy(journal):
                del self._retired[name]
        except Exception as error:  # the others are to go
            self._committer.set_aside(journal, error)

    def tick(self) -> None:
        """Do a slice of the work that waits for nobody, and what has become due; to be called a few times a
        second."""
        self._ticks += 1
        for what, step in {
            "clock": lambda: self._follow_clock(self._offload),
            "status": self._enforce_status,
            "room on the disk": self._look_for_space,
            "log": self.log.tick,
            "refusal": self._say_refusal,
            "writes": self._write_round,
            "queues out of service": self._retry_broken,
            "deleted queues": self.reap,
            "sweep": self._sweep_all,
        }.items():
            self._take_step(what, step)

    def _take_step(self, what: str, step: Callable[[], None]) -> None:
        """Do a part of `tick`, which must not keep the others from being done."""
        try:
            step()
        except Exception:
            if what not in self._failed:
                self._failed.add(what)
                log.exception(
                    "internal error in what the server does by itself; it is tried again", part=what
                )
        else:
            self._failed.discard(what)

    def _write_round(self) -> None:
        self.budget.begin(SLICE_MS)
        self._committer.tick()
        self._arrange_writes()

    def _write_on(self) -> None:
        self._writing_on = False
        self.budget.begin(SLICE_MS)
        self._take_step("writes", self._committer.go_on)
        self._arrange_writes()

    def _arrange_writes(self) -> None:
        if self._committer.has_more and not self._writing_on:
            self._writing_on = True
            self.call_later(REST_MS, self._write_on)

    def _sweep_all(self) -> None:
        if not self._to_sweep:
            self._to_sweep.extend(self._in_upkeep)
        self._sweep()

    def _follow_clock(self, offload: Offload | None = None) -> None:
        if self._monotonic is not None:
            self._runs.follow(self._times, offload)

    def _say_refusal(self) -> None:
        refusal = cast("JournalError | None", self.log.segment.refusal)
        if refusal is not None and self._crammed is not None and is_full(refusal):
            refusal = None  # that is said
        if (refusal is not None) == self._is_refusing:
            return
        self._is_refusing = refusal is not None
        if refusal is not None:
            log.error(
                "log failure, no queue takes anything in",
                reason=refusal.reason,
                action=refusal.action,
            )
        else:
            log.warning("log back in service, sets are taken")

    def _check_sets(self) -> None:
        self.status.check_sets()
        if self._crammed is not None:
            raise self._crammed.with_traceback(None)

    def _check_room(self) -> None:
        """As `_check_sets`, for what may fill the disk before the next tick: large items, and new queues."""
        if self._reserve.size and self._crammed is None:
            with contextlib.suppress(OSError):
                if self._free_bytes() < self._margin_bytes:
                    self._look_for_space()
        self._check_sets()

    def _let_go(self) -> bool:
        """Let go of the reserve; returns whether that made room."""
        made = self._reserve.release()
        if made:
            self._look_for_space()
        return made

    @property
    def _margin_bytes(self) -> int:
        """How much is left free, for LevelDB's compactions, so that the reserve is seldom needed."""
        return self._reserve.size // 2

    def _look_for_space(self) -> None:
        """Refuse sets from now on if the disk is too full, or take them again."""
        reserve = self._reserve
        if not (self._min_free_bytes or reserve.size):
            return
        try:
            free_bytes = self._free_bytes()
        except OSError:  # whoever needs the disk finds that out, too
            return
        margin = self._margin_bytes
        # what is in the log needs as much room again in LevelDB
        needed = self._committer.staged_bytes if reserve.size else 0
        self._may_move = free_bytes >= needed + margin // 2
        if self._crammed is not None:  # not to be in the same case at once again
            margin += margin // 2
        self._committer.space_is_scarce = free_bytes < SCARCE * reserve.size
        missing = reserve.missing_bytes
        if not reserve.was_missed() and missing and free_bytes >= needed + margin + missing:
            reserve.hold()
            free_bytes -= missing - reserve.missing_bytes
        crammed = None
        if free_bytes < self._min_free_bytes:
            crammed = JournalError("refused: less is free on the disk than min_free_space")
        elif not reserve.is_held or free_bytes < needed + margin:
            crammed = JournalError("refused: the disk is full")
        figures = {"free_bytes": free_bytes, "min_free_bytes": self._min_free_bytes}
        if reserve.size:
            figures["needed_bytes"] = needed + margin + reserve.missing_bytes
        if crammed is not None:
            self._room_since = self._ticks + 1
        elif self._ticks < self._room_since + self._patience:
            crammed = self._crammed
        self._cram(crammed, figures)

    def _cram(self, crammed: JournalError | None, figures: dict[str, int]) -> None:
        was_crammed, self._crammed = self._crammed is not None, crammed
        self.log.space_is_short = self._committer.space_is_short = crammed is not None
        if was_crammed == (crammed is not None):
            return
        if crammed is not None:
            is_soon = not self._reserve.is_held and self._ticks < self._taken_since + STEADY_TICKS
            self._patience = min(STEADY_TICKS, 2 * self._patience + 1) if is_soon else 0
            say_full(**figures)
        else:
            self._taken_since = self._ticks
            log.warning("room on the disk again, sets are taken", **figures)
        self._route_anew()

    def _resume(self, journal: Journal) -> None:
        """Serve those who wait for items of a queue that can be read on."""
        queue = self.queues.get(journal.name)
        if queue is not None:
            self._stir(queue)

    def _stir(self, queue: Queue) -> None:
        """Look after `queue` from now on."""
        if queue is self.queues.get(queue.name):
            self._in_upkeep[queue] = None

    def _sweep(self) -> None:
        """Sweep queues in turn, for so long as others can wait; those that have more to do once more."""
        self.budget.begin(SLICE_MS)
        has_more_upkeep = []
        while self._to_sweep:
            queue = self._to_sweep.popleft()
            if queue in self._in_upkeep:  # not deleted since
                self._look_after(queue)
                if queue.has_more_upkeep:
                    has_more_upkeep.append(queue)
            if self.budget.is_spent():
                break
        self._to_sweep.extend(has_more_upkeep)
        if self._to_sweep and not self._resting:
            self._resting = True
            self.call_later(REST_MS, self._go_on)

    def _go_on(self) -> None:
        self._resting = False
        self._sweep()

    def _look_after(self, queue: Queue) -> None:
        try:
            if queue.is_outdated(self._clock()):
                self._expire(queue)
                return
            takes_in = queue.journal.failing is None and self.log.segment.refusal is None
            queue.sweep(may_join=self._may_move and takes_in)
            self._said.pop(queue.name, None)
        except MendingError:  # it is swept again when it can be read on
            pass
        except JournalError as error:
            # why a move fails is said already
            if queue.name not in self._stuck and self._said.get(queue.name) != str(error):
                self._said[queue.name] = str(error)
                self._say_failure(queue.journal, error)
        except Exception as error:  # the others are to be looked after
            self.set_aside(queue, error)
        if not queue.needs_upkeep:
            self._in_upkeep.pop(queue, None)

    def set_aside(self, queue: Queue, error: Exception) -> None:
        """Something went wrong with a queue that nobody has provided for: it is out of service until the next
        start, and the others are not."""
        self._committer.set_aside(queue.journal, error)

    def _take_out(self, journal: Journal, fault: FaultError) -> None:
        """A journal was set aside: have its queue be out of service."""
        name = journal.name
        queue = self.queues.get(name)
        if queue is not None and queue.journal is journal:
            self._aside[name] = (journal, queue.is_durable)
            self._unregister(name)
            self._note_child(name)
        elif name in self._retired:
            queue = self._awaited.get(name)
            self._aside[name] = (journal, True)
            del self._retired[name]
        else:
            return
        self.broken[name] = fault
        log.error(
            "queue out of service",
            queue=shown(name),
            reason=fault.reason,
            action=fault.action,
            **_traceback(fault),
        )
        if queue is not None:
            queue.fail_waiters(fault)

    def _move(self, source: Queue, item: Item, name: bytes) -> Sequence[Queue]:
        """Put an item that leaves `source` into what `name` is the name of, but not into `source` itself;
        returns the queues that have it. JournalError if that fails: none has it then."""
        try:
            if not (self._may_move or (self._let_go() and self._may_move)):
                raise JournalError("the disk is full")
            targets = [target for target in self._targets(name) if target is not source]
            move(item, source.journal, targets)
        except DamagedItemError:
            raise
        except JournalError as error:
            if source.name not in self._stuck:
                self._stuck.add(source.name)
                log.error(
                    "items cannot be moved, they stay where they are",
                    queue=shown(source.name),
                    to=shown(name),
                    reason=error.reason,
                    action=error.action,
                )
            raise
        self._stuck.discard(source.name)
        source.journal.bind()
        return targets

    def sync(self, queues: Sequence[Queue], client: Client, slot: int, *, asked: bool) -> None:
        """Something was set on these queues, as reply `slot` of `client` says: have it wait for the disk
        itself if that was `asked` for or is set, or see to a sync within the interval that is set."""
        durable = [queue for queue in queues if queue.is_durable]
        intervals = [ms for queue in durable if (ms := queue.settings.sync_ms) is not None]
        if durable and (asked or 0 in intervals):
            self.log.sync(client, slot)
        elif intervals:
            # half of it is left for the sync
            delay_ms = min(intervals) // 2
            due_ms = self._clock() + delay_ms
            if self._sync_ms is None or due_ms < self._sync_ms:
                self._sync_ms = due_ms
                self.call_later(delay_ms, self._sync)

    def _sync(self) -> None:
        if self._sync_ms is None:
            return
        left_ms = self._sync_ms - self._clock()
        if left_ms > 0:  # it was called for a later time
            self.call_later(left_ms, self._sync)
        else:
            self._sync_ms = None
            self.log.sync(Quiet(), 0)

    def _retry_broken(self) -> None:
        """Try directories that could not be opened, for so long as others can wait: the disk may have room
        again, or the directory have been repaired or moved away."""
        self.budget.begin(SLICE_MS)
        for name in [name for name in self.broken if name not in self._aside]:
            # those that are not tried now come first the next time
            self.broken[name] = self.broken.pop(name)
            self._retry(name)
            if self.budget.is_spent():
                break

    def _retry(self, name: bytes) -> None:
        try:
            self._adopt(name)
        except Exception as error:  # said at the start
            self.broken[name] = _failure(error)
        else:
            del self.broken[name]
            self.log.unpin(name)
            log.warning("queue back in service", queue=shown(name))

    @staticmethod
    def _say_failure(journal: Journal, error: JournalError) -> None:
        if journal.failing is None:
            log.error(
                "upkeep failure, something of a queue stays as it was; it is tried again by itself",
                queue=shown(journal.name),
                reason=error.reason,
                action=error.action,
            )
            return
        log.error(
            "journal failure, nothing is taken in; what was is kept in the log",
            queue=shown(journal.name),
            reason=error.reason,
            action=error.action,
            **_traceback(error),
        )

    @staticmethod
    def _say_damage(journal: Journal, error: JournalError) -> None:
        log.error(
            "damage in a queue, what is behind it is not served",
            queue=shown(journal.name),
            reason=error.reason,
            action=error.action,
        )

    @staticmethod
    def _say_quarantine(journal: Journal, ids: str, reason: str, where: Path | None) -> None:
        log.error(
            "damage put aside, what is behind it is served",
            queue=shown(journal.name),
            ids=ids,
            reason=reason,
            kept="nothing is left" if where is None else str(where),
        )

    @staticmethod
    def _say_recovery(journal: Journal) -> None:
        log.warning("queue back in service", queue=shown(journal.name))

    # Figures

    def reset_stats(self) -> None:
        """Zero what counts events since the start."""
        self.queue_creates = self.queue_deletes = self.queue_expires = 0
        self._past_items = self._past_expired = self._past_discarded = 0
        for queue in self.visible.values():
            queue.reset_counts()

    @property
    def total_items(self) -> int:
        """How many items were set, in queues deleted since, too."""
        return self._past_items + sum(queue.counts.total_items for queue in self.queues.values())

    @property
    def expired_items(self) -> int:
        """How many items expired before they were fetched, in queues deleted since, too."""
        return self._past_expired + sum(queue.counts.expired_items for queue in self.queues.values())

    @property
    def discarded(self) -> int:
        """How many items full queues dropped unread, those deleted since, too."""
        return self._past_discarded + sum(queue.counts.discarded for queue in self.queues.values())

    @property
    def room_bytes(self) -> int:
        """How many bytes the disk has free for items, what is to be left free not counted; 0 if the system
        does not tell."""
        try:
            return max(0, self._free_bytes() - self._min_free_bytes)
        except OSError:
            return 0

    def totals(self) -> tuple[int, int, int]:
        """Return how many queues there are, and the items and bytes that wait in them."""
        queues = self.queues.values()
        return len(queues), sum(queue.items for queue in queues), sum(queue.waiting_bytes for queue in queues)
