"""The replies to meta commands about one item: its line, that it is stored, and that it is closed."""

import functools
from typing import cast

from darner._proto import Request
from darner._records import Item
from darner.errors import DarnerError, JournalError
from darner.meta_flags import Meta
from darner.queues.waiters import Source
from darner.wire.commands.slicing import retry_or_refuse
from darner.wire.connection import Connection
from darner.wire.replies import DELETED, NOT_FOUND, STORED, not_stored, server_error
from darner.wire.sending import Sender
from darner.wire.store import Receipt


def meta_line(request: Request, queue: Source, item: Item) -> bytes:
    """Return the line that a meta command is answered with for an item."""
    left_ms = queue.left_ms(item)
    left_s = -1 if left_ms is None else left_ms // 1000
    meta = cast("Meta", request.meta)
    return meta.found(item.size, item.flags, item.token, item.attempts, left_s, queue.waited_ms(item) // 1000)


def send_line(connection: Connection, request: Request, queue: Source, item: Item) -> None:
    """Reply with what a meta command asks of an item, if that is not its data."""
    if item.record is None and not (request.open or request.peek):
        try:
            queue.close(item)
        except JournalError as error:
            queue.give_back(item)
            connection.sender.replies.append(server_error(error))
            return
    connection.sender.replies.append(meta_line(request, queue, item))


def close_item(connection: Connection, request: Request, token: int) -> None:
    """Remove the reserved item with that token for good."""
    try:
        closed = connection.holds.close_item(request.queue, token)
    except JournalError as error:
        retry_or_refuse(connection, error, functools.partial(close_item, connection, request, token))
        return
    connection.counters.delete_hits += closed
    connection.counters.delete_misses += not closed
    connection.reply(request, DELETED if closed else NOT_FOUND)


class StoredReply:
    """The reply to an `ms`, which may wait for its item to be safe, or to have an id: a `Replier`."""

    __slots__ = ("_error", "_is_delayed", "_meta", "_receipt", "_sender", "_slot")

    def __init__(self, sender: Sender, request: Request, receipt: Receipt) -> None:
        self._sender = sender
        self._meta = cast("Meta", request.meta)
        # a delayed item has no id yet
        self._is_delayed = request.delay_ms > 0
        self._receipt = receipt
        self._error: DarnerError | None = None
        self._slot = len(sender.replies)
        sender.replies.append(b"")
        self._answer()
        receipt.hold(self, self._slot)

    def _answer(self) -> None:
        if self._error is not None:
            reply = self._meta.answer(not_stored(self._error))
        else:
            reply = self._meta.answer(STORED, 0 if self._is_delayed else self._receipt.id)
        self._sender.replies[self._slot] = reply

    def hold(self) -> None:
        """Send nothing until the matching `release`."""
        self._sender.hold()

    def fail(self, slot: int, error: DarnerError) -> None:  # noqa: ARG002 -- there is one slot
        """Reply why the item is not stored."""
        self._error = error
        self._answer()

    def release(self) -> None:
        """Send on: the item has its id, if it gets one."""
        self._answer()
        self._sender.release()
