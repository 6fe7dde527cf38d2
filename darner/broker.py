"""The set of queues: find or make one by name, delete it, and what concerns all of them.

Knows the data directory's layout: a directory a queue, its name percent-encoded. No socket and no event
loop; the clock, and how to run something in another thread, are handed in.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import structlog

from darner._proto import Item, valid_name
from darner.blob import Offload
from darner.commit import Committer
from darner.config import QueueSettings
from darner.cursor import MARK, Cursor
from darner.errors import JournalError, StartError
from darner.fanout import Fanout, parent_of
from darner.journal import Journal
from darner.memory import MemoryJournal
from darner.queue import DEFAULTS, Clock, Queue, Reader, Source, Upload
from darner.status import QUIESCENT, STATUSES, Status

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


class Copy(NamedTuple):
    """An item that was put into another queue, as which id there."""

    queue: Queue
    id: int
    # of the journal: if it is another by now, what was put there may be lost
    generation: int


class Move(NamedTuple):
    """An item on its way from one queue to what `to` is the name of: where it is put already. It leaves
    `source` only when that is on disk, so a crash in between leaves it in both."""

    source: Queue
    item: Item
    to: bytes
    copies: Sequence[Copy]


class Broker:
    """All queues of a data directory.

    A set looks in `sinks` for where it goes, and a fetch in `sources` for where it comes from; what is not
    there, since it is new, or more than a queue by itself, or refused now, is for the methods `sink` and
    `source`. So nobody pays for fanout, aliases and status but who uses them.
    """

    def __init__(
        self,
        data: Path,
        clock: Clock,
        offload: Offload,
        settings_for: Callable[[bytes], QueueSettings] = lambda _: DEFAULTS,
        aliases: Mapping[bytes, tuple[bytes, ...]] | None = None,
        grace_ms: int = 0,
    ) -> None:
        """`settings_for` says what is set for the queue of a name, `aliases` the queues behind each name
        that is one; `grace_ms` is the grace period of a stricter status."""
        self._data = data
        self.settings_for = settings_for
        self.status = Status(data, grace_ms)
        self._clock = clock
        self._offload = offload
        self.committer = Committer(offload)
        self.committer.on_failure = self._log_failure
        self.queues: dict[bytes, Queue] = {}
        self.sinks: dict[bytes, Queue | Fanout] = {}
        self.sources: dict[bytes, Queue] = self.queues
        # the names of the children, by their parent's
        self._children: dict[bytes, set[bytes]] = {}
        self.aliases: dict[bytes, tuple[bytes, ...]] = {}
        self.set_aliases(aliases or {})
        # directories that cannot be opened as queues, and why
        self.broken: dict[bytes, JournalError] = {}
        # has a function called in so many ms, and then what it staged committed
        self.call_later: Callable[[int, Callable[[], None]], None] = lambda *_: None
        # queues with items to be synced some time later
        self._unsynced: list[Queue] = []
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
        self.status.load()
        self._empty_trash()
        for directory in self._directories(self._data):
            self._open_found(directory)
        self._route_anew()

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
            self._note_child(name)
            log.error("queue out of service", queue=name.decode(errors="replace"), reason=str(error))

    def _adopt(self, name: bytes) -> None:
        journal = Journal(self._data / directory_of(name), self.committer, self._clock())
        if journal.state.deleted:
            self._unregister(name)
            self._destroy(journal)
            return
        settings = self.settings_for(name)
        if not settings.durable:
            log.warning(
                "queue is to be in memory, but lies on disk: it stays there",
                queue=name.decode(errors="replace"),
                action="delete it, and it is in memory from then on",
            )
        try:
            queue = Queue(name, journal, self._clock, settings)
        except JournalError:
            journal.close()
            raise
        self._register(queue)

    @property
    def busy(self) -> bool:
        """Whether a batch is being written in another thread."""
        journals = [queue.journal for queue in self.queues.values()]
        return any(journal.writing is not None for journal in (*journals, *self._retired.values()))

    def close(self) -> None:
        """Write what is staged and close every queue; nothing may be being written."""
        self.committer.commit()
        journals = [queue.journal for queue in self.queues.values() if isinstance(queue.journal, Journal)]
        for journal in journals:
            if journal.failed is None and (blobs := journal.take_doomed()):
                with contextlib.suppress(OSError):  # then at the next start
                    journal.delete_blobs(blobs)
                    journal.forget(blobs)
        self.committer.commit()
        for journal in (*journals, *self._retired.values()):
            if journal.failed is None:
                journal.close()
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
            raise self.broken[name]
        return self.queues.get(name)

    def settings(self, name: bytes) -> QueueSettings:
        """Return the settings of the queue of this name, whether it is there or not."""
        queue = self.queues.get(name)
        return queue.settings if queue is not None else self.settings_for(name.partition(MARK)[0])

    def _create(self, name: bytes) -> Queue:
        if name in self.broken:
            raise self.broken[name]
        settings = self.settings_for(name)
        queue = Queue(name, self._journal(name, durable=settings.durable), self._clock, settings)
        self._register(queue)
        self.queue_creates += 1
        log.debug("queue created", queue=name.decode(errors="replace"))
        return queue

    def _journal(self, name: bytes, *, durable: bool) -> Journal | MemoryJournal:
        if not durable:
            return MemoryJournal(self._offload, self._clock())
        journal = self._retired.pop(name, None)
        if journal is None:
            journal = Journal(self._data / directory_of(name), self.committer, self._clock())
        if journal.state.deleted:
            journal.revive(self._clock())
        return journal

    def delete(self, name: bytes) -> Journal | MemoryJournal | None:
        """Drop a queue with all its items and files; returns the journal to acknowledge with, if there
        was one. Who holds its items is not hurt, and who waits goes on waiting, for a new queue. Its
        children live on, and get what is set on a queue of its name later."""
        if MARK in name:
            return self._delete_cursor(name)
        queue = self.find(name)
        if queue is None:
            return None
        if queue.failure is not None:
            raise queue.failure
        self._unregister(name)
        self._stuck.discard(name)
        queue.retire()
        if isinstance(queue.journal, Journal):
            self._retired[name] = queue.journal
        self.queue_deletes += 1
        self._past_items += queue.total_items
        if queue.waiters or any(cursor.waiters for cursor in queue.cursors.values()):
            heir = self._create(name)
            for waiter in queue.waiters:
                heir.wait(waiter)
            for label, cursor in queue.cursors.items():
                for waiter in cursor.waiters:
                    self._cursor(heir, label).wait(waiter)
        return queue.journal

    def _expire(self, queue: Queue) -> None:
        if self.delete(queue.name) is not None:
            self.queue_expires += 1
            log.info("queue expired", queue=queue.name.decode(errors="replace"))

    def flush_all(self) -> list[JournalError]:
        """Flush every queue; returns the errors of those that could not be."""
        errors = list(self.broken.values())
        for queue in self.queues.values():
            try:
                queue.flush()
            except JournalError as error:
                errors.append(error)
        return errors

    # Where sets go, and fetches come from

    def sink(self, name: bytes) -> Queue | Fanout:
        """Return what a set to this name is pushed to: the queue, made if it is not there, or several.

        Raises JournalError if one of them cannot be had, StatusError if sets are refused.
        """
        self.status.check_sets()
        targets = self._targets(name)
        sink = self.sinks[name] = targets[0] if len(targets) == 1 else Fanout(targets)
        return sink

    def upload(self, name: bytes, size: int) -> Upload:
        """Begin an item of this name, of `size` bytes, that comes in chunks. Raises as `sink` does, and as
        `Queue.upload` of any of its queues."""
        self.status.check_sets()
        targets = self._targets(name)
        # in a file if it is for one queue on disk at least
        stores = sorted(targets, key=lambda queue: not queue.is_durable) or [self.queue(name)]
        for target in targets:
            target.check(size)
        return Upload(stores[0], lambda: self._targets(name))

    def source(self, name: bytes, *, make: bool) -> Source | None:
        """Return what is fetched from by this name: a queue, or a cursor over one; None if it is an alias, or
        if it is not there and need not be made.

        Raises JournalError if it cannot be had, StatusError if fetching is refused.
        """
        self.status.check_gets()
        if MARK in name:
            return self._cursor_source(name, make=make)
        if name in self.aliases:
            return None
        return self.queue(name) if make or name in self.broken else self.queues.get(name)

    def _cursor_source(self, name: bytes, *, make: bool) -> Source | None:
        parent, _, label = name.partition(MARK)
        if parent in self.aliases:
            return None
        queue = self.queue(parent) if make or parent in self.broken else self.queues.get(parent)
        return None if queue is None else self._cursor(queue, label)

    def _cursor(self, queue: Queue, label: bytes) -> Reader:
        if queue.failure is not None:
            raise queue.failure
        cursor = queue.cursors.get(label)
        if cursor is None:
            cursor = queue.cursors[label] = Cursor(queue, label)
        return cursor

    def _delete_cursor(self, name: bytes) -> Journal | MemoryJournal | None:
        parent, _, label = name.partition(MARK)
        queue = self.find(parent)
        if queue is None:
            return None
        self._cursor(queue, label).reset()
        return queue.journal

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
    ) -> list[bytes]:
        """Have other settings and aliases from now on; returns the queues and aliases for which something
        changed. A queue is in memory or on disk as it was made: `durable` counts when it is made anew."""
        changed = [
            name for name in {**self.aliases, **aliases} if self.aliases.get(name) != aliases.get(name)
        ]
        self.settings_for = settings_for
        for name, queue in self.queues.items():
            settings = settings_for(name)
            if settings != queue.settings:
                queue.configure(settings)
                changed.append(name)
        self.set_aliases(aliases)
        return changed

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

    def _route_anew(self) -> None:
        self.sinks.clear()
        refuses = self.status.in_force >= QUIESCENT
        self.sources = {} if refuses or not self.aliases.keys().isdisjoint(self.queues) else self.queues

    def _register(self, queue: Queue) -> None:
        """A queue is there."""
        self.queues[queue.name] = queue
        queue.on_unsynced = self._sync_later
        self._note_child(queue.name)
        self._reroute(queue.name)

    def _note_child(self, name: bytes) -> None:
        if parent := parent_of(name):
            self._children.setdefault(parent, set()).add(name)

    def _unregister(self, name: bytes) -> None:
        """The queue of this name is no more."""
        self.queues.pop(name, None)
        if parent := parent_of(name):
            self._children.get(parent, set()).discard(name)
        self._reroute(name)

    def _reroute(self, name: bytes) -> None:
        for changed in (name, parent_of(name), *self.aliases):
            self.sinks.pop(changed, None)
        if name in self.aliases:
            self._route_anew()

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
        """Do a slice of the work that waits for nobody, and what has become due; to be called a few times
        a second.

        Returns the queues that have more dead records to delete: see `trim`.
        """
        self._enforce_status()
        now = self._clock()
        for queue in list(self.queues.values()):
            if queue.settings.max_queue_age_ms is not None and queue.is_outdated(now):
                self._expire(queue)
                continue
            journal = queue.journal
            if isinstance(journal, MemoryJournal):
                continue
            if queue.failure is not None:
                self._revive(queue, journal)
            if journal.compactable():
                self._compact(journal)
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
            journal = queue.journal
            if isinstance(journal, MemoryJournal):
                queue.sweep()
                continue
            self._delete_blobs(journal)
            try:
                queue.sweep()
                journal.trim()
            except JournalError as error:
                self._log_failure(journal, error)
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
                targets = self._targets(name)
                for target in targets:
                    if target.failure is not None:
                        raise target.failure
                copies = [
                    Copy(target, target.adopt(item, queue.journal), target.journal.generation)
                    for target in targets
                ]
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
                self._moves.append(Move(queue, item, name, copies))

    def _settle(self, move: Move) -> None:
        source, item = move.source, move.item
        if not source.is_reserved(item):
            return  # it is gone, by a failed write or with the queue
        if any(copy.queue.journal.generation != copy.generation for copy in move.copies):
            source.leaving.append((item, move.to))
        elif source.failure is not None or any(
            copy.queue.journal.committed_id <= copy.id for copy in move.copies
        ):
            self._moves.append(move)
        else:
            source.close(item)

    def _sync_later(self, queue: Queue) -> None:
        self._unsynced.append(queue)
        self.call_later(queue.sync_due_ms - self._clock(), self.sync_due)

    def sync_due(self) -> None:
        """Stage a sync of each queue whose `sync` interval is about to end; `call_later` has it called."""
        unsynced, self._unsynced = self._unsynced, []
        now = self._clock()
        for queue in unsynced:
            if queue.sync_due_ms <= now:
                queue.sync()
            else:
                self._unsynced.append(queue)
        if self._unsynced:
            self.call_later(min(queue.sync_due_ms for queue in self._unsynced) - now, self.sync_due)

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

    def _revive(self, queue: Queue, journal: Journal) -> None:
        with contextlib.suppress(JournalError):  # said when it failed first
            journal.reopen()
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
