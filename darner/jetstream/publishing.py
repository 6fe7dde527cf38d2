"""Sets on their way to the cluster: each is in all of its queues or in none, and sent again until the cluster
says which.
"""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from nats.aio.msg import Msg

from darner.errors import DarnerError, QueueFullError
from darner.jetstream.api import (
    BATCH_HAS_DUPLICATE,
    BATCH_INCOMPLETE,
    CLOSED,
    FULL,
    GIVE_UP_S,
    ID_IN_PROCESS,
    NO_RESPONDERS,
    PAUSE_S,
    TOO_MANY_BATCHES,
    TRY_S,
    UNAVAILABLE,
    ApiError,
    no_answer,
)
from darner.jetstream.link import Link, status_of
from darner.wire.store import Replier

# Errors after which it is sent again: the cluster has no leader now, or too much to do.
_TRANSIENT = UNAVAILABLE | {TOO_MANY_BATCHES, BATCH_INCOMPLETE, ID_IN_PROCESS}


class Message(NamedTuple):
    """An item for one queue."""

    subject: str
    headers: dict[str, str]


class Set:
    """A set that the cluster has still to acknowledge: a `Receipt`."""

    __slots__ = ("_client", "_error", "_is_done", "_slot", "id")

    def __init__(self) -> None:
        # the sequence of the item in its stream; 0 before it is acknowledged
        self.id = 0
        self._is_done = False
        self._error: DarnerError | None = None
        self._client: Replier | None = None
        self._slot = 0

    def hold(self, client: Replier, slot: int) -> None:
        """Hold reply `slot` of the client until the cluster has acknowledged the item."""
        if not self._is_done:
            self._client, self._slot = client, slot
            client.hold()
        elif self._error is not None:
            client.fail(slot, self._error)

    def settle(self, error: DarnerError | None, id: int = 0) -> None:
        """Take note that the item is stored, or why it is not."""
        self._is_done = True
        self._error = error
        self.id = id
        client, self._client = self._client, None
        if client is not None:
            if error is not None:
                client.fail(self._slot, error)
            client.release()


class Publish:
    """The messages of one set, published until they are acknowledged, for GIVE_UP_S at most.

    Each has a `Nats-Msg-Id`, so that it is stored once however often it is sent.
    """

    __slots__ = (
        "_deadline", "_link", "_loop", "_messages", "_on_missing", "_payload", "_reply",
        "_settle", "_timer", "is_duplicate",
    )  # fmt: skip

    def __init__(
        self,
        link: Link,
        messages: Sequence[Message],
        payload: bytes,
        settle: Callable[[DarnerError | None, int], None],
        on_missing: Callable[[], None] = lambda: None,
        deadline: float | None = None,
    ) -> None:
        """It is given up at `deadline`, by the loop's clock, or after GIVE_UP_S. `settle` is called with an
        error, or with None and the sequence of the first message. `on_missing` is called when nobody listens
        at the subject: the stream may have been deleted."""
        self._link = link
        self._messages = messages
        self._payload = payload
        self._settle = settle
        self._on_missing = on_missing
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + GIVE_UP_S if deadline is None else deadline
        self._reply = ""
        self._timer: asyncio.TimerHandle | None = None
        # whether the cluster had the item before this set
        self.is_duplicate = False

    def send(self) -> None:
        """Send the messages, and again if no answer comes."""
        if self._loop.time() >= self._deadline:
            self._settle(no_answer(), 0)
            return
        self._reply = reply = self._link.listen(self._answered)
        self._timer = self._loop.call_later(TRY_S, self._again)
        if len(self._messages) == 1:
            subject, headers = self._messages[0]
            self._link.send(subject, self._payload, reply, headers)
        else:
            self._send_batch(reply)

    def _send_batch(self, reply: str) -> None:
        """Send an atomic batch (ADR-50): all of its messages are stored or none."""
        batch = uuid.uuid4().hex
        for number, (subject, headers) in enumerate(self._messages, 1):
            of_batch = {**headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            is_last = number == len(self._messages)
            if is_last:
                of_batch["Nats-Batch-Commit"] = "1"
            self._link.send(subject, self._payload, reply if is_last else "", of_batch)

    def _forget(self) -> None:
        self._link.forget(self._reply)
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        self._forget()
        self.send()

    def _pause(self) -> None:
        self._timer = self._loop.call_later(PAUSE_S, self.send)

    def _answered(self, message: Msg) -> None:
        self._forget()
        if status_of(message) == NO_RESPONDERS:
            self._on_missing()
            self._pause()
            return
        answer: dict[str, Any] = msgspec.json.decode(message.data)
        error = answer.get("error")
        if error is None:
            self.is_duplicate = bool(answer.get("duplicate"))
            self._settle(None, answer["seq"] - len(self._messages) + 1)
            return
        code = error.get("err_code", 0)
        if code in _TRANSIENT:
            self._pause()
        elif code == CLOSED:
            if self._deadline - self._loop.time() < GIVE_UP_S / 2:
                self._on_missing()  # who has closed it may be dead
            self._pause()
        elif code in FULL:
            self._settle(QueueFullError("the queue is full"), 0)
        elif code == BATCH_HAS_DUPLICATE:
            self._send_each()
        else:
            self._settle(ApiError(code, error.get("description", "")), 0)

    def _send_each(self) -> None:
        """Send the messages of a batch one by one, for some of them are in their queues already: an earlier
        try has been stored, or a set with the same id. The others get it now."""
        left = len(self._messages)
        failures: list[DarnerError] = []

        def settle(error: DarnerError | None, _: int) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                failures.append(error)
            if not left:
                self.is_duplicate = all(each.is_duplicate for each in parts)
                self._settle(failures[0] if failures else None, 0)

        parts = [
            Publish(self._link, (message,), self._payload, settle, self._on_missing, self._deadline)
            for message in self._messages
        ]
        for part in parts:
            part.send()
