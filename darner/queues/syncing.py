"""Syncing of what was set: before the reply, or within an interval."""

from collections.abc import Sequence

import structlog

from darner.environment.environment import Environment
from darner.environment.timeline import Timeline
from darner.errors import JournalError
from darner.journal.leveldb import failure
from darner.journal.wal import Log
from darner.journal.wal_sync import Client
from darner.queues.queue import Queue

log = structlog.get_logger()


class IntervalSync:
    """Stands in for a client at a sync of the log that no client waits for."""

    def hold(self) -> None:
        """Do nothing: no reply is held back."""

    def release(self) -> None:
        """Do nothing: no reply was held back."""

    def fail(self, slot: int, error: JournalError) -> None:  # noqa: ARG002
        """Log that the sync failed."""
        log.error("what was set is not synced", reason=error.reason)


class Syncing:
    """Has the log, which all queues share, synced when a set asks for it or an interval is over."""

    def __init__(self, environment: Environment, wal: Log, times: Timeline) -> None:
        self._environment = environment
        self._log = wal
        self._times = times
        # when the log is to be synced; None if nothing was set that needs it
        self._due_ms: int | None = None

    def sync(
        self,
        queues: Sequence[Queue],
        client: Client,
        slot: int,
        *,
        asked: bool,
        repeated: Sequence[Queue] = (),
    ) -> None:
        """Sync what was just set on `queues`, or earlier on the `repeated` ones, within the shortest of their
        intervals.

        If the set `asked` for it, or an interval is 0, reply `slot` of `client` waits until it is synced.
        """
        durable = [queue for queue in queues if queue.is_durable]
        intervals = [ms for queue in durable if (ms := queue.settings.sync_ms) is not None]
        if durable and (asked or 0 in intervals):
            self._sync_files(repeated, client, slot)
            self._log.sync(client, slot)
        elif intervals:
            # half of it is left for the sync
            delay_ms = min(intervals) // 2
            due_ms = self._times.now() + delay_ms
            if self._due_ms is None or due_ms < self._due_ms:
                self._due_ms = due_ms
                self._environment.call_later(delay_ms, self._sync_if_due)

    def _sync_files(self, queues: Sequence[Queue], client: Client, slot: int) -> None:
        """Sync the files of large items that `queues` have only in memory and the log: those of a set that is
        repeated with a sync, which the first one may have been without."""
        unsynced = [(queue.journal.blobs, items) for queue in queues if (items := queue.journal.staged_large)]
        if not unsynced:
            return

        def work() -> None:
            for blobs, items in unsynced:
                blobs.sync(items)

        def done(error: Exception | None) -> None:
            if error is not None:
                client.fail(slot, failure("cannot sync an item's file", error))
            client.release()

        client.hold()
        self._environment.offload(work, done)

    def _sync_if_due(self) -> None:
        if self._due_ms is None:
            return
        left_ms = self._due_ms - self._times.now()
        if left_ms > 0:  # it was called for a later time
            self._environment.call_later(left_ms, self._sync_if_due)
        else:
            self._due_ms = None
            self._log.sync(IntervalSync(), 0)
