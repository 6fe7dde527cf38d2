"""The set of queues: find or make one by name, delete it, and what concerns all of them.

Knows the data directory's layout: a directory a queue, its name percent-encoded. No socket and no event
loop; the clock, and how to run something in another thread, are handed in.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import structlog

from darner._proto import Item, valid_name
from darner.blob import Offload
from darner.commit import Committer
from darner.config import QueueSettings
from darner.errors import JournalError, StartError
from darner.journal import Journal
from darner.queue import DEFAULTS, Clock, Queue

log = structlog.get_logger()

# What every file system in use takes.
MAX_FILE_NAME_BYTES = 255
# How long one slice of the upkeep may take, over all queues: others wait for it.
SLICE_MS = 5
LOCK_NAME = ".lock"
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


class Move(NamedTuple):
    """An item on its way from one queue to another: where it is put already, as which id. It leaves
    `source` only when that is on disk, so a crash in between leaves it in both."""

    source: Queue
    item: Item
    target: Queue
    id: int
    # of the target's journal: if it is another by now, what was put there may be lost
    generation: int


class Broker:
    """All queues of a data directory; `settings_for` gives the settings of one by its name."""

    def __init__(
        self,
        data: Path,
        clock: Clock,
        offload: Offload,
        settings_for: Callable[[bytes], QueueSettings] = lambda _: DEFAULTS,
    ) -> None:
        self._data = data
        self._clock = clock
        self._offload = offload
        self._settings_for = settings_for
        self.committer = Committer(offload)
        self.committer.on_failure = self._log_failure
        self.queues: dict[bytes, Queue] = {}
        # directories that cannot be opened as queues, and why
        self.broken: dict[bytes, JournalError] = {}
        # journals of deleted queues that something still needs
        self._retired: dict[bytes, Journal] = {}
        self._moves: list[Move] = []
        # queues whose items cannot be moved now, for the log
        self._stuck: set[bytes] = set()
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
        self._empty_trash()
        for directory in self._directories(self._data):
            self._open_found(directory)

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

    def _open_found(self, directory: Path) -> None:
        name = name_of(directory)
        try:
            self._adopt(name)
        except JournalError as error:
            self.broken[name] = error
            log.error("queue out of service", queue=name.decode(errors="replace"), reason=str(error))

    def _adopt(self, name: bytes) -> None:
        journal = Journal(self._data / directory_of(name), self.committer, self._clock())
        if journal.state.deleted:
            self._destroy(journal)
            return
        try:
            self.queues[name] = Queue(name, journal, self._clock, self._settings_for(name))
        except JournalError:
            journal.close()
            raise

    @property
    def busy(self) -> bool:
        """Whether a batch is being written in another thread."""
        journals = [queue.journal for queue in self.queues.values()]
        return any(journal.writing is not None for journal in (*journals, *self._retired.values()))

    def close(self) -> None:
        """Write what is staged and close every queue; nothing may be being written."""
        self.committer.commit()
        for queue in self.queues.values():
            if queue.failure is None and (blobs := queue.journal.take_doomed()):
                with contextlib.suppress(OSError):  # then at the next start
                    queue.journal.delete_blobs(blobs)
                    queue.journal.forget(blobs)
        self.committer.commit()
        for journal in [queue.journal for queue in self.queues.values()] + list(self._retired.values()):
            if journal.failed is None:
                journal.close()
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

    def settings(self, name: bytes) -> QueueSettings:
        """Return the settings of the queue of this name, whether it is there or not."""
        queue = self.queues.get(name)
        return queue.settings if queue is not None else self._settings_for(name)

    def _create(self, name: bytes) -> Queue:
        if name in self.broken:
            raise self.broken[name]
        journal = self._retired.pop(name, None)
        if journal is None:
            journal = Journal(self._data / directory_of(name), self.committer, self._clock())
        if journal.state.deleted:
            journal.revive(self._clock())
        queue = self.queues[name] = Queue(name, journal, self._clock, self._settings_for(name))
        self.queue_creates += 1
        log.debug("queue created", queue=name.decode(errors="replace"))
        return queue

    def delete(self, name: bytes) -> Journal | None:
        """Drop a queue with all its items and files; returns the journal to acknowledge with, if there
        was one. Who holds its items is not hurt, and who waits goes on waiting, for a new queue."""
        queue = self.find(name)
        if queue is None:
            return None
        if queue.failure is not None:
            raise queue.failure
        del self.queues[name]
        self._stuck.discard(name)
        queue.retire()
        self._retired[name] = queue.journal
        self.queue_deletes += 1
        self._past_items += queue.total_items
        if queue.waiters:
            heir = self._create(name)
            for waiter in queue.waiters:
                heir.wait(waiter)
        return queue.journal

    def flush_all(self) -> list[JournalError]:
        """Flush every queue; returns the errors of those that could not be."""
        errors = list(self.broken.values())
        for queue in self.queues.values():
            try:
                queue.flush()
            except JournalError as error:
                errors.append(error)
        return errors

    def _destroy(self, journal: Journal) -> None:
        """Close a journal and delete its files: out of the way at once, and then in a thread."""
        journal.close()
        # not by the process's number: in a container it is the same at every start
        doomed = self._data / TRASH_NAME / uuid.uuid4().hex
        try:
            doomed.parent.mkdir(mode=0o700, exist_ok=True)
            journal.path.rename(doomed)
        except OSError as error:
            log.error(
                "cannot delete the files of a deleted queue; they are tried again at the next start",
                directory=str(journal.path),
                reason=str(error),
            )
            return
        for parent in journal.path.relative_to(self._data).parents:
            if parent.name:
                with contextlib.suppress(OSError):  # another long name lives there
                    (self._data / parent).rmdir()
        self._remove(doomed)

    def _empty_trash(self) -> None:
        trash = self._data / TRASH_NAME
        # not the directory itself: more may come into it meanwhile
        for doomed in trash.iterdir() if trash.exists() else ():
            self._remove(doomed)

    def _remove(self, doomed: Path) -> None:
        self._offload(lambda: shutil.rmtree(doomed, ignore_errors=True), lambda _: None)

    # Upkeep

    def reap(self) -> None:
        """Delete the files of deleted queues that nothing needs any more."""
        for name, journal in list(self._retired.items()):
            if not journal.busy:
                del self._retired[name]
                self._destroy(journal)

    def tidy(self) -> list[Queue]:
        """Do a slice of the work that waits for nobody; to be called a few times a second.

        Returns the queues that have more dead records to delete: see `trim`.
        """
        for queue in self.queues.values():
            if queue.failure is not None:
                self._revive(queue)
            if queue.journal.compactable():
                self._compact(queue.journal)
        self._retry_broken()
        self.reap()
        return self.trim(self.queues.values())

    def trim(self, queues: Iterable[Queue]) -> list[Queue]:
        """Sweep each of these queues, and delete some of its dead records; returns those that have more."""
        # others may come to be on the way
        queues = list(queues)
        begun = self._clock()
        done = 0
        while done < len(queues) and (not done or self._clock() - begun < SLICE_MS):
            queue = queues[done]
            done += 1
            if queue.failure is not None:
                continue  # deleted since, or out of service
            self._delete_blobs(queue.journal)
            try:
                queue.sweep()
                queue.journal.trim()
            except JournalError as error:
                self._log_failure(queue.journal, error)
        self.move(queues)
        again = [q for q in queues[:done] if q.failure is None and (q.journal.untidy or q.restless)]
        return queues[done:] + again

    def move(self, queues: Iterable[Queue]) -> None:
        """Move what leaves these queues for others, and commit all that is staged."""
        for queue in queues:
            if queue.leaving:
                self._move_from(queue)
        self.committer.commit()
        if self._moves:
            moves, self._moves = self._moves, []
            for move in moves:
                self._settle(move)
            self.committer.commit()

    def _move_from(self, queue: Queue) -> None:
        leaving, queue.leaving = queue.leaving, []
        for item, name in leaving:
            try:
                target = self.queue(name)
                id = target.adopt(item, queue.journal)
            except JournalError as error:
                queue.leaving.append((item, name))
                if queue.name not in self._stuck:
                    self._stuck.add(queue.name)
                    log.error(
                        "items cannot be moved, they stay where they are and are tried again",
                        queue=queue.name.decode(errors="replace"),
                        to=name.decode(errors="replace"),
                        reason=str(error),
                    )
            else:
                self._stuck.discard(queue.name)
                self._moves.append(Move(queue, item, target, id, target.journal.generation))

    def _settle(self, move: Move) -> None:
        source, item, target = move.source, move.item, move.target
        if not source.is_reserved(item):
            return  # it is gone, by a failed write or with the queue
        if target.journal.generation != move.generation:
            source.leaving.append((item, target.name))
        elif source.failure is not None or target.journal.committed_id <= move.id:
            self._moves.append(move)
        else:
            source.close(item)

    def _delete_blobs(self, journal: Journal) -> None:
        blobs = journal.take_doomed()
        if not blobs:
            return

        def done(error: Exception | None) -> None:
            if error is None:
                journal.forget(blobs)
            else:
                self._log_failure(journal, JournalError(f"cannot delete an item's file: {error}"))

        self._offload(lambda: journal.delete_blobs(blobs), done)

    def _retry_broken(self) -> None:
        """Try one of the directories that could not be opened: the disk may have room again, or the
        directory have been repaired or moved away."""
        name = next(iter(self.broken), None)
        if name is None:
            return
        del self.broken[name]
        try:
            self._adopt(name)
        except JournalError as error:  # said at the start
            self.broken[name] = error
        else:
            log.warning("queue back in service", queue=name.decode(errors="replace"))

    def _compact(self, journal: Journal) -> None:
        spans = journal.begin_compaction()

        def done(error: Exception | None) -> None:
            if error is not None:
                self._log_failure(journal, JournalError(f"cannot compact {journal.path}: {error}"))

        self._offload(lambda: journal.compact(spans), done)

    def _revive(self, queue: Queue) -> None:
        with contextlib.suppress(JournalError):  # said when it failed first
            queue.journal.reopen()
        queue.reload()
        if queue.failure is None:
            log.warning("queue back in service", queue=queue.name.decode(errors="replace"))

    def _log_failure(self, journal: Journal, error: JournalError) -> None:
        name = name_of(journal.path.relative_to(self._data))
        log.error(
            "journal failure, nothing of this was acknowledged",
            queue=name.decode(errors="replace"),
            reason=str(error),
            action="make room or repair the disk; the queue is tried again by itself",
        )

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
