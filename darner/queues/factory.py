"""The factory of queues and of their journals."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from darner.config import words
from darner.config.settings import Configured, QueueSettings
from darner.environment.timeline import Clock, Timeline
from darner.journal.journal import Journal
from darner.journal.recovery import open_journal
from darner.journal.wal import Log
from darner.journal.wal_recovery import Life
from darner.queues import events
from darner.queues.queue import Queue
from darner.queues.storage import Storage

# Gives what is set for the queue of a name, with what was set for queues at run time.
SettingsSource = Callable[[bytes, Configured], QueueSettings]


class QueueFactory:
    """Makes the queues of a data directory and their journals."""

    def __init__(
        self, storage: Storage, clock: Clock, times: Timeline, settings_source: SettingsSource
    ) -> None:
        """`clock` is the wall clock."""
        self._storage = storage
        self._clock = clock
        self._times = times
        self.settings_source = settings_source
        # what was set for queues at run time, as their journals have it
        self.configured: dict[bytes, dict[str, Any]] = {}

    def settings_for(self, name: bytes) -> QueueSettings:
        """Return what is set for the queue `name`, whether it exists or not."""
        return self.settings_source(name, self.configured)

    def journal(self, name: bytes, lives: Sequence[Life] = ()) -> Journal:
        """Open the journal of a queue on disk. `lives` is what the log of an earlier process has of the
        queue. Raises JournalError or OSError."""
        return self._journal(name, self._storage.log, lives)

    def journal_in_memory(self, name: bytes) -> Journal:
        """Make the journal of a queue in memory."""
        return self._journal(name, None)

    def _journal(self, name: bytes, log: Log | None, lives: Sequence[Life] = ()) -> Journal:
        path = self._storage.directories.path_of(name)
        return open_journal(name, path, self._storage.committer, log, self._clock(), lives)

    def queue(self, name: bytes, journal: Journal) -> Queue:
        """Make a queue upon its journal."""
        if journal.settings:
            on_wrong = functools.partial(events.log_unknown_setting, name)
            self.configured[name] = words.decode(journal.settings, on_wrong)
        return Queue(name, journal, self._times, self.settings_for(name))
