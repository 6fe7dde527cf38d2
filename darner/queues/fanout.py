"""Where a set goes that is for several queues at once: a queue and its children, or an alias.

All of them get the item in one turn, or none does, whatever instant the process dies at. A queue that is by
itself never comes here.
"""

from collections.abc import Sequence

from darner._records import RECORD_HEAD_BYTES, copy_record
from darner.queues.queue import Queue, all_or_none, make_room


class Fanout:
    """Several queues that are set to as one."""

    __slots__ = ("queues",)

    def __init__(self, queues: Sequence[Queue]) -> None:
        self.queues = queues

    def push(self, record: bytes, flags: int, exptime: int, delay_ms: int) -> None:
        """Put an item at the end of each queue, or have it come there in `delay_ms`: see `Queue.push` and
        `Queue.push_delayed`. If one of them cannot take it, it is in none."""
        size = len(record) - RECORD_HEAD_BYTES
        make_room(self.queues, size)
        # each item writes the head of its own record
        items = [queue.item(copy_record(record), flags, exptime) for queue in self.queues]
        with all_or_none(self.queues, size):
            for queue, item in zip(self.queues, items, strict=True):
                queue.put(item, delay_ms)
        for queue in self.queues:
            queue.serve()


def parent_of(name: bytes) -> bytes:
    """The name of the queue whose child this is, by its name; b"" if it is no child."""
    parent, plus, _ = name.partition(b"+")
    return parent if plus else b""
