# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""What one client holds reserved, queue by queue.

A connection has a `Holds`, adds each item that it reserves, and releases all when the client disconnects. A
queue may take an item back without notice: its `open_timeout` has passed, or the queue was deleted. Such an
item no longer counts here, and closing it does nothing.
"""

import sys
from collections import deque
from collections.abc import Iterator
from typing import cast

from darner._records import Item
from darner.queues.pending import Pending
from darner.queues.waiters import DeferringSource, Source
from darner.wire.requeueing import requeue

Hold = tuple[Source, Item]


class Holds:
    """The items one client has reserved, in the order of reserving.

    Methods that touch items raise JournalError if the queue's journal refuses. On NotReadyError they are to
    be called again; the item is held until then.
    """

    __slots__ = ("_by_token", "_is_disordered", "_spare", "held")

    def __init__(self) -> None:
        # No queue is in here without items. What is no longer reserved stays until it is met, or until there
        # is more of it than of the others.
        self.held: dict[bytes, deque[Hold]] = {}
        # the same by their tokens, of queues of which another item was asked for than the first
        self._by_token: dict[bytes, dict[int, Hold]] = {}
        # whether an item was reserved after a later one of its queue: it had gone back in between
        self._is_disordered = False
        # an empty one for the next queue: making one takes longer than all else that is done for an item
        self._spare: deque[Hold] | None = None

    def count(self, name: bytes, most: int = sys.maxsize) -> int:
        """Return how many items of the queue `name` are held; counting ends at `most`."""
        held = self.held.get(name)
        if held is None:
            return 0
        count = 0
        for queue, item in held:
            if count == most:
                break
            if not queue.is_reserved(item):
                return min(self._recount(name), most)
            count += 1
        return count

    def has_as_many(self, name: bytes, count: int) -> bool:
        """Return whether at least `count` items of the queue `name` are held; not all are looked at if there
        cannot be as many."""
        if count <= 0:
            return True
        held = self._by_token.get(name) or self.held.get(name)
        return held is not None and len(held) >= count and self.count(name, count) == count

    def _recount(self, name: bytes) -> int:
        """Forget what is no longer reserved of the queue `name`; returns how many items are left."""
        held: deque[Hold] = deque()
        for hold in self.held[name]:
            if hold[0].is_reserved(hold[1]):
                held.append(hold)
        self._by_token.pop(name, None)
        if held:
            self.held[name] = held
        else:
            del self.held[name]
        return len(held)

    def add(self, queue: Source, item: Item) -> None:
        """Hold an item just reserved from `queue`."""
        name = queue.name
        hold = queue, item
        held = self.held.get(name)
        if held is None:
            held, self._spare = self._spare, None
            if held is None:
                held = deque()
            self.held[name] = held
        elif item.id < held[-1][1].id:
            self._is_disordered = True
        held.append(hold)
        if self._by_token and name in self._by_token:
            self._by_token[name][item.token] = hold

    def _first(self, name: bytes) -> Hold | None:
        """Return the item of the queue `name` that is reserved longest; None if none is held."""
        while (held := self.held.get(name)) is not None:
            first = held[0]
            queue, item = first
            # an item of a queue says so itself, which saves a call
            if item.is_reserved or queue.is_reserved(item):
                return first
            self._drop(name, first)
        return None

    def _find(self, name: bytes, token: int) -> Hold | None:
        """Return the item of the queue `name` with that token, if it is held. A token of 0 is for the item
        that is reserved longest."""
        hold = self._first(name)
        if hold is None or not token or hold[1].token == token:
            return hold
        by_token = self._by_token.get(name)
        if by_token is None:
            by_token = self._by_token[name] = {}
            for hold in self.held[name]:
                by_token[hold[1].token] = hold
        hold = by_token.get(token)
        return hold if hold is not None and hold[0].is_reserved(hold[1]) else None

    def has_item(self, name: bytes, token: int) -> bool:
        """Return whether the item of the queue `name` with that token is held."""
        return self._find(name, token) is not None

    def tokens(self, name: bytes) -> Iterator[int]:
        """Iterate over the tokens of the items of the queue `name` that are held, in the order of
        reserving."""
        for queue, item in self.held.get(name, ()):
            if queue.is_reserved(item):
                yield item.token

    def close(self, name: bytes, count: int = 1) -> int:
        """Remove the `count` items reserved longest for good, or as many as are held; returns how many."""
        closed = 0
        while closed < count and self.close_item(name, 0):
            closed += 1
        return closed

    def close_item(self, name: bytes, token: int) -> bool:
        """Remove the reserved item with that token for good, or, if it is 0, the one reserved longest;
        returns whether it was held."""
        hold = self._find(name, token)
        if hold is None:
            return False
        queue, item = hold
        queue.close(item)
        self._drop(name, hold)
        return True

    def abort(self, name: bytes, token: int = 0) -> Pending | None:
        """Put the reserved item with that token back at the head of its queue, or, if it is 0, the one
        reserved longest; returns what the reply waits for, None if it was not held, or is back by now."""
        hold = self._find(name, token)
        if hold is None:
            return None
        queue, item = hold
        # first, for an item put back may be delivered at once to a client that waits, even to this one
        self._drop(name, hold)
        return queue.abort(item)

    def defer(self, name: bytes, token: int, delay_ms: int) -> Pending | None:
        """Put the reserved item with that token out of sight for `delay_ms`, or, if it is 0, the one reserved
        longest, to join the end of its queue then; returns what has it now, such as a journal, None if it was
        not held. On JournalError it is still held."""
        hold = self._find(name, token)
        if hold is None:
            return None
        queue, item = hold
        # no cursor: of one the parser takes no delay
        pending = cast("DeferringSource", queue).defer(item, delay_ms)
        self._drop(name, hold)
        return pending

    def _drop(self, name: bytes, hold: Hold) -> None:
        """Forget an item that is about to go, or has gone."""
        held = self.held[name]
        if held[0] is hold:
            held.popleft()
        if self._by_token and name in self._by_token:
            by_token = self._by_token[name]
            token = hold[1].token
            if by_token.get(token) is hold:
                del by_token[token]
            if len(held) > 2 * len(by_token):
                held = self.held[name] = deque(by_token.values())
            if not held:
                del self._by_token[name]
        if not held:
            del self.held[name]
            self._spare = held

    def release(self) -> Iterator[Pending | None]:
        """Forget everything; returns the steps that requeue it, as in requeueing.py."""
        everything, self.held, self._by_token = self.held, {}, {}
        return requeue(everything.values(), is_disordered=self._is_disordered)
