"""What is done to several queues at once: the queues of a fanout, or those an item is moved to."""

import contextlib
from collections.abc import Sequence

from darner.journal.segment_file import GROUP_BYTES
from darner.queues.queue import Queue


def make_room(queues: Sequence[Queue], size: int) -> None:
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


def all_or_none(queues: Sequence[Queue], size: int) -> contextlib.AbstractContextManager[None]:
    """Log an item of `size` bytes that is put in each of `queues` as one group, so that after a kill all or
    none have it. Nothing else may be done within. Raises JournalError if the log has no room for it."""
    logs = (queue.journal.log for queue in queues)
    log = next((log for log in logs if log is not None), None)
    if log is None or len(queues) == 1:
        return contextlib.nullcontext()
    return log.group(len(queues) * (size + GROUP_BYTES))
