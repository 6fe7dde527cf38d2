"""A fanout: several queues that are set to as one, which are a queue and its children, or those of an alias.

All of them get an item or none does, whatever instant the process is killed at. A set to a single queue does
not pass through here.
"""

from collections.abc import Collection, Sequence

from darner._records import RECORD_HEAD_BYTES, copy_record
from darner.queues.group import all_or_none, count_duplicates, make_room, takers
from darner.queues.queue import Queue


class Fanout:
    """Several queues that are set to as one."""

    __slots__ = ("queues",)

    def __init__(self, queues: Sequence[Queue]) -> None:
        self.queues = queues

    def push(
        self, record: bytes, flags: int, exptime: int, delay_ms: int, dedup_id: bytes | None = None
    ) -> Collection[Queue]:
        """Put an item at the end of each queue, or have it join that in `delay_ms`: see `Queue.push` and
        `Queue.push_delayed`. Queues that remember a set with the same id are left out. Returns those that
        it was put in. If one of them cannot take it, it is in none."""
        queues = takers(self.queues, dedup_id)
        size = len(record) - RECORD_HEAD_BYTES
        make_room(queues, size)
        # each item writes the head of its own record
        items = [queue.make_item(copy_record(record), flags, exptime) for queue in queues]
        with all_or_none(queues, size):
            for (queue, once), item in zip(queues.items(), items, strict=True):
                queue.put(item, delay_ms, once)
        if dedup_id is not None:
            count_duplicates(self.queues, queues)
        for queue in queues:
            queue.serve()
        return queues


def parent_of(name: bytes) -> bytes:
    """Return the name of the queue whose child `name` is; b"" if it is no child."""
    parent, plus, _ = name.partition(b"+")
    return parent if plus else b""
