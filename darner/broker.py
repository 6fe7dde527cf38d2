"""The set of queues: find or make one by name, delete it, and what concerns all of them.

Knows the data directory's layout: a directory a queue, its name percent-encoded. No socket and no event
loop; the clock, and how to run something in another thread, are handed in.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import structlog

from darner._proto import valid_name
from darner.blob import Offload, sync_name
from darner.commit import Committer
from darner.errors import JournalError, StartError
from darner.journal import Journal
from darner.queue import Clock, Queue
from darner.wal import Log

log = structlog.get_logger()

# What every file system in use takes.
MAX_FILE_NAME_BYTES = 255
LOCK_NAME = ".lock"
LOG_NAME = ".log"
TRASH_NAME = ".trash"
# What a file system has at its root, which a data directory may be.
LOST_FOUND = "lost+found"


def directory_of(name: bytes) -> Path:
    """The directory of a queue, below the data directory.

    Bytes outside `[A-Za-z0-9_+-.]`, and a leading `.`, are percent-encoded. What is then too long for
    one file name has every `.` encoded and goes on in a directory inside, the piece before it marked by a
    trailing `%`.
    """
    encoded = quote(name, safe="+").replace("~", "%7E")
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
    return unquote_to_bytes("".join(piece.removesuffix("%") for piece in pieces) + last)


class _Reaper:
    """Waits for the log to be on the disk, so that what was deleted can go."""

    def __init__(self, bury: Callable[[], object]) -> None:
        self._bury = bury
        self.waits = False

    def hold(self) -> None:
        self.waits = True

    def fail(self, slot: int, error: JournalError) -> None:
        """Then at a later tick."""

    def release(self) -> None:
        self.waits = False
        self._bury()


class Broker:
    """All queues of a data directory."""

    def __init__(self, data: Path, clock: Clock, offload: Offload) -> None:
        self._data = data
        self._clock = clock
        self._offload = offload
        self.log: Log
        self._committer: Committer
        self.queues: dict[bytes, Queue] = {}
        # directories that cannot be opened as queues, and why
        self.broken: dict[bytes, JournalError] = {}
        # journals of deleted queues whose files are still there, and where in the log it says so
        self._retired: dict[bytes, tuple[Journal, tuple[int, int]]] = {}
        self._reaper = _Reaper(self._bury)
        # those of which that could not be deleted, which was said
        self._undying: set[Journal] = set()
        self.queue_creates = 0
        self.queue_deletes = 0
        self.queue_expires = 0
        # of queues that are no more
        self._past_items = 0

    # Life

    def open(self) -> None:
        """Take the data directory, made if missing, and open every queue in it.

        Raises StartError if the directory cannot be used or another server has it.
        """
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self._data / LOCK_NAME).open("a")
        except OSError as error:
            raise StartError(
                f"cannot use the data directory {self._data}: {error.strerror}; "
                "give another with --data, or the right to write to this one"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StartError(
                f"the data directory {self._data} is in use by another darner; stop that one, "
                "or give another with --data"
            ) from error
        try:
            self.log = Log(self._data / LOG_NAME, self._offload)
            self._committer = Committer(self.log, self._offload)
            self._committer.on_failure = self._say_failure
            self._committer.on_recovery = self._say_recovery
            self._empty_trash()
            self._recover()
        except OSError as error:
            self._lock.close()
            raise StartError(
                f"cannot begin to log in {self._data / LOG_NAME}: {error}; make room there"
            ) from error

    def _recover(self) -> None:
        """Open every queue there is, in the data directory and in the log of an earlier process."""
        self._lives, damage = self.log.recover()
        for text in damage:
            log.error("log damaged", reason=text)
        found = [name_of(directory) for directory in self._directories(self._data)]
        for name in dict.fromkeys(found + list(self._lives)):
            self._open_found(name)
        self.log.begin()
        self.reap()

    def _directories(self, parent: Path) -> Iterator[Path]:
        """Directories of queues, relative to the data directory."""
        for entry in sorted(parent.iterdir()):
            relative = entry.relative_to(self._data)
            if entry.name.startswith("."):
                continue
            # not Path.exists: that raises where we may not look
            if entry.name == LOST_FOUND and not os.path.exists(entry / "CURRENT"):  # noqa: PTH110
                continue
            if not entry.is_dir():
                log.warning("stray file in the data directory, left alone", file=str(entry))
            elif entry.name.endswith("%"):
                yield from self._directories(entry)
            elif not valid_name(name_of(relative)) or directory_of(name_of(relative)) != relative:
                log.warning("stray directory in the data directory, left alone", directory=str(entry))
            else:
                yield relative

    def _open_found(self, name: bytes) -> None:
        try:
            self._adopt(name)
        except JournalError as error:
            self.broken[name] = error
            self.log.keep_found(name)
            log.error("queue out of service", queue=name.decode(errors="replace"), reason=str(error))

    def _adopt(self, name: bytes) -> None:
        lives = self._lives.get(name, [])
        path = self._data / directory_of(name)
        while not (lives and lives[-1].retired and not path.exists()):
            journal = Journal(name, path, self._committer, self.log, self._clock(), lives)
            if not journal.state.deleted:
                self._serve(journal)
                break
            if not lives or journal.state.life == lives[-1].number:
                self._retired[name] = (journal, self.log.synced)
                break
            # the directory is of an earlier life, and must have come back with the loss of the machine
            self.log.keep_found(journal)
            if not self._destroy(journal):
                raise JournalError(f"{path} is of a queue that was deleted, and cannot be moved away")
        self._lives.pop(name, None)

    def _serve(self, journal: Journal) -> None:
        try:
            self.queues[journal.name] = Queue(journal.name, journal, self._clock)
        except JournalError:
            self._committer.discard(journal)
            self.log.unpin(journal)
            journal.close()
            raise
        if journal.lost:
            log.error(
                "large items lost with the machine: the log had them, but their bytes were not on the disk",
                queue=journal.name.decode(errors="replace"),
                items=journal.lost,
            )

    @property
    def busy(self) -> bool:
        """Whether something is being written in another thread."""
        return self.log.busy or any(journal.writing for journal in self._journals())

    def _journals(self) -> list[Journal]:
        return [queue.journal for queue in self.queues.values()] + [
            journal for journal, _ in self._retired.values()
        ]

    def close(self) -> None:
        """Write what is staged and close every queue; nothing may be being written."""
        self._committer.close()
        for journal in self._journals():
            journal.close()
        self.log.close()
        self._lock.close()

    # Queues

    def queue(self, name: bytes) -> Queue:
        """Return the queue of this name, made if it is not there. JournalError if that is impossible."""
        queue = self.queues.get(name)
        return queue if queue is not None else self._create(name)

    def find(self, name: bytes) -> Queue | None:
        """Return the queue of this name if it is there. JournalError if its directory is damaged."""
        if name in self.broken:
            raise self.broken[name]
        return self.queues.get(name)

    def _create(self, name: bytes) -> Queue:
        if name in self.broken:
            raise self.broken[name]
        if name in self._retired:
            journal, _ = self._retired[name]
            journal.revive(self._clock())
            del self._retired[name]
        else:
            path = self._data / directory_of(name)
            journal = Journal(name, path, self._committer, self.log, self._clock())
        queue = self.queues[name] = Queue(name, journal, self._clock)
        self.queue_creates += 1
        log.debug("queue created", queue=name.decode(errors="replace"))
        return queue

    def delete(self, name: bytes) -> bool:
        """Drop a queue with all its items and files; returns whether there was one. Who holds its items is
        not hurt, and who waits goes on waiting, for a new queue."""
        if name in self.broken and not (self._data / directory_of(name)).exists():
            self._give_up(name)
            return True
        queue = self.find(name)
        if queue is None:
            return False
        queue.retire()
        del self.queues[name]
        self._retired[name] = (queue.journal, self.log.position)
        self.queue_deletes += 1
        self._past_items += queue.total_items
        if queue.waiters:
            with contextlib.suppress(JournalError):  # there is no room for a new queue: they wait in vain
                heir = self._create(name)
                for waiter in queue.waiters:
                    heir.wait(waiter)
        return True

    def _give_up(self, name: bytes) -> None:
        """Forget what the log has of a queue whose directory somebody has moved away."""
        del self.broken[name]
        self._lives.pop(name, None)
        self.log.unpin(name)
        log.warning("queue without a directory deleted from the log", queue=name.decode(errors="replace"))

    def flush_all(self) -> list[JournalError]:
        """Flush every queue; returns the errors of those that could not be."""
        errors = list(self.broken.values())
        for queue in self.queues.values():
            try:
                queue.flush()
            except JournalError as error:
                errors.append(error)
        return errors

    def _destroy(self, journal: Journal) -> bool:
        """Close a journal and delete its files: out of the way at once, then in a thread. Returns whether they
        are out of the way."""
        journal.close()
        if journal.path.exists():
            # not by the process's number: in a container it is the same at every start
            doomed = self._data / TRASH_NAME / uuid.uuid4().hex
            try:
                doomed.parent.mkdir(mode=0o700, exist_ok=True)
                journal.path.rename(doomed)
            except OSError as error:
                if journal not in self._undying:
                    self._undying.add(journal)
                    log.error(
                        "cannot delete the files of a deleted queue; tried again by itself",
                        directory=str(journal.path),
                        reason=str(error),
                    )
                return False
            self._remove(doomed, journal)
        else:
            self.log.unpin(journal)
        self._committer.discard(journal)
        self._undying.discard(journal)
        return True

    def _empty_trash(self) -> None:
        trash = self._data / TRASH_NAME
        # not the directory itself: more may come into it meanwhile
        for doomed in trash.iterdir() if trash.exists() else ():
            self._offload(functools.partial(shutil.rmtree, doomed, ignore_errors=True), lambda _: None)

    def _remove(self, doomed: Path, journal: Journal) -> None:
        """Remove what was the directory of a journal. The log is needed until that cannot come back."""

        def work() -> None:
            sync_name(journal.path)
            for parent in journal.path.relative_to(self._data).parents:
                if parent.name:
                    with contextlib.suppress(OSError):  # another long name lives there
                        (self._data / parent).rmdir()
            shutil.rmtree(doomed, ignore_errors=True)

        def done(error: Exception | None) -> None:
            if error is None:
                self.log.unpin(journal)

        self._offload(work, done)

    # Upkeep

    def reap(self) -> None:
        """Delete the files of deleted queues that nothing needs any more."""
        if self._bury() and not self._reaper.waits:
            self.log.sync(self._reaper, 0)

    def _bury(self) -> bool:
        """As `reap`, as far as the log has it on the disk that they are deleted; returns whether it has not of
        some. If files went before that, and then the machine, the log would tell of changes to nothing."""
        waits = False
        for name, (journal, position) in list(self._retired.items()):
            if position > self.log.synced:
                waits = True
            elif not journal.busy and self._destroy(journal):
                del self._retired[name]
        return waits

    def tick(self) -> None:
        """Do a slice of the work that waits for nobody; to be called a few times a second."""
        self.log.tick()
        self._committer.tick()
        self._retry_broken()
        self.reap()

    def _retry_broken(self) -> None:
        """Try directories that could not be opened, up to the first that still cannot: the disk may have room
        again, or the directory have been repaired or moved away."""
        for name in list(self.broken):
            del self.broken[name]
            try:
                self._adopt(name)
            except JournalError as failure:  # said at the start
                self.broken[name] = failure
                break
            self.log.unpin(name)
            log.warning("queue back in service", queue=name.decode(errors="replace"))

    @staticmethod
    def _say_failure(journal: Journal, error: JournalError) -> None:
        log.error(
            "journal failure, nothing is taken in; what was is kept in the log",
            queue=journal.name.decode(errors="replace"),
            reason=str(error),
            action="make room or repair the disk; the queue is tried again by itself",
        )

    @staticmethod
    def _say_recovery(journal: Journal) -> None:
        log.warning("queue back in service", queue=journal.name.decode(errors="replace"))

    # Figures

    def reset_stats(self) -> None:
        """Zero what counts events since the start."""
        self.queue_creates = self.queue_deletes = self.queue_expires = self._past_items = 0
        for queue in self.queues.values():
            queue.reset_stats()

    @property
    def total_items(self) -> int:
        """How many items were set, in queues deleted since, too."""
        return self._past_items + sum(queue.total_items for queue in self.queues.values())

    def totals(self) -> tuple[int, int, int]:
        """Return how many queues there are, and the items and bytes that wait in them."""
        queues = self.queues.values()
        return len(queues), sum(queue.items for queue in queues), sum(queue.waiting_bytes for queue in queues)
