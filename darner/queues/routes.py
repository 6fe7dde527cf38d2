"""Where a set to a name goes, and where a fetch by a name comes from."""

from collections.abc import Mapping, Sequence

import structlog

from darner.environment.timeline import Timeline
from darner.errors import StatusError
from darner.queues.cursor import MARK, Cursors
from darner.queues.fanout import Fanout, parent_of
from darner.queues.group import takers
from darner.queues.placeholders import Placeholders
from darner.queues.queue import Queue
from darner.queues.registry import Registry
from darner.queues.space import Space
from darner.queues.status import QUIESCENT, STATUSES, Status
from darner.queues.upload import RepeatedUpload, Upload
from darner.queues.waiters import Source

log = structlog.get_logger()


class Routes:
    """The ways to and from queues.

    A set looks in `sinks` for the queue that it goes to, and a fetch in `sources` for the queue or the cursor
    that it comes from. A name that is not in there is new, an alias or a parent of other queues, or is
    refused for now: `sink` and `source` see to these. So fanout, aliases and status cost nothing where they
    are not used.
    """

    def __init__(
        self,
        registry: Registry,
        placeholders: Placeholders,
        cursors: Cursors,
        status: Status,
        space: Space,
        times: Timeline,
    ) -> None:
        self._registry = registry
        self._placeholders = placeholders
        self._cursors = cursors
        self._status = status
        self._space = space
        self._times = times
        # filled as names are set to; and all queues that are fetched from by their own names, with the
        # cursors that have a place and were fetched from
        self.sinks: dict[bytes, Queue] = {}
        self.sources: dict[bytes, Source] = {}
        # the names of the cursors among the sources, by that of their queue
        self._cursor_names: dict[bytes, set[bytes]] = {}
        # where sets go whose names are for several queues, or for another one; filled as names are set to
        self._fanouts: dict[bytes, Fanout] = {}
        self.aliases: dict[bytes, tuple[bytes, ...]] = {}

    def sink(self, name: bytes) -> Queue | Fanout:
        """Return what a set to `name` is pushed to: a queue, made if it does not exist, or several.

        Raises JournalError if one of them cannot be had or the disk is too full, StatusError if sets are
        refused.
        """
        self.check_sets()
        fanout = self._fanouts.get(name)
        if fanout is not None:
            return fanout
        targets = self.targets(name)
        if len(targets) == 1:
            queue = self.sinks[name] = targets[0]
            return queue
        fanout = self._fanouts[name] = Fanout(targets)
        return fanout

    def upload(self, name: bytes, size: int, dedup_id: bytes | None = None) -> Upload | RepeatedUpload:
        """Begin to set an item of `size` bytes that comes in chunks. Raises what `sink` raises, and what
        `Queue.check` of one of its queues raises."""
        self.check_sets()
        targets = self.targets(name)
        lacking = takers(targets, dedup_id)
        if targets and not lacking:
            return RepeatedUpload(targets)
        # in a file if it is for one queue on disk at least; one with `fanout_only` keeps it for nobody
        first = self.aliases.get(name, (name,))[0]
        stores = sorted(lacking, key=lambda queue: not queue.is_durable) or [self._registry.queue(first)]
        for target in lacking:
            target.check(size)
        return Upload(stores[0], lambda: self.targets(name), self.check_sets, dedup_id)

    def targets(self, name: bytes) -> list[Queue]:
        """Return all queues that a set to `name` goes to, made if they do not exist. Raises JournalError."""
        found = {}
        for target in self.aliases.get(name, (name,)):
            queue = self._registry.queue(target)
            if not queue.settings.fanout_only or parent_of(target):
                found[target] = queue
            for child in self.children(target):
                found[child] = self._registry.queue(child)
        return list(found.values())

    def children(self, name: bytes) -> Sequence[bytes]:
        """Return the names of the queues that a set to `name` goes to besides the queue of that name."""
        return self.aliases.get(name) or self._registry.children(name)

    def check_sets(self) -> None:
        """Raise JournalError or StatusError if sets are refused."""
        self._space.look_if_low()
        self._status.check_sets()
        self._space.check()

    def find(self, name: bytes) -> Queue | None:
        """Return the queue `name` if it exists and the name is no alias. Raises JournalError if the queue is
        out of service."""
        return None if name in self.aliases else self._registry.find(name)

    def source(self, name: bytes, *, takes: bool, waits: bool) -> Source | None:
        """Return what a fetch by `name` comes from: a queue, or a cursor over one; None if the name is an
        alias.

        If the queue does not exist, a client that `takes` items from a child subscribes to it, which makes
        the queue; one that `waits` gets a placeholder at which to wait for the queue; any other gets None.
        Raises JournalError if the queue cannot be had, StatusError if fetches are refused.
        """
        self._status.check_gets()
        parent, is_cursor, label = name.partition(MARK)
        queue = self.find(parent)
        if queue is None and parent not in self.aliases:
            if takes and not is_cursor and parent_of(name):
                queue = self._registry.make(name)
            elif waits:
                queue = self._placeholders.get(parent)
        if queue is None or not is_cursor:
            return queue
        cursor = self._cursors.get(queue, label)
        if label in queue.cursors:  # else it may be one of any number of names that nothing was read by
            self.sources[name] = cursor
            self._cursor_names.setdefault(parent, set()).add(name)
        return cursor

    def set_aliases(self, aliases: Mapping[bytes, tuple[bytes, ...]]) -> None:
        """Replace the aliases: the names of several queues each. What they name are queues."""
        self.aliases = dict(aliases)
        self.reset()

    def set_status(self, level: int) -> None:
        """Change what clients may do: see `Status.change`."""
        status = self._status
        status.change(level, self._times.now())
        log.warning("status changed", status=status.name, grace_ms=status.grace_ms)
        self.enforce_status()
        self.reset()

    def enforce_status(self) -> None:
        """Bring a stricter status into force if its grace period is over."""
        status = self._status
        if status.enforce(self._times.now()):
            log.warning("status in force", status=STATUSES[status.in_force])
            self.reset()
            try:
                status.check_gets()
            except StatusError as error:
                status.on_quiescent(error)

    def add(self, queue: Queue) -> None:
        """Have sets and fetches find a queue that was made."""
        self.forget(queue.name)
        if self._serves_fetches and queue.name not in self.aliases:
            self.sources[queue.name] = queue

    def remove(self, name: bytes) -> None:
        """Have no set or fetch find the queue `name`, which was deleted."""
        self.forget(name)
        self.sources.pop(name, None)
        for cursor in self._cursor_names.pop(name, ()):
            del self.sources[cursor]

    def remove_cursor(self, name: bytes) -> None:
        """Have fetches look anew for a cursor, whose place was dropped."""
        if self.sources.pop(name, None) is not None:
            self._cursor_names[name.partition(MARK)[0]].remove(name)

    def forget(self, name: bytes) -> None:
        """Have sets look anew where they go, for something about the queue `name` has changed."""
        for changed in (name, parent_of(name), *self.aliases):
            self.sinks.pop(changed, None)
            self._fanouts.pop(changed, None)

    def reset(self) -> None:
        """Have all sets and fetches look anew where they go or come from."""
        self.sinks.clear()
        self._fanouts.clear()
        self.sources.clear()
        self._cursor_names.clear()
        if self._serves_fetches:
            self.sources.update(self._registry.queues)
            for name in self.aliases:
                self.sources.pop(name, None)

    @property
    def _serves_fetches(self) -> bool:
        return self._status.in_force < QUIESCENT
