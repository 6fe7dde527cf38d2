"""What is done to several queues at once: the queues of a fanout, or those an item is moved to."""

import contextlib
from collections.abc import Collection, Sequence

from darner.journal.dedup_ids import FRAME_ID_BYTES, Once
from darner.journal.segment_file import GROUP_BYTES
from darner.queues.queue import Queue


def takers(queues: Sequence[Queue], dedup_id: bytes | None) -> dict[Queue, Once | None]:
    """Return those of `queues` that remember no set with this id, each with what it is to remember of one
    that is made now. Without an id that is nothing, and of all queues. Raises JournalError if a queue cannot
    tell, UnavailableError if it has no room for an id."""
    found: dict[Queue, Once | None] = {}
    for queue in queues:
        if dedup_id is None or not queue.dedup.window_ms:
            found[queue] = None
        elif (once := queue.dedup.mark(dedup_id, queue.times.now())) is not None:
            found[queue] = once
    return found


def count_duplicates(queues: Sequence[Queue], stored: Collection[Queue]) -> None:
    """Count a set that was sent to `queues` again, but for those that have `stored` it now."""
    for queue in queues:
        queue.counts.duplicates += queue not in stored


def make_room(queues: Collection[Queue], size: int) -> None:
    """Have room for an item of `size` bytes in each of `queues`, at the cost of expired items and, where the
    settings say so, of the oldest. Raises as `Queue.push` does if one of them cannot take it; then nothing is
    discarded."""
    for queue in queues:
        queue.check(size)
    if not any(queue.limits.are_set for queue in queues):
        return
    for queue in queues:
        queue.limits.expire_for(queue, size)
    # an item that has expired in one may have moved to another
    for queue in queues:
        queue.check(size, may_expire=False)
    for queue in queues:
        queue.limits.discard_for(queue, size)


def all_or_none(queues: Collection[Queue], size: int) -> contextlib.AbstractContextManager[None]:
    """Log an item of `size` bytes that is put in each of `queues` as one group, so that after a kill all or
    none have it. Nothing else may be done within. Raises JournalError if the log has no room for it."""
    if len(queues) == 1:
        return contextlib.nullcontext()
    logs = (queue.journal.log for queue in queues)
    log = next((log for log in logs if log is not None), None)
    if log is None:
        return contextlib.nullcontext()
    return log.group(len(queues) * (size + FRAME_ID_BYTES + GROUP_BYTES))
