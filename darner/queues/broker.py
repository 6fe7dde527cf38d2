"""The queues of a data directory, as the server and its clients use them.

This is where the parts of `darner.queues` are put together; each part has a file of its own. No socket, no
event loop and no clock is in here: see `Environment`.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import structlog
from msgspec.structs import replace

from darner.config.settings import QueueSettings
from darner.environment.environment import Environment
from darner.environment.timeline import Timeline
from darner.errors import InternalError, JournalError, NotReadyError, StartError
from darner.journal.disk_reserve import is_full
from darner.journal.journal import Journal
from darner.journal.open_databases import MAX_OPEN
from darner.journal.resting import resting_state
from darner.printable import shown
from darner.queues import data_directory, events
from darner.queues.clock_runs import Runs
from darner.queues.configuring import Configuring
from darner.queues.cursor import MARK, Cursors
from darner.queues.data_directory import LOG_NAME
from darner.queues.deletion import Deletion
from darner.queues.factory import QueueFactory, SettingsSource
from darner.queues.fanout import Fanout, parent_of
from darner.queues.opening import Opening
from darner.queues.out_of_service import OutOfService
from darner.queues.pending import Pending
from darner.queues.placeholders import Placeholders
from darner.queues.queue import DEFAULTS, Queue
from darner.queues.receipt import Receipt
from darner.queues.registry import Registry
from darner.queues.routes import Routes
from darner.queues.space import Space
from darner.queues.status import Status
from darner.queues.storage import Storage
from darner.queues.sweeping import Sweeping
from darner.queues.syncing import Syncing
from darner.queues.totals import Totals
from darner.queues.transfers import Transfers
from darner.queues.upkeep import Upkeep
from darner.queues.upload import RepeatedUpload, Upload
from darner.queues.waiters import Source

log = structlog.get_logger()


class Broker:
    """All queues of a data directory: they are opened, found, made, deleted and closed here.

    Before `open` there are no queues, and no parts but those that the constructor makes. `sinks` and
    `sources` are those of `routes`: each set and each fetch looks there first.
    """

    def __init__(
        self,
        data: Path,
        environment: Environment,
        settings_source: SettingsSource = lambda *_: DEFAULTS,
        aliases: Mapping[bytes, tuple[bytes, ...]] | None = None,
        grace_ms: int = 0,
        min_free_bytes: int = 0,
        max_open: int = MAX_OPEN,
    ) -> None:
        """`settings_source` gives what is set for the queue of a name, `aliases` the queues behind each name
        that is one. A stricter status waits for `grace_ms`. Sets are refused while less than `min_free_bytes`
        is free on the disk. Of the queues' LevelDBs, at most `max_open` are open at once."""
        self._data = data
        self.environment = environment
        self._settings_source = settings_source
        self._aliases = aliases or {}
        self._min_free_bytes = min_free_bytes
        self._max_open = max_open
        self.status = Status(data, grace_ms)
        self.queues: dict[bytes, Queue] = {}
        self.totals = Totals(self.queues)
        self.cursors = Cursors()
        self._out_of_service = OutOfService()
        # why each queue that is out of service is so
        self.out_of_service = self._out_of_service.errors

    # Life

    def open(self, *, for_migration: bool = False) -> None:
        """Take the data directory, made if it is missing, and open every queue in it; with `for_migration`
        even if it has only a part of what a migration is to bring there.

        Raises StartError if the directory cannot be used or another server has it.
        """
        self._lock = data_directory.take(self._data, for_migration=for_migration)
        try:
            self.storage = Storage(self._data, self.environment, self._max_open)
            self._runs = Runs(self._data, self.environment.boot)
            times = self._runs.begin(self.environment.clock, self.environment.monotonic)
            self.status.load()
            self._make_parts(self.storage, times)
            self.deletion.empty_trash()
            self.opening.open_all()
            for _ in self.configuring.steps():
                pass
            self._runs.follow()
        except OSError as error:
            self._lock.close()
            raise data_directory.unusable(self._data, error) from error
        except JournalError as error:
            self._lock.close()
            raise StartError(f"cannot use {self._data / LOG_NAME}: {error}") from error
        self.routes.set_aliases(self._aliases)
        self.space.look()

    def _make_parts(self, storage: Storage, times: Timeline) -> None:
        environment = self.environment
        self._factory = QueueFactory(storage, environment.clock, times, self._settings_source)
        self._placeholders = Placeholders(self._factory, self.cursors)
        self.space = Space(environment, storage, self._min_free_bytes)
        self.deletion = Deletion(environment, storage, self.space)
        self.registry = Registry(
            self.queues, self._factory, self._placeholders, self.deletion, self._out_of_service, self.totals
        )
        self.routes = Routes(self.registry, self._placeholders, self.cursors, self.status, self.space, times)
        self.sinks, self.sources = self.routes.sinks, self.routes.sources
        self.configuring = Configuring(environment, self._factory, self.registry, self.routes)
        self.transfers = Transfers(self.routes, self.space)
        self.sweeping = Sweeping(environment, storage, self.space, self.registry, self.transfers, times)
        self.opening = Opening(
            environment, storage, self._factory, self.registry, self.deletion, self._out_of_service
        )
        self.syncing = Syncing(environment, storage.log, times)
        self.upkeep = Upkeep(
            environment,
            storage,
            self._runs,
            self.routes,
            self.space,
            self.opening,
            self.deletion,
            self.sweeping,
            self.configuring,
        )
        self.space.on_change = self.routes.reset
        self.registry.on_add = self._added
        self.registry.on_remove = self._removed
        self.sweeping.on_outdated = self._expire
        storage.log.on_full = lambda error: is_full(error) and self.space.release()
        committer = storage.committer
        committer.on_staged = self.space.look
        committer.on_failure = events.log_failure
        committer.on_recovery = events.log_recovery
        committer.on_damage = events.log_damage
        committer.on_quarantine = events.log_quarantine
        committer.on_fault = self._take_out_of_service
        committer.on_resume = self._resume

    def tick(self) -> None:
        """Do what the server does by itself: see `Upkeep`. To be called a few times a second."""
        self.upkeep.tick()

    def close(self) -> None:
        """Write what is staged and close every queue; nothing may be being written."""
        self._runs.follow()
        committer = self.storage.committer
        committer.close()
        for journal in self.journals():
            try:
                journal.close(resting_state(journal))
            except Exception as error:  # the others are to be closed
                committer.set_aside(journal, error)
        self.storage.log.close()
        self._lock.close()

    def journals(self) -> list[Journal]:
        """Return the journals of all queues, of those deleted or set aside, too."""
        return [
            *(queue.journal for queue in self.queues.values()),
            *self.deletion.journals,
            *self._out_of_service.journals,
        ]

    # Queues

    def queue(self, name: bytes) -> Queue:
        """Return the queue `name`, made if it does not exist. Raises JournalError if that is impossible."""
        return self.registry.queue(name)

    def find(self, name: bytes) -> Queue | None:
        """Return the queue `name` if it exists and the name is no alias. Raises JournalError if the queue is
        out of service."""
        return self.routes.find(name)

    def settings(self, name: bytes) -> QueueSettings:
        """Return the settings of the queue `name`, or of that of a cursor, whether it exists or not."""
        queue = self.queues.get(name)
        return queue.settings if queue is not None else self._factory.settings_for(name.partition(MARK)[0])

    @property
    def visible(self) -> dict[bytes, Queue]:
        """The queues of which figures are given, by name: those that exist, and placeholders."""
        awaited = self._placeholders.by_name
        return {**self.queues, **awaited} if awaited else self.queues

    def find_visible(self, name: bytes) -> Queue | None:
        """Return one of the `visible` queues."""
        return self.queues.get(name) or self._placeholders.find(name)

    def delete(self, name: bytes) -> bool:
        """Delete a queue with all its items and files, or a cursor's place; returns whether the queue
        existed.

        A client that holds one of its items may still confirm it, and one that waits goes on waiting, for a
        new queue. The queue's children live on, and get what is set on a queue of its name later. Raises
        JournalError.
        """
        if MARK in name:
            return self._delete_cursor(name)
        if self._out_of_service.delete_set_aside(name):
            self.registry.remove(name)
            self.totals.queue_deletes += 1
            return True
        if self.opening.delete_from_log(name):
            return True
        queue = self.find(name)
        if queue is None:
            return False
        queue.retire()
        self.registry.remove(name)
        self.transfers.forget(name)
        self.sweeping.forget(name)
        if queue.is_durable:
            self.deletion.retire(queue.journal)
        self.totals.add_deleted(queue)
        if queue.waiters or queue.waiting_cursors:
            self._placeholders.move_waiters_from(queue)
            if parent_of(name):  # those who wait have subscribed
                with contextlib.suppress(JournalError):  # not as long as there is no space for a queue
                    self.registry.make(name)
        return True

    def _delete_cursor(self, name: bytes) -> bool:
        parent, _, label = name.partition(MARK)
        queue = self.find(parent)
        if queue is None:
            return False
        self.cursors.get(queue, label).reset()
        self.routes.remove_cursor(name)
        return True

    def _expire(self, queue: Queue) -> None:
        if self.delete(queue.name):
            self.totals.queue_expires += 1
            log.info("queue expired", queue=shown(queue.name))

    def flush_all(self, errors: list[JournalError]) -> Iterator[None]:
        """Flush every queue that exists now, one a step; the errors of those that fail are added to
        `errors`."""
        errors += self.out_of_service.values()
        for queue in list(self.queues.values()):
            if self.queues.get(queue.name) is queue:
                try:
                    queue.flush()
                except JournalError as error:
                    errors.append(error)
                except Exception as error:  # the others are to be flushed
                    self.set_aside(queue, error)
                    errors.append(self.out_of_service[queue.name])
            yield

    def reconfigure(
        self,
        settings_source: SettingsSource,
        aliases: Mapping[bytes, tuple[bytes, ...]],
        changed: list[bytes],
    ) -> Iterator[None]:
        """Take other settings and aliases from now on, one queue a step; the names of queues and aliases that
        changed are added to `changed`. A queue stays in memory or on disk as it was made: `durable` counts
        when it is made anew."""
        old = self.routes.aliases
        changed += [name for name in {**old, **aliases} if old.get(name) != aliases.get(name)]
        self._factory.settings_source = settings_source
        self.routes.set_aliases(aliases)
        for name, queue in list(self.queues.items()):
            # by the latest settings, which may be others by now
            settings = self._factory.settings_for(name)
            if settings != queue.settings and self.queues.get(name) is queue:
                queue.configure(settings)
                self.routes.forget(name)
                changed.append(name)
            yield

    def reset_stats(self) -> None:
        """Zero what is counted since the start."""
        self.totals.reset()
        for queue in self.visible.values():
            queue.reset_counts()

    # What clients ask for: see `darner.wire.store`

    def push(
        self,
        name: bytes,
        record: bytes,
        flags: int,
        exptime: int,
        delay_ms: int = 0,
        dedup_id: bytes | None = None,
        *,
        sync: bool = False,
    ) -> Receipt:
        """Set an item on all queues that a set to `name` goes to: see `Queue.push` and `Queue.push_delayed`.
        Queues that remember a set with the same id are left out. With `sync` it is synced at once."""
        sink = self.sinks.get(name) or self.routes.sink(name)
        if isinstance(sink, Fanout) or dedup_id is not None:
            fanout = sink if isinstance(sink, Fanout) else Fanout((sink,))
            stored = fanout.push(record, flags, exptime, delay_ms, dedup_id)
            return Receipt(fanout.queues, stored, sync=sync)
        if delay_ms:
            sink.push_delayed(record, flags, exptime, delay_ms)
        else:
            sink.push(record, flags, exptime)
        return Receipt((sink,), (sink,), sync=sync)

    def upload(self, name: bytes, size: int, dedup_id: bytes | None) -> Upload | RepeatedUpload:
        """Begin to set an item that comes in chunks: see `Routes.upload`."""
        return self.routes.upload(name, size, dedup_id)

    def source(
        self,
        name: bytes,
        *,
        takes: bool,
        waits: bool,
        has_disconnected: Callable[[], bool],  # noqa: ARG002 -- items are here: none comes later
    ) -> Source | None:
        """Return what a fetch by `name` comes from: see `Routes.source`."""
        return self.routes.source(name, takes=takes, waits=waits)

    def steps_to_delete(self, name: bytes) -> Generator[Pending | None, None, bool]:
        """As `delete`, if sets are not refused, and with the deletion soon on the disk."""
        self.status.check_sets()
        is_found = self.delete(name)
        self.deletion.sync()
        yield None
        return is_found

    def steps_to_flush(self, name: bytes) -> Generator[Pending | None, None, None]:
        """Discard what waits in a queue, unless sets are refused. Raises UnavailableError."""
        self.status.check_sets()
        queue = self.find(name)
        if queue is not None:
            queue.flush()
        yield None

    def steps_to_flush_expired(self, name: bytes | None) -> Generator[Pending | None, None, int]:
        """Move or drop what has expired in a queue, or in all; returns how much that was. Raises
        UnavailableError if sets are refused, and when the others are done if a queue cannot be read."""
        self.status.check_sets()
        queue = None if name is None else self.find(name)
        queues = list(self.queues.values()) if name is None else [queue] if queue is not None else []
        failures = list(self.out_of_service.values()) if name is None else []
        total = 0
        for each in queues:
            while True:
                try:
                    for count in each.flush_expired():
                        total += count
                        yield None
                except NotReadyError as error:
                    yield error.journal
                    continue
                except JournalError as error:
                    failures.append(error)
                break
        if failures:
            raise failures[0]
        return total

    def set_status(self, level: int) -> None:
        """Change what clients may do: see `Status.change`."""
        self.routes.set_status(level)

    def steps_to_look(self, names: Sequence[bytes]) -> Iterator[Pending | None]:  # noqa: ARG002
        """Do nothing: the figures are those of this moment."""
        return iter(())

    @property
    def queue_names(self) -> Sequence[bytes]:
        """The names of the queues that exist."""
        return list(self.queues)

    def settings_in_force(self, name: bytes) -> QueueSettings | None:
        """Return the settings of a queue, which stays in memory or on disk as it was made; None if there is
        no such queue."""
        queue = self.queues.get(name)
        return None if queue is None else replace(queue.settings, durable=queue.is_durable)

    @property
    def aliases(self) -> Mapping[bytes, tuple[bytes, ...]]:
        """The names that set to several queues each."""
        return self.routes.aliases

    def children(self, name: bytes) -> Sequence[bytes]:
        """Return the names of the queues that a set to `name` goes to besides the queue of that name."""
        return self.routes.children(name)

    @property
    def bytes_for_items(self) -> int:
        """How many bytes of the disk are free for items."""
        return self.space.bytes_for_items

    @property
    def refusals(self) -> list[str]:
        """Why sets are refused now, on any queue. A stricter status counts from when it is asked for, that is
        within its grace period, too: clients are to go elsewhere then."""
        wrong = [f"the status is {self.status.name}"] if self.status.level else []
        if self.space.refusal is not None:
            wrong.append(f"sets are {self.space.refusal.reason}")
        elif self.storage.log.segment.refusal is not None:
            wrong.append("the write-ahead log takes nothing in: the server's log says why")
        return wrong

    # What parts tell

    def _added(self, queue: Queue) -> None:
        queue.on_move = self.transfers.move
        queue.on_sync = self.syncing.sync
        queue.on_upkeep_due = self.sweeping.add
        queue.on_fault = self.set_aside
        if queue.needs_upkeep:
            self.sweeping.add(queue)
        self.routes.add(queue)
        if queue.journal.settings:
            self.configuring.renew(queue.name)

    def _removed(self, name: bytes, queue: Queue | None) -> None:
        if queue is not None:
            self.sweeping.remove(queue)
        self.routes.remove(name)
        if name not in self.out_of_service:
            self.configuring.forget(name)

    def _resume(self, journal: Journal) -> None:
        """Sweep the queue of `journal`, which can be read on, so that waiting clients are served."""
        queue = self.queues.get(journal.name)
        if queue is not None:
            self.sweeping.add(queue)

    def set_aside(self, queue: Queue, error: Exception) -> None:
        """Take a queue out of service until the next start, for an internal error; the others go on."""
        self.storage.committer.set_aside(queue.journal, error)

    def _take_out_of_service(self, journal: Journal, fault: InternalError) -> None:
        """Have the queue of `journal`, which was set aside, be out of service."""
        name = journal.name
        queue = self.queues.get(name)
        if queue is not None and queue.journal is journal:
            self._out_of_service.set_aside(journal, fault, is_durable=queue.is_durable)
            self.registry.remove(name)
            self.registry.add_child(name)
        elif self.deletion.drop(name):
            self._out_of_service.set_aside(journal, fault, is_durable=True)
            queue = self._placeholders.find(name)
        else:
            return
        events.log_out_of_service(name, fault)
        if queue is not None:
            queue.fail_waiters(fault)
