"""A queue and its children: one stream of the cluster, and a consumer for each."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from darner.config.settings import QueueSettings
from darner.errors import DarnerError, InternalError, UnavailableError
from darner.jetstream.api import (
    GIVE_UP_S,
    NO_CONSUMER,
    NO_STREAM,
    PAUSE_S,
    STREAM_IN_USE,
    WRONG_CHANGE,
    ApiError,
    call,
    call_all,
)
from darner.jetstream.link import Link
from darner.jetstream.names import NAME_KEY, PREFIX, Address, address, family_of, name_of, stream_of, token
from darner.printable import shown

# How many items of one queue may be in flight, and how many pulls may wait: more than any number of clients.
MAX_IN_FLIGHT = 1_000_000
MAX_PULLS = 100_000
# How many queues a family may have.
MAX_CONSUMERS = 10_000
# The size of a message that a closed stream takes at most: none of ours, for each has headers.
CLOSED_BYTES = 1
# For how long the ids of sets are remembered at least: a set is sent again for 20 s.
LEAST_WINDOW_MS = 60_000


def stream_config(family: bytes, settings: QueueSettings, replicas: int) -> dict[str, Any]:
    """Return the configuration of the stream of a family, whose parent has these settings."""
    limit = settings.max_items
    refuses = limit is not None and not settings.discard_old_when_full
    window_ms = max(settings.dedup_window_ms, LEAST_WINDOW_MS)
    age_ms = settings.max_age_ms or 0
    config: dict[str, Any] = {
        "name": stream_of(family),
        "subjects": [f"{PREFIX}.q.{token(family)}.*"],
        "retention": "workqueue",
        "storage": "file" if settings.durable else "memory",
        "num_replicas": replicas,
        "discard": "new" if refuses else "old",
        "discard_new_per_subject": refuses,
        "max_msgs_per_subject": -1 if limit is None else limit,
        "max_consumers": MAX_CONSUMERS,
        "max_age": age_ms * 1_000_000,
        "duplicate_window": (min(window_ms, age_ms) if age_ms else window_ms) * 1_000_000,
        "allow_direct": True,
        "allow_atomic": True,
        "allow_msg_ttl": True,
        "metadata": {NAME_KEY: family.hex()},
    }
    if not refuses:
        # a stream that refuses cannot have schedules (error 10052)
        config["allow_msg_schedules"] = True
        config["subjects"].append(f"{PREFIX}.d.{token(family)}.*")
    return config


def consumer_config(name: bytes, place: Address, ack_wait_s: float) -> dict[str, Any]:
    """Return the configuration of the consumer of a queue."""
    return {
        "durable_name": place.consumer,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * 1e9),
        "deliver_policy": "all",
        "filter_subject": place.subject,
        "max_deliver": -1,
        "max_ack_pending": MAX_IN_FLIGHT,
        "max_waiting": MAX_PULLS,
        "metadata": {NAME_KEY: name.hex()},
    }


# Called once a queue is there, with whether it is new, or with an error.
Ready = Callable[[DarnerError | None, bool], None]


class Family:
    """The queues of one family, as far as this darner knows them.

    `members` are known to exist. What is to be done once a queue is made waits in line, so that sets keep
    their order.
    """

    def __init__(
        self,
        name: bytes,
        link: Link,
        settings: Callable[[bytes], QueueSettings],
        replicas: int,
        ack_wait_s: float,
    ) -> None:
        self.name = name
        self.stream = stream_of(name)
        self.members: set[bytes] = set()
        # how often `members` has changed: what was asked for before that is out of date
        self._changes = 0
        # when this was last needed, by the loop's clock
        self.used_at = 0.0
        # when `members` were asked for, by the loop's clock; None if never
        self.loaded_at: float | None = None
        self._link = link
        self._settings = settings
        self._replicas = replicas
        self._ack_wait_s = ack_wait_s
        # queues to be made, with what is called then and until when, by the loop's clock
        self._line: deque[tuple[bytes, Ready, float]] = deque()
        self._making: asyncio.Task[None] | None = None
        # whether the stream has the limits of these settings, and whether its max_items is still above them
        self._is_configured = False
        self.is_loose = False

    def renew(self) -> None:
        """Have the stream get its limits again: the settings have changed."""
        self._is_configured = False
        self.loaded_at = None

    def forget(self) -> None:
        """Ask again which queues there are, before the next set."""
        self._changes += 1
        self.members.clear()

    def when_made(self, name: bytes, ready: Ready) -> None:
        """Make a queue, if it does not exist, and call `ready`, in the order of calls: with an error if it
        is not made in GIVE_UP_S from now on, however many are before it."""
        self._line.append((name, ready, asyncio.get_running_loop().time() + GIVE_UP_S))
        if self._making is None:
            self._making = asyncio.create_task(self._make())

    def is_made(self, name: bytes) -> bool:
        """Whether a set can go to a queue at once: it has its limits, and nobody waits for it to be made."""
        return name in self.members and self._is_configured and not self._line

    @property
    def has_line(self) -> bool:
        """Whether others wait for a queue to be made."""
        return bool(self._line)

    async def _make(self) -> None:
        try:
            while self._line:
                name, ready, deadline = self._line[0]
                error: DarnerError | None = None
                is_new = False
                try:
                    if name not in self.members or not self._is_configured:
                        is_new = await self._make_queue(name, deadline)
                except DarnerError as failure:
                    error = failure
                except Exception as failure:
                    error = InternalError(failure)
                self._line.popleft()
                ready(error, is_new)
        finally:
            self._making = None

    async def _make_queue(self, name: bytes, deadline: float) -> bool:
        """Make a queue, and return whether it was not there.

        Another darner may delete the stream between any two steps, or have deleted it before the first. Then
        all is made from the beginning. Raises UnavailableError if that has no end until `deadline`."""
        while True:
            was_configured = self._is_configured
            try:
                return await self._try_to_make_queue(name, deadline)
            except ApiError as error:
                if error.code != NO_STREAM:
                    raise
                self._is_configured = False
            if not was_configured:
                await asyncio.sleep(PAUSE_S)

    async def _try_to_make_queue(self, name: bytes, deadline: float) -> bool:
        if not self._is_configured:
            await self._make_stream(deadline)
            self._is_configured = True
        await self.load(deadline)
        if name in self.members:
            return False
        place = address(name)
        await call(
            self._link,
            f"CONSUMER.CREATE.{self.stream}.{place.consumer}.{place.subject}",
            {"stream_name": self.stream, "config": consumer_config(name, place, self._ack_wait_s)},
            deadline,
        )
        self._changes += 1
        self.members.add(name)
        return True

    async def _make_stream(self, deadline: float) -> None:
        config = stream_config(self.name, self._settings(self.name), self._replicas)
        try:
            await call(self._link, f"STREAM.CREATE.{self.stream}", config, deadline)
        except ApiError as error:
            if error.code != STREAM_IN_USE:
                raise
            await self._update_stream(config, deadline)

    async def _update_stream(self, config: dict[str, Any], deadline: float) -> None:
        """Have the stream get other limits.

        At once it would drop what is above a lower `max_items`. So it is closed for a moment in which what
        it has is counted, and takes no more than that until it is emptier."""
        self.is_loose = False
        present, most = await self._look_at_stream(deadline)
        limit, before = config["max_msgs_per_subject"], present["max_msgs_per_subject"]
        if config["discard"] == "new" and (before < 0 or limit < before):
            if most != before:
                await self._update({**present, "max_msg_size": CLOSED_BYTES}, deadline)
                await asyncio.sleep(PAUSE_S)  # what was on its way is in by then
                _, most = await self._look_at_stream(deadline)
            config = {**config, "max_msgs_per_subject": max(limit, most)}
            self.is_loose = most > limit
        await self._update(config, deadline)

    async def _update(self, config: dict[str, Any], deadline: float) -> None:
        try:
            await call(self._link, f"STREAM.UPDATE.{self.stream}", config, deadline)
        except ApiError as error:
            if error.code != WRONG_CHANGE:
                raise
            raise UnavailableError(
                f"queue {shown(self.name)} is there with other settings, and a cluster cannot change these: "
                f"put them back, or empty and delete the queue; {error}"
            ) from error

    async def _look_at_stream(self, deadline: float) -> tuple[dict[str, Any], int]:
        """Return the configuration of the stream, and how many items the fullest of its queues has."""
        body = {"subjects_filter": f"{PREFIX}.q.>"}
        info = await call(self._link, f"STREAM.INFO.{self.stream}", body, deadline)
        return info["config"], max((info["state"].get("subjects") or {}).values(), default=0)

    async def load(self, deadline: float | None = None) -> None:
        """Ask the cluster which queues there are; by `deadline`, or in GIVE_UP_S."""
        while True:
            before = self._changes
            found = await self._consumers(deadline)
            if before == self._changes:
                break
        self.members = found
        self.loaded_at = asyncio.get_running_loop().time()

    async def _consumers(self, deadline: float | None) -> set[bytes]:
        """Return the queues that have a consumer.

        Their names are asked for and no more, which the leader of the cluster knows by itself: a list of
        consumers leaves those out that have no leader now, and a set would not go to them."""
        try:
            consumers = await call_all(
                self._link, f"CONSUMER.NAMES.{self.stream}", "consumers", None, deadline
            )
        except ApiError as error:
            if error.code == NO_STREAM:
                return set()
            raise
        found: set[bytes] = set()
        for consumer in consumers:
            name = name_of(consumer, self.members) or await self._long_name(consumer, deadline)
            if name is not None and family_of(name) == self.name:
                found.add(name)
        return found

    async def _long_name(self, consumer: str, deadline: float | None) -> bytes | None:
        """Return the name of a queue that is too long for that of its consumer; None if it is gone."""
        try:
            info = await call(self._link, f"CONSUMER.INFO.{self.stream}.{consumer}", None, deadline)
        except ApiError as error:
            if error.code in (NO_CONSUMER, NO_STREAM):
                return None
            raise
        return bytes.fromhex(info["config"]["metadata"][NAME_KEY])

    async def delete(self, name: bytes) -> bool:
        """Delete a queue with all its items, and the stream with the last of its queues; returns whether it
        was there."""
        await self.load()
        if name not in self.members:
            return False
        self._changes += 1
        self.members.discard(name)
        self._is_configured = False
        if self.members:
            place = address(name)
            await self._unless_gone(f"CONSUMER.DELETE.{self.stream}.{place.consumer}")
            await self._unless_gone(f"STREAM.PURGE.{self.stream}", {"filter": place.subject})
        else:
            await self._unless_gone(f"STREAM.DELETE.{self.stream}")
        return True

    async def flush(self, name: bytes) -> None:
        """Discard what a queue has."""
        await self._unless_gone(f"STREAM.PURGE.{self.stream}", {"filter": address(name).subject})

    async def _unless_gone(self, api: str, body: dict[str, Any] | None = None) -> None:
        try:
            await call(self._link, api, body)
        except ApiError as error:
            if error.code not in (NO_STREAM, NO_CONSUMER):
                raise
