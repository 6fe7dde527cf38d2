"""The figures of a queue of the cluster, by the names that those of a data directory have."""

import dataclasses
from collections.abc import Callable
from typing import Any

from darner.jetstream.queue import ClusterQueue, now_date_ms
from darner.wire.figure import Figure, StoreFigures
from darner.wire.figures import QUEUE_FIGURES

_READ: dict[str, Callable[[ClusterQueue], int]] = {
    "items": lambda queue: queue.figures.items,
    "bytes": lambda queue: queue.figures.bytes,
    "total_items": lambda queue: queue.counts.total_items,
    "expired_items": lambda queue: queue.counts.expired_items,
    "age": lambda queue: max(0, queue.taken_ms - queue.taken_enqueued_ms) if queue.figures.items else 0,
    "head_age": lambda queue: max(0, now_date_ms() - queue.figures.head_ms) if queue.figures.head_ms else 0,
    "discarded": lambda queue: queue.counts.discarded,
    "duplicates": lambda queue: queue.counts.duplicates,
    "waiters": lambda queue: len(queue.line),
    "open_transactions": lambda queue: queue.figures.in_flight,
    "transactions": lambda queue: queue.counts.transactions,
    "canceled_transactions": lambda queue: queue.counts.canceled_transactions,
    "total_flushes": lambda queue: queue.counts.total_flushes,
    "create_time": lambda queue: queue.figures.created_ms,
    "delayed_items": lambda queue: queue.figures.delayed,
    "max_items": lambda queue: queue.settings.max_items or 0,
    "max_bytes": lambda queue: queue.settings.max_bytes or 0,
}


def _of_cluster(figure: Figure[Any]) -> Figure[Any]:
    """Return a figure of the same name, or 0 where it means nothing here."""
    return dataclasses.replace(figure, read=_READ.get(figure.name, lambda _: 0))


CLUSTER_FIGURES = StoreFigures(tuple(map(_of_cluster, QUEUE_FIGURES)), lambda _: [], (), ())
