"""The queues that exist, by name."""

import contextlib
from collections.abc import Callable, Sequence

import structlog

from darner.errors import JournalError
from darner.journal.journal import Journal
from darner.printable import shown
from darner.queues.deletion import Deletion
from darner.queues.factory import QueueFactory
from darner.queues.fanout import parent_of
from darner.queues.out_of_service import OutOfService
from darner.queues.placeholders import Placeholders
from darner.queues.queue import Queue
from darner.queues.totals import Totals

log = structlog.get_logger()


class Registry:
    """The queues that exist: found by name, made, and removed when they are deleted or out of service."""

    def __init__(
        self,
        queues: dict[bytes, Queue],
        factory: QueueFactory,
        placeholders: Placeholders,
        deletion: Deletion,
        out_of_service: OutOfService,
        totals: Totals,
    ) -> None:
        """`queues` are the queues by name, which nobody else changes."""
        self.queues = queues
        self._factory = factory
        self._placeholders = placeholders
        self._deletion = deletion
        self._out_of_service = out_of_service
        self._totals = totals
        # the names of the children of a queue, those out of service included, by the queue's name
        self._children: dict[bytes, set[bytes]] = {}
        # told of a queue that was added; and of the name of one that was removed, and the queue if it existed
        self.on_add: Callable[[Queue], None] = lambda _: None
        self.on_remove: Callable[[bytes, Queue | None], None] = lambda *_: None

    def queue(self, name: bytes) -> Queue:
        """Return the queue `name`, made if it does not exist. Raises JournalError."""
        queue = self.queues.get(name)
        return queue if queue is not None else self.make(name)

    def find(self, name: bytes) -> Queue | None:
        """Return the queue `name` if it exists. Raises JournalError if it is out of service."""
        self._out_of_service.check(name)
        return self.queues.get(name)

    def make(self, name: bytes) -> Queue:
        """Make the queue `name`, which does not exist. Raises JournalError if it is out of service, or its
        directory cannot be made."""
        self._out_of_service.check(name)
        self._deletion.check(name)
        queue = self._factory.queue(name, self._journal(name))
        self.add(queue)
        self._placeholders.move_waiters_to(queue)
        self._totals.queue_creates += 1
        log.debug("queue created", queue=shown(name))
        return queue

    def _journal(self, name: bytes) -> Journal:
        if not self._factory.settings_for(name).durable:
            return self._factory.journal_in_memory(name)
        journal = self._deletion.revive(name)
        if journal is None:
            journal = self._factory.journal(name)
            with contextlib.suppress(JournalError):  # then a kill may lose it as long as nothing is set on it
                journal.announce()
        return journal

    def add(self, queue: Queue) -> None:
        """Add a queue, which from now on is found by its name."""
        self.queues[queue.name] = queue
        self.add_child(queue.name)
        self.on_add(queue)

    def remove(self, name: bytes) -> None:
        """Remove the queue `name`, which is not found from now on, nor fanned out to."""
        queue = self.queues.pop(name, None)
        parent = parent_of(name)
        if children := self._children.get(parent):
            children.discard(name)
            if not children:
                del self._children[parent]
        self.on_remove(name, queue)

    def add_child(self, name: bytes) -> None:
        """Have sets to the parent of `name`, if it has one by that name, fan out to `name`."""
        if parent := parent_of(name):
            self._children.setdefault(parent, set()).add(name)

    def has_children(self, name: bytes) -> bool:
        """Return whether the queue `name` has children."""
        return name in self._children

    def children(self, name: bytes) -> Sequence[bytes]:
        """Return the names of the children of the queue `name`."""
        return sorted(self._children.get(name, ()))
