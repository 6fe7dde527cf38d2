"""Transfers: dead letters, and expired items, that leave a queue for another one."""

from collections.abc import Sequence

import structlog

from darner._records import Item
from darner.errors import DamagedItemError, JournalError
from darner.printable import shown
from darner.queues.moving import move
from darner.queues.queue import Queue
from darner.queues.routes import Routes
from darner.queues.space import Space

log = structlog.get_logger()


class Transfers:
    """Moves items from one queue to others."""

    def __init__(self, routes: Routes, space: Space) -> None:
        self._routes = routes
        self._space = space
        # the names of queues whose items cannot be moved, which was logged
        self._failing: set[bytes] = set()

    def move(self, source: Queue, item: Item, name: bytes) -> Sequence[Queue]:
        """Put an item that leaves `source` where a set to `name` would put it, but never into `source`
        itself; returns the queues that have it. Raises JournalError if that fails: then none has it."""
        space = self._space
        try:
            if not (space.may_move or (space.release() and space.may_move)):
                raise JournalError("the disk is full")
            targets = [target for target in self._routes.targets(name) if target is not source]
            move(item, source.journal, targets)
        except DamagedItemError:
            raise
        except JournalError as error:
            if source.name not in self._failing:
                self._failing.add(source.name)
                log.error(
                    "items cannot be moved, they stay where they are",
                    queue=shown(source.name),
                    to=shown(name),
                    reason=error.reason,
                    action=error.action,
                )
            raise
        self._failing.discard(source.name)
        source.journal.require_synced_log()
        return targets

    def is_failing(self, name: bytes) -> bool:
        """Return whether the items of the queue `name` could not be moved the last time."""
        return name in self._failing

    def forget(self, name: bytes) -> None:
        """Forget about the queue `name`, which was deleted."""
        self._failing.discard(name)
