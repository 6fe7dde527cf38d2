"""Taking items out of a queue for good, each only once somebody else has it.

An item is reserved, handed over, and closed when it is kept for sure. Until then it is in the queue: after a
kill of the tool or of the server it is at the head again. Who keeps items has to know one that is handed over
a second time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from darner.client import protocol, stats
from darner.client.errors import (
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    ReservationLostError,
)
from darner.client.pool import Pool
from darner.client.repetition import Repetition
from darner.client.servers import Servers
from darner.errors import NoQueueError, ToolError
from darner.printable import shown
from darner.tools.holding import WINDOW, Held, Holder
from darner.tools.looking import Look, Waiting, as_lost, last_id, looks, window_of
from darner.tools.queue_settings import settings_in_force

# About what the items of one window may have.
WINDOW_BYTES = 1 << 22
# For how many items it is looked ahead.
AHEAD = 1024
# So often a queue may show items and give none, as other readers take them, before that is the end.
_MISSES = 3


@dataclass
class Emptied:
    """How far it has come, at one server.

    `expected`: what waited at the start. `unsettled`: how many items are kept for sure or perhaps, and
    perhaps in the queue still, as it was cut off; to do it again settles that. `doubled`: ids of items that
    the queue took back after they were kept, and that another reader has.
    """

    server: str
    items: int = 0
    bytes: int = 0
    expected: int = 0
    unsettled: int = 0
    doubled: set[int] = field(default_factory=set)


class Keeper(Protocol):
    """Who gets the items."""

    # how many are handed over at once, at most
    window: int

    @property
    def unsure(self) -> int:
        """Of how many items it is unknown whether they are kept."""

    def keep(self, items: Sequence[Waiting]) -> list[ClientError | None]:
        """Keep items, and return for each None, or why it is not kept, or perhaps not."""

    def lost(self, error: ClientError) -> None:
        """Take note that the connection is lost; ToolError if items cannot be handed over once more."""


class Emptying:
    """Takes what waits in a queue of one server when this is made; `run` does it."""

    def __init__(self, servers: Servers, pool: Pool, key: bytes, keeper: Keeper, most: int | None) -> None:
        """`most` is how many items to take; None is all that wait now. NoQueueError;
        other errors are those of requests."""
        self.servers = servers
        self.pool = pool
        self.key = key
        self.done = Emptied(str(pool.address))
        self._keeper = keeper
        self._most = most
        reply = protocol.check(servers.ask_again(pool, protocol.QUEUE_STATS), protocol.END)
        figures = stats.queue_stats(reply.stats).get(key.decode(errors="surrogateescape"))
        if figures is None:
            raise NoQueueError(f"{pool.address} has no queue {shown(key)}")
        # when the queue was made: ids begin anew in one that was deleted
        self.created_ms = round(figures.create_time * 1000)
        self.done.expected = figures.items if most is None else min(figures.items, most)
        self.last = last_id(servers, pool, key)
        self._drops_at = _drops_at(key, settings_in_force(pool, key, servers.timeout) or {})
        # the bytes of items that are kept, and not closed yet
        self._kept: dict[int, int] = {}
        self._misses = 0
        # whether all is taken
        self.is_over = False

    def count(self) -> tuple[int, int]:
        """Return how many items would be taken, and their bytes: they are looked at, one by one."""
        items = size = 0
        start = 1
        while page := self._look(start, AHEAD if self._most is None else min(AHEAD, self._most - items)):
            items += len(page)
            size += sum(look.size for look in page)
            start = page[-1].id + 1
        return items, size

    def run(self, on_progress: Callable[[], None], is_stopped: Callable[[], bool]) -> None:
        """Take items until nothing is left that waited at the start, or as many as was asked; or until
        `is_stopped`, which is asked between two windows.

        When the connection is lost, it begins again, for as long as the client's `timeout`. Raises the error
        that stops it, or ToolError; `done` tells how far it came. What is reserved then goes back.
        """
        try:
            with Holder(self.pool, self.key, self.servers.timeout) as holder:
                while not (self.is_over or is_stopped()):
                    self.is_over = self._take_page(holder, on_progress, is_stopped)
        finally:
            if self.is_over:
                self.done.doubled.update(self._kept)
            else:
                self.done.unsettled = len(self._kept) + self._keeper.unsure

    def _look(self, start: int, most: int) -> list[Look]:
        return looks(self.servers, self.pool, self.key, start, self.last, most)

    def _take_page(
        self, holder: Holder, on_progress: Callable[[], None], is_stopped: Callable[[], bool]
    ) -> bool:
        """Take what is found in one look ahead; return whether that was all."""
        repetition: Repetition | None = None
        while True:
            try:
                if repetition is not None:
                    self._settle()
                wanted = AHEAD if self._most is None else min(AHEAD, self._most - self.done.items)
                page = self._look(1, wanted) if wanted and self._misses < _MISSES else []
                self._take(holder, page, on_progress, is_stopped)
            except (ConnectionLostError, ConnectionFailedError) as error:
                holder.drop()
                self._keeper.lost(error)
                repetition = repetition or Repetition(self.servers.timeout)
                time.sleep(repetition.pause_after(as_lost(error, has_worked=self.done.items > 0)))
            else:
                return not page

    def _settle(self) -> None:
        """Find out which of the items that are kept have been closed, though that reply was lost."""
        for id, size in list(self._kept.items()):
            if not looks(self.servers, self.pool, self.key, id, id, 1):
                self._count(id, size)

    def _take(
        self,
        holder: Holder,
        page: list[Look],
        on_progress: Callable[[], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        """Take as many items as were looked at, window by window: it is always the head that is taken."""
        while page and not is_stopped():
            self._check_attempts(page)
            # one first: if it cannot be kept, no other one is put back, which counts as an attempt
            most = min(self._keeper.window, WINDOW) if self.done.items else 1
            held = holder.reserve(window_of(page, most, WINDOW_BYTES))
            self._misses = 0 if held else self._misses + 1
            if not held:
                return
            page = page[len(held) :]
            self._hand_over(holder, held)
            on_progress()

    def _check_attempts(self, page: list[Look]) -> None:
        """Raise ToolError if an item would be dropped when it comes back once more, as after a kill."""
        if self._drops_at is None:
            return
        for look in page[:WINDOW]:
            if look.attempts + 1 >= self._drops_at:
                raise ToolError(
                    f"item {look.id} of {shown(self.key)} has come back {look.attempts} times, and would be"
                    f" dropped if it did once more: raise max_attempts (now {self._drops_at}) of the queue"
                    " first, or give it a dead_letter_queue"
                )

    def _hand_over(self, holder: Holder, held: list[Held]) -> None:
        new = [each for each in held if each.item.id not in self._kept]
        failure: ClientError | None = None
        for each, outcome in zip(new, self._keeper.keep([each.item for each in new]), strict=True):
            if outcome is None:
                self._kept[each.item.id] = len(each.item.data)
            failure = failure or outcome
        self._close(holder, [each for each in held if each.item.id in self._kept])
        if failure is not None:
            if not isinstance(failure, ConnectionLostError):
                holder.abort([each for each in new if each.item.id not in self._kept])
            raise failure

    def _close(self, holder: Holder, held: list[Held]) -> None:
        failure: ClientError | None = None
        # not asked of `held` later: what is closed is no longer among what is kept
        for each, outcome in zip(held, holder.close(held), strict=True):
            if outcome is None:
                self._count(each.item.id, len(each.item.data))
            elif isinstance(outcome, ReservationLostError):
                self.done.doubled.add(each.item.id)
            else:
                failure = failure or outcome
        if failure is not None:
            raise failure

    def _count(self, id: int, size: int) -> None:
        del self._kept[id]
        self.done.doubled.discard(id)
        self.done.items += 1
        self.done.bytes += size


def _drops_at(key: bytes, settings: Mapping[str, str]) -> int | None:
    """Return the number of attempts at which a queue with these settings drops an item; None if it does
    not."""
    attempts = settings.get("max_attempts", "")
    # one that is inherited by the dead letter queue itself moves nothing
    is_moved = settings.get("dead_letter_queue", "none") not in ("none", shown(key))
    return int(attempts) if attempts.isdigit() and not is_moved else None
