"""Requeueing everything that a client holds reserved, a step at a time."""

from collections import deque
from collections.abc import Iterable, Iterator

from darner._records import Item
from darner.queues.pending import Pending
from darner.queues.reservations import RETURNED_AT_ONCE
from darner.queues.waiters import Source


def requeue(holds: Iterable[deque[tuple[Source, Item]]], *, is_disordered: bool) -> Iterator[Pending | None]:
    """Requeue the items of each queue at its head, in the order in which they were set, a step at a time.
    While many go back to a queue, nothing is fetched from it: items behind them would come before them.
    A step gives what must be done before the next one, such as a write of the journal, or None.
    `is_disordered` is whether an item may stand behind a later one of its queue."""
    for held in holds:
        returning: Source | None = None
        journal: Pending | None = None
        if is_disordered:
            held = deque(sorted(held, key=_id_of))  # noqa: PLW2901
        are_many = len(held) > RETURNED_AT_ONCE
        try:
            while held:
                queue, item = held.pop()
                if are_many and queue is not returning:
                    if returning is not None:
                        returning.end_return()
                    returning = queue
                    journal = queue.begin_return()
                queue.abort(item)
                if journal is not None:
                    yield journal if journal.is_backlogged else None
        finally:
            if returning is not None:
                returning.end_return()
        yield None


def _id_of(hold: tuple[Source, Item]) -> int:
    return hold[1].id
