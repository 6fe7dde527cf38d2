# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The reserved items of a queue or a cursor; those that are reserved for longer than `open_timeout` go
back."""

from collections import OrderedDict

from darner._records import Item
from darner.queues.waiters import Source

# How many reserved items are put back in one go.
RETURNED_AT_ONCE = 256


class Reserved:
    """The items that clients have reserved, and, with an `open_timeout`, since when."""

    __slots__ = ("_are_many_overdue", "_overdue", "_since_ms", "by_id", "bytes", "timeout_ms")

    def __init__(self) -> None:
        self.by_id: dict[int, Item] = {}
        # of the items, not of the memory they take
        self.bytes = 0
        # 0 is none
        self.timeout_ms = 0
        # when each item was reserved, the earliest first; None without a timeout
        self._since_ms: OrderedDict[int, int] | None = None
        # the ids of the items that are being taken back; the one that is to come back first is the last
        self._overdue: list[int] | None = None
        # whether fetching is stopped until those are back
        self._are_many_overdue = False

    def __len__(self) -> int:
        return len(self.by_id)

    def add(self, item: Item) -> None:
        """Have an item be reserved."""
        self.by_id[item.id] = item
        item.is_reserved = True
        self.bytes += item.size

    def remove(self, item: Item) -> None:
        """Have an item be reserved no longer."""
        del self.by_id[item.id]
        item.is_reserved = False
        self.bytes -= item.size
        if self._since_ms is not None:
            self._since_ms.pop(item.id, None)

    def clear(self) -> None:
        """Forget all items."""
        for item in self.by_id.values():
            item.is_reserved = False
        self.by_id.clear()
        self.bytes = 0
        if self._since_ms is not None:
            self._since_ms.clear()
        self._overdue = None

    # Going back after `open_timeout`

    def set_timeout(self, timeout_ms: int, now: int) -> None:
        """Have items go back once they were reserved for `timeout_ms`; never if that is 0. For those that are
        reserved without a time it counts from `now`."""
        self.timeout_ms = timeout_ms
        if not timeout_ms:
            self._since_ms = None
            return
        if self._since_ms is None:
            self._since_ms = OrderedDict()
        for id in self.by_id:
            self._since_ms.setdefault(id, now)

    def start_time(self, item: Item, now: int) -> None:
        """Note that an item was reserved just now."""
        if self._since_ms is not None:
            self._since_ms[item.id] = now

    @property
    def needs_upkeep(self) -> bool:
        """Whether an item may have to go back, now or later."""
        return bool(self._since_ms or self._overdue)

    def take_back(self, source: Source, now: int) -> bool:
        """Put some of the items back that were reserved for too long. Returns whether there are more."""
        overdue = self._overdue
        if not overdue:
            overdue = self._find_overdue(now)
            if len(overdue) > RETURNED_AT_ONCE:
                self._are_many_overdue = True
                source.begin_return()
        self._overdue = overdue
        for _ in range(min(len(overdue), RETURNED_AT_ONCE)):
            id = overdue.pop()
            if id in self.by_id:  # not closed meanwhile
                source.abort(self.by_id[id])
        if overdue:
            return True
        self._overdue = None
        if self._are_many_overdue:
            self._are_many_overdue = False
            source.end_return()
        return False

    def _find_overdue(self, now: int) -> list[int]:
        overdue = []
        for id, since_ms in (self._since_ms or {}).items():
            if now - since_ms < self.timeout_ms:
                break
            overdue.append(id)
        # the last is put back first, so that the oldest comes to lie at the head
        overdue.sort()
        return overdue
