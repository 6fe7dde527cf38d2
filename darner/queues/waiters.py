"""The clients that wait for an item, and what they wait at: a queue, or a cursor over one."""

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, Protocol

from darner._records import Item
from darner.errors import JournalError
from darner.journal.blob import BlobReader
from darner.queues.counts import Counts
from darner.queues.pending import Pending


class Source(Protocol):
    """What items are fetched from: a `Queue`, or a cursor over one. Its methods are described there."""

    name: bytes

    @property
    def counts(self) -> Counts: ...  # noqa: D102
    def take(self) -> Item | None: ...  # noqa: D102
    def reserve(self) -> Item | None: ...  # noqa: D102
    def peek(self) -> Item | None: ...  # noqa: D102
    def peek_from(self, id: int) -> Item | None: ...  # noqa: D102
    def open_blob(self, item: Item) -> BlobReader: ...  # noqa: D102
    def close(self, item: Item) -> None: ...  # noqa: D102
    def abort(self, item: Item) -> Pending | None: ...  # noqa: D102
    def give_back(self, item: Item) -> None: ...  # noqa: D102
    def quarantine(self, item: Item, damage: JournalError) -> None: ...  # noqa: D102
    def is_reserved(self, item: Item) -> bool: ...  # noqa: D102
    def begin_return(self) -> Pending: ...  # noqa: D102
    def end_return(self) -> None: ...  # noqa: D102
    def wait(self, waiter: "Waiter") -> None: ...  # noqa: D102
    def leave(self, waiter: "Waiter") -> None: ...  # noqa: D102
    def serve(self) -> None: ...  # noqa: D102
    def left_ms(self, item: Item) -> int | None: ...  # noqa: D102
    def waited_ms(self, item: Item) -> int: ...  # noqa: D102


class DeferringSource(Source, Protocol):
    """A source that takes back items so that they are out of sight for a while: a queue."""

    def defer(self, item: Item, delay_ms: int) -> Pending: ...  # noqa: D102


class Reader(Source, Protocol):
    """A cursor, as its queue knows it."""

    label: bytes
    waiters: "Waiters"

    @property
    def reserved_ids(self) -> Collection[int]:
        """The ids of the items that are reserved at the cursor."""

    def reset(self) -> None:
        """Drop the cursor's place: the next item is the oldest."""

    def clear(self) -> None:
        """Forget the place of a cursor whose queue is deleted."""

    def serve(self) -> None:
        """Give the items that can be read to the clients that wait at the cursor."""


class Waiter:
    """A client that waits for one item, at one source or at several; at each it has a place in the line."""

    __slots__ = (
        "_missed",
        "deliver",
        "fail",
        "fetch",
        "has_disconnected",
        "is_fetching",
        "is_over",
        "sources",
    )

    def __init__(
        self,
        fetch: Callable[[Any], Item | None],
        deliver: Callable[[Any, Any], None],
        has_disconnected: Callable[[], bool] = lambda: False,
        fail: Callable[[JournalError], None] = lambda _: None,
    ) -> None:
        """`fetch` is the method of the source that fetches the item: `take`, `reserve` or `peek`. `deliver`
        is called with the source and the item. `has_disconnected` is asked before an item is fetched, so that
        none is lost; `fail` is called if none will come."""
        self.fetch = fetch
        self.deliver = deliver
        self.has_disconnected = has_disconnected
        self.fail = fail
        # where the client waits; each source keeps this
        self.sources: dict[Source, None] = {}
        # whether it was served, or has given up
        self.is_over = False
        # whether an item is being fetched for it, and the sources that had one meanwhile
        self.is_fetching = False
        self._missed: list[Source] = []

    def cancel(self) -> None:
        """Stop waiting, everywhere."""
        self.is_over = True
        for source in list(self.sources):
            source.leave(self)

    def fetch_from(self, source: Source) -> Item | None:
        """Fetch an item of `source`."""
        self.is_fetching = True
        try:
            return self.fetch(source)
        finally:
            self.is_fetching = False

    def miss(self, source: Source) -> None:
        """Have `source` serve again once it is known whether another source has an item for the client."""
        self._missed.append(source)

    def serve_missed(self) -> bool:
        """Have those sources serve again; returns whether there were any."""
        missed, self._missed = self._missed, []
        for source in missed:
            source.serve()
        return bool(missed)


class Waiters(OrderedDict[Waiter, None]):
    """The clients that wait at one source, the one that has waited longest first."""

    __slots__ = ()

    def serve(self, source: Source) -> None:
        """Give the items of `source` to the clients, first come, first served."""
        while self:
            waiter = next(iter(self))
            if waiter.is_fetching:
                # from another source, whose expired item has moved here: the client must not get both
                waiter.miss(source)
                return
            if waiter.has_disconnected():
                waiter.cancel()
                continue
            try:
                item = waiter.fetch_from(source)
            except JournalError:
                waiter.serve_missed()
                return  # the clients go on waiting: the queue may recover
            if item is not None:
                waiter.cancel()
                waiter.deliver(source, item)
            if not waiter.serve_missed() and item is None:
                return

    def fail(self, source: Source, error: JournalError) -> None:
        """Tell the clients that `source` is out of service; one that waits elsewhere, too, goes on."""
        for waiter in list(self):
            source.leave(waiter)
            if not waiter.sources:
                waiter.cancel()
                waiter.fail(error)
