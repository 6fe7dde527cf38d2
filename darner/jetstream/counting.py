"""Figures of the queues: what the cluster says of them, beside what this darner has counted."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from darner.errors import UnavailableError
from darner.jetstream.api import NO_CONSUMER, NO_STREAM, TRY_S, ApiError, call, call_all
from darner.jetstream.link import Link
from darner.jetstream.names import NAME_KEY, PREFIX, family_in, family_of, name_of, stream_of
from darner.jetstream.queue import ClusterQueue, date_ms

log = structlog.get_logger()

# How many requests of one look are on their way at once.
AT_ONCE = 32


class ClusterTotals:
    """Counts over all queues since the start of this darner, and sums of what the cluster says."""

    # none ends by its max_queue_age, which a cluster does not serve
    queue_expires: Final = 0

    def __init__(self, queues: Mapping[bytes, ClusterQueue]) -> None:
        self._queues = queues
        self.reset()

    def reset(self) -> None:
        """Zero the counts."""
        self.queue_creates = self.queue_deletes = 0
        # of queues that are gone
        self._items = self._expired_items = self._discarded_items = 0

    def note_gone(self, queue: ClusterQueue) -> None:
        """Keep what was counted of a queue that is gone; one that is made again begins at zero."""
        counts = queue.counts
        self._items += counts.total_items
        self._expired_items += counts.expired_items
        self._discarded_items += counts.discarded
        counts.clear()

    @property
    def items(self) -> int:
        """How many items were set through this darner."""
        return self._items + sum(queue.counts.total_items for queue in self._queues.values())

    @property
    def expired_items(self) -> int:
        """How many items this darner found expired."""
        return self._expired_items + sum(queue.counts.expired_items for queue in self._queues.values())

    @property
    def discarded_items(self) -> int:
        """How many items this darner has dropped unread."""
        return self._discarded_items + sum(queue.counts.discarded for queue in self._queues.values())

    def waiting(self) -> tuple[int, int, int]:
        """Return how many queues there are, and how many items and bytes wait in them."""
        figures = [queue.figures for queue in self._queues.values()]
        return len(figures), sum(each.items for each in figures), sum(each.bytes for each in figures)


async def look(
    link: Link,
    known: dict[bytes, ClusterQueue],
    queue_of: Callable[[bytes], ClusterQueue],
    names: Sequence[bytes],
) -> list[bytes]:
    """Bring the figures of these queues, or of all, up to date, and add to `known` those that exist; returns
    those of it that are gone. Raises UnavailableError.

    Which queues there are the leader of the cluster knows by itself. What each has, only its own leader: one
    that has none now keeps the figures of the last look."""
    looking = _Look(link, known, queue_of)
    # what is made from here on may be in no list
    before = list(known)
    families = {family_of(name) for name in names} if names else await looking.families()
    found: set[bytes] = set().union(*await asyncio.gather(*map(looking.at_family, families)))
    if looking.unanswered:
        log.warning("figures of some queues are those of an earlier look", queues=looking.unanswered)
    return [name for name in before if name not in found and (not names or family_of(name) in families)]


class _Look:
    """One look at queues, with so many requests on their way at once."""

    def __init__(
        self, link: Link, known: dict[bytes, ClusterQueue], queue_of: Callable[[bytes], ClusterQueue]
    ) -> None:
        self._link = link
        self._known = known
        self._queue_of = queue_of
        self._gate = asyncio.Semaphore(AT_ONCE)
        # of how many queues the figures are old ones
        self.unanswered = 0

    async def _ask(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Return an answer; None if there is no leader to give it. Raises ApiError."""
        async with self._gate:
            try:
                return await call(self._link, name, body, _soon())
            except ApiError:
                raise
            except UnavailableError:
                return None

    async def families(self) -> set[bytes]:
        """Return the names of all families."""
        known = {family_of(name) for name in self._known}
        found: set[bytes] = set()
        for stream in await call_all(self._link, "STREAM.NAMES", "streams", {"subject": f"{PREFIX}.>"}):
            name = family_in(stream, known) or await self._long_name(stream)
            if name is not None:
                found.add(name)
        return found

    async def _long_name(self, stream: str) -> bytes | None:
        """Return the name of a family that is too long for that of its stream; None if it cannot be had."""
        try:
            return _name(await self._ask(f"STREAM.INFO.{stream}"))
        except ApiError as error:
            if error.code == NO_STREAM:
                return None
            raise

    async def at_family(self, family: bytes) -> set[bytes]:
        """Bring the figures of a family up to date, and return its queues."""
        stream = stream_of(family)
        try:
            consumers = await self._names(stream)
            info = await self._ask(f"STREAM.INFO.{stream}", {"subjects_filter": f"{PREFIX}.q.>"})
        except ApiError as error:
            if error.code == NO_STREAM:
                return set()
            raise
        state = None if info is None else info["state"]
        asking = (self._at_queue(stream, consumer, state) for consumer in consumers)
        return {name for name in await asyncio.gather(*asking) if name is not None}

    async def _names(self, stream: str) -> list[str]:
        async with self._gate:
            return await call_all(self._link, f"CONSUMER.NAMES.{stream}", "consumers")

    async def _at_queue(self, stream: str, consumer: str, state: dict[str, Any] | None) -> bytes | None:
        """Bring the figures of a queue up to date; returns its name, None if it is gone. `state` is that of
        its stream; None if that has no leader."""
        try:
            info = None if state is None else await self._ask(f"CONSUMER.INFO.{stream}.{consumer}")
        except ApiError as error:
            if error.code in (NO_CONSUMER, NO_STREAM):
                return None
            raise
        name = name_of(consumer, self._known) if info is None else _name(info)
        if name is None:
            return None
        queue = self._known[name] = self._queue_of(name)
        if state is None or info is None or not await self._count(queue, info, state):
            self.unanswered += 1
        return name

    async def _count(self, queue: ClusterQueue, info: dict[str, Any], state: dict[str, Any]) -> bool:
        """Take the figures of a queue from what was said of its consumer and its stream, and return whether
        its oldest item is known."""
        subjects: dict[str, int] = state.get("subjects") or {}
        figures = queue.figures
        stored = subjects.get(queue.address.subject, 0)
        figures.in_flight = queue.count_reserved(info)
        figures.items = max(0, stored - figures.in_flight)
        # the cluster counts the bytes of a stream alone
        figures.bytes = state["bytes"] * figures.items // state["messages"] if state["messages"] else 0
        figures.created_ms = date_ms(info["created"])
        # each has a subject of its own
        figures.delayed = state.get("num_subjects", 0) - len(subjects)
        head = None
        if figures.items:
            try:
                async with self._gate:
                    head = await queue.head(info, _soon())
            except UnavailableError:
                return False
        figures.head_ms = head.enqueued_ms if head is not None else 0
        return True


def _soon() -> float:
    """Return until when an answer is waited for, by the loop's clock: a leader answers at once."""
    return asyncio.get_running_loop().time() + TRY_S


def _name(info: dict[str, Any] | None) -> bytes | None:
    """Return the name in the metadata of a stream or a consumer; None if it is not darner's, or nothing is
    known of it."""
    name = None if info is None else (info["config"].get("metadata") or {}).get(NAME_KEY)
    return None if name is None else bytes.fromhex(name)
